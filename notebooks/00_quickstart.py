# ---
# jupyter:
#   jupytext:
#     formats: py:percent,ipynb
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Quickstart: from a language model to its features
#
# Capture activations, train two sparse dictionaries on them, measure what they keep, and look at a feature.
# Everything runs offline on one CPU; the model is fetched once, from the Python package index.

# %% tags=["parameters"]
import os
import tempfile
from pathlib import Path

import sae

FAST = os.environ.get("SAE_FAST", "1") == "1"  # set SAE_FAST=0 for the sizes at which the numbers mean something
N_TOKENS, D_SAE, K, N_STEPS = (24_000, 512, 16, 120) if FAST else (250_000, 2048, 32, 900)
SITE = "blocks.15.hook_resid_post"
folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## The model and the text
#
# `LanguageModel` wraps TransformerLens. Sites carry TransformerLens names; a mistyped one says which are near.

# %%
model = sae.LanguageModel.load(sae.default_model())
site = model.site(SITE)
model.shape

# %%
addresses = list(sae.state_of_the_union().documents())
corpus = sae.from_texts(
    [document.text[: 600 if FAST else 6_000] for document in addresses],
    [document.labels for document in addresses],
    name="openings of the State of the Union addresses",
)
print(addresses[80].labels, addresses[80].text[:90])

# %% [markdown]
# ## Activations on disk
#
# `collect` is an iterator: stop it anywhere, call it again, and it goes on where it was. The store remembers what made it, and masks the first
# position of every row and norm outliers, whose huge norms would drown everything else.

# %%
for _ in sae.collect(model, corpus, folder / "store", sae.CaptureConfig(sites=(SITE,), n_tokens=N_TOKENS)):
    pass
store = sae.ActivationStore.open(folder / "store")
statistics = store.statistics(SITE)
print(f"{store.n_tokens:,} tokens in {store.n_rows:,} rows of {store.context}, stored as {store.dtype}")
print(f"{statistics.n:,} tokens are used; a norm above {statistics.threshold:.0f} (six times the median) is an outlier")

# %% [markdown]
# ## Two dictionaries
#
# A TopK autoencoder encodes in one look; a matching pursuit picks its latents one after the other, each for what the earlier ones left over.
# `train` is an iterator too: logging and checkpoints belong to the loop.

# %%
scaling = sae.fit_scaling(store, SITE)
sample = store.gather(SITE, store.usable_tokens(SITE)[:8192]).float()
top_k = sae.Autoencoder(sae.AutoencoderConfig(d_in=site.width, d_sae=D_SAE, activation=sae.TopK(k=K)), scaling)
pursuit = sae.MatchingPursuit(sae.PursuitConfig(d_in=site.width, d_sae=D_SAE, k=K), scaling)
for name, dictionary, n_steps in (("TopK", top_k, N_STEPS), ("Matching pursuit", pursuit, N_STEPS // 3)):
    sae.initialise_(dictionary, sample)
    batches = store.batches(SITE, batch_size=1024, seed=0)
    config = sae.TrainConfig(n_steps=n_steps, learning_rate=4e-3)
    fvu = [step.fvu for step in sae.train(dictionary, batches, sae.ReconstructionObjective(), config)]
    print(f"{name}: batch FVU {fvu[0]:.3f} -> {fvu[-1]:.3f}")

# %% [markdown]
# ## What they keep
#
# On documents that training did not see. FVU is the fraction of variance unexplained; predicting the mean has FVU 1.


# %%
def held_out():
    return store.batches(SITE, batch_size=2048, seed=0, split="held_out")


scores = {name: sae.reconstruction(dictionary, held_out()).scores for name, dictionary in (("TopK", top_k), ("Matching pursuit", pursuit))}
for name, score in scores.items():
    print(f"{name:<18} FVU {score.fvu:.3f}   L0 {score.l0:.1f}   alive {1 - score.dead_share:.1%}   ({score.n_tokens:,} tokens)")
assert all(score.fvu < 0.6 for score in scores.values())
assert all(score.dead_share < 0.05 for score in scores.values())

# %% [markdown]
# The error as a function of how many latents may be used: a TopK code is made for one k, a pursuit for all of them.

# %%
import plotly.graph_objects as go

ks = [1, 2, 4, 8, 16, 32, 64]
curves = {name: sae.error_versus_k(dictionary, held_out(), ks) for name, dictionary in (("TopK", top_k), ("Matching pursuit", pursuit))}
axes = {"xaxis": {"title": "latents per token, k", "type": "log"}, "yaxis": {"title": "FVU"}, "template": "plotly_white", "height": 380}
figure = go.Figure(layout=axes)
for name, curve in curves.items():
    figure.add_scatter(x=curve.k, y=curve.fvu, name=name, mode="lines+markers")
    print(f"{name:<18}" + "  ".join(f"k={k}: {fvu:.3f}" for k, fvu in zip(curve.k, curve.fvu, strict=True)))
figure.show("plotly_mimetype")
errors = list(curves["Matching pursuit"].fvu)
assert errors == sorted(errors, reverse=True)

# %% [markdown]
# ## What the model loses
#
# The reconstruction takes the activation's place and the model runs on from there. "Recovered" is measured against replacing the activation
# by its mean, the stricter of the two usual baselines.

# %%
mask = store.mask(SITE).reshape(-1, store.context)[:8]
mean = statistics.mean.float()
*_, (rows, losses) = sae.downstream(model, {"TopK": top_k, "Matching pursuit": pursuit}, site, store.tokens()[:8], mask, mean)
for name, loss in losses.items():
    print(
        f"{name:<18} CE {loss.ce_clean:.2f} -> {loss.ce_spliced:.2f}  (mean-ablated {loss.ce_mean:.2f}; recovered {loss.ce_recovered_mean:.2f})"
    )
assert all(loss.ce_clean < loss.ce_spliced < loss.ce_mean for loss in losses.values())

# %% [markdown]
# ## A feature
#
# The index encodes every token once and keeps the codes sparse. A card needs no server and no JavaScript.

# %%
for _ in sae.build_index(
    store, SITE, top_k, folder / "index", name="TopK", model=model, labels={d.id: d.labels for d in corpus.documents()}
):
    pass
index = sae.FeatureIndex.open(folder / "index")
telling = sae.telling_features(index, 5)
index[telling[0].index]

# %%
index[telling[1].index]

# %% [markdown]
# ## A probe
#
# Can the latents tell an early address from a late one? Splits are by address, the latents are chosen inside the fold, and the score stands beside
# shuffled labels.

# %%
import probes

task = probes.era(sae.state_of_the_union(), n_per_document=2 if FAST else 8, group_label="speaker")
pooled = probes.pooled_features(model, task.texts, site, {"TopK": top_k, "Matching pursuit": pursuit}, context=96)
features = {"residual stream": pooled.acts} | {f"{name} latents": codes for name, codes in pooled.codes.items()}
rows = probes.probe_table(features, task.y, task.groups, probes.ProbeTableConfig(ks=(1, 16), n_shuffles=3, n_random=3))
print(probes.render_table(rows))

# %%
by_name = {(row.features, row.method, row.k): row.scores.auc for row in rows}
best = by_name["TopK latents", "mean_difference", 16]
print(f"16 TopK latents: AUC {best.value:.3f} [{best.low:.3f}, {best.high:.3f}], on shuffled labels {best.null_mean:.3f}")
assert best.value > best.null_mean + 0.1

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
# # Looking at features
#
# An index encodes every token once and keeps what fired, exactly. From it come cards, tables, search, comparisons and the features of any text you
# type, for a TopK autoencoder and for a matching pursuit alike. Nothing here needs JavaScript: what you see is in the file.

# %% tags=["parameters"]
import os
import tempfile
from pathlib import Path

import numpy as np

import sae
from sae.inspection.exports import export
from sae.inspection.live import Live, framing_of

FAST = os.environ.get("SAE_FAST", "1") == "1"  # set SAE_FAST=0 for a deeper layer, more tokens, wider dictionaries
LAYER, N_TOKENS, D_SAE, STEPS = (5, 8_192, 256, (60, 20)) if FAST else (9, 50_000, 1024, (300, 70))
SITE = f"blocks.{LAYER}.hook_resid_post"
folder = Path(tempfile.mkdtemp())
model = sae.LanguageModel.load(sae.default_model())

# %% [markdown]
# ## Activations and two dictionaries
#
# A TopK autoencoder, and a matching pursuit with signed selection: it may add an atom or take it away, so its values have both signs, and they come
# in the order of selection.

# %%
corpus = sae.state_of_the_union()
config = sae.CaptureConfig(sites=(SITE,), n_tokens=N_TOKENS, rows_per_shard=64)
*_, _ = sae.collect(model, corpus, folder / "acts", config)
store = sae.ActivationStore.open(folder / "acts")
sizes, scaling = {"d_in": store.site(SITE).width, "d_sae": D_SAE}, sae.fit_scaling(store, SITE)
provenance = {"site": SITE, "model_digest": model.digest}
dictionaries = {
    "TopK": sae.Autoencoder(sae.AutoencoderConfig(**sizes, activation=sae.TopK(k=32)), scaling, provenance=provenance),
    "pursuit": sae.MatchingPursuit(sae.PursuitConfig(**sizes, k=32, selection="signed"), scaling, provenance=provenance),
}
for (name, dictionary), n_steps in zip(dictionaries.items(), STEPS, strict=True):
    sae.initialise_(dictionary, store.gather(SITE, store.usable_tokens(SITE)[: 4 * D_SAE]).float())
    batches = store.batches(SITE, batch_size=1024, seed=0)
    *_, last = sae.train(dictionary, batches, sae.ReconstructionObjective(), sae.TrainConfig(n_steps=n_steps, learning_rate=4e-3))
    print(f"{name:<8} batch FVU {last.fvu:.3f}")

# %% [markdown]
# ## An index of each
#
# With the model, an index also knows which tokens each feature promotes. `Live` encodes new texts as the store's rows were made.

# %%
labels = {document.id: document.labels for document in corpus.documents()}
indexes = {}
for name, dictionary in dictionaries.items():
    for _ in sae.build_index(store, SITE, dictionary, folder / name, name=name, model=model, labels=labels):
        pass
    live = Live(model, dictionary, SITE, framing=framing_of(store, SITE))
    indexes[name] = sae.FeatureIndex.open(folder / name).attach(live)
    n_active = indexes[name].statistics.n_active
    print(f"{name:<8} {n_active.sum():,} values on {indexes[name].n_tokens:,} tokens; {np.mean(n_active == 0):.1%} of latents never fire")
index, pursuit = indexes["TopK"], indexes["pursuit"]
assert n_active.sum() > indexes["pursuit"].n_tokens * 20

# %% [markdown]
# ## Where to begin
#
# The features that tell most: how many bits a firing gives about the token it is on and about the next, on documents that were held out. `by` may
# also be the density, the largest value, or any other of the index's statistics. Below the table, the card of the first.

# %%
telling = index.top(n=10)
assert (np.diff(telling.values) <= 0).all()
telling

# %%
card = index[int(telling.ids[0])]
assert card.record.examples[0].value == card.record.max
assert sum(card.record.histogram.counts) == card.record.n_active
card

# %% [markdown]
# ## Search
#
# By the tokens that drive a feature, those it promotes, and labels that were given.

# %%
war = index.search("war", limit=8)
assert any(token.token.strip().lower().startswith("war") for token in index.record(war.ids[0]).driving_tokens)
war

# %% [markdown]
# ## A text of your own
#
# Under each token stands its strongest feature; below, all that fire, with what each is about. A text that is in the corpus gets what the index
# has: here, the first row of the store.

# %%
TEXT = "Our soldiers are at war with Spain, and the Congress must provide for an army of 20,000 men.\nMay peace come soon."
seen = index.on(TEXT, n=12)
seen

# %%
row = model.tokenizer.decode(store.tokens()[0][1:])
(encoded,) = index.live.encode([row])
assert list(encoded.token_ids) == store.tokens()[0].tolist()
kept = [index.at_token(position) for position in range(store.context)]
same = [set(entries.ids.tolist()) == set(latents) for entries, latents in zip(kept, encoded.latents, strict=True)]
close = [np.allclose(e.values, v, rtol=0.05, atol=0.05) for e, v, s in zip(kept, encoded.values, same, strict=True) if s]
print(f"the same latents on {np.mean(same):.1%} of {store.context} tokens; the rest differ in values that nearly tie, by rounding")
assert min(np.mean(same), np.mean(close)) > 0.9

# %% [markdown]
# ## Side by side
#
# How alike two features are: the cosine of their directions, and how often they fire together, counted over all tokens beside what independence
# would give.

# %%
peace = index.search("peace", limit=8)
chosen = list(dict.fromkeys((*war.ids[:2], peace.ids[0])))[:3]
compared = index.compare(*chosen)
pair = compared.pairs[0]
fires = [np.isin(np.arange(store.n_tokens), index.entries(latent).ids) for latent in (pair.a, pair.b)]
assert pair.n_both == int((fires[0] & fires[1]).sum())
compared

# %% [markdown]
# ## Two sets of texts
#
# Which features tell them apart? The p-value is against random divisions of the same texts, and holds for the best of all features.

# %%
at_war = [
    "The army has taken the city after a long siege.",
    "Our troops fought the enemy near the river.",
    "The fleet destroyed the ships of Spain.",
    "Soldiers and sailors gave their lives in battle.",
    "The war was declared in the month of April.",
    "The rebels laid down their arms and surrendered.",
]
at_home = [
    "The revenue of the Treasury exceeds its expenses.",
    "The tariff on wool should be reduced this year.",
    "Banks must redeem their notes in gold coin.",
    "The public debt was paid from the surplus.",
    "The income tax is lower for working families.",
    "Trade in cotton and corn has grown again.",
]
contrast = index.contrast(at_war, at_home, n=8)
best = contrast.contrasts[0]
scores = [[max(index.on(text).values(best.index), key=abs) for text in texts] for texts in (at_war, at_home)]
above = np.mean([(a > b) + (a == b) / 2 for a in scores[0] for b in scores[1]])
assert np.isclose(best.auc, above)
contrast

# %% [markdown]
# ## A matching pursuit
#
# The same card, with what only a pursuit has: coefficients of both signs, blue where the atom is taken away, and the step at which it is picked.

# %%
statistics = pursuit.statistics
signed = pursuit.top(by="min", ascending=True, n=6, min_density=1e-3)
assert (statistics.min < 0).mean() > 0.5
signed

# %%
both = np.argmax(np.minimum(statistics.max, -statistics.min) * (statistics.n_active > 50))
record = pursuit.record(both)
assert record.min < 0 < record.max
assert sum(record.steps) == record.n_active
pursuit[both]

# %% [markdown]
# The same text, seen by the pursuit: values with their sign, and the step at which each was selected. The first steps carry most: on average the
# magnitude falls from step to step.

# %%
seen_by_pursuit = pursuit.on(TEXT, n=12)
size = [[abs(values[i]) for values in seen_by_pursuit.texts[0].values if len(values) > i] for i in (0, 4, 16)]
print("mean |value| at steps 1, 5, 17:", ", ".join(f"{np.mean(each):.2f}" for each in size))
assert np.mean(size[0]) > np.mean(size[1]) > np.mean(size[2])
assert any(value < 0 for values in seen_by_pursuit.texts[0].values for value in values)
seen_by_pursuit

# %% [markdown]
# ## Taking it out, serving it
#
# Chosen features as pages that need no server; the formats of SAEDashboard and Neuronpedia, JSON and Parquet likewise. From a shell:
#
# ```
# sae index DICTIONARY --store ACTS --out INDEX --model default
# sae export INDEX --format html --out site --features 12,34
# sae serve INDEX                                                 # pages and API, without loading the language model
# sae serve INDEX --model default --dictionary DICTIONARY         # and texts encoded live
# ```
#
# With the extra `widgets`, `sae.inspection.widget.text_widget(index)` is a field to type in, here in the notebook.

# %%
site = export(index, "html", folder / "site", latents=[int(i) for i in telling.ids[:3]])
files = sorted(str(file.relative_to(site)) for file in site.rglob("*") if file.is_file())
print("\n".join(files))
assert any(name.endswith(".html") for name in files)

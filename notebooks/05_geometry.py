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
# # Geometry
#
# Shapes of concepts, quality and dimension of layers, and dictionaries beside each other. Every number comes with what chance gives: the same
# estimator, sample and search on data without the structure. `sae geometry` runs the same batteries from a terminal and writes a page.

# %% tags=["parameters"]
import os
import tempfile
from pathlib import Path

import plotly.io
import torch
from IPython.display import display

import sae
from sae.evaluation.batteries import Inputs, gather, perform, plan
from sae.evaluation.figures import Axis, Figure, Series
from sae.evaluation.layer_quality import LayerQualityConfig, layer_quality
from sae.evaluation.text_views import sampled_sentences
from sae.geometry.dimension import compare_nonlinear
from sae.geometry.multidimensional import circle_of_classes, class_means, strongest
from sae.inspection.interactive import to_plotly
from sae.inspection.notebook import group_views, summary

plotly.io.renderers.default = "plotly_mimetype"
FAST = os.environ.get("SAE_FAST", "1") == "1"  # set SAE_FAST=0 for all layers, more prompts, larger dictionaries
LAYERS = (5, 15, 25) if FAST else tuple(range(30))
N_PROMPTS, N_NULL = (40, 19) if FAST else (600, 19)
N_TOKENS, D_SAE, STEPS = (8_192, 256, (40, 15)) if FAST else (60_000, 2048, (400, 150))
folder = Path(tempfile.mkdtemp())
model = sae.LanguageModel.load(sae.default_model())
sites = [model.site(f"blocks.{layer}.hook_resid_post") for layer in LAYERS]


# %%
def over_layers(title, unit, found, caption=""):
    """A number at every layer, and its null."""
    null = [(n.null_mean, n.null_mean - 2 * n.null_sd, n.null_mean + 2 * n.null_sd) for n in found]
    mean, low, high = zip(*null, strict=True)
    series = (
        Series("null ± 2 sd", LAYERS, mean, low, high, role="null"),
        Series("SmolLM2-135M", LAYERS, tuple(n.value for n in found)),
    )
    return to_plotly(Figure(title, Axis("layer"), Axis(title, unit), series, caption=caption))


# %% [markdown]
# ## Do the months lie on a circle?
#
# The states at the month's own token, in sentences where only the month differs. A map to the circle is fitted without one month and tested on it;
# the null exchanges the order of the months. Distances that grow along the year and do not close would be a line.

# %%
MONTHS = ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"]
SENTENCES = (
    "The meeting is in {}", "She was born in {}", "See you next {}", "They arrived late in {}", "The war began in {}", "The harvest begins in {}",
    "We were married in {}", "The first snow fell in {}", "The festival takes place in {}", "Her trip was delayed until {}",
)  # fmt: skip
states = {site: [] for site in sites}
for sentence in SENTENCES:
    tokens = torch.tensor([[model.separator_id, *row] for row in model.tokenize([sentence.format(month) for month in MONTHS])])
    for site, acts in model.capture(tokens, sites).items():
        states[site].append(acts[:, -1])
labels = torch.arange(12).repeat(len(SENTENCES))
circles = [circle_of_classes(torch.cat(states[site]), labels, n_classes=12, n_null=199 if FAST else 1999, seed=0) for site in sites]
best, found = strongest(circles, statistic="held out")
print(
    f"layer {LAYERS[best]}: cosine of a left-out month's angle with the true one {found.value:.2f}, p = {found.p_greater:.4f} over all layers"
)
assert found.p_greater < 0.01

# %%
over_layers(
    "cosine of a left-out month with its true angle", "", [circle.held_out for circle in circles], "Null: months in another order."
).show()
means = class_means(torch.cat(states[sites[best]]), labels, n_classes=12)
plane = (means - means.mean(0)) @ torch.linalg.svd(means - means.mean(0), full_matrices=False).Vh[:2].T
x, y = (tuple(column.tolist()) for column in plane.T)
title = f"Months at layer {LAYERS[best]}: the plane of most variance"
axes = Axis("first component"), Axis("second component")
caption = (
    f"The plane holds {circles[best].plane_share:.0%} of the variance of the means; the last month is {circles[best].closure:.2f} times as far from "
    "the first as neighbours are (a line: 11). The mean of all months is long, so in the whole space the circle lies on a cone."
)
drawn = to_plotly(Figure(title, *axes, (Series("months", x, y, mark="points", labels=tuple(MONTHS)),), caption=caption, equal=True))
drawn.update_traces(mode="markers+text", text=MONTHS, textposition="top center").show()

# %% [markdown]
# ## Layers without a task
#
# Entropy of a prompt's tokens, curvature of their path, and how different the prompts are from each other. `METRICS` in
# `sae.evaluation.layer_quality` says what each one means.

# %%
prompts = sampled_sentences((document.text for document in sae.state_of_the_union().documents()), N_PROMPTS, shortest=12)
metrics = {
    "prompt_entropy": "entropy of a prompt's tokens",
    "curvature": "curvature",
    "dataset_entropy": "entropy of the prompts",
    "info_nce": "InfoNCE loss",
    "dime": "DiME",
    "effective_rank": "effective rank",
}
quality = layer_quality(model, prompts, LayerQualityConfig(metrics=tuple(metrics), n_null=N_NULL), sites=sites)
for name, title in metrics.items():
    curve = quality.curve(name)
    null, n = curve.null, len(sites)
    mean, sd = null.null_mean.tolist(), null.null_sd.tolist()
    low, high = ([m + sign * 2 * s for m, s in zip(mean, sd, strict=True)] for sign in (-1, 1))
    lines = (
        Series("null ± 2 sd", LAYERS, tuple(mean), tuple(low), tuple(high), role="null"),
        Series("SmolLM2-135M", LAYERS, tuple(null.values.tolist())),
    )
    to_plotly(Figure(title, Axis("layer"), Axis(title), lines, caption=curve.meaning)).show()
entropy = quality.curve("prompt_entropy")
assert (entropy.null.values < entropy.null.null_mean).float().mean() > 0.5

# %% [markdown]
# ## Intrinsic dimension
#
# TwoNN on the last tokens of the prompts, beside Gaussian clouds of the same covariance and number of points. Above about 10 every such estimate is
# a lower bound; what counts is the distance from the Gaussian, which has the same bias.

# %%
dimensions = [
    compare_nonlinear(quality.last[i], generator=torch.Generator().manual_seed(0), n_null=5 if FAST else 19, k=10, n_neighbours=32)
    for i in range(len(sites))
]
over_layers(
    "intrinsic dimension (TwoNN)", "", [each.two_nn_ml for each in dimensions], "Null: Gaussian of equal covariance and number of points."
).show()
print("layer, TwoNN, Gaussian, PCA 99 %, participation ratio")
for layer, each in zip(LAYERS, dimensions, strict=True):
    print(
        f"{layer:5d} {each.two_nn_ml.value:6.1f} {each.two_nn_ml.null_mean:9.1f} {each.linear.pca_99:8d} {each.linear.participation_ratio:8.1f}"
    )

# %% [markdown]
# ## Four dictionaries of one layer
#
# TopK and matching pursuit, each from two seeds. What two seeds share is what the data determine; what they do not is the seed's.

# %%
SITE = "blocks.15.hook_resid_post"
*_, _ = sae.collect(model, sae.state_of_the_union(), folder / "acts", sae.CaptureConfig(sites=(SITE,), n_tokens=N_TOKENS))
store = sae.ActivationStore.open(folder / "acts")
scaling, sizes = sae.fit_scaling(store, SITE), {"d_in": store.site(SITE).width, "d_sae": D_SAE}
usable, dictionaries = store.usable_tokens(SITE), {}
for seed in (0, 1):
    for kind, steps in zip(("TopK", "pursuit"), STEPS, strict=True):
        if kind == "TopK":
            dictionary = sae.Autoencoder(sae.AutoencoderConfig(**sizes, activation=sae.TopK(k=32)), scaling, seed=seed)
        else:
            dictionary = sae.MatchingPursuit(sae.PursuitConfig(**sizes, k=32), scaling, seed=seed)
        sample = usable[torch.randperm(len(usable), generator=torch.Generator().manual_seed(seed))[: 4 * D_SAE]]
        sae.initialise_(dictionary, store.gather(SITE, sample).float())
        batches = store.batches(SITE, batch_size=1024, seed=seed)
        *_, last = sae.train(dictionary, batches, sae.ReconstructionObjective(), sae.TrainConfig(n_steps=steps, learning_rate=4e-3))
        dictionaries[f"{kind} {seed}"] = dictionary
        print(f"{kind:<8} seed {seed}: batch FVU {last.fvu:.3f}")


# %%
SLOW = {"convergent", "together", "needed_latents"}  # minutes each; `sae geometry` runs them too


def measured(first, second=None, batteries=None):
    """The batteries' results; cached on disk."""
    names = {"dictionary": first, "other": second or ""}
    other = dictionaries[second] if second else None
    inputs = Inputs(
        cache=sae.ResultCache(folder / "results"), dictionary=dictionaries[first], other=other, store=store, site=SITE, names=names
    )
    tasks = [task for task in plan(batteries, inputs, quick=FAST) if task.measure.name not in SLOW]
    return gather([perform(task, inputs) for task in tasks], seed=0)


pairs = {pair: measured(*pair, ["pair"]) for pair in (("TopK 0", "TopK 1"), ("pursuit 0", "pursuit 1"), ("TopK 0", "pursuit 0"))}
for pair, results in pairs.items():
    print(" | ".join(pair), "—", summary(results))

# %%
view, *others = group_views(pairs["TopK 0", "TopK 1"])
display(view)
for figure in view.figures():
    figure.show()

# %%
for pair in (("pursuit 0", "pursuit 1"), ("TopK 0", "pursuit 0")):
    print(*pair)
    display(group_views(pairs[pair])[0])

# %% [markdown]
# ## One dictionary
#
# Its atoms and its codes: coherence against random directions, clusters, densities, features that fire together.

# %%
one = measured("TopK 0", batteries=["atoms", "codes"])
print(summary(one))
for view in group_views(one, n_rows=12):
    display(view)
    for figure in view.figures()[:1]:
        figure.show()
assert any(found.stands_out != "no" and found.p is not None for found in one.findings)

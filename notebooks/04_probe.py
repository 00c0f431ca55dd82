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
# # Probes and directions
#
# What can be read from a layer, by how few numbers, and is it more than chance? Tasks with known answers, sparse probes on neurons and on the
# latents of two dictionaries, layer by layer, each beside all columns, shuffled labels and random coordinates; then directions of concepts, and
# what a model's unembedding alone says of them.

# %% tags=["parameters"]
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import plotly.io
import torch

import probes
import sae
from probes.sweep import SweepConfig, compare_sweeps, sweep

plotly.io.renderers.default = "plotly_mimetype"
FAST = os.environ.get("SAE_FAST", "1") == "1"  # set SAE_FAST=0 for more layers, tasks, tokens
LAYERS = (5, 11) if FAST else (5, 15, 25)
N_TOKENS, D_SAE, STEPS = (8_192, 512, (60, 20)) if FAST else (100_000, 2048, (400, 150))
PER_CLASS = 40 if FAST else 150
folder = Path(tempfile.mkdtemp())
model = sae.LanguageModel.load(sae.default_model())

# %% [markdown]
# ## Tasks
#
# A task is texts, or places in texts, with answers that are known without any model. `groups` say which rows share a document: every split keeps
# them together. Yours come from a CSV, JSON or Parquet file, or a data set.

# %%
names = ("prose_or_code", "era", "is_animal") if FAST else ("prose_or_code", "era", "party", "is_animal", "docstring_package", "compound")
tasks = [probes.CATALOGUE[name].make() for name in names]
tasks = [task.subsample(min(PER_CLASS, *task.counts.values()), seed=0) for task in tasks]
strings = [probes.CATALOGUE[name].make() for name in ("has_leading_space", "leading_capital")]
tasks += [replace(task, texts=task.texts[:PER_CLASS], groups=task.groups[:PER_CLASS], n_rows=2 * PER_CLASS) for task in strings]
tasks[2].examples(3)

# %% [markdown]
# ## Dictionaries
#
# TopK and matching pursuit, trained on the residual stream after each layer, on text like that of the tasks.

# %%
streams = {layer: f"blocks.{layer}.hook_resid_post" for layer in LAYERS}
neurons = {layer: f"blocks.{layer}.mlp.hook_post" for layer in LAYERS}
speeches = [address.text[: 400 if FAST else 2500] for address in sae.state_of_the_union().documents()]
code = list(probes.CATALOGUE["prose_or_code"].make().texts[: 200 if FAST else 1000])
config = sae.CaptureConfig(sites=tuple(streams.values()), n_tokens=N_TOKENS, if_short="accept")
*_, _ = sae.collect(
    model, sae.from_texts([text for pair in zip(speeches, code, strict=False) for text in pair] + code), folder / "acts", config
)
store = sae.ActivationStore.open(folder / "acts")

# %%
dictionaries = {}
for site in streams.values():
    scaling, sizes = sae.fit_scaling(store, site), {"d_in": store.site(site).width, "d_sae": D_SAE}
    provenance = {"site": site, "model_digest": model.digest}
    made = {
        "TopK": sae.Autoencoder(sae.AutoencoderConfig(**sizes, activation=sae.TopK(k=32)), scaling, seed=0, provenance=provenance),
        "pursuit": sae.MatchingPursuit(sae.PursuitConfig(**sizes, k=32), scaling, seed=0, provenance=provenance),
    }
    for (kind, dictionary), steps in zip(made.items(), STEPS, strict=True):
        sae.initialise_(dictionary, store.gather(site, store.usable_tokens(site)[: 4 * D_SAE]).float())
        batches = store.batches(site, batch_size=1024, seed=0)
        *_, last = sae.train(dictionary, batches, sae.ReconstructionObjective(), sae.TrainConfig(n_steps=steps, learning_rate=4e-3))
        dictionaries[f"{kind}, {site}"] = dictionary
        print(f"{kind:<8} {site}: batch FVU {last.fvu:.3f}")

# %% [markdown]
# ## Matrices
#
# One pass of the model gives every site; codes stay sparse. A row is a text (its tokens' mean) or a place (its last token).

# %%
data = probes.from_model(model, tasks, [*streams.values(), *neurons.values()], dictionaries=dictionaries)
data.report()

# %% [markdown]
# ## Layer by layer
#
# Documents are split in two. Columns are chosen, scaled and fitted on the training documents only, and the scores are those of the test documents.
# Shuffled labels are fitted by the same protocol: what they reach is what choosing the luckiest of so many columns gives.

# %%
ks = (1, 2, 4, 16) if FAST else (1, 2, 4, 16, 64)
options = SweepConfig(ks=ks, n_shuffles=2 if FAST else 5, n_bootstrap=200)
kinds = {
    "neurons": list(neurons.values()),
    "TopK latents": [name for name in dictionaries if name.startswith("TopK")],
    "pursuit latents": [name for name in dictionaries if name.startswith("pursuit")],
    "residual stream": list(streams.values()),
}
sweeps = {name: sweep(data.problems, data.source, options, name=name, matrices=matrices) for name, matrices in kinds.items()}
sweeps["neurons"]

# %%
sweeps["TopK latents"]

# %%
sweeps["pursuit latents"]

# %% [markdown]
# ## Side by side
#
# The layer is chosen for every k on folds of the training documents, so a test score is not the luckiest of several layers.

# %%
compared = compare_sweeps(list(sweeps.values()))
compared.figure().show()
compared

# %%
for name, found in sweeps.items():
    dense = [found.best(problem, k=None).test.auc.value for problem in found.problems]
    null = [found.best(problem, k=ks[-1]).test.auc.null_mean for problem in found.problems]
    dense, null = sum(dense) / len(dense), sum(null) / len(null)
    print(f"{name:<16} all columns {dense:.3f}, shuffled labels {null:.3f} (means over {len(found.problems)} problems)")
    assert dense > null + 0.2

# %% [markdown]
# ## Directions
#
# The mean difference, a shrunk discriminant and the logistic direction of one concept: how well each separates documents it has not seen, and how
# alike they are. A direction is orientated by the labels; two random ones have a cosine near sqrt(2 / (pi d)).

# %%
problem = next(each for each in data.problems if each.name == "prose_or_code")
rows = probes.labelled_rows(data.source, streams[LAYERS[-1]], problem)
readers = {
    "mean difference": probes.MeanDifferenceDirection(),
    "LDA": probes.LDADirection(),
    "logistic": probes.LogisticDirection(),
}
compared_readers = probes.compare_readers(readers, rows)
assert all(score.auc.low > score.auc.null_mean for score in compared_readers.scores)
compared_readers

# %% [markdown]
# ## Concepts in the unembedding
#
# No forward pass: counterfactual pairs of words, such as singular and plural, in the causal inner product. Different concepts are all but
# orthogonal there and not in the Euclidean one. Concepts of random pairs say how much of that any whitening gives.

# %%
unembedding = probes.read_unembedding(model)
causal = probes.CausalInnerProduct().fit(unembedding.rows)
pairs = probes.token_pairs(unembedding)
cosines = probes.concept_cosines(pairs, unembedding, causal)
cosines.figure().show()
assert torch.tensor(cosines.off_diagonal("causal")).median() < 0.3 * torch.tensor(cosines.off_diagonal("Euclidean")).median()
cosines

# %% [markdown]
# ## Hierarchies
#
# Child and parent categories of WordNet. The orthogonality of a child's increment to its parent (nested cosine 0) is found in random sets too; the
# projection on a parent that is estimated without the child's words is not.

# %%
tree = probes.vocabulary_hierarchy(unembedding)
edges = probes.hierarchy_statistics(causal.transform(unembedding.rows), tree, n_edges=20 if FAST else 100)
found, null = (edges.of(condition, "disjoint projection").mean() for condition in ("hierarchy", "random nested sets"))
assert found > null + 0.3
edges

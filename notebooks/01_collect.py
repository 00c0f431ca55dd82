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
# # Collecting activations
#
# A language model is run over a corpus once, and what it computed is kept: several sites in one pass, on disk, with statistics, ready to be read
# in shuffled batches without the model. Stores grow by tokens and by sites, check themselves, and mend themselves.

# %% tags=["parameters"]
import os
import tempfile
from pathlib import Path

import plotly.graph_objects as go
import torch

import sae
from sae.activations.collect import extend
from sae.activations.exporting import export_parquet
from sae.activations.maintenance import problems, repair

FAST = os.environ.get("SAE_FAST", "1") == "1"  # set SAE_FAST=0 for more tokens
N_TOKENS = 6_144 if FAST else 200_000
folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## Several sites in one pass
#
# Sites are names, or patterns of names; the model runs only as deep as the deepest of them. The texts are the openings of the State of the Union
# addresses, one document each. `collect` is an iterator: stopped anywhere, the same call goes on, and the bytes are those of an uninterrupted run.

# %%
model = sae.LanguageModel.load(sae.default_model())
addresses = list(sae.state_of_the_union().documents())
corpus = sae.from_texts([address.text[:1_000] for address in addresses], name="openings of the State of the Union addresses")
config = sae.CaptureConfig(sites=("blocks.[26].hook_resid_post", "blocks.6.hook_mlp_out"), n_tokens=N_TOKENS, rows_per_shard=16)
*_, last = sae.collect(model, corpus, folder / "store", config)
store = sae.ActivationStore.open(folder / "store")
print(store)
assert last.n_tokens == last.n_tokens_total
assert store.site_names == ("blocks.2.hook_resid_post", "blocks.6.hook_resid_post", "blocks.6.hook_mlp_out")

# %% [markdown]
# ## What is in it
#
# Mean, covariance and norms are measured at the end of the capture and kept. The first position of a row, and tokens whose norm is far above the
# others, are stored but masked: left in, these few would drown everything else.

# %%
for name in store.site_names:
    found = store.statistics(name)
    print(
        f"{name:<25} norm: median {found.median_norm:5.1f}, threshold {found.threshold:6.1f}; {found.n:,} used, {found.n_outliers} outliers"
    )
SITE = "blocks.6.hook_resid_post"
statistics, mask = store.statistics(SITE), store.mask(SITE)
assert int(mask.sum()) == statistics.n
assert torch.allclose(store.covariance(SITE).trace(), torch.tensor(statistics.total_variance, dtype=torch.float64))

# %%
norms, first = store.norms(SITE), torch.arange(store.n_tokens) % store.context == 0
groups = {"used": norms[mask], "first of a row": norms[first], "other outliers": norms[~mask & ~first]}
layout = {"template": "plotly_white", "height": 360, "barmode": "stack", "bargap": 0.05, "legend": {"orientation": "h", "y": 1.12}}
axes = {"xaxis_title": f"log10 of the norm at {SITE}", "yaxis": {"title": "tokens", "type": "log"}}
figure = go.Figure(layout={**layout, "margin": {"t": 40, "b": 50, "l": 60, "r": 20}}).update_layout(**axes)
for label, colour in zip(groups, ("#4c72b0", "#dd8452", "#c44e52"), strict=True):
    figure.add_histogram(x=groups[label].log10().tolist(), name=label, marker_color=colour, xbins={"size": 0.05})
figure.add_vline(x=torch.tensor(statistics.threshold).log10().item(), line_dash="dash", line_color="#555", annotation_text="threshold")
figure.show("plotly_mimetype")
assert float(groups["used"].max()) <= statistics.threshold
assert float(groups["first of a row"].median()) > 5 * float(groups["used"].median())

# %% [markdown]
# ## Shuffled batches
#
# Every batch is a uniform sample of all tokens of its side of the split, which is one by document. How well that works is a number: neighbours in
# a batch are no more alike than in a fresh random permutation, while in the order of the corpus they are.

# %%
batches = store.batches(SITE, batch_size=512, seed=0)
batch = next(batches)
again = next(store.batches(SITE, batch_size=512, seed=0, skip=1))
assert torch.equal(again, next(batches))  # batch 1 can be named without making batch 0
alike = store.neighbour_mixing(SITE, batch_size=512, seed=0)
print(f"documents in a batch, of what chance gives: {store.mixing(SITE, batch_size=512, seed=0):.3f}")
cosines = {"batches": alike.batches, "a random order": alike.permutation, "the corpus's order": alike.in_order}
print("cosine of neighbours:", ", ".join(f"{cosine.value:.4f} in {label}" for label, cosine in cosines.items()))
assert abs(alike.excess) < 5 * alike.excess_error
assert alike.in_order.value > 3 * abs(alike.batches.value)

# %%
split = store.split(held_out=0.2, seed=0)
documents = store.document_ids().flatten()
assert not set(documents[split.train].tolist()) & set(documents[split.held_out].tolist())
token = int(split.held_out[40])
text = model.tokenizer.decode(store.tokens().flatten()[token - 12 : token + 1])
print(f"token {token} is held out, with its document {int(documents[token])}: ...{text!r}")

# %% [markdown]
# ## More tokens, another site
#
# The same capture with more tokens goes on where the corpus was left. A new site is captured from the tokens that are stored: the corpus is not
# needed, and what is there is not touched.

# %%
before = store.gather(SITE, torch.arange(1000))
for _ in sae.collect(model, corpus, folder / "store", sae.CaptureConfig(sites=config.sites, n_tokens=N_TOKENS + 2_048, rows_per_shard=16)):
    pass
for _ in extend(model, folder / "store", ["blocks.2.attn.hook_z"]):
    pass
store = sae.ActivationStore.open(folder / "store")
print(store)
assert store.n_tokens == N_TOKENS + 2_048
assert torch.equal(store.gather(SITE, torch.arange(1000)), before)
assert store.site_names[-1] == "blocks.2.attn.hook_z"

# %% [markdown]
# ## A damaged file
#
# Every file has a checksum. `verify` reads them all, `problems` lists what is wrong, and `repair` captures again just that: the store is byte for
# byte what it was.

# %%
store.verify()
file = sorted((folder / "store" / "shards").glob(f"*/{SITE}.safetensors"))[1]
sound = file.read_bytes()
file.write_bytes(sound[:5000] + bytes([sound[5000] ^ 1]) + sound[5001:])  # one bit
(problem,) = problems(folder / "store")
print(problem.what.replace(str(folder), "..."))
assert problem.file == file

# %%
for _ in repair(folder / "store", model):
    pass
assert file.read_bytes() == sound
assert problems(folder / "store") == []

# %% [markdown]
# ## For other programs
#
# Parquet files with a row for every token, read here by `datasets`, and as well by duckdb or Spark.

# %%
import datasets

for _ in export_parquet(store, folder / "parquet", sites=[SITE]):
    pass

datasets.disable_progress_bars()
rows = datasets.load_dataset("parquet", data_files=str(folder / "parquet" / "*.parquet"), split="train", cache_dir=str(folder / "cache"))
print(len(rows), "rows with", ", ".join(rows.column_names))
assert len(rows) == store.n_tokens
assert torch.equal(torch.tensor(rows[777][SITE]), store.gather(SITE, torch.tensor([777]), dtype=torch.float32)[0])
assert [bool(used) for used in rows[:500][f"{SITE}.usable"]] == store.mask(SITE)[:500].tolist()

# %% [markdown]
# The same from a shell: `sae capture default --corpus state_of_the_union --site 'blocks.[26].hook_resid_post' --n-tokens 200000 --out store`, and
# `sae store info | verify | repair | merge | export | import`.

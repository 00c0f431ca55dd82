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
# # Everyone's dictionaries, in and out, measured by one yardstick
#
# Dictionaries of SAELens, Gemma Scope, sparsify, dictionary_learning, OpenAI's release, Llama Scope and llamascopium are read here, measured and looked
# at like our own, and ours are written for those libraries. What each reader does is held against what the library itself computed.

# %% tags=["parameters"]
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

import sae
from sae.evaluation.doctor import examine
from sae.inspection.interactive import to_plotly
from sae.interop.files import read_safetensors
from sae.interop.formats import FORMATS, identify, read, write

FAST = os.environ.get("SAE_FAST", "1") == "1"  # set SAE_FAST=0 for a deeper layer, more tokens, wider dictionaries
LAYER, N_TOKENS, D_SAE, N_STEPS = (5, 8_192, 256, 40) if FAST else (9, 50_000, 1024, 300)
SITE = f"blocks.{LAYER}.hook_resid_post"
folder = Path(tempfile.mkdtemp())
golden = next(place / "tests/golden/interop" for place in (Path.cwd(), *Path.cwd().parents) if (place / "tests/golden").is_dir())

# %% [markdown]
# ## What others saved
#
# These small files hold random parameters, every bias other than zero. Beside each lie activations, codes and outputs that the foreign library
# computed from them with its own code (`scripts/golden` says how). Nothing is told to the reader but the path: it recognises the format by files,
# keys and tensors.

# %%
rows = []
for expected in sorted(golden.rglob("expected.safetensors")):
    place = next(iter(expected.parent.rglob("*.pt")), expected.parent) if "openai" in str(expected) else expected.parent
    dictionary, recorded = read(place), read_safetensors(expected)
    activation = getattr(dictionary.config, "activation", None)
    difference = float((dictionary(recorded["acts"]) - recorded["output"]).detach().abs().max())
    foreign = dictionary.provenance["foreign"]
    kind = type(activation).__name__ if activation else type(dictionary).__name__
    rows.append((identify(place), expected.parent.name, kind, dictionary.config.normalisation, difference, foreign["notes"]))
found = pd.DataFrame(rows, columns=["format", "case", "kind", "rows normalised", "largest difference", "notes"])
assert set(found["format"]) == set(FORMATS) - {"sae"}
assert found["largest difference"].max() < 1e-5
found.groupby("format").agg(
    cases=("case", "count"), kinds=("kind", lambda kinds: ", ".join(sorted(set(kinds)))), largest_difference=("largest difference", "max")
)

# %% [markdown]
# A file does not always say what it means. What a reader had to decide is in its notes, and in the provenance of the dictionary.

# %%
for _, row in found[found.notes.map(len) > 0].groupby("format").first().iterrows():
    print(f"{row['case']:<18} {row['notes'][0]}")

# %% [markdown]
# ## A dictionary of a language model, to other libraries and back
#
# A TopK autoencoder and a pursuit, trained for a moment. Each format holds what it holds: where a dictionary has no form in it, the writer says why and
# writes nothing.

# %%
model = sae.LanguageModel.load(sae.default_model())
corpus = sae.state_of_the_union()
*_, _ = sae.collect(model, corpus, folder / "acts", sae.CaptureConfig(sites=(SITE,), n_tokens=N_TOKENS, rows_per_shard=64))
store = sae.ActivationStore.open(folder / "acts")
sizes, scaling = {"d_in": store.site(SITE).width, "d_sae": D_SAE}, sae.fit_scaling(store, SITE)
provenance = {"site": SITE, "model_digest": model.digest}
dictionaries = {
    "TopK": sae.Autoencoder(sae.AutoencoderConfig(**sizes, activation=sae.TopK(k=32)), scaling, provenance=provenance),
    "pursuit": sae.MatchingPursuit(sae.PursuitConfig(**sizes, k=32), scaling, provenance=provenance),
}
for dictionary in dictionaries.values():
    sae.initialise_(dictionary, store.gather(SITE, store.usable_tokens(SITE)[: 4 * D_SAE]).float())
    batches = store.batches(SITE, batch_size=1024, seed=0)
    *_, last = sae.train(dictionary, batches, sae.ReconstructionObjective(), sae.TrainConfig(n_steps=N_STEPS, learning_rate=4e-3))
    dictionary.eval()
acts = store.gather(SITE, store.usable_tokens(SITE)[:2048]).float()

# %%
rows = []
for name, dictionary in dictionaries.items():
    for format in FORMATS:
        try:
            write(dictionary, folder / name / format, format)
            back = read(folder / name / format, format)
            difference = float((back(acts) - dictionary(acts)).detach().norm() / acts.norm())
            rows.append((name, format, f"{difference:.1e}"))
            assert difference < 1e-4
        except sae.SaeError as error:
            rows.append((name, format, str(error)))
there_and_back = pd.DataFrame(rows, columns=["dictionary", "format", "difference of outputs over the norm, or why not"])
assert (there_and_back.iloc[:, 2].str.contains("e-")).sum() >= 6
there_and_back.style.hide(axis="index")

# %% [markdown]
# ## When something was lost on the way
#
# A dictionary that is read without its scaling still gives numbers. `sae doctor`, and `examine` underneath it, use it in some fifty other ways on
# the same tokens and say which of them undoes the damage.

# %%
sound = read(folder / "TopK" / "saelens")
spoilt = sae.Autoencoder(dictionaries["TopK"].config)
spoilt.load_state_dict(dictionaries["TopK"].state_dict() | {"scaling_mean": torch.zeros(sizes["d_in"])})
for name, dictionary in (("as it was written", sound), ("without its scaling", spoilt.eval())):
    diagnosis = examine(dictionary, acts)
    print(f"{name}: FVU {diagnosis.scores.fvu:.3f}", *(complaint.text for complaint in diagnosis.complaints), sep="\n   ")
assert examine(sound, acts).is_sound
assert diagnosis.complaints[0].name in ("centring", "centred scaling")

# %% [markdown]
# ## One yardstick
#
# `evaluate` runs every measure that the inputs allow, each with its definition, its interval over documents and its baselines, and keeps them in the
# result cache. This one was read from SAELens' files; it does not matter.

# %%
cache = sae.ResultCache(folder / "results")
options = {"model": model, "site": SITE, "batteries": ["fidelity", "lengths", "effects"], "cache": cache, "quick": FAST}
report = sae.evaluate(sound, store, **options)
own = sae.evaluate(dictionaries["TopK"], store, **options)
report

# %% [markdown]
# ## Side by side
#
# The same autoencoder with fewer latents a token, and the pursuit. The lower and the further to the left, the better; the grey line is what as many
# principal components reach.

# %%
top_k = dictionaries["TopK"]
several = {"TopK, k 32": top_k, "pursuit, k 32": dictionaries["pursuit"]}
several["TopK, k 16"] = top_k.with_activation(replace(top_k.config.activation, k=16))
reports = {name: sae.evaluate(dictionary, store, **options) for name, dictionary in several.items()}
comparison = sae.compare(reports)
comparison

# %%
to_plotly(comparison.frontiers[0])

# %%
to_plotly(comparison.frontiers[1])

# %% [markdown]
# ## Looked at
#
# An index of the dictionary that came from SAELens' files, and the card of the feature that tells most.

# %%
labels = {document.id: document.labels for document in corpus.documents()}
for _ in sae.build_index(store, SITE, sound, folder / "index", name="from SAELens", model=model, labels=labels):
    pass
index = sae.FeatureIndex.open(folder / "index")
card = index[int(index.top(n=1).ids[0])]
assert card.record.n_active > 0
card

# %% [markdown]
# `sae.interop.hub` has `pull`, which fetches from the Hugging Face hub what a format needs and nothing else, and `push`, which writes a dictionary with a
# card made from its provenance; it is the only part that reaches the network. At a terminal: `sae convert`, `sae doctor`, `sae evaluate`, `sae compare`.

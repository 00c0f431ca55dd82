"""Activations from elsewhere: what was written by hand comes back from the store, and what does not fit is refused by name."""

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sae.activations.importing import import_arrays, import_saelens
from sae.activations.manifest import MaskRule, ModelRecord
from sae.activations.store import ActivationStore
from sae.errors import ConfigError, FormatError

HOOK = "blocks.3.hook_resid_post"


def normal(*shape, seed=0, dtype=torch.float32):
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.3).to(dtype)


def imported(path, arrays, **options):
    *_, last = import_arrays(arrays, path, **options)
    assert last.n_tokens == last.n_tokens_total
    store = ActivationStore.open(path)
    store.verify()
    return store


def files(folder):
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


KINDS = ["array", "npy", "fortran npy", "big-endian npy", "read-only", "backwards", "tensor", "safetensors"]
DTYPES = ["float16", "float32", "float64"]


@pytest.mark.parametrize(("kind", "dtype"), [*itertools.product(KINDS, DTYPES), ("tensor", "bfloat16"), ("safetensors", "bfloat16")])
def test_vectors_come_back_as_they_were(tmp_path, kind, dtype):
    acts = normal(57, 12, dtype=getattr(torch, dtype))
    file = tmp_path / "akt füß.x"
    if kind == "tensor":
        source = acts
    elif kind == "safetensors":
        save_file({"acts": acts, "other": acts + 1}, file.with_suffix(".safetensors"))
        source = (str(file.with_suffix(".safetensors")), "acts")
    else:
        source = acts.numpy()
        source = {"fortran npy": np.asfortranarray, "big-endian npy": lambda a: a.astype(a.dtype.newbyteorder(">"))}.get(kind, np.copy)(
            source
        )
        if kind == "read-only":
            source.flags.writeable = False
        if kind == "backwards":
            source = source[::-1].copy()[::-1]
        if kind.endswith("npy"):
            np.save(file.with_suffix(".npy"), source)
            source = file.with_suffix(".npy")
    store = imported(tmp_path / "store", {"embedding": source}, rows_per_shard=20, licence="CC0", name="mine")
    stored = torch.float32 if dtype == "float64" else acts.dtype
    assert (store.dtype, store.context, store.n_rows, store.has_tokens) == (stored, 1, 57, False)
    assert torch.equal(torch.cat(list(store.shards("embedding"))), acts.to(stored))
    assert torch.equal(store.document_ids().flatten().long(), torch.arange(57))
    assert bool(store.mask("embedding").all())
    assert store.manifest.model is None
    assert (store.manifest.corpus.name, store.manifest.corpus.licence) == ("mine", "CC0")
    torch.testing.assert_close(store.statistics("embedding").mean, acts.to(stored).double().mean(0), atol=1e-6, rtol=1e-5)


def test_sequences_with_tokens_documents_and_two_sites_come_back(tmp_path):
    resid, mlp = normal(30, 8, 6), normal(240, 10, seed=1, dtype=torch.float16)
    tokens = torch.randint(0, 70_000, (30, 8), generator=torch.Generator().manual_seed(2))
    documents = torch.arange(240).div(37, rounding_mode="floor").view(30, 8)
    np.save(tmp_path / "tokens.npy", tokens.numpy())
    save_file({"ids": documents.to(torch.int32)}, tmp_path / "documents.safetensors")
    store = imported(
        tmp_path / "store",
        {HOOK: resid.numpy(), "blocks.3.hook_mlp_out": mlp},
        tokens=tmp_path / "tokens.npy",
        document_ids=tmp_path / "documents.safetensors",
        rows_per_shard=7,
    )
    assert (store.context, store.n_rows, store.dtype, store.has_tokens) == (8, 30, torch.float32, True)
    assert (store.site(HOOK).kind, store.site(HOOK).layer, store.manifest.token_dtype) == ("resid_post", 3, "int32")
    assert torch.equal(store.tokens().long(), tokens)
    assert torch.equal(store.document_ids().long(), documents)
    assert torch.equal(torch.cat(list(store.shards(HOOK))), resid.reshape(240, 6))
    assert torch.equal(torch.cat(list(store.shards("blocks.3.hook_mlp_out"))), mlp.float())
    assert torch.equal(store.mask(HOOK).view(30, 8), torch.arange(8).expand(30, 8) > 0)


def test_a_mask_and_a_dtype_are_as_asked_for(tmp_path):
    acts = normal(40, 4, 5)
    acts[7, 2] *= 100
    store = imported(tmp_path / "store", {"x": acts}, dtype="bfloat16", mask=MaskRule(skipped_positions=(1, 3), norm_ratio=8.0))
    expected = torch.tensor([True, False, True, False]).repeat(40)
    expected[7 * 4 + 2] = False
    assert torch.equal(store.mask("x"), expected)
    assert torch.equal(torch.cat(list(store.shards("x"))), acts.reshape(160, 5).bfloat16())


def test_files_one_after_the_other_are_one_array(tmp_path):
    acts = normal(50, 6)
    for number, (first, stop) in enumerate([(0, 13), (13, 21), (21, 50)]):
        np.save(tmp_path / f"{number}.npy", acts[first:stop].numpy())
    parts = [tmp_path / f"{number}.npy" for number in range(3)]
    store = imported(
        tmp_path / "store", {"x": parts}, context=5, rows_per_shard=4, tokens=[np.arange(25), torch.arange(25).to(torch.uint16)]
    )
    assert torch.equal(torch.cat(list(store.shards("x"))), acts)
    assert torch.equal(store.tokens().flatten().long(), torch.arange(25).repeat(2))
    assert (store.context, store.n_rows, store.manifest.token_dtype) == (5, 10, "uint16")


def test_the_digest_is_that_of_the_bytes(tmp_path):
    acts = normal(20, 6)
    np.save(tmp_path / "a.npy", acts.numpy())
    digests = {
        "array": imported(tmp_path / "1", {"x": acts.numpy()}),
        "same": imported(tmp_path / "2", {"x": acts.clone()}),
        "file": imported(tmp_path / "3", {"x": tmp_path / "a.npy"}),
        "other": imported(tmp_path / "6", {"x": acts + 1e-3}),
        "rows": imported(tmp_path / "4", {"x": acts}, context=4),
        "ids": imported(tmp_path / "5", {"x": acts}, document_ids=np.arange(20)),
    }
    found = {name: store.manifest.corpus.digest for name, store in digests.items()}
    assert found["array"] == found["same"]
    assert len(set(found.values())) == 5
    np.save(tmp_path / "a.npy", (acts + 1e-3).numpy())
    with pytest.raises(ConfigError, match=r"choose another path or remove it: corpus\.digest is"):
        imported(tmp_path / "3", {"x": tmp_path / "a.npy"})


def test_a_model_can_be_named_and_bounds_the_tokens(tmp_path):
    model = ModelRecord(name="m", digest="d" * 64, dtype="float32", d_vocab=100, vocabulary="v", separator_id=None)
    store = imported(tmp_path / "store", {HOOK: normal(6, 4, 8)}, tokens=np.full((6, 4), 99), model_record=model)
    assert store.manifest.model == model
    assert store.manifest.token_dtype == "uint16"
    ActivationStore.open(tmp_path / "store", model_digest="d" * 64)
    with pytest.raises(ConfigError, match=r"tokens must be in 0\.\.d_vocab-1=99 of m, got 100"):
        imported(tmp_path / "other", {HOOK: normal(6, 4, 8)}, tokens=np.full((6, 4), 100), model_record=model)


REFUSED = {
    "nothing": ({}, {}, "arrays must hold at least one site, got none"),
    "one axis": ({"x": np.zeros(5)}, {}, r"arrays\['x'\] must be \[n, width\] or \[rows, context, width\], none of them 0, got \[5\]"),
    "no rows": ({"x": np.zeros((0, 5))}, {}, r"none of them 0, got \[0, 5\]"),
    "a scalar": ({"x": np.array(3.0)}, {}, r"must have the same axes but for the length of the first, got \[\] and \[\]"),
    "integers": ({"x": np.zeros((3, 5), dtype=int)}, {}, r"must hold one of float16, bfloat16, float32, float64, got int64"),
    "strings": ({"x": np.array([["a"]])}, {}, r"arrays\['x'\] must hold numbers that torch has, got <U1"),
    "a list of numbers": ({"x": [[1.0, 2.0]]}, {}, r"must be a numpy array, a tensor, .* got a list"),
    "an empty list": ({"x": []}, {}, r"must be an array or a list of at least one, got an empty list"),
    "no file": ({"x": "nowhere.npy"}, {}, r"nowhere\.npy\) does not exist; give the path of a file"),
    "a site that is no file name": ({"a/b": np.zeros((3, 5))}, {}, r"the name of a site must be that of a file .* got 'a/b'"),
    "unequal sites": ({"x": np.zeros((3, 5)), "y": np.zeros((4, 5))}, {}, r"arrays\['y'\] must have 3 rows as arrays\['x'\] has, got 4"),
    "unequal contexts": ({"x": np.zeros((3, 4, 5))}, {"context": 3}, r"context must be one number, at least 1, got context: 3, arrays\['x'\]: 4"),
    "no context": ({"x": np.zeros((3, 5))}, {"context": 0}, r"context must be one number, at least 1, got context: 0"),
    "half a row": ({"x": np.zeros((7, 5))}, {"context": 3}, r"must be \[rows, 3, 5\] or \[n, 5\] with n a multiple of context=3, got \[7, 5\]"),
    "unequal parts": ({"x": [np.zeros((7, 5)), np.zeros((7, 4))]}, {}, r"must have the same axes .* got \[7, 5\] and \[7, 4\]"),
    "too few tokens": ({"x": np.zeros((6, 5))}, {"tokens": np.zeros((2, 2), int)}, r"tokens must have 3 rows as arrays\['x'\] has, got 2"),
    "negative tokens": ({"x": np.zeros((2, 5))}, {"tokens": np.array([3, -1])}, r"tokens must be in 0\.\.2147483647, got -1"),
    "huge documents": ({"x": np.zeros((2, 5))}, {"document_ids": np.array([3, 2**31])}, r"document_ids must be in 0\.\.2147483647, got 2147483648"),
    "float tokens": ({"x": np.zeros((2, 5))}, {"tokens": np.zeros(2)}, r"tokens must hold one of uint8, .* got float64"),
    "document ids": ({"x": np.zeros((6, 5))}, {"context": 2, "document_ids": np.zeros(4, int)}, r"document_ids must have 3 rows as .*, got 2"),
    "a dtype": ({"x": np.zeros((6, 5))}, {"dtype": "float8"}, r"dtype must be one of bfloat16, float16, float32, int8, or None .*, got 'float8'"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path, what):
    arrays, options, message = REFUSED[what]
    with pytest.raises(ConfigError, match=message):
        import_arrays(arrays, tmp_path / "store", **options)
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_damaged_or_of_another_kind_are_named(tmp_path):
    acts = normal(20, 6)
    np.save(tmp_path / "cut.npy", acts.numpy())
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:-1])
    with pytest.raises(FormatError, match=r"cut\.npy cannot be read as a \.npy array"):
        import_arrays({"x": tmp_path / "cut.npy"}, tmp_path / "store")
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(FormatError, match=r"objects\.npy cannot be read as a \.npy array: .*Python objects"):
        import_arrays({"x": tmp_path / "objects.npy"}, tmp_path / "store")
    np.save(tmp_path / "brain.npy", np.zeros((3, 4), dtype="V2"))
    with pytest.raises(ConfigError, match=r"got \|V2; numpy files cannot hold bfloat16, save it as \.safetensors"):
        import_arrays({"x": tmp_path / "brain.npy"}, tmp_path / "store")
    (tmp_path / "acts.pt").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"acts\.pt\) must be a \.npy or a \.safetensors file; convert it"):
        import_arrays({"x": tmp_path / "acts.pt"}, tmp_path / "store")
    save_file({"a": acts, "b": acts + 1}, tmp_path / "two.safetensors")
    for source in (tmp_path / "two.safetensors", (tmp_path / "two.safetensors", "c")):
        with pytest.raises(ConfigError, match=r"two\.safetensors\) holds a, b: give \(file, one of these\)"):
            import_arrays({"x": source}, tmp_path / "store")
    (tmp_path / "two.safetensors").write_bytes((tmp_path / "two.safetensors").read_bytes()[:-1])
    with pytest.raises(FormatError, match="truncated"):
        import_arrays({"x": (tmp_path / "two.safetensors", "a")}, tmp_path / "store")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_activation_that_is_not_finite_is_named_and_earlier_shards_stay(tmp_path, value):
    acts = normal(20, 4, 6)
    acts[13, 2, 1] = value
    with pytest.raises(FormatError, match=rf"{HOOK} has NaN or infinite activations at 1 tokens here, the first in row 13, position 2"):
        list(import_arrays({HOOK: acts}, tmp_path / "store", rows_per_shard=6))
    assert sorted(folder.name for folder in (tmp_path / "store" / "shards").iterdir()) == ["00000", "00001"]
    with pytest.raises(FormatError, match="is not complete"):
        ActivationStore.open(tmp_path / "store")


def test_an_import_that_was_stopped_is_continued_to_the_same_bytes(tmp_path):
    acts = normal(40, 6)
    imported(tmp_path / "whole", {"x": acts}, rows_per_shard=7)
    for n_steps in range(1, 12):
        path = tmp_path / str(n_steps)
        steps = import_arrays({"x": acts}, path, rows_per_shard=7)
        for _ in range(n_steps):
            next(steps, None)
        steps.close()
        again = list(import_arrays({"x": acts}, path, rows_per_shard=7))
        assert max(step.n_tokens_run for step in again) <= max(0, 40 - 7 * n_steps)
        assert files(path) == files(tmp_path / "whole")


def private_memory():
    """Bytes of this process's own memory; pages of mapped files are not among them."""
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")) * 1024


def test_a_large_file_is_never_loaded(tmp_path):
    array = np.lib.format.open_memmap(tmp_path / "large.npy", mode="w+", dtype=np.float16, shape=(100_000, 1000), fortran_order=False)
    array[:, 5] = 1
    del array
    used = []
    for step in import_arrays({"x": tmp_path / "large.npy"}, tmp_path / "store", context=4, rows_per_shard=500):
        used.append(private_memory())
        if step.stage == "statistics":
            break
    assert len(used) > 40
    assert max(used[2:]) - used[1] < 40e6  # of 200 MB


# -- SAELens


def saelens_cache(folder, acts, token_ids, *, hooks=(HOOK,), per_shard=5, finished=True):
    """What CacheActivationsRunner of versions 4 to 6 leaves: shards saved by `datasets`, moved into one folder under new names."""
    from datasets import Array2D, Dataset, Features, Sequence, Value

    _, context, width = acts.shape
    dtype = str(acts.dtype).removeprefix("torch.")
    columns = {hook: Array2D(shape=(context, width), dtype=dtype) for hook in hooks}
    if token_ids is not None:
        columns["token_ids"] = Sequence(Value(dtype="int32"), length=context)
    scratch = folder / ".tmp_shards"
    scratch.mkdir(parents=True)
    starts = range(0, len(acts), per_shard)
    for number, first in enumerate(starts):
        rows = {hook: acts[first : first + per_shard] + i for i, hook in enumerate(hooks)}
        if token_ids is not None:
            rows["token_ids"] = token_ids[first : first + per_shard].to(torch.int32)
        Dataset.from_dict(rows, features=Features(columns)).save_to_disk(f"{scratch}/shard_{number:05d}", num_shards=1)
    if not finished:
        return folder
    shutil.move(scratch / "shard_00000" / "dataset_info.json", folder / "dataset_info.json")
    names = []
    for number in range(len(starts)):
        [data] = json.loads((scratch / f"shard_{number:05d}" / "state.json").read_text())["_data_files"]
        names.append(f"data-{number:05d}-of-{len(starts):05d}.arrow")
        shutil.move(scratch / f"shard_{number:05d}" / data["filename"], folder / names[-1])
    state = {"_format_columns": None, "_format_kwargs": {}, "_format_type": None, "_output_all_columns": False, "_split": None}
    state |= {"_data_files": [{"filename": name} for name in names], "_fingerprint": "0123456789abcdef"}
    (folder / "state.json").write_text(json.dumps(state, indent=2))
    shutil.rmtree(scratch)
    return folder


@pytest.mark.parametrize("with_tokens", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
def test_a_cache_of_saelens_comes_back(tmp_path, dtype, with_tokens):
    acts = normal(23, 8, 6, dtype=getattr(torch, dtype))
    token_ids = torch.randint(0, 60_000, (23, 8), generator=torch.Generator().manual_seed(4)) if with_tokens else None
    folder = saelens_cache(tmp_path / "cached acts", acts, token_ids)
    list(import_saelens(folder, tmp_path / "store", rows_per_shard=9, licence="mine"))
    store = ActivationStore.open(tmp_path / "store")
    store.verify()
    stored = torch.float16 if dtype == "float16" else torch.float32
    assert (store.context, store.n_rows, store.dtype, store.site_names) == (8, 23, stored, (HOOK,))
    assert torch.equal(torch.cat(list(store.shards(HOOK))), acts.reshape(-1, 6).to(stored))
    assert store.has_tokens == with_tokens
    if with_tokens:
        assert torch.equal(store.tokens().long(), token_ids)
        assert store.manifest.token_dtype == "uint16"
    assert torch.equal(store.document_ids().long(), torch.arange(23)[:, None].expand(23, 8))
    assert torch.equal(store.mask(HOOK).view(23, 8), torch.arange(8).expand(23, 8) > 0)
    assert (store.manifest.corpus.name, store.manifest.corpus.licence) == ("cached acts", "mine")


def test_one_of_several_hooks_can_be_chosen(tmp_path):
    acts, second = normal(11, 4, 6), "blocks.5.hook_mlp_out"
    folder = saelens_cache(tmp_path / "cache", acts, None, hooks=(HOOK, second))
    list(import_saelens(folder, tmp_path / "both"))
    list(import_saelens(folder, tmp_path / "one", sites=[second], mask=MaskRule(skipped_positions=())))
    assert ActivationStore.open(tmp_path / "both").site_names == (HOOK, second)
    one = ActivationStore.open(tmp_path / "one")
    assert one.site_names == (second,)
    assert torch.equal(torch.cat(list(one.shards(second))), acts.reshape(-1, 6) + 1)
    assert bool(one.mask(second).all())
    with pytest.raises(ConfigError, match=rf"sites must be columns of Array2D of .*, which are {HOOK}, {second}, got \['blocks\.9"):
        import_saelens(folder, tmp_path / "none", sites=["blocks.9.hook_mlp_out"])


def test_the_files_of_version_3_come_back_in_the_order_of_their_numbers(tmp_path):
    acts = normal(60, 1, 6)
    (tmp_path / "cache").mkdir()
    for number in range(12):
        save_file({"activations": acts[5 * number : 5 * number + 5]}, tmp_path / "cache" / f"{number}.safetensors")
    list(import_saelens(tmp_path / "cache", tmp_path / "store", sites=[HOOK]))
    store = ActivationStore.open(tmp_path / "store")
    assert (store.context, store.n_rows) == (1, 60)
    assert torch.equal(torch.cat(list(store.shards(HOOK))), acts[:, 0])
    assert bool(store.mask(HOOK).all())
    with pytest.raises(ConfigError, match=r"sites must be the one hook that was cached, as the files of .* do not name it, got \(\)"):
        import_saelens(tmp_path / "cache", tmp_path / "other")


def test_folders_that_saelens_did_not_make_or_not_finish_are_refused(tmp_path):
    from datasets import Dataset

    with pytest.raises(ConfigError, match=r"folder must be one that SAELens cached activations in, .*nowhere is not a folder"):
        import_saelens(tmp_path / "nowhere", tmp_path / "store")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"it has no state\.json and no 0\.safetensors"):
        import_saelens(tmp_path / "empty", tmp_path / "store")
    begun = saelens_cache(tmp_path / "begun", normal(11, 4, 6), None, finished=False)
    with pytest.raises(ConfigError, match=r"SAELens did not finish it; give one of the folders in its \.tmp_shards"):
        import_saelens(begun, tmp_path / "store")
    list(import_saelens(begun / ".tmp_shards" / "shard_00000", tmp_path / "part"))
    assert ActivationStore.open(tmp_path / "part").n_rows == 5
    Dataset.from_dict({"text": ["a", "b"]}).save_to_disk(tmp_path / "texts")
    with pytest.raises(ConfigError, match=r"sites must be columns of Array2D of .*, which are none, got nothing"):
        import_saelens(tmp_path / "texts", tmp_path / "store")
    cut = saelens_cache(tmp_path / "cut", normal(11, 4, 6), None)
    data = cut / "data-00001-of-00003.arrow"
    data.write_bytes(data.read_bytes()[:200])
    with pytest.raises(FormatError, match="cut cannot be read as a folder that `datasets` saved"):
        import_saelens(cut, tmp_path / "store")

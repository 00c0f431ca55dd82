"""What another program reads from an export is what the store holds, and what comes back from it is the same again."""

import itertools
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_store import SITES, tiny_store

from sae.activations import exporting
from sae.activations.completion import site_pieces
from sae.activations.exporting import export_arrays, export_arrow, export_parquet
from sae.activations.formats import widen
from sae.activations.importing import import_arrays, import_saelens
from sae.activations.store import ActivationStore
from sae.errors import CacheError, ConfigError
from sae.storage import read_json

SITE, OTHER = SITES


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """The same tokens in every storage dtype, and vectors without tokens."""
    made = {
        dtype: tiny_store(tmp_path_factory.mktemp(dtype) / "store", dtype=dtype) for dtype in ("bfloat16", "float16", "float32", "int8")
    }
    folder = tmp_path_factory.mktemp("vectors") / "store"
    acts = torch.randn(100, 7, generator=torch.Generator().manual_seed(1))
    list(import_arrays({"embedding": acts}, folder, document_ids=torch.arange(100) // 3, rows_per_shard=30))
    return {**made, "vectors": ActivationStore.open(folder)}


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch):
    monkeypatch.setattr(exporting, "PIECE_BYTES", 10_000)  # several pieces a shard


def exact(store, site):
    """All activations in float32."""
    return torch.cat([widen(piece.acts, piece.norms) for piece in site_pieces(store.path, store.manifest, store.site(site))])


def files(folder):
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


@pytest.mark.parametrize("kind", ["bfloat16", "float16", "float32", "int8", "vectors"])
def test_parquet_holds_every_token_with_what_is_known_about_it(stores, tmp_path, kind):
    import datasets
    import pyarrow
    import pyarrow.parquet

    store = stores[kind]
    steps = list(export_parquet(store, tmp_path / "out"))
    assert [step.n_tokens for step in steps] == list(itertools.accumulate(rows * store.context for rows in store.manifest.shard_rows))
    parts = sorted((tmp_path / "out").glob("*.parquet"))
    assert len(parts) == len(store.manifest.shards) > 1
    table = pyarrow.concat_tables([pyarrow.parquet.read_table(part) for part in parts])
    rows = np.arange(store.n_tokens)
    if store.has_tokens:
        assert table["token"].to_pylist() == store.tokens().flatten().tolist()
    assert ("token" in table.column_names) == store.has_tokens
    assert table["document"].to_pylist() == store.document_ids().flatten().tolist()
    assert table["row"].to_pylist() == (rows // store.context).tolist()
    assert table["position"].to_pylist() == (rows % store.context).tolist()
    for site in store.manifest.sites:
        assert table[f"{site.name}.usable"].to_pylist() == store.mask(site).tolist()
        column = table[site.name]
        assert column.type.list_size == site.width
        assert str(column.type.value_type) == ("halffloat" if kind == "float16" else "float")
        found = column.combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, site.width)
        assert torch.equal(torch.from_numpy(found.astype(np.float32)), exact(store, site))
    loaded = datasets.load_dataset("parquet", data_files=str(tmp_path / "out" / "*.parquet"), split="train", cache_dir=str(tmp_path / "hf"))
    assert len(loaded) == store.n_tokens
    site = store.manifest.sites[-1]
    assert loaded.features[site.name].length == site.width
    torch.testing.assert_close(torch.tensor(loaded[37][site.name]), exact(store, site)[37], atol=0, rtol=0)


def test_what_was_exported_is_on_record(stores, tmp_path):
    store = stores["bfloat16"]
    list(export_parquet(store, tmp_path / "out", sites=[OTHER], dtype="float16"))
    record = read_json(tmp_path / "out" / "export.json")
    assert (record["store"], record["format"], record["dtype"]) == (store.digest, "parquet", "float16")
    assert [site["name"] for site in record["sites"]] == [OTHER]
    assert record["corpus"]["licence"] == store.manifest.corpus.licence
    assert record["model"]["digest"] == store.manifest.model.digest


@pytest.mark.parametrize("kind", ["bfloat16", "float16", "float32", "int8", "vectors"])
def test_an_arrow_folder_is_read_by_datasets_and_comes_back(stores, tmp_path, kind):
    import datasets

    store = stores[kind]
    list(export_arrow(store, tmp_path / "out"))
    loaded = datasets.load_from_disk(str(tmp_path / "out"))
    assert len(loaded) == store.n_rows
    for site in store.manifest.sites:
        assert loaded.features[site.name].shape == (store.context, site.width)
        found = torch.tensor(np.array(loaded.with_format("numpy")[11][site.name], dtype=np.float32))
        assert torch.equal(found, exact(store, site).view(store.n_rows, store.context, -1)[11])
    if store.has_tokens:
        assert loaded[11]["token_ids"] == store.tokens()[11].tolist()
    list(import_saelens(tmp_path / "out", tmp_path / "back", mask=store.manifest.mask))
    check_same(ActivationStore.open(tmp_path / "back"), store)


def check_same(back, store):
    """The same activations, ids and mask."""
    assert back.site_names == store.site_names
    assert (back.context, back.n_rows, back.has_tokens) == (store.context, store.n_rows, store.has_tokens)
    assert torch.equal(back.document_ids(), store.document_ids())
    if store.has_tokens:
        assert torch.equal(back.tokens(), store.tokens())
    for site in store.site_names:
        assert torch.equal(exact(back, site), exact(store, site))
        everything = torch.arange(store.n_tokens)
        read = [each.gather(site, everything, dtype=torch.float32) for each in (back, store)]
        torch.testing.assert_close(*read, atol=1e-6, rtol=1e-6)
        assert torch.equal(back.mask(site), store.mask(site))


@pytest.mark.parametrize("file_format", ["safetensors", "npy"])
@pytest.mark.parametrize("kind", ["bfloat16", "float16", "float32", "int8", "vectors"])
def test_arrays_come_back_as_the_same_store(stores, tmp_path, kind, file_format):
    from safetensors.torch import load_file

    store, out = stores[kind], tmp_path / "out"
    steps = list(export_arrays(store, out, file_format=file_format))
    assert steps[-1].n_tokens == steps[-1].n_tokens_total
    whole = torch.cat(list(store.shards(store.site_names[0])))
    if file_format == "npy":
        found = torch.from_numpy(np.load(out / f"{store.site_names[0]}.npy"))
        assert found.dtype == (torch.float16 if kind == "float16" else torch.float32)
    else:
        found = load_file(out / f"{store.site_names[0]}.safetensors")["acts"]
        assert found.dtype == (torch.float32 if kind == "int8" else whole.dtype)
    assert torch.equal(found.float(), exact(store, store.site_names[0]))
    list(
        import_arrays(
            {site: out / f"{site}.{file_format}" for site in store.site_names},
            tmp_path / "back",
            tokens=out / f"tokens.{file_format}" if store.has_tokens else None,
            document_ids=out / f"document_ids.{file_format}",
            mask=store.manifest.mask,
            rows_per_shard=17,
        )
    )
    back = ActivationStore.open(tmp_path / "back")
    check_same(back, store)
    if kind != "int8":
        for site in store.site_names:
            torch.testing.assert_close(back.statistics(site).mean, store.statistics(site).mean, atol=1e-12, rtol=1e-9)


EXPORTS = {"parquet": export_parquet, "arrow": export_arrow, "arrays": export_arrays}


@pytest.mark.parametrize("kind", EXPORTS)
def test_an_export_that_was_stopped_leaves_no_folder_and_is_continued(stores, tmp_path, kind, monkeypatch):
    export, store = EXPORTS[kind], stores["bfloat16"]
    list(export(store, tmp_path / "whole"))
    n_steps = len(list(export(store, tmp_path / "counted")))
    for stop in range(1, n_steps, max(1, n_steps // 6)):
        steps = export(store, tmp_path / f"out {stop}")
        for _ in range(stop):
            next(steps)
        steps.close()
        assert not (tmp_path / f"out {stop}").exists()
        list(export(store, tmp_path / f"out {stop}"))
        assert files(tmp_path / f"out {stop}") == files(tmp_path / "whole")
    assert not list(tmp_path.glob(".partial-*"))


def test_a_process_that_is_killed_leaves_no_folder_and_another_finishes(stores, tmp_path):
    store = stores["float32"]
    list(export_parquet(store, tmp_path / "whole"))
    program = textwrap.dedent(
        f"""
        import os, signal
        from sae.activations import exporting
        from sae.activations.store import ActivationStore
        exporting.PIECE_BYTES = 10_000
        seen = 0
        def replace(*arguments, original=os.replace):
            global seen
            seen += 1
            if seen == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            original(*arguments)
        os.replace = replace
        list(exporting.export_parquet(ActivationStore.open({str(store.path)!r}), {str(tmp_path / "out")!r}))
        """
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run([sys.executable, "-c", program], check=False, env=environment)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    [place] = tmp_path.glob(".partial-*-out")
    kept = {file.name: file.stat().st_ino for file in place.glob("0*.parquet")}
    assert len(kept) == 2
    list(export_parquet(store, tmp_path / "out"))
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    assert {name: (tmp_path / "out" / name).stat().st_ino for name in kept} == kept  # not written again
    assert not list(tmp_path.rglob(".partial-*"))


@pytest.mark.parametrize("kind", EXPORTS)
def test_nothing_is_overwritten(stores, tmp_path, kind):
    (tmp_path / "there").mkdir()
    list(EXPORTS[kind](stores["vectors"], tmp_path / "there"))  # an empty folder is taken
    before = files(tmp_path / "there")
    with pytest.raises(ConfigError, match=r"folder must be a new one, .*there is there already; choose another or remove it"):
        EXPORTS[kind](stores["vectors"], tmp_path / "there")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="folder must be a new one"):
        EXPORTS[kind](stores["vectors"], tmp_path / "file")
    steps = EXPORTS[kind](stores["vectors"], tmp_path / "raced")
    next(steps)
    (tmp_path / "raced").mkdir()
    (tmp_path / "raced" / "mine").touch()
    with pytest.raises(ConfigError, match="was made by another process in the meantime"):
        list(steps)
    assert files(tmp_path / "there") == before
    assert [file.name for file in (tmp_path / "raced").iterdir()] == ["mine"]


def test_a_full_disk_is_named_and_what_was_written_is_used(stores, small_disk):
    disk = small_disk(150_000)
    steps = export_parquet(stores["float32"], disk / "out")
    with pytest.raises(CacheError, match=r"no space left on device while writing .*; nothing was left half-written"):
        list(steps)
    assert not (disk / "out").exists()
    [place] = disk.iterdir()
    assert all(file.suffix == ".parquet" for file in place.iterdir())


def test_bad_arguments_are_refused_before_anything_is_written(stores, tmp_path, unchecked):
    store = stores["bfloat16"]
    for export in EXPORTS.values():
        with pytest.raises(ConfigError, match=f"site must be one of {SITE}, {OTHER}, got 'x'"):
            export(store, tmp_path / "out", sites=["x"])
        for sites in (SITE, []):
            with pytest.raises(ConfigError, match="sites must be several names, or None for all"):
                export(store, tmp_path / "out", sites=sites)
    with pytest.raises(ConfigError, match="dtype must be 'float16', 'float32' or None, got 'bfloat16'"):
        export_parquet(store, tmp_path / "out", dtype="bfloat16")
    with pytest.raises(ConfigError, match="file_format must be 'safetensors' or 'npy', got 'pt'"):
        export_arrays(store, tmp_path / "out", file_format="pt")
    assert list(tmp_path.iterdir()) == []


def test_float16_is_refused_where_it_cannot_hold_an_activation(tmp_path):
    acts = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    acts[7, 2] = 1e5
    list(import_arrays({"x": acts}, tmp_path / "store"))
    store = ActivationStore.open(tmp_path / "store")
    with pytest.raises(ConfigError, match=r"dtype must be 'float32' for x: it has activations of 1e\+05, above 65504"):
        list(export_parquet(store, tmp_path / "out", dtype="float16"))
    assert not (tmp_path / "out").exists()


def test_memory_does_not_grow_with_the_store(tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "PIECE_BYTES", 4_000_000)

    def private_memory():
        return (
            next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")) * 1024
        )

    acts = torch.randn(60_000, 512, generator=torch.Generator().manual_seed(0)).half()
    list(import_arrays({"x": acts}, tmp_path / "store", rows_per_shard=15_000))
    del acts
    store = ActivationStore.open(tmp_path / "store")
    for name, export in EXPORTS.items():
        used = [private_memory() for _ in export(store, tmp_path / name)]
        assert max(used[1:]) - used[0] < 30e6, name  # of 61 MB

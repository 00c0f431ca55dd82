"""Several stores as one: rows, documents and statistics are those of the union, and the sources stay what they are."""

import json
import os

import numpy as np
import pytest
import torch
from tiny_store import MLP, RESID, changed, files, letters

from sae.activations.collect import collect, extend
from sae.activations.corpus import from_texts
from sae.activations.maintenance import repair
from sae.activations.merging import merge
from sae.activations.store import ActivationStore
from sae.errors import ConfigError, FormatError
from sae.storage import map_tensors, save_tensors


@pytest.fixture
def sources(planted, corpus, config, tmp_path):
    """Three stores of different corpora, lengths and shard sizes."""
    corpora = [corpus, *(from_texts(letters(seed=seed), name=f"letters {seed}", licence="free") for seed in (5, 6))]
    configs = [config, changed(config, rows_per_shard=10, n_tokens=33 * 32), changed(config, rows_per_batch=7, n_tokens=20 * 32)]
    paths = [tmp_path / f"source {i}" for i in range(3)]
    for each, options, path in zip(corpora, configs, paths, strict=True):
        list(collect(planted(), each, path, options))
    return paths


def test_rows_documents_and_statistics_are_those_of_the_union(sources, tmp_path):
    before = [files(path) for path in sources]
    steps = list(merge(sources, tmp_path / "all"))
    assert [step.n_tokens for step in steps if step.stage == "capture"][-1] == (55 + 33 + 20) * 32
    assert [files(path) for path in sources] == before
    stores, union = [ActivationStore.open(path) for path in sources], ActivationStore.open(tmp_path / "all")
    union.verify()
    assert union.n_rows == 108
    assert [shard.n_rows for shard in union.manifest.shards] == [16, 16, 16, 7, 10, 10, 10, 3, 16, 4]
    assert torch.equal(union.tokens(), torch.cat([store.tokens() for store in stores]))
    numbers, following = [], 0
    for store in stores:
        ids = store.document_ids() + following
        following = int(ids.max()) + 1
        numbers.append(ids)
    assert torch.equal(union.document_ids(), torch.cat(numbers))
    assert union.manifest.corpus.name == "letters + letters 5 + letters 6"
    assert union.manifest.corpus.licence == "none; free"
    for site in (RESID, MLP):
        everything = torch.arange(108 * 32)
        acts = torch.cat([store.gather(site, torch.arange(store.n_tokens)) for store in stores])
        assert torch.equal(union.gather(site, everything), acts)
        norms = np.linalg.norm(acts.double().numpy(), axis=1)
        inner = everything.numpy() % 32 != 0
        keep = inner & (norms <= 6 * np.median(norms[inner]))
        kept = acts.double().numpy()[keep]
        measured = union.statistics(site)
        assert (measured.n, measured.n_outliers) == (keep.sum(), inner.sum() - keep.sum())
        assert measured.median_norm == pytest.approx(np.median(norms[inner]), rel=1e-6)
        np.testing.assert_allclose(measured.mean.numpy(), kept.mean(axis=0), rtol=0, atol=1e-12 * kept.std())
        np.testing.assert_allclose(union.covariance(site).numpy(), np.cov(kept.T, bias=True), rtol=0, atol=2e-6 * kept.std() ** 2)
        errors = [shard.errors[site] for store in stores for shard in store.manifest.shards]
        lost = sum(error.squared for error in errors) / sum(error.n for error in errors) / measured.total_variance
        assert measured.storage_fvu == pytest.approx(lost)


def test_eight_bits_merge_too(planted, corpus, config, tmp_path):
    config = changed(config, dtype="int8")
    list(collect(planted(), corpus, tmp_path / "a", config))
    list(collect(planted(), from_texts(letters(seed=3)), tmp_path / "b", config))
    list(merge([tmp_path / "a", tmp_path / "b"], tmp_path / "all"))
    union, a = ActivationStore.open(tmp_path / "all"), ActivationStore.open(tmp_path / "a")
    union.verify()
    assert torch.equal(union.gather(MLP, torch.arange(a.n_tokens)), a.gather(MLP, torch.arange(a.n_tokens)))


@pytest.mark.parametrize("stop", [1, 3, 6, 10, 12])
def test_a_merge_that_stops_is_continued_and_a_finished_one_is_left_alone(sources, tmp_path, stop):
    list(merge(sources, tmp_path / "whole"))
    first = merge(sources, tmp_path / "s")
    for _ in range(stop):
        next(first)
    first.close()
    list(merge(sources, tmp_path / "s"))
    assert files(tmp_path / "s") == files(tmp_path / "whole")
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "s").rglob("*")}
    list(merge(sources, tmp_path / "s"))
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "s").rglob("*")} == times


def test_linked_files_cannot_be_changed_through_the_merged_store(sources, planted, tmp_path):
    list(merge(sources, tmp_path / "all"))
    linked = tmp_path / "all" / "shards" / "00001" / f"{MLP}.safetensors"
    assert os.path.samefile(linked, sources[0] / "shards" / "00001" / f"{MLP}.safetensors")
    before = files(sources[0])
    list(extend(planted(), tmp_path / "all", ("blocks.0.hook_resid_pre",)))
    linked.unlink()
    list(repair(tmp_path / "all", planted()))
    ActivationStore.open(tmp_path / "all").verify()
    assert files(sources[0]) == before
    for path in sources:
        ActivationStore.open(path).verify()


def test_where_no_link_can_be_made_files_are_copied(sources, tmp_path, monkeypatch):
    list(merge(sources, tmp_path / "linked"))

    def refuse(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("os.link", refuse)
    list(merge(sources, tmp_path / "copied"))
    assert files(tmp_path / "linked") == files(tmp_path / "copied")
    assert not os.path.samefile(*(tmp_path / name / "shards" / "00000" / f"{MLP}.safetensors" for name in ("linked", "copied")))


def test_the_same_corpus_twice_is_refused(sources, planted, corpus, config, tmp_path):
    list(collect(planted(), corpus, tmp_path / "again", changed(config, n_tokens=32 * 32)))
    with pytest.raises(
        ConfigError, match=r"again has the corpus of .*source 0: the same tokens would come twice; ask for more tokens of it instead"
    ):
        merge([*sources, tmp_path / "again"], tmp_path / "all")
    assert not (tmp_path / "all").exists()


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ({"digest": "e" * 64}, {}, r"model.digest is d{64} in the store, e{64} now"),
        ({}, {"context": 16}, r"capture.context is 32 in the store, 16 now"),
        ({}, {"dtype": "int8"}, r"capture.dtype is bfloat16 in the store, int8 now"),
        ({}, {"sites": (MLP, RESID)}, r"capture.sites is "),
        ({}, {"separator": False}, r"model.separator_id is 0 in the store, None now"),
        ({}, {"isolated": True}, r"capture.isolated is False in the store, True now"),
    ],
)
def test_stores_that_do_not_fit_are_refused(sources, planted, config, tmp_path, model, options, message):
    list(collect(planted(**model), from_texts(letters(seed=7)), tmp_path / "other", changed(config, n_tokens=512, **options)))
    with pytest.raises(ConfigError, match=rf"other cannot be merged with .*source 0: .*{message}"):
        merge([sources[0], tmp_path / "other"], tmp_path / "all")
    assert not (tmp_path / "all").exists()


def test_what_cannot_be_merged_is_said_before_anything_is_written(sources, planted, corpus, config, tmp_path):
    with pytest.raises(ConfigError, match=r"paths must name at least 2 stores, got 1"):
        merge(sources[:1], tmp_path / "all")
    with pytest.raises(ConfigError, match=r"source 0 was begun with something else, choose another path or remove it: corpus.digest"):
        merge(sources, sources[0])
    with pytest.raises(FormatError, match=r"nowhere/manifest.json does not exist; .* name the folder of one"):
        merge([sources[0], tmp_path / "nowhere"], tmp_path / "all")
    capture = collect(planted(), from_texts(letters(seed=7)), tmp_path / "half", config)
    next(capture)
    with pytest.raises(FormatError, match=r"half/manifest.json does not exist; run the capture again to finish it"):
        merge([sources[0], tmp_path / "half"], tmp_path / "all")
    file = sources[1] / "shards" / "00001" / "tokens.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(FormatError, match=r"source 1/shards/00001/tokens.safetensors is truncated or damaged"):
        merge(sources, tmp_path / "all")
    assert not (tmp_path / "all").exists()


def test_documents_that_cannot_be_numbered_are_an_error(sources, tmp_path):
    """Numbers of documents have 31 bits."""
    from sae.activations.manifest import read_manifest
    from sae.storage import checksum

    file = sources[1] / "shards" / "00000" / "tokens.safetensors"
    stored = {name: tensor.clone() for name, tensor in map_tensors(file).items()}
    stored["document_ids"] += 2**31 - 12
    save_tensors(file, stored)
    manifest = sources[1] / "manifest.json"
    old = read_manifest(sources[1]).shards[0].files["tokens.safetensors"].checksum
    for record in (manifest, file.with_name("shard.json")):
        record.write_text(record.read_text().replace(old, checksum(file)))
    assert json.loads(manifest.read_text())["n_rows"] == 33
    with pytest.raises(
        ConfigError, match=r"source 1/shards/00000 has documents up to \d+ when renumbered, above 2147483647: merge it first"
    ):
        list(merge(sources, tmp_path / "all"))

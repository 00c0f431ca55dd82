"""Reading a store: what comes out is what the model gave, and damage is named."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_store import BOOSTS, MLP, RESID, changed

from sae.activations.collect import collect
from sae.activations.corpus import from_texts
from sae.activations.manifest import CaptureConfig
from sae.activations.store import ActivationStore
from sae.errors import ConfigError, FormatError
from sae.storage import checksum, load_tensors, save_tensors


def brute_force(planted, document_texts, n_rows=55, context=32):
    """Tokens, document ids and float32 activations by lists and one position at a time."""
    model, stream = planted(), []
    for number, text in enumerate(document_texts):
        stream += [(0, number)] + [(1 + byte, number) for byte in text.encode()]
    stream = stream[: n_rows * context]
    acts = {}
    for width, table in model.tables.items():
        rows = []
        for t, (token, _) in enumerate(stream):
            row = table[token] + 0.3 * model.waves[width][t % context]
            rows.append(row * (BOOSTS[t % context % 4] if token == 0 else 1.0) * (1.5 if t % context == 0 else 1.0))
        acts[width] = torch.stack(rows)
    return torch.tensor([token for token, _ in stream]), torch.tensor([number for _, number in stream]), acts


@pytest.fixture
def truth(planted, corpus):
    return brute_force(planted, [document.text for document in corpus.documents()])


def as_stored(acts, dtype):
    """(rows as they are read, rows as they are on disk, norms) in storage of `dtype`, by the formulas."""
    if dtype == torch.int8:
        q = torch.round(127 * acts / acts.abs().amax(dim=1, keepdim=True))
        norms = acts.double().norm(dim=1)
        return (q.double() * (norms / q.double().norm(dim=1))[:, None]).float(), q.to(torch.int8), norms.float()
    rows = acts.to(dtype)
    return rows, rows, rows.double().norm(dim=1).float()


def same(found, expected, dtype):
    """Equal, or in eight bits, where rows are products, equal to rounding."""
    tolerance = 1e-6 if dtype == torch.int8 else 0.0
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=0)
    return True


@pytest.fixture
def copy(store, tmp_path):
    """A copy that may be damaged."""
    return ActivationStore.open(shutil.copytree(store.path, tmp_path / "copy"))


def test_a_store_holds_the_tokens_documents_and_activations_that_a_brute_force_pass_gives(store, truth):
    tokens, document_ids, acts = truth
    assert store.n_tokens == 55 * 32
    assert store.tokens().shape == (55, 32)
    assert torch.equal(store.tokens().reshape(-1).long(), tokens)
    assert torch.equal(store.document_ids().reshape(-1).long(), document_ids)
    everything = torch.arange(store.n_tokens)
    for site, width in ((RESID, 8), (MLP, 24)):
        expected, on_disk, norms = as_stored(acts[width], store.dtype)
        assert same(store.gather(site, everything), expected, store.dtype)
        assert torch.equal(torch.cat(list(store.shards(site))), on_disk)
        torch.testing.assert_close(store.norms(site), norms, rtol=1e-6, atol=0)


def test_gather_equals_indexing_for_any_order_repeats_and_shard_mix(store, truth):
    acts = as_stored(truth[2][8], store.dtype)[0]
    generator = torch.Generator().manual_seed(3)
    for n in (1, 2, 17, 500):
        index = torch.randint(0, store.n_tokens, (n,), generator=generator)
        gathered = store.gather(RESID, index)
        assert gathered.dtype == (torch.float32 if store.dtype == torch.int8 else store.dtype)
        assert same(gathered, acts[index], store.dtype)
    assert torch.equal(store.gather(RESID, index.int()), store.gather(RESID, index))
    assert store.gather(RESID, index[:0]).shape == (0, 8)
    ends = torch.tensor([store.n_tokens - 1, 0, 16 * 32, 16 * 32 - 1, 0])
    assert same(store.gather(RESID, ends), acts[ends], store.dtype)


@pytest.mark.parametrize("bad", [-1, 55 * 32])
def test_gather_refuses_an_index_out_of_range(store, bad):
    with pytest.raises(ConfigError, match=rf"token_index must be in 0..n_tokens-1=1759, got {bad}"):
        store.gather(RESID, torch.tensor([0, bad, 5]))


def test_mask_is_position_zero_and_six_medians_by_brute_force(store, truth):
    tokens = truth[0]
    for site, width in ((RESID, 8), (MLP, 24)):
        norms = as_stored(truth[2][width], store.dtype)[2].double().numpy()
        inner = [norms[t] for t in range(store.n_tokens) if t % 32 != 0]
        median = sorted(inner)[len(inner) // 2] if len(inner) % 2 else sum(sorted(inner)[len(inner) // 2 - 1 : len(inner) // 2 + 1]) / 2
        expected = torch.tensor([t % 32 != 0 and norms[t] <= 6.0 * median for t in range(store.n_tokens)])
        assert torch.equal(store.mask(site), expected)
        positions = torch.arange(store.n_tokens) % 32
        assert not store.mask(site)[(tokens == 0) & (positions % 4 == 3)].any()  # separators of 30 times the size
        assert store.mask(site)[(tokens == 0) & (positions % 4 == 0) & (positions > 0)].any()  # and of 3 times
        assert store.statistics(site).median_norm == pytest.approx(median, rel=1e-6)
        assert store.statistics(site).threshold == 6.0 * store.statistics(site).median_norm


def test_statistics_are_those_of_numpy_in_float64_over_the_mask(store, truth):
    for site, width in ((RESID, 8), (MLP, 24)):
        acts = as_stored(truth[2][width], store.dtype)[0].double().numpy()[store.mask(site).numpy()]
        measured = store.statistics(site)
        mean, spread = acts.mean(axis=0), acts.std(axis=0).max()
        rounding = 1e-6 if store.dtype == torch.int8 else 1e-12  # rows in eight bits are products, rounded to float32
        assert measured.n == len(acts)
        assert measured.n_outliers == int((~store.mask(site)).sum()) - store.n_rows
        np.testing.assert_allclose(measured.mean.numpy(), mean, rtol=rounding, atol=rounding * spread)
        assert measured.mean_norm == pytest.approx(np.linalg.norm(acts, axis=1).mean(), rel=1e-6)
        assert measured.mean_centred_norm == pytest.approx(np.linalg.norm(acts - mean, axis=1).mean(), rel=1e-6)
        assert measured.total_variance == pytest.approx(acts.var(axis=0).sum(), rel=1e-6)
        np.testing.assert_allclose(store.covariance(site).numpy(), np.cov(acts.T, bias=True), rtol=0, atol=2e-6 * spread**2)
        assert float(store.covariance(site).trace()) == pytest.approx(measured.total_variance, rel=1e-14)


def test_a_wide_vocabulary_is_stored_in_32_bits(planted, tmp_path, config):
    model = planted(d_vocab=70_000)
    model.tables = {width: torch.randn(70_000, width) for width in (8, 24)}
    model.tokenize = lambda texts, **_: [[65_536 + len(text)] * len(text) for text in texts]
    list(collect(model, from_texts(["a" * 1000, "b" * 900]), tmp_path / "s", config))
    assert ActivationStore.open(tmp_path / "s").tokens().max() == 65_536 + 1000


def test_disk_use_is_within_a_hundredth_of_the_activations_themselves(planted, tmp_path):
    model = planted()
    model.shape = model.shape.__class__(**{**model.shape.__dict__, "d_model": 576, "n_ctx": 128})
    table = torch.randn(300, 576)
    model.capture = lambda tokens, sites: dict.fromkeys(sites, table[tokens])
    config = CaptureConfig(sites=(RESID,), n_tokens=64 * 128, rows_per_shard=32)
    list(collect(model, from_texts(["abcdefgh" * 2000]), tmp_path / "s", config))
    used = sum(file.stat().st_size for file in (tmp_path / "s" / "shards").rglob("*") if file.is_file())
    assert used <= 1.01 * 64 * 128 * 576 * 2


def test_opening_reads_the_manifest_only_and_files_are_mapped_once_when_they_are_needed(planted, tmp_path, monkeypatch):
    config = CaptureConfig(sites=(RESID,), n_tokens=120 * 2 * 16, context=16, rows_per_shard=2, rows_per_batch=2)
    list(collect(planted(), from_texts(["some words " * 400]), tmp_path / "s", config))
    opened, real = [], torch.UntypedStorage.from_file
    monkeypatch.setattr("torch.UntypedStorage.from_file", lambda path, **options: opened.append(Path(path)) or real(path, **options))
    store = ActivationStore.open(tmp_path / "s")
    assert len(store.manifest.shards) == 120
    assert opened == []
    for _ in range(3):
        store.gather(RESID, torch.tensor([0, 16 * 2 * 119, 5]))
    assert len(opened) == len(set(opened)) <= 2 * 120  # nothing is mapped twice


def test_verify_passes_on_a_sound_store_and_the_digest_names_its_contents(store, copy):
    store.verify()
    assert copy.digest == store.digest
    assert len(store.digest) == 64
    assert "1,760 tokens of letters through planted" in repr(store)


@pytest.mark.parametrize("name", ["tokens", RESID])
def test_one_changed_byte_is_found_by_verify_which_names_the_file(copy, name):
    file = copy.path / "shards" / "00002" / f"{name}.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    reopened = ActivationStore.open(copy.path)
    with pytest.raises(
        FormatError, match=rf"00002/{re.escape(name)}.safetensors is damaged: its checksum is not .*`sae store repair` captures it again"
    ):
        reopened.verify()


def test_a_truncated_or_missing_shard_is_named_when_the_store_is_opened(copy):
    file = copy.path / "shards" / "00003-7" / f"{MLP}.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(
        FormatError, match=r"00003-7/blocks.1.mlp.hook_post.safetensors is truncated or damaged: it has \d+ bytes, \d+ were written"
    ):
        ActivationStore.open(copy.path)
    file.unlink()
    with pytest.raises(FormatError, match=r"00003-7/blocks.1.mlp.hook_post.safetensors does not exist"):
        ActivationStore.open(copy.path)


def rewrite_acts(copy, index, change):
    """Change one site's stored activations together with every checksum, as a faulty writer would have."""
    folder = copy.path / "shards" / f"{index:05d}"
    file = folder / f"{RESID}.safetensors"
    tensors = load_tensors(file)
    save_tensors(file, change(tensors))
    for record_file, locate in ((folder / "shard.json", lambda d: d), (copy.path / "manifest.json", lambda d: d["shards"][index])):
        data = json.loads(record_file.read_text())
        locate(data)["files"][file.name] = {"n_bytes": file.stat().st_size, "checksum": checksum(file)}
        record_file.write_text(json.dumps(data))


def test_a_stored_nan_with_right_checksums_is_found_by_verify(copy):
    def poison(tensors):
        in_eight_bits = tensors["acts"].dtype == torch.int8  # which have no NaN: it can be in the norm only
        tensors["norms" if in_eight_bits else "acts"][(5 * 32 + 7, 2)[: 1 if in_eight_bits else 2]] = float("nan")
        return tensors

    rewrite_acts(copy, 1, poison)
    with pytest.raises(
        FormatError, match=r"blocks.1.hook_resid_post has NaN or infinite activations at 1 tokens here, the first in row 21, position 7"
    ):
        ActivationStore.open(copy.path).verify()


def test_a_shard_of_another_shape_with_right_checksums_is_found_by_verify(copy):
    rewrite_acts(copy, 1, lambda tensors: {"acts": tensors["acts"][:, :7], "norms": tensors["norms"]})
    with pytest.raises(FormatError, match=r"00001/blocks.1.hook_resid_post.safetensors must hold .*8.*it holds .*7"):
        ActivationStore.open(copy.path).verify()


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(n_rows=15),
        lambda d: d["files"].pop(f"{MLP}.safetensors"),
        lambda d: d["files"]["tokens.safetensors"].update(checksum="0" * 32),
        lambda d: d["errors"][RESID].update(n=3),
    ],
)
def test_a_shard_record_that_disagrees_with_the_manifest_is_found_by_verify(copy, change):
    file = copy.path / "shards" / "00000" / "shard.json"
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))
    with pytest.raises(FormatError, match=r"00000/shard.json does not say what the manifest says .*`sae store repair` writes it again"):
        ActivationStore.open(copy.path).verify()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda d: d.update(schema=3),
            r"has schema 3, written by a newer version; .* reads activation stores of schema 2: upgrade sae-workbench",
        ),
        (lambda d: d.update(schema=1), r"has schema 1, .* reads activation stores of schema 2: read it with the version that wrote it"),
        (lambda d: d.update(schema="two"), r"manifest.json has schema 'two', this version reads"),
        (lambda d: d.pop("schema"), r"manifest.json has schema None, this version reads"),
        (lambda d: d.pop("corpus"), r"manifest.json is damaged: missing key 'corpus'"),
        (lambda d: d.update(colour="red"), r"manifest.json is damaged: unknown key 'colour'"),
        (lambda d: d["capture"].update(context="32"), r"manifest.json is damaged: Manifest.capture.context must be of type int"),
        (lambda d: d["shards"].pop(), r"manifest.json is damaged: its shards have 48 rows, it says 55"),
        (lambda d: d["statistics"].pop(RESID), r"manifest.json is damaged: it has no statistics of blocks.1.hook_resid_post"),
        (lambda d: d["shards"][1]["files"].pop(f"{MLP}.safetensors"), r"manifest.json is damaged: shard 1 has no blocks.1.mlp.hook_post"),
    ],
)
def test_a_manifest_that_is_not_right_is_an_error_that_says_why(copy, change, message):
    file = copy.path / "manifest.json"
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))
    with pytest.raises(FormatError, match=message):
        ActivationStore.open(copy.path)


def test_a_store_that_is_not_complete_says_how_far_it_is(planted, corpus, tmp_path, config):
    capture = collect(planted(), corpus, tmp_path / "s", config)
    next(capture)
    with pytest.raises(FormatError, match=r"s is not complete: not all of its tokens are written; run the same capture again to finish it"):
        ActivationStore.open(tmp_path / "s")
    for _ in range(16):
        next(capture)
    capture.close()
    with pytest.raises(FormatError, match=r"s is not complete: 3 of 4 shards are there; run the same capture again to finish it"):
        ActivationStore.open(tmp_path / "s")


def test_a_folder_that_is_no_store_is_an_error_that_names_it(tmp_path):
    with pytest.raises(FormatError, match=r"manifest.json does not exist"):
        ActivationStore.open(tmp_path)


def test_a_store_of_another_model_is_refused_when_the_model_is_named(store):
    assert ActivationStore.open(store.path, model_digest="d" * 64).digest == store.digest
    with pytest.raises(FormatError, match=r"was captured from planted with digest d{64}, not from e{64}"):
        ActivationStore.open(store.path, model_digest="e" * 64)


@pytest.mark.parametrize("method", ["mask", "statistics", "norms", "covariance", "site"])
def test_an_unknown_site_is_an_error_that_names_the_captured_ones(store, method):
    with pytest.raises(
        ConfigError, match=r"site must be one of blocks.1.hook_resid_post, blocks.1.mlp.hook_post, got 'blocks.2.hook_resid_post'"
    ):
        getattr(store, method)("blocks.2.hook_resid_post")


def test_a_site_value_is_as_good_as_its_name(store):
    site = store.site(MLP)
    assert (site.width, site.layer) == (24, 1)
    assert torch.equal(store.mask(site), store.mask(MLP))
    assert torch.equal(store.gather(site, torch.tensor([3])), store.gather(MLP, torch.tensor([3])))


WRONG_CHOICES = """
import sys
from sae.activations.collect import CaptureConfig
from sae.activations.store import ActivationStore
store = ActivationStore.open(sys.argv[1])
for call in (
    lambda: CaptureConfig(sites=("a",), n_tokens=1, dtype="float64"),
    lambda: CaptureConfig(sites=("a",), n_tokens=1, if_short="maybe"),
    lambda: CaptureConfig(sites="blocks.1.hook_resid_post", n_tokens=1),
    lambda: store.batches(store.site_names[0], batch_size=8, seed=0, split="test"),
):
    try:
        call()
    except ValueError as error:
        print(type(error).__name__, error)
print([name for name in ("transformer_lens", "transformers", "datasets") if name in sys.modules])
"""


def test_choices_that_do_not_exist_are_named_and_reading_loads_no_language_model(planted, corpus, tmp_path, config):
    """In a process of its own, where nothing but the code itself checks the types."""
    list(collect(planted(), corpus, tmp_path / "s", config))
    command = [sys.executable, "-c", WRONG_CHOICES, str(tmp_path / "s")]
    lines = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3]).stdout.splitlines()
    expected = [
        "ConfigError dtype must be one of bfloat16, float16, float32, int8, got 'float64' (CaptureConfig)",
        "ConfigError if_short must be 'error' or 'accept', got 'maybe' (CaptureConfig)",
        "ConfigError sites must be a tuple of at least one site name, got 'blocks.1.hook_resid_post' (CaptureConfig)",
        f"ConfigError split must be 'train' or 'held_out', got 'test' ({tmp_path / 's'})",
        "[]",
    ]
    assert lines == expected


def test_the_first_token_of_every_document_is_masked_where_documents_are_isolated(planted, corpus, tmp_path, config):
    """Positions are counted from the first token of a document in a row: the mask and the activations both show it."""
    from sae.models.tokens import offsets_in_document

    config = changed(config, isolated=True, dtype="float32")
    list(collect(planted(), corpus, tmp_path / "s", config))
    store, model = ActivationStore.open(tmp_path / "s"), planted()
    tokens, document_ids = store.tokens().long(), store.document_ids()
    first = torch.ones(55, 32, dtype=torch.bool)
    offset = torch.zeros(55, 32, dtype=torch.long)
    for row in range(55):
        for position in range(1, 32):
            first[row, position] = document_ids[row, position] != document_ids[row, position - 1]
            offset[row, position] = 0 if first[row, position] else offset[row, position - 1] + 1
    assert 55 < int(first.sum()) < 55 + 30  # documents begin in the middle of rows too
    acts = model.tables[8][tokens] + 0.3 * model.waves[8][offset]
    acts *= torch.where(tokens == 0, torch.tensor(BOOSTS)[offset % 4], 1.0)[..., None]
    acts *= torch.where(offset == 0, 1.5, 1.0)[..., None]
    torch.testing.assert_close(store.gather(RESID, torch.arange(55 * 32)), acts.view(-1, 8))
    norms = acts.view(-1, 8).norm(dim=1)
    inner = ~first.flatten()
    kept = inner & (norms <= 6.0 * float(np.median(norms[inner].numpy())))
    assert torch.equal(store.mask(RESID), kept)
    assert store.statistics(RESID).n == int(kept.sum())
    assert torch.equal(offsets_in_document(document_ids), offset)


@pytest.mark.parametrize(
    ("dtype", "low", "high"), [("bfloat16", 1e-7, 1e-4), ("float16", 1e-9, 1e-6), ("float32", 0.0, 0.0), ("int8", 1e-6, 2e-4)]
)
def test_what_storage_lost_is_that_of_the_captured_activations_themselves(planted, corpus, tmp_path, config, dtype, low, high):
    model, seen = planted(), {RESID: [], MLP: []}
    generator = torch.Generator().manual_seed(4)

    def gaussian(tokens, sites):
        acts = {site: torch.randn(*tokens.shape, site.width, generator=generator) for site in sites}
        for site, values in acts.items():
            seen[site.name].append(values.reshape(-1, site.width))
        return acts

    model.capture = gaussian
    list(collect(model, corpus, tmp_path / "s", changed(config, dtype=dtype)))
    store = ActivationStore.open(tmp_path / "s")
    for site in (RESID, MLP):
        acts = torch.cat(seen[site]).double()
        keep = store.mask(site)
        lost = (acts - store.gather(site, torch.arange(55 * 32)).double()).square().sum(dim=1)
        variance = acts[keep].var(dim=0, correction=0).sum()
        assert store.statistics(site).storage_fvu == pytest.approx(float(lost[keep].mean() / variance), rel=1e-4, abs=0)
        assert low <= store.statistics(site).storage_fvu <= high
        assert (store.statistics(site).storage_fvu == 0.0) == (dtype == "float32")


def test_nothing_is_lost_where_the_storage_holds_what_the_model_computes(planted, corpus, tmp_path, config):
    list(collect(planted(dtype=torch.bfloat16), corpus, tmp_path / "s", config))
    assert ActivationStore.open(tmp_path / "s").statistics(RESID).storage_fvu == 0.0


def test_measuring_takes_memory_that_does_not_grow_with_the_number_of_tokens():
    """240 MB of activations, twice over, are measured in a few MB: what is alive between two pieces is looked at."""
    from sae.activations.statistics import Piece, measure

    def pieces():
        generator = torch.Generator().manual_seed(0)
        for _ in range(60):
            acts = torch.randn(8192, 128, generator=generator).to(torch.bfloat16)
            yield Piece(acts, acts.float().norm(dim=1), torch.ones(8192, dtype=torch.bool))

    def resident():
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"RssAnon:\s+(\d+) kB", status)[1]) / 1024  # MB, memory maps of files not counted

    if "RssAnon" not in Path("/proc/self/status").read_text():
        pytest.skip("this system does not say how much memory a process uses")
    seen = [resident() for _ in measure(pieces, width=128, norm_ratio=6.0)]
    assert len(seen) == 120
    assert max(seen[20:]) < min(seen[:20]) + 40

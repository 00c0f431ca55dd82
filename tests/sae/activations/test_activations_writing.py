"""A store of activations that are there already: in pieces of any length, the bytes that a capture of the same would write."""

import pytest
import torch
from tiny_store import MLP, RESID, changed, files

from sae.activations.collect import collect
from sae.activations.manifest import read_manifest
from sae.activations.store import ActivationStore
from sae.activations.writing import RowPiece, cut, write_store
from sae.errors import ConfigError, FormatError


@pytest.fixture
def captured(planted, corpus, config, tmp_path):
    """(manifest, one piece with everything, path of the store) of a capture in float32."""
    list(collect(planted(), corpus, tmp_path / "captured", changed(config, dtype="float32")))
    store = ActivationStore.open(tmp_path / "captured")
    acts = {site: store.gather(site, torch.arange(55 * 32)) for site in (RESID, MLP)}
    stored = read_manifest(tmp_path / "captured")
    wanted = type(stored)(
        model=stored.model, corpus=stored.corpus, capture=stored.capture, sites=stored.sites, token_dtype=stored.token_dtype
    )
    return wanted, RowPiece(store.document_ids(), store.tokens(), acts), tmp_path / "captured"


def parts(piece, sizes):
    start = 0
    for size in sizes:
        rows, tokens = slice(start, start + size), slice(start * 32, (start + size) * 32)
        acts = {site: values[tokens] for site, values in piece.acts.items()}
        yield RowPiece(piece.document_ids[rows], None if piece.tokens is None else piece.tokens[rows], acts)
        start += size
    assert start == 55


@pytest.mark.parametrize("sizes", [[55], [16, 16, 16, 7], [1] * 55, [40, 15], [3, 0, 30, 22], [15, 2, 38]])
def test_pieces_of_any_length_make_the_store_that_a_capture_makes(captured, tmp_path, sizes):
    manifest, piece, path = captured
    steps = list(write_store(tmp_path / "s", manifest, parts(piece, sizes)))
    assert files(tmp_path / "s") == files(path)
    assert [step.n_tokens for step in steps if step.stage == "capture"] == [512, 1024, 1536, 1760]
    assert [step.n_tokens_run for step in write_store(tmp_path / "s", manifest, parts(piece, sizes))] == [0]


def test_cutting_keeps_every_row(captured):
    _, piece, _ = captured
    for rows_per_shard in (1, 7, 16, 54, 55, 60):
        cuts = list(cut(parts(piece, [20, 1, 34]), rows_per_shard))
        assert all(len(each.document_ids) == rows_per_shard for each in cuts[:-1])
        assert torch.equal(torch.cat([each.document_ids for each in cuts]), piece.document_ids)
        assert torch.equal(torch.cat([each.acts[MLP] for each in cuts]), piece.acts[MLP])


@pytest.mark.parametrize("stop", range(1, 8))
def test_writing_that_stops_is_continued_without_writing_twice(captured, tmp_path, stop):
    manifest, piece, path = captured
    first = write_store(tmp_path / "s", manifest, parts(piece, [20, 20, 15]))
    for _ in range(stop):
        next(first)
    first.close()
    steps = list(write_store(tmp_path / "s", manifest, parts(piece, [55])))
    assert max(step.n_tokens_run for step in steps) == 32 * (55 - min(55, 16 * min(stop, 4)))
    assert files(tmp_path / "s") == files(path)


def test_rows_without_tokens_have_none_and_statistics_all_the_same(captured, tmp_path):
    manifest, piece, path = captured
    manifest = type(manifest)(
        model=None, corpus=manifest.corpus, capture=manifest.capture, sites=manifest.sites, token_dtype=None, mask=manifest.mask
    )
    list(write_store(tmp_path / "s", manifest, parts(RowPiece(piece.document_ids, None, piece.acts), [30, 25])))
    store, like = ActivationStore.open(tmp_path / "s"), ActivationStore.open(path)
    store.verify()
    assert not store.has_tokens
    with pytest.raises(ConfigError, match=r"s has no token ids: its rows are not tokens \(letters\)"):
        store.tokens()
    assert torch.equal(store.document_ids(), like.document_ids())
    assert torch.equal(store.covariance(MLP), like.covariance(MLP))


def without(piece, **changes):
    return RowPiece(**{**{name: getattr(piece, name) for name in ("document_ids", "tokens", "acts")}, **changes})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda p: without(p, acts={RESID: p.acts[RESID]}),
            r"acts of blocks.1.mlp.hook_post must be \[1760, 24\], a row per token, got None",
        ),
        (
            lambda p: without(p, acts={**p.acts, MLP: p.acts[RESID]}),
            r"acts of blocks.1.mlp.hook_post must be \[1760, 24\], .* got \[1760, 8\]",
        ),
        (lambda p: without(p, acts={**p.acts, MLP: p.acts[MLP][:9]}), r"acts of blocks.1.mlp.hook_post must be .* got \[9, 24\]"),
        (
            lambda p: without(p, document_ids=p.document_ids.view(110, 16), tokens=p.tokens.view(110, 16)),
            r"document_ids must be \[rows, context=32\], got \[110, 16\]",
        ),
        (lambda p: without(p, tokens=None), r"tokens must be given if and only if the manifest has a token_dtype, which is uint16"),
        (lambda p: without(p, tokens=p.tokens - 1), r"tokens must be in 0..299, of shape \[55, 32\], got -1\.\."),
        (lambda p: without(p, tokens=p.tokens + 200), r"tokens must be in 0..299, .* got 200\.\."),
    ],
)
def test_pieces_that_do_not_fit_are_refused_before_anything_of_them_is_written(captured, tmp_path, change, message):
    manifest, piece, _ = captured
    with pytest.raises(ConfigError, match=message + r".*\(write_store\)"):
        list(write_store(tmp_path / "s", manifest, [change(piece)]))
    assert not list((tmp_path / "s").glob("shards/*"))


@pytest.mark.parametrize("n_rows", [40, 55])
def test_another_number_of_rows_than_announced_is_an_error_that_says_how_many_there_are(captured, tmp_path, n_rows):
    manifest, piece, _ = captured
    wanted = type(manifest)(
        model=manifest.model,
        corpus=manifest.corpus,
        capture=changed(manifest.capture, n_tokens=(95 - n_rows) * 32),
        sites=manifest.sites,
        token_dtype=manifest.token_dtype,
    )
    some = next(parts(piece, [n_rows, 55 - n_rows]))
    with pytest.raises(ConfigError, match=rf"n_tokens must be that of the pieces, {n_rows * 32}, got {(95 - n_rows) * 32} \(write_store\)"):
        list(write_store(tmp_path / "s", wanted, [some]))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused_with_its_place(captured, tmp_path, value):
    manifest, piece, path = captured
    acts = {**piece.acts, MLP: piece.acts[MLP].clone()}
    acts[MLP][33 * 32 + 5, 2] = value
    with pytest.raises(FormatError, match=r"blocks.1.mlp.hook_post has NaN or infinite .* the first in row 33, position 5; .*kept"):
        list(write_store(tmp_path / "s", manifest, [without(piece, acts=acts)]))
    steps = list(write_store(tmp_path / "s", manifest, [piece]))
    assert max(step.n_tokens_run for step in steps) == (55 - 32) * 32
    assert files(tmp_path / "s") == files(path)

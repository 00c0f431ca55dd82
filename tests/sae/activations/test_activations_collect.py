"""Capture: what is stored is what the model computes, and whatever is wrong is said before or instead of being stored."""

import errno
import json
import os
import shutil

import pytest
import torch
from tiny_store import MLP, RESID, changed, files

from sae.activations.collect import collect
from sae.activations.corpus import Corpus, from_texts
from sae.activations.manifest import CaptureConfig
from sae.activations.store import ActivationStore
from sae.errors import CacheError, ConfigError, FormatError


def run(*arguments, **options):
    return list(collect(*arguments, **options))


@pytest.mark.parametrize("bos_id", [None, 1])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_stored_activations_are_the_hidden_states_of_the_plain_model(tmp_path, dtype, bos_id):
    from tiny import tiny_hf_model, tiny_language_model

    model = tiny_language_model(seed=3)
    corpus = from_texts(["The nation and the people. " * 30, "A dog is an animal. " * 40, "birds can fly " * 60])
    config = CaptureConfig(
        sites=("blocks.1.hook_resid_post", "blocks.2.hook_resid_pre"),
        n_tokens=500,
        context=24,
        rows_per_shard=8,
        rows_per_batch=3,
        dtype=dtype,
        bos_id=bos_id,
    )
    run(model, corpus, tmp_path / "s", config)
    store = ActivationStore.open(tmp_path / "s", model_digest=model.digest)
    store.verify()

    stream = []
    for document in corpus.documents():
        stream += [0, *model.tokenizer.encode(document.text, add_special_tokens=False)]
    room = 24 if bos_id is None else 23
    rows = [([] if bos_id is None else [bos_id]) + stream[i * room : (i + 1) * room] for i in range(21)]
    assert store.tokens().tolist() == rows
    with torch.no_grad():
        hidden = tiny_hf_model(seed=3)(torch.tensor(rows), output_hidden_states=True).hidden_states[2]
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == "float32" else {"rtol": 8e-3, "atol": 1e-4}
    for site in store.site_names:  # the output of block 1 is the input of block 2
        torch.testing.assert_close(store.gather(site, torch.arange(21 * 24)).float(), hidden.reshape(-1, 32), **tolerance)


def test_progress_counts_every_token_once_and_rounds_up_to_whole_rows(planted, corpus, tmp_path, config):
    steps = run(planted(), corpus, tmp_path / "s", changed(config, n_tokens=55 * 32 - 31))
    capture = [step for step in steps if step.stage == "capture"]
    assert [step.n_tokens for step in capture] == sorted({step.n_tokens for step in capture})
    assert capture[-1][1:] == (55 * 32, 55 * 32, 55 * 32)
    assert steps[-1].n_tokens == steps[-1].n_tokens_total
    assert ActivationStore.open(tmp_path / "s").n_tokens == 55 * 32


def test_a_finished_store_is_left_alone_and_the_model_does_not_run(planted, corpus, tmp_path, config):
    run(planted(), corpus, tmp_path / "s", config)
    before, model = files(tmp_path / "s"), planted()
    assert run(model, corpus, tmp_path / "s", config) == [("capture", 1760, 1760, 0)]
    assert model.n_rows_run == 0
    assert files(tmp_path / "s") == before


def test_the_stages_follow_each_other_and_the_manifest_comes_last(planted, corpus, tmp_path, config):
    seen = []
    for step in collect(planted(), corpus, tmp_path / "s", config):
        if not seen or seen[-1] != step.stage:
            seen.append(step.stage)
        assert 0 < step.n_tokens <= step.n_tokens_total
        assert (tmp_path / "s" / "unfinished.json").exists()
        assert not (tmp_path / "s" / "manifest.json").exists()
        if step.stage != "tokens":
            assert len(list((tmp_path / "s").glob("shards/*/tokens.safetensors"))) == 4  # all of them, before the model runs once
    assert seen == ["tokens", "capture", "statistics"]
    assert not (tmp_path / "s" / "unfinished.json").exists()
    assert json.loads((tmp_path / "s" / "manifest.json").read_text())["n_rows"] == 55
    assert sorted(f.name for f in (tmp_path / "s" / "shards").iterdir()) == ["00000", "00001", "00002", "00003-7"]


def test_patterns_name_sites_in_the_order_of_the_patterns_and_then_of_the_model(tmp_path, corpus, planted, config):
    patterns = ("blocks.[02].mlp.hook_post", "blocks.*.hook_resid_post", "blocks.0.mlp.*")
    run(planted(), corpus, tmp_path / "a", changed(config, sites=patterns, n_tokens=20 * 32))
    names = ("blocks.0.mlp.hook_post", "blocks.2.mlp.hook_post", *(f"blocks.{layer}.hook_resid_post" for layer in range(3)))
    assert ActivationStore.open(tmp_path / "a").site_names == names
    run(planted(), corpus, tmp_path / "b", changed(config, sites=names, n_tokens=20 * 32))
    assert files(tmp_path / "a") == files(tmp_path / "b")
    with pytest.raises(ConfigError, match=r"no site of the model matches 'blocks.\*.hook_nothing'; nearest: "):
        collect(planted(), corpus, tmp_path / "c", changed(config, sites=("blocks.*.hook_nothing",)))


def test_rows_per_batch_is_part_of_what_a_store_is_but_not_of_its_activations(planted, corpus, tmp_path, config):
    run(planted(), corpus, tmp_path / "a", config)
    run(planted(), corpus, tmp_path / "b", changed(config, rows_per_batch=2))
    shards = [{k: v for k, v in files(tmp_path / name).items() if k != "manifest.json"} for name in "ab"]
    assert shards[0] == shards[1]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_an_activation_that_is_not_finite_is_refused_with_its_place(planted, corpus, tmp_path, config, value):
    model = planted()
    model.poison = {(37, 11): value}
    with pytest.raises(FormatError, match=r"blocks.1.hook_resid_post has NaN or infinite .* the first in row 37, position 11"):
        run(model, corpus, tmp_path / "s", config)
    there = sorted(f.parent.name for f in (tmp_path / "s" / "shards").glob("*/*post.safetensors"))
    assert there == ["00000", "00000", "00001", "00001"]
    assert not list((tmp_path / "s").rglob(".partial-*"))
    again = planted()
    run(again, corpus, tmp_path / "s", config)  # with a model that has it right
    assert again.n_rows_run == 55 - 32
    run(planted(), corpus, tmp_path / "fresh", config)
    assert files(tmp_path / "s") == files(tmp_path / "fresh")


def test_a_corpus_that_is_too_short_says_how_many_tokens_it_has_and_keeps_what_is_done(planted, corpus, tmp_path, config):
    n_available = sum(1 + len(document.text) for document in corpus.documents()) // 32 * 32
    wanted = changed(config, n_tokens=100_000)
    with pytest.raises(ConfigError, match=rf"n_tokens must be at most {n_available}, got 100000: corpus 'letters' has no more tokens"):
        run(planted(), corpus, tmp_path / "s", wanted)
    with pytest.raises(FormatError, match=r"is not complete: not all of its tokens are written"):
        ActivationStore.open(tmp_path / "s")
    inodes = {f: f.stat().st_ino for f in (tmp_path / "s").rglob("tokens.safetensors")}
    assert len(inodes) == n_available // 32 // 16
    model = planted()
    run(model, corpus, tmp_path / "s", changed(wanted, if_short="accept"))
    assert model.n_rows_run == n_available // 32
    assert all(f.stat().st_ino == inode for f, inode in inodes.items())  # what was written is there still
    assert ActivationStore.open(tmp_path / "s").n_tokens == n_available
    run(planted(), corpus, tmp_path / "again", changed(wanted, if_short="accept"))
    assert files(tmp_path / "s") == files(tmp_path / "again")


@pytest.mark.parametrize("asked", [40 * 32, 70 * 32])
def test_an_unfinished_store_may_be_finished_at_another_length(planted, corpus, tmp_path, config, asked):
    for step in collect(planted(), corpus, tmp_path / "s", config):
        if step.stage == "statistics":
            break  # all shards are there, the last one short
    run(planted(), corpus, tmp_path / "s", changed(config, n_tokens=asked))
    run(planted(), corpus, tmp_path / "fresh", changed(config, n_tokens=asked))
    assert files(tmp_path / "s") == files(tmp_path / "fresh")


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"model": {"digest": "e" * 64}}, r"model.digest is d{64} in the store, e{64} now"),
        ({"model": {"d_vocab": 301}}, r"model.d_vocab is 300 in the store, 301 now; model.vocabulary is"),
        ({"corpus": 7}, r"corpus.digest is \w{64} in the store, \w{64} now"),
        ({"config": {"context": 16}}, r"capture.context is 32 in the store, 16 now"),
        ({"config": {"dtype": "float32"}}, r"capture.dtype is bfloat16 in the store, float32 now"),
        ({"config": {"sites": (RESID,)}}, r"capture.sites is .* in the store, \['blocks.1.hook_resid_post'\] now"),
        (
            {"config": {"separator": False}},
            r"model.separator_id is 0 in the store, None now; capture.separator is True",
        ),
        ({"config": {"bos_id": 5}}, r"capture.bos_id is None in the store, 5 now"),
        ({"config": {"rows_per_shard": 8}}, r"capture.rows_per_shard is 16 in the store, 8 now"),
    ],
)
def test_a_store_begun_with_something_else_is_refused_naming_what_differs(planted, corpus, tmp_path, config, other, message, finished):
    progress = collect(planted(), corpus, tmp_path / "s", config)
    for _ in range(8):
        next(progress)
    if finished:
        list(progress)
    progress.close()
    before = files(tmp_path / "s")
    second = from_texts(["other text " * 400], name="letters", licence="none") if "corpus" in other else corpus
    with pytest.raises(ConfigError, match=rf"was begun with something else, choose another path or remove it: .*{message}"):
        collect(planted(**other.get("model", {})), second, tmp_path / "s", changed(config, **other.get("config", {})))
    assert files(tmp_path / "s") == before


def test_a_finished_store_is_not_shortened(planted, corpus, tmp_path, config):
    run(planted(), corpus, tmp_path / "s", config)
    before = files(tmp_path / "s")
    with pytest.raises(ConfigError, match=r"n_tokens is 1760 in the finished store, 1024 now, and a store is never shortened"):
        collect(planted(), corpus, tmp_path / "s", changed(config, n_tokens=1024))
    assert files(tmp_path / "s") == before


def test_a_capture_that_stored_nothing_does_not_stand_in_the_way_of_another(planted, corpus, tmp_path, config):
    hollow = Corpus("hollow", "0" * 64, "none", lambda: iter(()))
    with pytest.raises(ConfigError, match=r"corpus 'hollow' is empty"):
        run(planted(), hollow, tmp_path / "s", config)
    with pytest.raises(ConfigError, match=r"corpus 'texts' has too few tokens to fill one row of context=32"):
        run(planted(), from_texts(["short"]), tmp_path / "s", config)
    run(planted(), corpus, tmp_path / "s", config)
    ActivationStore.open(tmp_path / "s").verify()


def test_a_corpus_that_belies_its_digest_is_found_when_a_capture_continues(planted, corpus, tmp_path, config):
    progress = collect(planted(), corpus, tmp_path / "s", config)
    for _ in range(3):
        next(progress)  # while tokens are written; later they are not asked for again
    progress.close()
    documents = list(corpus.documents())
    liar = Corpus(corpus.name, corpus.digest, corpus.licence, lambda: iter(documents[1:]))
    with pytest.raises(FormatError, match=r"00000/tokens.safetensors holds other tokens than the corpus gives now"):
        run(planted(), liar, tmp_path / "s", config)


@pytest.mark.parametrize(
    "damage", ["truncated", "missing", "tokens truncated", "tokens missing", "record damaged", "record missing", "folder missing"]
)
def test_a_damaged_shard_of_an_unfinished_store_is_captured_again(planted, corpus, tmp_path, config, damage):
    run(planted(), corpus, tmp_path / "fresh", config)
    progress = collect(planted(), corpus, tmp_path / "s", config)
    for _ in range(14):
        next(progress)
    progress.close()
    folder = tmp_path / "s" / "shards" / "00001"
    file = folder / {"tokens": "tokens.safetensors", "record": "shard.json"}.get(damage.split()[0], f"{MLP}.safetensors")
    if damage == "folder missing":
        shutil.rmtree(folder)
    elif damage.endswith("missing"):
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:100])
    model = planted()
    run(model, corpus, tmp_path / "s", config)
    assert model.n_rows_run == 55 - (32 if damage.startswith("tokens") else 16)
    assert files(tmp_path / "s") == files(tmp_path / "fresh")


@pytest.mark.parametrize(
    ("operation", "failing"), [("fsync", n) for n in (1, 4, 9, 15, 22, 30, 45)] + [("replace", n) for n in (1, 3, 9, 14, 22)]
)
def test_a_full_disk_is_an_error_and_leaves_nothing_half_written(planted, corpus, tmp_path, config, monkeypatch, operation, failing):
    calls, real = [], getattr(os, operation)

    def full(*arguments):
        calls.append(arguments)
        if len(calls) == failing:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(f"os.{operation}", full)
        with pytest.raises(
            CacheError, match=r"no space left on device while writing .*; nothing was left half-written, free some room and run"
        ):
            run(planted(), corpus, tmp_path / "s", config)
    assert not list((tmp_path / "s").rglob(".partial-*"))
    run(planted(), corpus, tmp_path / "s", config)
    run(planted(), corpus, tmp_path / "fresh", config)
    assert files(tmp_path / "s") == files(tmp_path / "fresh")


def test_a_path_that_is_something_else_is_refused_untouched(planted, corpus, tmp_path, config):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("keep")
    with pytest.raises(ConfigError, match=r"path must be a new folder or an activation store, .*notes is neither"):
        collect(planted(), corpus, tmp_path / "notes", config)
    with pytest.raises(ConfigError, match=r"path must be a folder, .*mine.txt is a file"):
        collect(planted(), corpus, tmp_path / "notes" / "mine.txt", config)
    assert files(tmp_path / "notes") == {"mine.txt": b"keep"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sites": ("blocks.7.hook_resid_post",)}, r"no site of the model matches 'blocks.7.hook_resid_post'; nearest"),
        ({"sites": ()}, r"sites must be a tuple of at least one site name, got \(\)"),
        ({"sites": (RESID, RESID)}, r"sites must be distinct"),
        ({"n_tokens": 0}, r"n_tokens must be at least 1, got 0"),
        ({"rows_per_batch": 0}, r"rows_per_batch must be at least 1, got 0"),
        ({"context": 1}, r"context must be in 2..n_ctx=64 of planted, got 1 "),
        ({"context": 65}, r"context must be in 2..n_ctx=64 of planted, got 65"),
        ({"bos_id": 300}, r"bos_id must be in 0..d_vocab-1=299, got 300"),
    ],
)
def test_options_out_of_range_are_refused_before_anything_is_written(planted, corpus, tmp_path, config, options, message):
    with pytest.raises(ConfigError, match=message):
        collect(planted(), corpus, tmp_path / "s", changed(config, **options))
    assert not (tmp_path / "s").exists()


def test_leftovers_of_killed_runs_are_gone_from_the_finished_store(planted, corpus, tmp_path, config):
    progress = collect(planted(), corpus, tmp_path / "s", config)
    for _ in range(8):
        next(progress)
    progress.close()
    shutil.copytree(tmp_path / "s" / "shards" / "00000", tmp_path / "s" / "shards" / ".partial-0123456789ab-00001")
    (tmp_path / "s" / ".partial-0123456789ab-manifest.json").write_text("{")
    run(planted(), corpus, tmp_path / "s", config)
    run(planted(), corpus, tmp_path / "fresh", config)
    assert files(tmp_path / "s") == files(tmp_path / "fresh")

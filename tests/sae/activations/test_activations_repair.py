"""Damage of every kind is found, and mended to the bytes that were there, with no more than it takes."""

import json
import shutil

import pytest
from tiny_store import MLP, RESID, changed, files, letters

from sae.activations.collect import collect, extend
from sae.activations.corpus import from_texts
from sae.activations.maintenance import problems, repair
from sae.activations.store import ActivationStore
from sae.errors import ConfigError, FormatError


def truncated(file):
    file.write_bytes(file.read_bytes()[:-9])


def flipped(file):
    data = bytearray(file.read_bytes())
    data[len(data) * 2 // 3] ^= 0x10
    file.write_bytes(data)


def missing(file):
    file.unlink()


def emptied(file):
    file.write_bytes(b"")


@pytest.fixture
def whole(planted, corpus, config, tmp_path):
    """A store, to be damaged."""
    list(collect(planted(), corpus, tmp_path / "s", config))
    return tmp_path / "s"


def check_whole(path, before):
    assert files(path) == before
    assert problems(path) == []
    ActivationStore.open(path).verify()


@pytest.mark.parametrize("damage", [truncated, flipped, missing, emptied])
@pytest.mark.parametrize("shard", ["00001", "00003-7"])
def test_a_damaged_site_is_captured_again_from_the_stored_tokens_alone(whole, planted, damage, shard):
    before = files(whole)
    damage(whole / "shards" / shard / f"{MLP}.safetensors")
    (found,) = problems(whole)
    assert (found.file, found.shard) == (whole / "shards" / shard / f"{MLP}.safetensors", int(shard[:5]))
    assert "`sae store repair` captures it again" in found.what
    with pytest.raises(
        ConfigError, match=rf"model must be given to capture .*{shard}/{MLP}.safetensors again: planted \(d{{64}}\) \(repair\)"
    ):
        repair(whole)
    model = planted()
    model.tokenize = None
    list(repair(whole, model))
    assert model.n_rows_run == (7 if "-" in shard else 16)
    check_whole(whole, before)


@pytest.mark.parametrize("damage", [truncated, flipped, missing])
def test_damaged_tokens_are_taken_from_the_corpus_again(whole, planted, corpus, damage):
    before = files(whole)
    damage(whole / "shards" / "00002" / "tokens.safetensors")
    after = files(whole)
    with pytest.raises(ConfigError, match=r"corpus must be given, since tokens of .*s are damaged: letters \(\w{64}\) \(repair\)"):
        repair(whole, planted())
    other = from_texts(letters(seed=9), name="other")
    with pytest.raises(ConfigError, match=r"corpus must be the store's letters \(\w{64}\), got other \(\w{64}\)"):
        repair(whole, planted(), other)
    assert files(whole) == after
    model = planted()
    list(repair(whole, model, corpus))
    assert model.n_rows_run == 0
    check_whole(whole, before)


@pytest.mark.parametrize("damage", [truncated, missing, emptied, lambda file: file.write_text("[1]")])
def test_damaged_records_and_statistics_need_neither_model_nor_corpus(whole, damage):
    before = files(whole)
    damage(whole / "shards" / "00000" / "shard.json")
    (statistics,) = (whole / "statistics").glob(f"{RESID}.*")
    damage(statistics) if damage is not emptied else truncated(statistics)
    assert [problem.shard for problem in problems(whole)] == [0, None]
    list(repair(whole))
    check_whole(whole, before)


def test_a_record_that_says_something_else_is_written_again(whole):
    before, file = files(whole), whole / "shards" / "00000" / "shard.json"
    data = json.loads(file.read_text())
    file.write_text(json.dumps({**data, "n_rows": 3}))
    list(repair(whole))
    check_whole(whole, before)


def test_a_missing_shard_and_much_other_damage_are_mended_together(whole, planted, corpus):
    before, shards = files(whole), whole / "shards"
    shutil.rmtree(shards / "00000")
    shutil.rmtree(shards / "00003-7")
    flipped(shards / "00001" / f"{RESID}.safetensors")
    missing(shards / "00001" / "shard.json")
    truncated(shards / "00002" / "tokens.safetensors")
    shutil.rmtree(whole / "statistics")
    with pytest.raises(FormatError, match=r"00000/tokens.safetensors does not exist|`sae store repair`"):
        ActivationStore.open(whole)
    model = planted()
    list(repair(whole, model, corpus))
    assert model.n_rows_run == 16 + 7 + 16
    check_whole(whole, before)


def test_a_store_without_problems_is_not_touched(whole):
    times = {file: (file.stat().st_mtime_ns, file.stat().st_ino) for file in whole.rglob("*")}
    assert [step.n_tokens_run for step in repair(whole)] == [0]
    assert {file: (file.stat().st_mtime_ns, file.stat().st_ino) for file in whole.rglob("*")} == times


@pytest.mark.parametrize("stop", range(1, 16, 2))
def test_a_repair_that_stops_is_continued(whole, planted, corpus, stop):
    before = files(whole)
    flipped(whole / "shards" / "00000" / f"{MLP}.safetensors")
    truncated(whole / "shards" / "00001" / "tokens.safetensors")
    missing(whole / "shards" / "00003-7" / f"{RESID}.safetensors")
    first = repair(whole, planted(), corpus)
    for _ in range(stop):
        next(first)
    first.close()
    list(repair(whole, planted(), corpus))
    check_whole(whole, before)


def test_a_repair_with_a_model_whose_weights_changed_is_refused_untouched(whole, planted):
    flipped(whole / "shards" / "00000" / f"{MLP}.safetensors")
    after = files(whole)
    with pytest.raises(
        ConfigError, match=r"captured from another model than planted as it is now \(digest is d{64} in the store, e{64} now\)"
    ):
        repair(whole, planted(digest="e" * 64))
    assert files(whole) == after


def test_what_others_have_begun_to_add_is_kept_by_a_repair(planted, corpus, config, tmp_path):
    list(collect(planted(), corpus, tmp_path / "s", changed(config, n_tokens=40 * 32)))
    list(collect(planted(), corpus, tmp_path / "whole", config))
    addition = collect(planted(), corpus, tmp_path / "s", config)
    while next(addition).n_tokens_run < 11 * 32:
        pass
    addition.close()
    n_before = len(list((tmp_path / "s").rglob("*.safetensors")))
    flipped(tmp_path / "s" / "shards" / "00000" / f"{RESID}.safetensors")
    list(repair(tmp_path / "s", planted()))
    assert len(list((tmp_path / "s").rglob("*.safetensors"))) == n_before
    ActivationStore.open(tmp_path / "s").verify()
    list(collect(planted(), corpus, tmp_path / "s", config))
    assert files(tmp_path / "s") == files(tmp_path / "whole")


def test_a_site_that_is_being_added_is_kept_by_a_repair(planted, corpus, config, tmp_path):
    list(collect(planted(), corpus, tmp_path / "s", changed(config, sites=(RESID,))))
    list(collect(planted(), corpus, tmp_path / "whole", config))
    addition = extend(planted(), tmp_path / "s", (MLP,))
    for _ in range(9):
        next(addition)
    addition.close()
    flipped(tmp_path / "s" / "shards" / "00000" / f"{RESID}.safetensors")
    added = tmp_path / "s" / "shards" / "00000" / f"{MLP}.safetensors"
    inode = added.stat().st_ino
    list(repair(tmp_path / "s", planted()))
    ActivationStore.open(tmp_path / "s").verify()
    list(extend(planted(), tmp_path / "s", (MLP,)))
    assert added.stat().st_ino == inode
    assert files(tmp_path / "s") == files(tmp_path / "whole")


def test_what_was_measured_while_a_file_was_damaged_is_measured_again(planted, corpus, config, tmp_path):
    list(collect(planted(), corpus, tmp_path / "whole", config))
    list(collect(planted(), corpus, tmp_path / "s", changed(config, n_tokens=48 * 32)))
    flipped(tmp_path / "s" / "shards" / "00000" / f"{RESID}.safetensors")
    list(collect(planted(), corpus, tmp_path / "s", config))  # which looks at sizes only
    list(repair(tmp_path / "s", planted()))
    check_whole(tmp_path / "s", files(tmp_path / "whole"))


def test_imported_activations_cannot_be_captured_again_and_the_message_says_so(whole, planted):
    file = whole / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "model": None}))
    flipped(whole / "shards" / "00000" / f"{MLP}.safetensors")
    with pytest.raises(
        ConfigError, match=r"00000/.*safetensors cannot be captured again, the store was imported: import it again elsewhere"
    ):
        repair(whole, planted())


def test_no_manifest_is_no_store(tmp_path, planted):
    for function in (problems, repair):
        with pytest.raises(FormatError, match=r"manifest.json does not exist; .* is no activation store: name the folder of one"):
            function(tmp_path)

"""A store that grows: more tokens later, another site for the same tokens. What was there stays readable, and nothing is done twice."""

import pytest
import torch
from tiny_store import MLP, RESID, changed, files

from sae.activations.collect import collect, extend
from sae.activations.corpus import from_texts
from sae.activations.store import ActivationStore
from sae.errors import ConfigError, FormatError

FIRST, THIRD = "blocks.0.hook_resid_pre", "blocks.2.mlp.hook_post"


def run(*arguments):
    return list(collect(*arguments))


@pytest.mark.parametrize("n_rows", [16, 40, 48, 54])  # 40 and 54 leave a short shard, which a longer one replaces
@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_more_tokens_later_give_the_store_of_one_capture_and_run_only_what_is_new(planted, corpus, tmp_path, config, n_rows, dtype):
    config = changed(config, dtype=dtype)
    run(planted(), corpus, tmp_path / "whole", config)
    run(planted(), corpus, tmp_path / "s", changed(config, n_tokens=n_rows * 32))
    inodes = {file: file.stat().st_ino for file in (tmp_path / "s").glob("shards/?????/*.safetensors")}
    model = planted()
    run(model, corpus, tmp_path / "s", config)
    assert model.n_rows_run == 55 - n_rows // 16 * 16
    assert files(tmp_path / "s") == files(tmp_path / "whole")
    assert all(file.stat().st_ino == inode for file, inode in inodes.items())  # whole shards are not written again


def test_a_store_that_is_added_to_stays_what_it_was_until_the_new_tokens_are_all_there(planted, corpus, tmp_path, config):
    run(planted(), corpus, tmp_path / "s", changed(config, n_tokens=40 * 32))
    old = ActivationStore.open(tmp_path / "s")
    batches = list(old.batches(RESID, batch_size=64, seed=3, n_batches=4))
    for step in collect(planted(), corpus, tmp_path / "s", config):
        store = ActivationStore.open(tmp_path / "s")
        assert (store.digest, store.n_tokens) == (old.digest, 40 * 32)
        again = store.batches(RESID, batch_size=64, seed=3, n_batches=4)
        assert all(torch.equal(a, b) for a, b in zip(batches, again, strict=True)), step
    new = ActivationStore.open(tmp_path / "s")
    new.verify()
    assert new.n_tokens == 55 * 32
    assert torch.equal(new.gather(RESID, torch.arange(40 * 32)), old.gather(RESID, torch.arange(40 * 32)))  # the old reader reads on


def test_adding_tokens_from_a_corpus_that_has_no_more_leaves_the_store_readable(planted, corpus, tmp_path, config):
    run(planted(), corpus, tmp_path / "s", config)
    with pytest.raises(ConfigError, match=r"n_tokens must be at most \d+, got 100000: .*ask for at most"):
        run(planted(), corpus, tmp_path / "s", changed(config, n_tokens=100_000))
    ActivationStore.open(tmp_path / "s").verify()
    n_there = sum(1 + len(document.text) for document in corpus.documents()) // 32
    run(planted(), corpus, tmp_path / "s", changed(config, n_tokens=100_000, if_short="accept"))
    assert ActivationStore.open(tmp_path / "s").n_rows == n_there
    run(planted(), corpus, tmp_path / "whole", changed(config, n_tokens=100_000, if_short="accept"))
    assert files(tmp_path / "s") == files(tmp_path / "whole")


@pytest.mark.parametrize("change", [{"sites": (RESID,)}, {"dtype": "float32"}, {"rows_per_shard": 8}, {"rows_per_batch": 2}])
def test_more_tokens_of_something_else_are_refused(planted, corpus, tmp_path, config, change):
    run(planted(), corpus, tmp_path / "s", changed(config, n_tokens=40 * 32))
    before = files(tmp_path / "s")
    with pytest.raises(ConfigError, match=rf"was begun with something else, .*capture.{next(iter(change))} is"):
        collect(planted(), corpus, tmp_path / "s", changed(config, **change))
    assert files(tmp_path / "s") == before


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_sites_added_later_give_the_store_of_all_sites_captured_at_once(planted, corpus, tmp_path, config, dtype):
    config = changed(config, dtype=dtype)
    run(planted(), corpus, tmp_path / "whole", changed(config, sites=(RESID, MLP, FIRST, THIRD)))
    run(planted(), corpus, tmp_path / "s", changed(config, sites=(RESID,)))
    inodes = {file: file.stat().st_ino for file in (tmp_path / "s").glob("shards/*/*.safetensors")}
    model = planted()
    model.tokenize = None  # the tokens are there
    list(extend(model, tmp_path / "s", (MLP,)))
    list(extend(model, tmp_path / "s", ("blocks.0.hook_resid_pre", "blocks.2.mlp.*", RESID)))
    assert files(tmp_path / "s") == files(tmp_path / "whole")
    assert model.n_rows_run == 2 * 55
    assert all(file.stat().st_ino == inode for file, inode in inodes.items())
    assert list(extend(model, tmp_path / "s", ("blocks.*.mlp.hook_post",))) != []  # one more: that of block 0
    assert [step.n_tokens_run for step in extend(model, tmp_path / "s", (MLP, FIRST))] == [0]


def test_a_store_that_gets_a_site_stays_what_it_was_until_the_site_is_complete(planted, corpus, tmp_path, config):
    run(planted(), corpus, tmp_path / "s", changed(config, sites=(RESID,)))
    before = ActivationStore.open(tmp_path / "s").digest
    for step in extend(planted(), tmp_path / "s", (MLP,)):
        assert step.stage in ("capture", "statistics")
        store = ActivationStore.open(tmp_path / "s")
        assert store.digest == before
    store.verify()
    store = ActivationStore.open(tmp_path / "s")
    assert store.site_names == (RESID, MLP)
    store.verify()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"digest": "e" * 64}, "digest is d{64} in the store, e{64} now"),
        ({"dtype": torch.bfloat16}, "dtype is float32 in the store, bfloat16 now"),
    ],
)
def test_a_site_of_another_model_is_refused(planted, corpus, tmp_path, config, other, message):
    run(planted(), corpus, tmp_path / "s", changed(config, sites=(RESID,)))
    before = files(tmp_path / "s")
    with pytest.raises(
        ConfigError, match=rf"was captured from another model than planted as it is now \({message}\): load the one it was made"
    ):
        extend(planted(**other), tmp_path / "s", (MLP,))
    assert files(tmp_path / "s") == before


def test_a_site_that_does_not_exist_and_a_store_that_is_not_complete_are_refused(planted, corpus, tmp_path, config):
    capture = collect(planted(), corpus, tmp_path / "s", config)
    next(capture)
    capture.close()
    with pytest.raises(FormatError, match=r"s/manifest.json does not exist; run the capture again to finish it"):
        extend(planted(), tmp_path / "s", (FIRST,))
    with pytest.raises(FormatError, match=r"manifest.json does not exist; .*nowhere is no activation store: name the folder of one"):
        extend(planted(), tmp_path / "nowhere", (FIRST,))
    run(planted(), corpus, tmp_path / "s", config)
    with pytest.raises(ConfigError, match=r"no site of the model matches 'blocks.9.hook_resid_post'; nearest"):
        extend(planted(), tmp_path / "s", ("blocks.9.hook_resid_post",))


def test_while_a_site_is_added_other_additions_are_refused_and_then_work(planted, corpus, tmp_path, config):
    run(planted(), corpus, tmp_path / "s", changed(config, sites=(RESID,), n_tokens=40 * 32))
    addition = extend(planted(), tmp_path / "s", (MLP,))
    for _ in range(6):
        next(addition)
    addition.close()
    before = files(tmp_path / "s")
    with pytest.raises(ConfigError, match=r"is being added to by another capture that has not ended; finish that one first: capture.sites"):
        extend(planted(), tmp_path / "s", (FIRST,))
    with pytest.raises(ConfigError, match=r"is being added to by another capture that has not ended; finish that one first: capture.sites"):
        collect(planted(), corpus, tmp_path / "s", changed(config, sites=(RESID,)))
    run(planted(), corpus, tmp_path / "s", changed(config, sites=(RESID,), n_tokens=40 * 32))  # what is there already is left alone
    assert files(tmp_path / "s") == before
    list(extend(planted(), tmp_path / "s", (MLP,)))
    run(planted(), corpus, tmp_path / "s", config)
    run(planted(), corpus, tmp_path / "whole", config)
    assert files(tmp_path / "s") == files(tmp_path / "whole")


def test_collecting_with_another_site_says_that_extend_adds_one(planted, corpus, tmp_path, config):
    run(planted(), corpus, tmp_path / "s", changed(config, sites=(RESID,)))
    with pytest.raises(ConfigError, match=r"to add a site to the same tokens use extend"):
        collect(planted(), corpus, tmp_path / "s", config)


def test_a_real_model_extends_with_the_very_bytes(tmp_path):
    from tiny import tiny_language_model

    model, corpus = tiny_language_model(n_layers=2), from_texts(["The nation and the people. " * 30, "A dog is an animal; " * 40])
    from sae.activations.manifest import CaptureConfig

    both = ("blocks.0.hook_resid_post", "blocks.1.hook_mlp_out")
    config = CaptureConfig(sites=both, n_tokens=20 * 16, context=16, rows_per_shard=6, rows_per_batch=4)
    run(model, corpus, tmp_path / "whole", config)
    run(model, corpus, tmp_path / "s", changed(config, sites=both[:1], n_tokens=10 * 16))
    run(model, corpus, tmp_path / "s", changed(config, sites=both[:1]))
    list(extend(model, tmp_path / "s", both[1:]))
    assert files(tmp_path / "s") == files(tmp_path / "whole")

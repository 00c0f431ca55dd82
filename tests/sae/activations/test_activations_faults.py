"""Whatever goes wrong: nothing that was captured is lost, nothing is half-written, and the message says what to do."""

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
import torch
from tiny_store import MLP, RESID, changed, files, letters

from sae.activations.collect import collect, extend
from sae.activations.corpus import Corpus, Document, from_texts
from sae.activations.maintenance import problems, repair
from sae.activations.merging import merge
from sae.activations.store import ActivationStore
from sae.errors import CacheError, ConfigError, FormatError


def stopped(capture, n_steps):
    for _ in range(n_steps):
        next(capture)
    capture.close()


@pytest.mark.parametrize("kib", [24, 60, 90, 120])
def test_a_disk_that_is_really_full_stops_a_capture_which_goes_on_when_there_is_room(planted, corpus, config, tmp_path, small_disk, kib):
    list(collect(planted(), corpus, tmp_path / "whole", config))
    disk = small_disk(400 * 1024)
    ballast = disk / "ballast"
    with open(ballast, "wb") as file:
        file.write(bytes(400 * 1024 - kib * 1024))
    with pytest.raises(
        CacheError, match=r"no space left on device while writing .*nothing was left half-written, free some room and run again"
    ):
        list(collect(planted(), corpus, disk / "s", config))
    assert not list(disk.rglob(".partial-*"))
    records = {file.parent: json.loads(file.read_text()) for file in disk.glob("s/shards/*/shard.json")}
    site_files = {folder / name: (folder / name).stat().st_ino for folder, record in records.items() for name in record["files"]}
    ballast.unlink()
    list(collect(planted(), corpus, disk / "s", config))
    assert files(disk / "s") == files(tmp_path / "whole")
    assert all(file.stat().st_ino == inode for file, inode in site_files.items())  # what was there is there


@pytest.mark.parametrize("work", ["append", "extend", "merge", "repair"])
def test_a_disk_that_is_full_stops_every_kind_of_work_and_the_store_is_what_it_was(planted, corpus, config, tmp_path, small_disk, work):
    disk, small = small_disk(500 * 1024), changed(config, sites=(RESID,), n_tokens=40 * 32)
    list(collect(planted(), corpus, tmp_path / "a", small))
    list(collect(planted(), from_texts(letters(seed=4)), tmp_path / "b", small))
    if work != "merge":
        shutil.copytree(tmp_path / "a", disk / "s")
    if work == "repair":
        (disk / "s" / "shards" / "00001" / f"{RESID}.safetensors").unlink()

    def run(path):
        if work == "append":
            return list(collect(planted(), corpus, path, changed(small, n_tokens=55 * 32)))
        if work == "extend":
            return list(extend(planted(), path, (MLP,)))
        return list(merge([tmp_path / "a", tmp_path / "b"], path) if work == "merge" else repair(path, planted()))

    free = shutil.disk_usage(disk).free
    with open(disk / "ballast", "wb") as file:
        file.write(bytes(free - {"repair": 4, "merge": 30, "append": 20, "extend": 30}[work] * 1024))
    with pytest.raises(CacheError, match=r"no space left on device while writing .*free some room and run again"):
        run(disk / "s")
    assert not list(disk.rglob(".partial-*"))
    if work in ("append", "extend"):
        ActivationStore.open(disk / "s").verify()
        assert ActivationStore.open(disk / "s").digest == ActivationStore.open(tmp_path / "a").digest
    (disk / "ballast").unlink()
    run(disk / "s")
    if work == "repair":
        assert files(disk / "s") == files(tmp_path / "a")
        return
    if work != "merge":
        shutil.copytree(tmp_path / "a", tmp_path / "s")
    run(tmp_path / "s")
    assert files(disk / "s") == files(tmp_path / "s")


@pytest.fixture
def read_only(tmp_path):
    """read_only(folder) makes a folder read-only for everyone, root included; the test is skipped where none can be mounted."""
    mounted = []

    def make(folder):
        for command in (["mount", "--bind", folder, folder], ["mount", "-o", "remount,ro,bind", folder]):
            if subprocess.run([str(word) for word in command], capture_output=True, check=False).returncode:
                pytest.skip("nothing can be mounted here")
            if "remount,ro,bind" not in command:
                mounted.append(folder)

    yield make
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_store_is_read_from_a_read_only_place_and_what_cannot_be_written_is_said(planted, corpus, config, tmp_path, read_only):
    place = tmp_path / "place"
    list(collect(planted(), corpus, place / "s", config))
    list(collect(planted(), from_texts(letters(seed=4)), place / "b", config))
    list(collect(planted(), corpus, place / "damaged", config))
    (place / "damaged" / "shards" / "00001" / f"{RESID}.safetensors").unlink()
    before = files(place)
    read_only(place)
    store = ActivationStore.open(place / "s")
    store.verify()
    assert problems(place / "s") == []
    assert len(next(store.batches(RESID, batch_size=32, seed=0))) == 32
    assert [step.n_tokens_run for step in collect(planted(), corpus, place / "s", config)] == [0]  # complete: nothing to write
    list(repair(place / "s"))
    list(merge([place / "s", place / "b"], tmp_path / "merged"))  # copied: another mount
    ActivationStore.open(tmp_path / "merged").verify()
    message = r"cannot be written \(Read-only file system\): choose a folder"
    for work in (
        lambda: collect(planted(), corpus, place / "new", config),
        lambda: collect(planted(), corpus, place / "deep" / "new", config),
        lambda: collect(planted(), corpus, place / "s", changed(config, n_tokens=60 * 32)),
        lambda: extend(planted(), place / "s", ("blocks.0.hook_resid_pre",)),
        lambda: merge([place / "s", place / "b"], place / "merged"),
        lambda: repair(place / "damaged", planted()),
    ):
        with pytest.raises(CacheError, match=message):
            list(work())
    assert files(place) == before


def test_a_folder_without_write_permission_is_read_and_not_written(planted, corpus, config, tmp_path):
    if os.getuid() != 0:
        pytest.skip("only root can become somebody else, who may not write where root may")
    list(collect(planted(), corpus, tmp_path / "s", config))
    ActivationStore.open(tmp_path / "s").verify()
    with tempfile.TemporaryDirectory() as folder:  # where others may look, unlike in `tmp_path`
        place = Path(folder)
        shutil.copytree(tmp_path / "s", place / "s")
        for each in [place, *place.rglob("*")]:
            each.chmod(0o555 if each.is_dir() else 0o444)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.setuid(65534)
                ActivationStore.open(place / "s").verify()
                try:
                    list(collect(planted(), corpus, place / "new", config))
                except CacheError as error:
                    code = 0 if "cannot be written (Permission denied): choose a folder" in str(error) else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("name", ["with spaces", "ünï·çødé 活性 🧠", "-dash", "a%20b'c\"d"])
def test_any_path_is_as_good_as_another_for_everything(planted, corpus, config, tmp_path, name):
    list(collect(planted(), corpus, tmp_path / "whole", config))
    path, other = tmp_path / name / f"{name} store", tmp_path / name / f"{name} other"
    list(collect(planted(), corpus, path, changed(config, sites=(RESID,), n_tokens=20 * 32)))
    list(collect(planted(), corpus, path, changed(config, sites=(RESID,))))
    list(extend(planted(), str(path), (MLP,)))
    file = path / "shards" / "00001" / f"{MLP}.safetensors"
    file.write_bytes(file.read_bytes()[:99])
    list(repair(str(path), planted()))
    assert files(path) == files(tmp_path / "whole")
    list(collect(planted(), from_texts(letters(seed=4)), other, config))
    list(merge([str(path), other], str(tmp_path / name / f"{name} union")))
    ActivationStore.open(str(tmp_path / name / f"{name} union")).verify()


@pytest.mark.parametrize("schema", [3, 99])
def test_a_store_of_a_newer_version_is_left_alone_by_everything(planted, corpus, config, tmp_path, schema):
    list(collect(planted(), corpus, tmp_path / "s", config))
    list(collect(planted(), from_texts(letters(seed=4)), tmp_path / "b", config))
    manifest = tmp_path / "s" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "schema": schema, "novelty": 1}))
    before = files(tmp_path / "s")
    message = rf"manifest.json has schema {schema}, written by a newer version; this one reads .* of schema 2: upgrade sae-workbench"
    for work in (
        lambda: ActivationStore.open(tmp_path / "s"),
        lambda: collect(planted(), corpus, tmp_path / "s", config),
        lambda: extend(planted(), tmp_path / "s", ("blocks.0.hook_resid_pre",)),
        lambda: problems(tmp_path / "s"),
        lambda: repair(tmp_path / "s"),
        lambda: merge([tmp_path / "s", tmp_path / "b"], tmp_path / "all"),
        lambda: merge([tmp_path / "b", tmp_path / "s"], tmp_path / "all"),
    ):
        with pytest.raises(FormatError, match=message):
            work()
    assert files(tmp_path / "s") == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:200], r"unfinished.json is not valid JSON: .*; remove the folder and capture again"),
        (lambda text: text.replace('"schema": 2', '"schema": 3'), r"unfinished.json has schema 3, written by a newer version.*: upgrade"),
        (lambda text: text.replace('"schema": 2', '"schema": 1'), r"unfinished.json has schema 1, .* or capture again"),
        (lambda text: text.replace('"corpus"', '"corpse"'), r"unfinished.json is damaged: .*; remove the folder and capture again"),
    ],
)
def test_a_damaged_plan_is_named_and_nothing_is_touched(planted, corpus, config, tmp_path, change, message):
    stopped(collect(planted(), corpus, tmp_path / "s", config), 9)
    file = tmp_path / "s" / "unfinished.json"
    file.write_text(change(file.read_text()))
    before = files(tmp_path / "s")
    with pytest.raises(FormatError, match=message):
        collect(planted(), corpus, tmp_path / "s", config)
    with pytest.raises(FormatError, match=message):
        ActivationStore.open(tmp_path / "s")
    assert files(tmp_path / "s") == before


def test_a_damaged_plan_beside_a_complete_store_can_be_removed_as_the_message_says(planted, corpus, config, tmp_path):
    list(collect(planted(), corpus, tmp_path / "s", changed(config, n_tokens=40 * 32)))
    stopped(collect(planted(), corpus, tmp_path / "s", config), 9)
    file = tmp_path / "s" / "unfinished.json"
    file.write_bytes(file.read_bytes()[:50])
    ActivationStore.open(tmp_path / "s").verify()
    with pytest.raises(FormatError, match=r"unfinished.json is not valid JSON: .*; remove this file, the store is complete without it"):
        collect(planted(), corpus, tmp_path / "s", config)
    file.unlink()
    list(collect(planted(), corpus, tmp_path / "s", config))
    list(collect(planted(), corpus, tmp_path / "whole", config))
    assert files(tmp_path / "s") == files(tmp_path / "whole")


def test_a_model_whose_weights_changed_under_the_same_name_is_found_out(tmp_path):
    """With a real model: one number of one weight is another."""
    from tiny import tiny_hf_model, tiny_tokenizer

    from sae.activations.manifest import CaptureConfig
    from sae.models.language_model import LanguageModel

    site, corpus = "blocks.0.hook_resid_post", from_texts(["The nation and the people. " * 60])
    config = CaptureConfig(sites=(site,), n_tokens=10 * 16, context=16, rows_per_shard=4, rows_per_batch=4)
    hf = tiny_hf_model(n_layers=2)
    model = LanguageModel.load(hf, tokenizer=tiny_tokenizer())
    list(collect(model, corpus, tmp_path / "s", config))
    stopped(collect(model, corpus, tmp_path / "half", config), 5)
    changed_hf = tiny_hf_model(n_layers=2)
    with torch.no_grad():
        changed_hf.model.layers[1].mlp.down_proj.weight[3, 5] += 1e-3
    other = LanguageModel.load(changed_hf, tokenizer=tiny_tokenizer())
    assert other.name == model.name
    before = files(tmp_path)
    for name in ("s", "half"):
        with pytest.raises(ConfigError, match=rf"{name} was begun with something else, choose another path or remove it: model.digest is"):
            collect(other, corpus, tmp_path / name, config)
    with pytest.raises(ConfigError, match=r"captured from another model .*digest is .*: load the one it was made with"):
        extend(other, tmp_path / "s", ("blocks.1.hook_mlp_out",))
    with pytest.raises(
        FormatError, match=r"the model's weights are others, though it may have the same name; load the one the store was made with"
    ):
        ActivationStore.open(tmp_path / "s", model_digest=other.digest)
    assert files(tmp_path) == before
    (tmp_path / "s" / "shards" / "00001" / f"{site}.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"captured from another model .*digest is .*: load the one it was made with"):
        repair(tmp_path / "s", other)


@pytest.mark.parametrize("value", [1e5, -7e4])
def test_a_number_too_large_for_float16_stops_the_capture_and_says_which_dtypes_hold_it(planted, corpus, config, tmp_path, value):
    model = planted()
    model.poison = {(20, 9): value}
    with pytest.raises(
        FormatError, match=r"float16 cannot hold activations of blocks.1.hook_resid_post of size .*: capture with dtype 'bfloat16'"
    ):
        list(collect(model, corpus, tmp_path / "s", changed(config, dtype="float16")))
    list(collect(model, corpus, tmp_path / "s", changed(config, dtype="float16")))  # a model without it goes on from there
    list(collect(planted(), corpus, tmp_path / "whole", changed(config, dtype="float16")))
    assert files(tmp_path / "s") == files(tmp_path / "whole")


@pytest.mark.parametrize("site", [RESID, MLP])
def test_nan_while_a_site_is_added_leaves_the_store_what_it_was(planted, corpus, config, tmp_path, site):
    other = MLP if site == RESID else RESID
    list(collect(planted(), corpus, tmp_path / "s", changed(config, sites=(other,))))
    digest, model = ActivationStore.open(tmp_path / "s").digest, planted()
    model.poison = {(18, 3): float("nan")}
    with pytest.raises(
        FormatError, match=rf"{site} has NaN or infinite .* first in row 18, position 3; .*is kept: run the model in a wider dtype"
    ):
        list(extend(model, tmp_path / "s", (site,)))
    store = ActivationStore.open(tmp_path / "s")
    assert store.digest == digest
    store.verify()
    assert (tmp_path / "s" / "shards" / "00000" / f"{site}.safetensors").exists()  # shard 0 was finished


def test_empty_and_enormous_documents_are_captured_and_bytes_that_are_no_text_are_named(tmp_path):
    from tiny import tiny_language_model

    from sae.activations.manifest import CaptureConfig

    model, enormous = tiny_language_model(n_layers=1), "The nation and the people. " * 12_000  # 324,000 characters
    texts = ["", " ", "\n\n", "A dog is an animal. ", "", enormous, "", "birds can fly " * 40]
    corpus = Corpus("odd", "1" * 64, "none", lambda: iter(Document(i, text, {}) for i, text in enumerate(texts)))
    config = CaptureConfig(sites=("blocks.0.hook_resid_post",), n_tokens=100 * 16, context=16, rows_per_shard=50, rows_per_batch=50)
    stream = [pair for i, text in enumerate(texts) if text for pair in [(0, i), *((t, i) for t in model.tokenize([text])[0])]]
    list(collect(model, corpus, tmp_path / "s", config))
    store = ActivationStore.open(tmp_path / "s")
    store.verify()
    assert store.tokens().flatten().tolist() == [token for token, _ in stream[:1600]]
    assert store.document_ids().flatten().tolist() == [document for _, document in stream[:1600]]

    def broken():
        yield Document(0, "fine " * 9, {})
        yield Document(7, b"not \xff text".decode("utf-8", errors="surrogateescape"), {})

    with pytest.raises(ConfigError, match=r"lone surrogate '.udcff' .*replace"):
        list(collect(model, Corpus("broken", "2" * 64, "none", broken), tmp_path / "broken", config))

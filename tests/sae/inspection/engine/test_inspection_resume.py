"""Builds that are killed and go on, stores that grow, and files that were tampered with."""

import json
import os
import shutil
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch

from sae.errors import FormatError
from sae.inspection import FeatureIndex, IndexConfig, build_index
from sae.inspection.build import IndexProgress
from sae.inspection.manifest import work_folder
from sae.storage import read_header
from tests.sae.inspection.planted_store import SITE, built, random_autoencoder, random_pursuit, random_store


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


class Killed(Exception):
    """Stands for a signal: nothing in the package may catch it."""


@pytest.mark.parametrize("make", [random_autoencoder, random_pursuit])
def test_a_build_killed_at_any_renaming_goes_on_to_the_same_bytes(tmp_path, make, monkeypatch):
    store, dictionary = random_store(), make()
    whole = contents(built(tmp_path / "whole", store, dictionary).folder)
    rename, n_kills = os.replace, 0
    for n_allowed in range(40):
        left = [n_allowed]

        def interrupted(source, target, left=left):
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            rename(source, target)

        folder = tmp_path / f"killed-{n_allowed}" / "index"
        monkeypatch.setattr(os, "replace", interrupted)
        try:
            built(folder, store, dictionary)
            break
        except Killed:
            n_kills += 1
        finally:
            monkeypatch.setattr(os, "replace", rename)
        assert not folder.exists()
        (work_folder(folder) / "by_token").mkdir(exist_ok=True)
        (work_folder(folder) / "by_token" / ".partial-0123-00000.safetensors").write_bytes(b"half")  # a kill leaves these behind
        assert contents(built(folder, store, dictionary).folder) == whole
        assert [path.name for path in folder.parent.iterdir()] == ["index"]
    assert n_kills >= 8


def test_what_was_encoded_is_not_encoded_again(tmp_path):
    store, dictionary = Counting.of(random_store()), random_autoencoder()
    build = build_index(store, SITE, dictionary, tmp_path / "index", batch_tokens=16, segment_tokens=80)
    while next(build).done < 100:
        pass
    build.close()
    before = len(store.asked)
    for _ in build_index(store, SITE, dictionary, tmp_path / "index", batch_tokens=16, segment_tokens=80):
        pass
    again = set(store.asked[:before]) & set(store.asked[before:])
    assert len(again) < 80  # at most the segment that was being encoded
    assert set(store.asked) == set(np.flatnonzero(~store.masked.numpy()).tolist())


class Counting(type(random_store())):
    """A store that notes which activations it was asked for."""

    @staticmethod
    def of(store):
        counting = Counting(**vars(store))
        object.__setattr__(counting, "asked", [])
        return counting

    @property
    def digest(self):
        return type(random_store())(self.ids, self.documents, self.acts, self.masked).digest

    def gather(self, site, token_index):
        self.asked.extend(token_index.tolist())
        return self.acts[token_index]


def first_rows(store, n):
    tokens = n * store.ids.shape[1]
    return replace(store, ids=store.ids[:n], documents=store.documents[:n], acts=store.acts[:tokens], masked=store.masked[:tokens])


@pytest.mark.parametrize("make", [random_autoencoder, random_pursuit])
def test_a_store_that_grew_reuses_its_segments_and_gives_the_bytes_of_a_fresh_build(tmp_path, make):
    store, dictionary, vocabulary = random_store(n_rows=14), make(), [f"w{i}" for i in range(12)]
    small = built(tmp_path / "index", first_rows(store, 10), dictionary, vocabulary=vocabulary)
    nodes = [(small.folder / f"by_token/0000{i}.safetensors").stat().st_ino for i in range(2)]
    before = small.entries(3)
    grown = built(tmp_path / "index", store, dictionary, vocabulary=vocabulary)
    fresh = built(tmp_path / "fresh", store, dictionary, vocabulary=vocabulary)
    assert contents(grown.folder) == contents(fresh.folder)
    assert [(grown.folder / f"by_token/0000{i}.safetensors").stat().st_ino for i in range(2)] == nodes
    assert before.ids.tolist() == small.entries(3).ids.tolist()  # an open index goes on reading what it had opened
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fresh", "index"]


def test_a_segment_whose_mask_or_activations_changed_is_encoded_again(tmp_path):
    store, dictionary = random_store(), random_autoencoder()
    for name in ("masked", "acts"):
        small = first_rows(store, 10)
        changed = small.masked.clone() if name == "masked" else small.acts.clone()
        changed[20] = ~changed[20] if name == "masked" else changed[20] + 1
        built(tmp_path / name, replace(small, **{name: changed}), dictionary)
        grown = contents(built(tmp_path / name, store, dictionary).folder)
        assert grown == contents(built(tmp_path / f"{name}-fresh", store, dictionary).folder)


def test_a_store_that_shrank_or_has_other_tokens_does_not_replace_an_index(tmp_path):
    store, dictionary = random_store(), random_autoencoder()
    built(tmp_path / "index", first_rows(store, 10), dictionary)
    other = replace(store, ids=(store.ids + 1) % 12)
    for wrong in (first_rows(store, 5), other):
        with pytest.raises(FormatError, match="holds the index of something else"):
            built(tmp_path / "index", wrong, dictionary)
    assert FeatureIndex.open(tmp_path / "index").table.ids.shape == (10, 16)


def test_a_finished_build_that_was_not_renamed_is_only_renamed(tmp_path):
    store, dictionary = random_store(), random_autoencoder()
    whole = built(tmp_path / "index", store, dictionary)
    os.replace(whole.folder, work_folder(whole.folder))
    options = {"segment_tokens": 80, "config": IndexConfig(value_dtype="float32")}
    assert list(build_index(store, SITE, dictionary, tmp_path / "index", **options)) == []
    FeatureIndex.open(tmp_path / "index").verify()
    assert list(build_index(store, SITE, dictionary, tmp_path / "index", **options)) == [IndexProgress("found", 1, 1)]


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return built(tmp_path_factory.mktemp("sound") / "index", random_store(), random_pursuit()).folder


FILES = ["summary.safetensors", "tokens.safetensors", "by_latent/entries.safetensors", "by_token/00000.safetensors", "vocabulary.json"]


def read_everything(folder):
    index = FeatureIndex.open(folder)
    index.record(3), index.entries(3), index.at_token(20), index.texts, index.document(int(index.document_ids[0]))


def refused(folder, name):
    with pytest.raises(FormatError) as error:
        read_everything(folder)
    assert "\n" not in str(error.value)
    assert name in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", FILES)
def test_a_file_with_other_bytes_of_the_same_length_is_refused_or_found_by_verify(sound, tmp_path, name):
    folder = shutil.copytree(sound, tmp_path / "index")
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(b"\xff" * len(data))
    refused(folder, name.split("/")[-1])
    (folder / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(FormatError, match="its bytes are not the ones that were written"):
        FeatureIndex.open(folder).verify()


def with_header(path, change):
    """The same bytes behind a header that says something else, of the same length."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header, separators=(",", ":")).encode()
    assert len(text) <= length
    path.write_bytes(data[:8] + text.ljust(length) + data[8 + length :])


@pytest.mark.parametrize("name", [file for file in FILES if file.endswith("safetensors")])
@pytest.mark.parametrize("what", ["dtype", "shape", "missing", "offsets", "list", "unknown"])
def test_a_header_that_lies_is_refused_in_one_line_that_names_the_file(sound, tmp_path, name, what):
    folder = shutil.copytree(sound, tmp_path / "index")
    header = read_header(folder / name)[0]
    target = {"summary.safetensors": "n_active", "tokens.safetensors": "ids"}.get(name, "start")

    def change(header):
        entry = header[target]
        if what == "dtype":
            entry["dtype"] = {8: "F64", 4: "F32"}[{"I64": 8, "U64": 8, "I32": 4, "U32": 4}[entry["dtype"]]]
        elif what == "shape":
            entry["shape"] = [*entry["shape"][:-1], entry["shape"][-1] - 1] if len(entry["shape"]) > 1 else [-1]
        elif what == "missing":
            header["x"] = header.pop(target)
        elif what == "offsets":
            entry["data_offsets"] = [0, 9]
        elif what == "list":
            header[target] = 7
        else:
            entry["dtype"] = "Q7"

    assert target in header
    with_header(folder / name, change)
    refused(folder, name.split("/")[-1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 3}, "use a newer workbench"),
        ({"format_version": 1}, "build the index again"),
        ({"format_version": "2"}, "format version '2'"),
        ({"n_entries": "many"}, "n_entries"),
        ({"segments": [{}]}, "first_token"),
        ({"files": {"../../etc/passwd": 1, "summary.safetensors": 1}}, "does not name"),
        ({"config": {"n_examples": 0}}, "n_examples"),
    ],
)
def test_a_manifest_that_lies_is_refused(sound, tmp_path, change, message):
    folder = shutil.copytree(sound, tmp_path / "index")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | change))
    assert message in refused(folder, "manifest.json")
    files = manifest["files"] | {"../outside.txt": 3}
    (folder / "manifest.json").write_text(json.dumps(manifest | {"files": files}))
    assert "outside the index" in refused(folder, "manifest.json")


@pytest.mark.parametrize("text", ["[" * 200_000, "1" * 5000, "{", "\ufeff{}", "[]", "null", '{"format_version": 2}'])
@pytest.mark.parametrize("name", ["manifest.json", "vocabulary.json", "documents.json"])
def test_json_that_is_hostile_is_refused(sound, tmp_path, name, text):
    folder = shutil.copytree(sound, tmp_path / "index")
    (folder / name).write_text(text)
    if name != "manifest.json":
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["files"][name] = (folder / name).stat().st_size
        (folder / "manifest.json").write_text(json.dumps(manifest))
    refused(folder, name)


def test_places_that_do_not_end_at_the_last_entry_are_refused(sound, tmp_path):
    for name in ("by_latent/entries.safetensors", "by_token/00000.safetensors"):
        folder = shutil.copytree(sound, tmp_path / name.split("/")[0])
        header, _, offset = read_header(folder / name)
        end = offset + header["start"]["data_offsets"][1]
        data = bytearray((folder / name).read_bytes())
        data[end - 4] ^= 1 if header["start"]["dtype"] == "I64" else 3
        data[end - 8] ^= 3
        (folder / name).write_bytes(bytes(data))
        refused(folder, name.split("/")[-1])


def test_vocabulary_and_labels_of_the_wrong_kind_are_refused(sound, tmp_path):
    folder = shutil.copytree(sound, tmp_path / "index")
    size = (folder / "vocabulary.json").stat().st_size
    (folder / "vocabulary.json").write_text('["a", 3]'.ljust(size))
    assert "list of texts" in refused(folder, "vocabulary.json")
    (folder / "vocabulary.json").write_text('["a"]'.ljust(size))
    assert "must have 12 texts, got 1" in refused(folder, "vocabulary.json")
    shutil.copy(sound / "vocabulary.json", folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    for text in ('{"3": 2}', '{"3": {"year": 1.5}}', '{"3": {"year": [1]}}', "[]"):
        (folder / "documents.json").write_text(text)
        manifest["files"]["documents.json"] = len(text)
        (folder / "manifest.json").write_text(json.dumps(manifest))
        assert "labels" in refused(folder, "documents.json")


def test_values_of_the_store_are_not_needed_to_read(sound):
    assert torch.is_tensor(random_store().acts)
    read_everything(sound)

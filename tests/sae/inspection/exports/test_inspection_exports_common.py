"""What holds for every format."""

import hashlib
import json

import pytest

from sae.errors import ConfigError, FormatError
from sae.inspection.exports import export
from sae.inspection.exports.folder import MANIFEST, parse_manifest
from sae.inspection.exports.provenance import Provenance, provenance_of, record_provenance
from tests.sae.inspection.exports.exported import FORMAT_NAMES, KINDS, TEXTS, content, hostile_index, make_index, small_index

pytestmark = pytest.mark.parametrize("format", FORMAT_NAMES)


@pytest.mark.parametrize("kind", KINDS)
def test_the_manifest_names_the_index_its_texts_and_every_file(format, kind, tmp_path):
    index = small_index(kind)
    folder = export(index, format, tmp_path / "out", provenance=TEXTS)
    manifest = parse_manifest(json.loads((folder / MANIFEST).read_text()), format, "manifest")
    assert (manifest.index, manifest.source, manifest.provenance) == (index.digest, index.manifest.source, TEXTS)
    assert (manifest.n_features, manifest.latents) == (index.d_sae, None)
    files = content(folder)
    del files[MANIFEST]
    assert {name: facts.sha256 for name, facts in manifest.files.items()} == {n: hashlib.sha256(b).hexdigest() for n, b in files.items()}
    assert {name: facts.n_bytes for name, facts in manifest.files.items()} == {name: len(data) for name, data in files.items()}


def test_the_same_index_gives_the_same_bytes_twice(format, tmp_path):
    index = small_index("pursuit")
    first, second = (content(export(index, format, tmp_path / name, latents=[5, 2, 9], provenance=TEXTS)) for name in "ab")
    assert first == second
    assert content(export(index, format, tmp_path / "a", latents=[5, 2, 9], provenance=TEXTS)) == second  # in place of the old one


def test_a_folder_that_holds_something_else_is_refused_and_left_alone(format, tmp_path):
    index = small_index("autoencoder")
    other = next(name for name in FORMAT_NAMES if name != format)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    export(index, other, tmp_path / "other", latents=[4])
    (tmp_path / "file").write_text("x")
    before = content(tmp_path)
    for name in ("mine", "other", "file"):
        with pytest.raises(FormatError, match="choose another folder"):
            export(index, format, tmp_path / name, latents=[4])
    with pytest.raises(FormatError, match="choose another folder"):
        export(index, format, index.folder, latents=[4])
    assert content(tmp_path) == before
    (tmp_path / "empty").mkdir()
    assert (export(index, format, tmp_path / "empty", latents=[4]) / MANIFEST).is_file()


def test_only_latents_of_the_index_are_exported_each_once(format, tmp_path):
    index = small_index("autoencoder")
    for latents, message in (([20], "got 20"), ([-1], "got -1"), ([True], "got True"), ([3, 3], "3 twice"), ([], "at least one")):
        with pytest.raises(ConfigError, match=message):
            export(index, format, tmp_path / "out", latents=latents)
    assert list(tmp_path.iterdir()) == []


def test_an_error_in_the_middle_leaves_nothing_behind_and_the_old_export_whole(format, tmp_path, monkeypatch):
    index = make_index(tmp_path / "index", "autoencoder")
    export(index, format, tmp_path / "out", latents=[4, 5])
    before = content(tmp_path / "out")
    calls, original = [], type(index).record

    def record(self, latent):
        calls.append(latent)
        if len(calls) == 3:
            raise OSError("the disk is gone")
        return original(self, latent)

    monkeypatch.setattr(type(index), "record", record)
    with pytest.raises(OSError, match="the disk is gone"):
        export(index, format, tmp_path / "out")
    assert content(tmp_path / "out") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index", "out"]


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_texts_are_written_and_every_text_file_is_valid_utf_8(format, kind, tmp_path):
    index = hostile_index(kind)
    evil = Provenance(dataset="</script>\ud800", licence="\x00 <b>", revision="\u202e", model="m")
    folder = export(index, format, tmp_path / "out", provenance=evil)
    for name, data in content(folder).items():
        if not name.endswith((".gz", ".parquet")):
            text = data.decode("utf-8")
            if name.endswith(".json"):
                json.loads(text)
    assert parse_manifest(json.loads((folder / MANIFEST).read_text()), format, "").provenance.dataset == "</script>\\ud800"


def test_provenance_lies_beside_the_index_and_goes_into_the_export(format, tmp_path):
    index = make_index(tmp_path / "index", "autoencoder")
    assert provenance_of(index) == Provenance()
    record_provenance(index.folder, TEXTS)
    assert provenance_of(index) == TEXTS
    manifest = json.loads((export(index, format, tmp_path / "out", latents=[1, 4]) / MANIFEST).read_text())
    assert manifest["provenance"] == {"model": "Tiny/Model-1", "dataset": "speeches", "revision": "abc123", "licence": "public domain"}
    assert manifest["latents"] == [1, 4]
    (index.folder / "provenance.json").write_text('{"model": 3}')
    with pytest.raises(FormatError, match=r"provenance\.json is damaged"):
        export(index, format, tmp_path / "out2", latents=[1, 4])


def test_an_unknown_format_is_refused_with_the_known_ones(format, tmp_path):
    with pytest.raises(ConfigError, match=f"format must be one of .*{format}.*, got '{format}s'"):
        export(small_index("autoencoder"), format + "s", tmp_path / "out")

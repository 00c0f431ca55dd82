"""Features as JSON lines, and back."""

import json

import pytest

from sae.errors import FormatError
from sae.inspection.exports.json_records import read_json_records, write_json
from tests.sae.inspection.exports.exported import KINDS, hostile_index, small_index


@pytest.mark.parametrize("kind", KINDS)
def test_every_record_comes_back_as_it_is_in_the_index(kind, tmp_path):
    index = small_index(kind)
    found = list(read_json_records(write_json(index, tmp_path / "out")))
    assert found == [index.record(latent) for latent in range(index.d_sae)]
    if kind == "pursuit":
        assert any(record.min < 0 for record in found)
        assert all(sum(record.steps) == record.n_active for record in found)


def test_chosen_latents_come_in_the_order_asked_for(tmp_path):
    index = small_index("autoencoder")
    assert [record.index for record in read_json_records(write_json(index, tmp_path / "out", latents=iter([7, 0, 3])))] == [7, 0, 3]


def test_half_surrogates_are_written_out_and_all_else_is_kept(tmp_path):
    index = hostile_index("autoencoder")
    latent = next(latent for latent in range(index.d_sae) if index.record(latent).alive)
    (found,) = read_json_records(write_json(index, tmp_path / "out", latents=[latent]))
    expected = index.record(latent)
    tokens = [token.replace("\ud800", "\\ud800") for token in expected.examples[0].tokens]
    assert list(found.examples[0].tokens) == tokens
    assert found.histogram == expected.histogram


@pytest.mark.parametrize(("damage", "message"), [("{", "line 2, is damaged"), ('{"index": 3}', "line 2, is damaged: missing key")])
def test_a_damaged_line_is_named(damage, message, tmp_path):
    folder = write_json(small_index("autoencoder"), tmp_path / "out", latents=[4, 5])
    first, second = (folder / "features.jsonl").read_text().splitlines()
    (folder / "features.jsonl").write_text(first + "\n" + damage.ljust(len(second.encode())) + "\n", encoding="utf-8")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["features.jsonl"]["n_bytes"] = (folder / "features.jsonl").stat().st_size
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(FormatError, match=message):
        list(read_json_records(folder))


def test_a_cut_file_a_missing_manifest_and_another_format_are_named(tmp_path):
    folder = write_json(small_index("autoencoder"), tmp_path / "out", latents=[4, 5])
    manifest = json.loads((folder / "manifest.json").read_text())
    for key, value, message in (("format", "html", "must be that of an export as 'json'"), ("version", 99, "version 99"), ("kind", "x", "is not"),
                                ("n_features", "many", "is damaged")):  # fmt: skip
        (folder / "manifest.json").write_text(json.dumps({**manifest, key: value}))
        with pytest.raises(FormatError, match=message):
            list(read_json_records(folder))
    (folder / "manifest.json").write_text(json.dumps(manifest))
    lines = folder / "features.jsonl"
    lines.write_bytes(lines.read_bytes()[:-5])
    with pytest.raises(FormatError, match=r"features\.jsonl has \d+ bytes instead of \d+"):
        list(read_json_records(folder))
    lines.unlink()
    with pytest.raises(FormatError, match=r"features\.jsonl is missing"):
        list(read_json_records(folder))
    (folder / "manifest.json").unlink()
    with pytest.raises(FormatError, match="no complete export"):
        list(read_json_records(folder))

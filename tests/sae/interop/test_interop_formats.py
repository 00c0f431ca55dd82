"""Which format a path holds is found from what is in the files, and said where it cannot be."""

import importlib
import inspect
import json
import shutil

import pytest
import torch
from foreign_files import CASES, GOLDEN, place_of, random_autoencoder

from sae.dictionaries.activations import TopK
from sae.dictionaries.checkpoint import save_dictionary
from sae.errors import ConfigError, FormatError
from sae.interop import formats
from sae.interop.files import names_in, write_npz, write_safetensors, write_torch
from sae.interop.formats import FORMATS, files_of, identify, read, write

FOREIGN = [name for name in FORMATS if name != "sae"]


@pytest.mark.parametrize("case", CASES)
def test_the_golden_files_are_recognised(case):
    assert identify(place_of(case)) == case.split("/")[0]


@pytest.mark.parametrize("case", CASES)
def test_the_names_of_folders_play_no_part(case, tmp_path):
    place = place_of(case)
    if place.is_dir():
        shutil.copytree(place, tmp_path / "sparsify" / "gemma_scope")
        assert identify(tmp_path / "sparsify" / "gemma_scope") == case.split("/")[0]
    else:
        (tmp_path / "saelens").mkdir()
        shutil.copy(place, tmp_path / "saelens" / "ae.pt")
        assert identify(tmp_path / "saelens") == identify(tmp_path / "saelens" / "ae.pt") == case.split("/")[0]


def test_recognising_reads_no_weights(monkeypatch):
    for name in ("Tensors", "read_npz", "read_safetensors", "read_torch"):
        monkeypatch.setattr(f"sae.interop.files.{name}", None)
    assert {identify(place_of(case)) for case in CASES} == {case.split("/")[0] for case in CASES}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_format_is_a_module_with_read_and_write_alone(name):
    module = importlib.import_module(f"sae.interop.{name}")
    assert sorted(module.__all__) == ["read", "write"]
    assert list(inspect.signature(module.read).parameters) == ["path"]
    assert list(inspect.signature(module.write).parameters) == ["dictionary", "path"]


@pytest.mark.parametrize("name", FOREIGN)
def test_every_format_has_golden_files(name):
    assert any(case.startswith(f"{name}/") for case in CASES)


def test_what_is_read_equals_what_its_module_reads():
    for name in FOREIGN:
        place = place_of(next(case for case in CASES if case.startswith(f"{name}/")))
        expected = importlib.import_module(f"sae.interop.{name}").read(place)
        for found in (read(place), read(place, name)):
            assert found.digest == expected.digest and found.provenance == expected.provenance and not found.training


@pytest.mark.parametrize("case", CASES)
def test_the_files_of_a_format_are_all_that_reading_needs(case, tmp_path):
    place, name = place_of(case), case.split("/")[0]
    folder, names = files_of(place, name)
    for file in names:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        shutil.copy(folder / file, tmp_path / file)
    found, expected = read(tmp_path, name), read(place, name)
    assert found.digest == expected.digest
    assert found.provenance["foreign"]["config"] == expected.provenance["foreign"]["config"]


def test_our_own_folder_is_one_of_the_formats(tmp_path):
    dictionary = random_autoencoder(TopK(k=3))
    write(dictionary, tmp_path / "mine", "sae")
    save_dictionary(dictionary, tmp_path / "run" / "dictionary")
    for folder in ("mine", "run", "run/dictionary"):
        assert identify(tmp_path / folder) == "sae"
        assert read(tmp_path / folder).digest == dictionary.digest


def test_a_format_of_one_file_is_written_into_a_folder_or_under_a_name(tmp_path):
    dictionary = read(place_of("openai_topk/topk"))
    write(dictionary, tmp_path / "folder", "openai_topk")
    write(dictionary, tmp_path / "12.pt", "openai_topk")
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["autoencoder.pt"]
    assert {read(tmp_path / name).digest for name in ("folder", "folder/autoencoder.pt", "12.pt")} == {dictionary.digest}
    shutil.copy(tmp_path / "12.pt", tmp_path / "folder")
    with pytest.raises(FormatError, match=r"must hold one file \*\.pt \(openai_topk\), it holds 12.pt, autoencoder.pt"):
        read(tmp_path / "folder")


def test_an_unknown_name_is_answered_with_the_known_ones(tmp_path):
    for ask in (lambda: read(tmp_path, "safetensor"), lambda: write(random_autoencoder(), tmp_path / "a", "safetensor")):
        with pytest.raises(ConfigError, match=r"format must be one of sae, saelens, gemma_scope, .*, got 'safetensor'"):
            ask()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, ("there are no files", "saelens (cfg.json + sae_weights.safetensors)")),
        ({"notes.txt": "text"}, ("there are notes.txt", "known are")),
        ({"cfg.json": "{}"}, ("there are cfg.json",)),
        ({"layer_1/cfg.json": "{}", "layer_2/cfg.json": "{}"}, ("there are no files", "the folders layer_1, layer_2: give one of those")),
        ({"config.json": '{"model_type": "llama"}', "model.safetensors": ""}, ("config.json, model.safetensors",)),
    ],
    ids=range(5),
)
def test_what_is_no_format_is_described(tmp_path, files, words):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(FormatError, match="is of no format that is known") as caught:
        identify(tmp_path)
    assert all(word in str(caught.value) for word in (str(tmp_path), *words))


def test_a_folder_of_two_formats_must_be_told_which(tmp_path):
    for case in ("sparsify/layers.5", "llama_scope/plain"):
        shutil.copytree(GOLDEN / case, tmp_path, dirs_exist_ok=True)
    with pytest.raises(FormatError, match="could be sparsify or llama_scope: say which"):
        identify(tmp_path)
    assert read(tmp_path, "llama_scope").digest == read(GOLDEN / "llama_scope/plain").digest


def test_weights_alone_are_asked_for_with_their_configuration(tmp_path):
    write_safetensors(tmp_path / "sae_weights.safetensors", {"W_dec": torch.ones(2, 2)})
    with pytest.raises(FormatError, match="given as the folder that holds both"):
        identify(tmp_path / "sae_weights.safetensors")
    with pytest.raises(FormatError, match="nowhere does not exist"):
        identify(tmp_path / "nowhere")


def test_a_configuration_that_makes_no_dictionary_is_the_files_fault(tmp_path):
    write(random_autoencoder(TopK(k=3)), tmp_path / "mine", "sae")
    head = json.loads((tmp_path / "mine/config.json").read_text())
    head["config"]["activation"]["k"] = 1_000
    (tmp_path / "mine/config.json").write_text(json.dumps(head))
    with pytest.raises(FormatError, match=r"mine.*k must be in"):
        read(tmp_path / "mine")
    (tmp_path / "mine/provenance.json").write_text('{"a": ' + "[" * 500 + "]" * 500 + "}")
    with pytest.raises(FormatError, match=r"provenance.json is nested"):
        read(tmp_path / "mine")


def test_what_a_reader_finds_out_of_range_is_the_files_fault(monkeypatch):
    def reader(path):
        raise ConfigError("k must be in 1..d_sae=24, got 80 (TopK)")

    monkeypatch.setattr("sae.interop.sparsify.read", reader)
    with pytest.raises(FormatError, match=r"layers\.5 does not hold a dictionary of the format sparsify: k must be in 1"):
        read(GOLDEN / "sparsify/layers.5")


def test_the_names_in_a_file_are_read_without_its_elements(tmp_path, monkeypatch):
    tensors = {"b": torch.ones(2), "a": torch.ones(3)}
    write_safetensors(tmp_path / "w.safetensors", tensors)
    write_npz(tmp_path / "w.npz", tensors)
    write_torch(tmp_path / "w.pt", tensors)
    torch.save([1], tmp_path / "list.pt")
    assert [names_in(tmp_path / f"w.{kind}") for kind in ("safetensors", "npz", "pt")] == [["a", "b"]] * 3
    assert names_in(tmp_path / "list.pt") == []
    (tmp_path / "w.txt").write_text("text")
    with pytest.raises(FormatError, match="must be a file of weights"):
        names_in(tmp_path / "w.txt")


def test_formats_are_imported_when_they_are_used():
    source = inspect.getsource(formats)
    assert not any(f"sae.interop.{name} import" in source or f"import {name}\n" in source for name in FOREIGN)

"""Loading from a folder, a GGUF file written here, and a hub name that cannot be reached."""

import socket

import pytest
import torch
from tiny import tiny_hf_model, tiny_tokenizer, write_gguf

from sae.errors import ConfigError, FormatError, SaeError
from sae.models import language_model
from sae.models.language_model import LanguageModel, default_dtype

TOKENS = torch.randint(2, 256, (2, 10), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("the network was reached for")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "tiny-llama"
    tiny_hf_model().save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


def logits_of(model):
    with torch.no_grad():
        return model(TOKENS).logits


def test_a_folder_gives_the_same_model_without_a_network(folder, no_network, monkeypatch, capfd):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # the folder alone must be enough
    model = LanguageModel.load(folder, dtype=torch.float32)
    torch.testing.assert_close(model.run(TOKENS), logits_of(tiny_hf_model()), atol=2e-5, rtol=1e-5)
    assert model.name == "tiny-llama"
    assert model.tokenize(["the people"]) == [tiny_tokenizer().encode("the people")]
    written = capfd.readouterr()
    assert (written.out, written.err) == ("", "")  # no progress bars, no remarks


def test_the_digest_is_the_same_from_a_folder_as_from_memory(folder):
    from_memory = LanguageModel.load(tiny_hf_model(), tokenizer=tiny_tokenizer())
    assert LanguageModel.load(str(folder)).digest == from_memory.digest


def test_loading_leaves_the_settings_of_the_library_alone(folder):
    from transformers.utils import logging

    logging.set_verbosity_info()
    logging.enable_progress_bar()
    try:
        LanguageModel.load(folder)
        assert logging.get_verbosity() == logging.INFO
        assert logging.is_progress_bar_enabled()
    finally:
        logging.set_verbosity_error()


def test_a_gguf_file_gives_the_same_model(tmp_path, no_network, capfd):
    path = tmp_path / "tiny.gguf"
    plain = tiny_hf_model()
    write_gguf(path, plain, tiny_tokenizer())
    capfd.readouterr()
    model = LanguageModel.load(path, dtype=torch.float32)
    written = capfd.readouterr()
    torch.testing.assert_close(model.run(TOKENS), logits_of(plain), atol=2e-5, rtol=1e-5)
    assert model.name == "tiny"
    assert model.tokenize(["the people of 1865"]) == [tiny_tokenizer().encode("the people of 1865")]
    assert (written.out, written.err) == ("", "")


def test_a_hub_name_that_cannot_be_reached_is_a_clear_error(no_network, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SaeError, match=r"'nobody/no-such-model' is neither a folder here nor"):
        LanguageModel.load("nobody/no-such-model")


@pytest.mark.parametrize("source", ["./missing", "/nowhere/at/all", "~/missing-model", "missing.gguf"])
def test_a_path_that_does_not_exist_is_not_taken_for_a_hub_name(source, no_network):
    with pytest.raises(ConfigError, match="does not exist"):
        LanguageModel.load(source)


def test_a_folder_or_file_without_a_model_is_a_clear_error(tmp_path, folder, no_network):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FormatError, match="empty does not hold a causal language model"):
        LanguageModel.load(tmp_path / "empty")
    (tmp_path / "weights.bin").write_bytes(b"no")
    with pytest.raises(FormatError, match=r"weights\.bin is a file but not a \.gguf"):
        LanguageModel.load(tmp_path / "weights.bin")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF but not really")
    with pytest.raises(FormatError, match=r"broken\.gguf cannot be read"):
        LanguageModel.load(tmp_path / "broken.gguf")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(FormatError, match="tiny-llama does not hold"):
        LanguageModel.load(folder)


def test_bfloat16_is_the_default_only_where_the_hardware_has_it(folder, monkeypatch):
    for supported, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda supported=supported: supported, raising=False)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
        assert default_dtype() == expected
        assert LanguageModel.load(folder).dtype == expected
        assert LanguageModel.load(folder, dtype=torch.float32).dtype == torch.float32
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported", raising=False)
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported", raising=False)
    assert default_dtype() == torch.float32


def test_a_loaded_model_keeps_its_dtype_and_an_explicit_one_wins():
    assert LanguageModel.load(tiny_hf_model(dtype=torch.float64), tokenizer=tiny_tokenizer()).dtype == torch.float64
    assert LanguageModel.load(tiny_hf_model(), tokenizer=tiny_tokenizer(), dtype=torch.float16).dtype == torch.float16


def test_importing_the_models_imports_neither_transformers_nor_transformer_lens():
    import subprocess
    import sys

    code = "import sys, sae.models.language_model, sae.models.assets; print({'transformers', 'transformer_lens'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "set()"
    assert language_model.LanguageModel is LanguageModel

"""sparsify's folders in and out. The oracle is the library's own forward, recorded in tests/golden/interop/sparsify by scripts/golden/sparsify.py."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from foreign_files import random_autoencoder
from safetensors.torch import load_file, save_file

from sae.dictionaries.activations import AbsTopK, BatchTopK, JumpReLU, ReLU, TopK
from sae.dictionaries.autoencoder import Autoencoder
from sae.dictionaries.pursuit import MatchingPursuit, PursuitConfig
from sae.dictionaries.scaling import Scaling
from sae.errors import ConfigError, FormatError
from sae.interop import sparsify
from scripts.golden import sparsify_cases

GOLDEN = Path(__file__).resolve().parents[2] / "golden/interop/sparsify"
CASES = sorted(path.name for path in GOLDEN.iterdir() if path.is_dir())
CHECKED = json.loads((GOLDEN / "checked.json").read_text())["cases"]
OURS = sparsify_cases.cases()
PLAIN, SKIP, OLD_SKIP = "layers.5", "layers.7.mlp", "layers.3.attention"


def config_of(folder):
    return json.loads((folder / "cfg.json").read_text())


def changed(folder, case=PLAIN, tensors=None, **changes):
    """A copy of a golden folder with another configuration or other tensors; None takes one away."""
    shutil.copytree(GOLDEN / case, folder)
    config = {key: value for key, value in (config_of(folder) | changes).items() if value is not None}
    (folder / "cfg.json").write_text(json.dumps(config))
    if tensors:
        found = {
            name: tensor.contiguous() for name, tensor in (load_file(folder / "sae.safetensors") | tensors).items() if tensor is not None
        }
        save_file(found, folder / "sae.safetensors")
    return folder


def notes(dictionary):
    return "; ".join(dictionary.provenance["foreign"]["notes"])


def places(dictionary):
    return {name: dictionary.provenance[name] for name in ("site", "target_site", "model") if name in dictionary.provenance}


def written_out(folder, acts):
    """(codes, output) in float64 by the library's equations: which b_dec, which k, which way round."""
    config = {"transcode": False, "signed": False, "skip_connection": False} | config_of(folder)
    w = {name: tensor.double() for name, tensor in load_file(folder / "sae.safetensors").items()}
    pre = (acts if config["transcode"] else acts - w["b_dec"]) @ w["encoder.weight"].T + w["encoder.bias"]
    size = pre.abs() if config["signed"] else pre
    kept = size >= size.topk(config["k"], dim=1).values[:, -1:]
    codes = torch.where(kept, pre if config["signed"] else pre.clamp_min(0), 0.0)
    output = codes @ w["W_dec"] + w["b_dec"]
    return codes, output + acts @ w["W_skip"].T if config["skip_connection"] else output


@pytest.mark.parametrize("case", CASES)
def test_codes_and_outputs_are_those_of_the_library(case):
    dictionary, said = sparsify.read(GOLDEN / case), load_file(GOLDEN / case / "expected.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(dictionary.encode(said["acts"]).dense(), said["codes"], atol=1e-5, rtol=0)
        torch.testing.assert_close(dictionary(said["acts"]), said["output"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_codes_and_outputs_on_other_activations_are_the_equations(case):
    dictionary = sparsify.read(GOLDEN / case)
    acts = 0.8 * torch.randn(40, dictionary.d_in, generator=torch.Generator().manual_seed(7)) - 0.2
    codes, output = written_out(GOLDEN / case, acts.double())
    with torch.no_grad():
        torch.testing.assert_close(dictionary.encode(acts).dense().double(), codes, atol=1e-5, rtol=0)
        torch.testing.assert_close(dictionary(acts).double(), output, atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", [case for case in CASES if case != "signed"])
def test_what_was_read_is_bit_equal_after_writing_and_reading_again(case, tmp_path):
    first = sparsify.read(GOLDEN / case)
    sparsify.write(first, tmp_path / case)
    second = sparsify.read(tmp_path / case)
    assert second.digest == first.digest
    assert places(second) == places(first)
    told, before = config_of(tmp_path / case), config_of(GOLDEN / case)
    assert told | before == told | ({} if case == OLD_SKIP else before)
    assert told["transcode"] == first.is_transcoder
    assert {key: told[key] for key in before} == before


@pytest.mark.parametrize("name", sorted(OURS))
def test_what_is_written_has_the_bytes_that_sparsify_has_checked(name, tmp_path):
    sparsify.write(OURS[name], tmp_path)
    assert {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in tmp_path.iterdir()} == CHECKED[name]["sha256"]
    assert CHECKED[name]["largest_difference"] < 1e-5


def test_sparsify_has_checked_every_case_and_no_other():
    assert sorted(CHECKED) == sorted(OURS)


@pytest.mark.parametrize("name", sorted(OURS))
def test_our_dictionaries_come_back_as_the_same_function_with_codes_in_activation_units(name, tmp_path):
    ours = OURS[name]
    sparsify.write(ours, tmp_path)
    back, acts = sparsify.read(tmp_path), 2 * torch.randn(24, ours.d_in, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        torch.testing.assert_close(back(acts), ours(acts), atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(back.encode(acts).dense(), ours.encode(acts).dense() / ours.scaling.scale, atol=2e-5, rtol=1e-5)


def test_a_scaling_of_the_target_alone_is_folded_in(tmp_path):
    plain = OURS["transcoder"]
    ours = Autoencoder(plain.config, target_scaling=Scaling(torch.linspace(-1, 1, 12), 0.25))
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            parameter.copy_(plain.get_parameter(name))
        sparsify.write(ours, tmp_path / "a")
        acts = torch.randn(24, 12, generator=torch.Generator().manual_seed(4))
        torch.testing.assert_close(sparsify.read(tmp_path / "a")(acts), ours(acts), atol=1e-5, rtol=1e-5)
        assert float((ours(acts) - plain(acts)).abs().max()) > 1


def test_signed_codes_are_read_and_not_written(tmp_path):
    dictionary = sparsify.read(GOLDEN / "signed")
    assert dictionary.config.activation == AbsTopK(5)
    assert "signed" in notes(dictionary)
    with pytest.raises(ConfigError, match="activation must be TopK for sparsify, got AbsTopK"):
        sparsify.write(dictionary, tmp_path / "signed")
    assert not (tmp_path / "signed").exists()
    unsigned = dictionary.with_activation(TopK(7))
    sparsify.write(unsigned, tmp_path / "unsigned")
    assert sparsify.read(tmp_path / "unsigned").digest == unsigned.digest


def test_a_skip_connection_without_transcode_subtracts_b_dec_and_a_transcoder_does_not(tmp_path):
    old = sparsify.read(GOLDEN / OLD_SKIP)
    new = sparsify.read(changed(tmp_path / OLD_SKIP, OLD_SKIP, transcode=True))
    with torch.no_grad():
        torch.testing.assert_close(new.b_enc - old.b_enc, new.b_dec @ new.W_enc, atol=1e-6, rtol=0)
    assert "part of b_enc" in notes(old) and "part of b_enc" not in notes(new)
    assert old.is_transcoder and new.is_transcoder


def test_the_number_of_latents_is_the_expansion_where_none_is_given(tmp_path):
    assert config_of(GOLDEN / PLAIN)["num_latents"] == 0
    assert sparsify.read(GOLDEN / PLAIN).d_sae == 30
    assert sparsify.read(changed(tmp_path / "a", num_latents=30, expansion_factor=77)).d_sae == 30
    with pytest.raises(FormatError, match=r"encoder\.weight must have shape \[20, 10\], got \[30, 10\]"):
        sparsify.read(changed(tmp_path / "b", expansion_factor=2))


def test_k_is_the_librarys_default_where_none_is_given(tmp_path):
    big = {"encoder.weight": torch.randn(40, 10), "encoder.bias": torch.randn(40), "W_dec": torch.randn(40, 10)}
    dictionary = sparsify.read(changed(tmp_path / "a", tensors=big, k=None, num_latents=40))
    assert dictionary.config.activation == TopK(32)
    assert "no k" in notes(dictionary)
    with pytest.raises(FormatError, match=r"cfg\.json .*k must be in 1\.\.d_sae=30, got 32"):
        sparsify.read(changed(tmp_path / "b", k=None))


@pytest.mark.parametrize(
    ("module", "transcode", "expected"),
    [
        ("layers.5", False, {"site": "blocks.5.hook_resid_post"}),
        ("h.11", False, {"site": "blocks.11.hook_resid_post"}),
        ("layers.0.mlp", False, {"site": "blocks.0.hook_mlp_out"}),
        ("layers.10.self_attn", False, {"site": "blocks.10.hook_attn_out"}),
        ("layers.10.attention", False, {"site": "blocks.10.hook_attn_out"}),
        ("h.2.attn", False, {"site": "blocks.2.hook_attn_out"}),
        ("layers.5", True, {"site": "blocks.5.hook_resid_pre", "target_site": "blocks.5.hook_resid_post"}),
        ("layers.5.mlp", True, {"target_site": "blocks.5.hook_mlp_out"}),
        ("layers.5/seed3", False, {"site": "blocks.5.hook_resid_post"}),
        ("embed_tokens", False, {}),
        ("layers.5.mlp.act", False, {}),
        ("layers.05", False, {}),
        ("vision.layers.5", False, {}),
        ("layers.5.norm", False, {}),
    ],
)
def test_a_site_is_taken_from_the_folders_name_only_where_it_is_certain(module, transcode, expected, tmp_path):
    dictionary = sparsify.read(changed(tmp_path / module, transcode=transcode))
    assert places(dictionary) == expected
    assert ("not known" in notes(dictionary)) == (not expected)
    assert ("seed3" in notes(dictionary)) == module.endswith("seed3")


def test_what_had_to_be_decided_is_said():
    said = {case: notes(sparsify.read(GOLDEN / case)) for case in CASES}
    assert "bfloat16" in said["bfloat16"]
    assert "4 k" in said[SKIP] and "4 k" not in said[PLAIN]
    assert "older than the key transcode" in said["signed"]
    assert "older than" not in said[PLAIN] and "older than" not in said[SKIP]


def test_whether_atoms_are_of_unit_norm_is_said(tmp_path):
    unit, loose = random_autoencoder(TopK(3)), random_autoencoder(TopK(3))
    with torch.no_grad():
        loose.W_dec[3] *= 1.01
    for name, dictionary, told in (("unit", unit, True), ("loose", loose, False)):
        sparsify.write(dictionary, tmp_path / name)
        assert config_of(tmp_path / name)["normalize_decoder"] is told


W = load_file(GOLDEN / PLAIN / "sae.safetensors")
NAN = W["W_dec"].clone()
NAN[3, 2] = torch.nan


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"b_dec": None, "W_dec": None}, ["lacks 'W_dec', 'b_dec'", "'encoder.weight'"]),
        ({"W_skip": torch.zeros(10, 10)}, ["'W_skip'", "more than this format has"]),
        ({"encoder.weight": W["encoder.weight"].T}, ["encoder.weight must have shape [30, 10]", "it is transposed"]),
        ({"W_dec": W["W_dec"].T}, ["W_dec must have shape [30, 10]", "it is transposed"]),
        ({"W_dec": NAN}, ["W_dec must be finite", "1 of its 300 values"]),
        ({"encoder.bias": torch.ones(30, dtype=torch.int64)}, ["encoder.bias must be of dtype", "int64"]),
        ({"b_dec": torch.ones(11)}, ["b_dec must have shape [10]", "[11]"]),
    ],
)
def test_tensors_that_are_not_the_formats_are_refused(tensors, words, tmp_path):
    folder = changed(tmp_path / PLAIN, tensors=tensors)
    with pytest.raises(FormatError) as caught:
        sparsify.read(folder)
    for word in (str(folder / "sae.safetensors"), *words):
        assert word in str(caught.value), str(caught.value)


@pytest.mark.parametrize(
    ("case", "changes", "words"),
    [
        (PLAIN, {"colour": "red"}, ["unknown key 'colour'", "expansion_factor"]),
        (PLAIN, {"d_in": None}, ["lacks the key 'd_in'"]),
        (PLAIN, {"d_in": 11}, ["encoder.weight", "cfg.json says d_in 11 and 33 latents"]),
        (PLAIN, {"d_in": "10"}, ["cfg.d_in"]),
        (PLAIN, {"d_in": 0}, ["cfg.json", "d_in must be at least 1"]),
        (PLAIN, {"k": 0}, ["k must be in 1..d_sae=30"]),
        (PLAIN, {"k": 2.5}, ["cfg.k"]),
        (PLAIN, {"k": True}, ["cfg.k"]),
        (PLAIN, {"activation": "groupmax"}, ["groupmax", "each of k=4 groups"]),
        (PLAIN, {"activation": "jumprelu"}, ["activation", "groupmax"]),
        (PLAIN, {"skip_connection": True}, ["lacks 'W_skip'"]),
        (SKIP, {"skip_connection": False}, ["'W_skip'"]),
    ],
)
def test_configurations_that_cannot_be_followed_are_refused(case, changes, words, tmp_path):
    folder = changed(tmp_path / "layers.5", case, **changes)
    with pytest.raises(FormatError) as caught:
        sparsify.read(folder)
    for word in (str(folder), *words):
        assert word in str(caught.value), str(caught.value)


def test_truncated_and_missing_files_are_named(tmp_path):
    folder = changed(tmp_path / PLAIN)
    whole = (folder / "sae.safetensors").read_bytes()
    (folder / "sae.safetensors").write_bytes(whole[:-100])
    with pytest.raises(FormatError, match=r"sae\.safetensors"):
        sparsify.read(folder)
    (folder / "sae.safetensors").unlink()
    with pytest.raises(FormatError, match=r"sae\.safetensors does not exist"):
        sparsify.read(folder)
    (folder / "cfg.json").write_text("{")
    with pytest.raises(FormatError, match=r"cfg\.json is not valid JSON"):
        sparsify.read(folder)


@pytest.mark.parametrize(
    ("dictionary", "words"),
    [
        (random_autoencoder(ReLU()), "activation must be TopK for sparsify, got ReLU"),
        (random_autoencoder(JumpReLU()), "got JumpReLU"),
        (random_autoencoder(BatchTopK(3.0)), "got BatchTopK"),
        (random_autoencoder(TopK(3), normalisation="layer_norm"), "normalisation"),
        (random_autoencoder(TopK(3), d_out=9), "d_out must be d_in=8 for sparsify, got 9"),
        (MatchingPursuit(PursuitConfig(d_in=8, d_sae=24, k=3)), "got a MatchingPursuit"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, torch.nn.Module) else None,
)
def test_what_the_format_cannot_hold_is_refused(dictionary, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        sparsify.write(dictionary, tmp_path / "coder")
    assert list(tmp_path.iterdir()) == []

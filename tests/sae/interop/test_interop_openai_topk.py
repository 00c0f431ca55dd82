"""OpenAI's torch files in and out. The oracle is the owner's Autoencoder, recorded in tests/golden/interop/openai_topk by its script in scripts/golden."""

import hashlib
import json
import shutil
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from foreign_files import random_autoencoder
from safetensors.torch import load_file

from sae.dictionaries.activations import AbsTopK, BatchTopK, JumpReLU, ReLU, TopK
from sae.dictionaries.pursuit import MatchingPursuit, PursuitConfig
from sae.errors import ConfigError, FormatError
from sae.interop import openai_topk
from scripts.golden import openai_topk_cases

GOLDEN = Path(__file__).resolve().parents[2] / "golden/interop/openai_topk"
FILES = {path.name: next(path.rglob("*.pt")) for path in sorted(GOLDEN.iterdir()) if path.is_dir()}
CHECKED = json.loads((GOLDEN / "checked.json").read_text())["cases"]
OURS = openai_topk_cases.cases()


def state(case="topk"):
    return torch.load(FILES[case], weights_only=True)


def changed(path, case="topk", **changes):
    """A copy of a golden file with other values, keys spelled with __ for a dot; None takes one away."""
    values = state(case) | {key.replace("__", "."): value for key, value in changes.items()}
    torch.save({key: value for key, value in values.items() if value is not None}, path)
    return path


def notes(dictionary):
    return "; ".join(dictionary.provenance["foreign"]["notes"])


def places(dictionary):
    return {name: dictionary.provenance[name] for name in ("site", "target_site", "model") if name in dictionary.provenance}


def written_out(values, acts):
    """(codes, output) in float64 by the equations, rows normalised for TopK."""
    w = {name: value.double() for name, value in values.items() if isinstance(value, torch.Tensor)}
    mean, scale, inverse = torch.zeros(()), torch.ones(()), torch.ones(())
    if values["activation"] == "TopK":
        mean, scale = acts.mean(1, keepdim=True), acts.std(1, keepdim=True)
        inverse = 1 / (scale + 1e-5)
    codes = (((acts - mean) * inverse - w["pre_bias"]) @ w["encoder.weight"].T + w["latent_bias"]).clamp_min(0)
    if values["activation"] == "TopK":
        codes = codes * (codes >= codes.topk(values["activation_state_dict"]["k"], dim=1).values[:, -1:])
    decoder = w["decoder.weight"].T if "decoder.weight" in w else w["encoder.weight"]
    return codes, (codes @ decoder + w["pre_bias"]) * scale + mean


@pytest.mark.parametrize("case", FILES)
def test_codes_and_outputs_are_those_of_the_owner(case):
    dictionary, said = openai_topk.read(FILES[case]), load_file(GOLDEN / case / "expected.safetensors")
    with torch.no_grad():
        codes = dictionary.encode(said["acts"])
        torch.testing.assert_close(codes.dense(), said["codes"], atol=1e-5, rtol=0)
        torch.testing.assert_close(dictionary.decode(codes), said["output"], atol=1e-5, rtol=0)
        torch.testing.assert_close(dictionary(said["acts"]), said["output"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", FILES)
def test_codes_and_outputs_on_other_activations_are_the_equations(case):
    dictionary = openai_topk.read(FILES[case])
    acts = 3 * torch.randn(40, dictionary.d_in, generator=torch.Generator().manual_seed(7)) - 1
    codes, output = written_out(state(case), acts.double())
    with torch.no_grad():
        torch.testing.assert_close(dictionary.encode(acts).dense().double(), codes, atol=1e-5, rtol=0)
        torch.testing.assert_close(dictionary(acts).double(), output, atol=1e-5, rtol=0)


def test_codes_of_topk_do_not_see_the_size_of_a_row_nor_its_mean():
    dictionary = openai_topk.read(FILES["topk"])
    acts = 3 * torch.randn(40, dictionary.d_in, generator=torch.Generator().manual_seed(8))
    with torch.no_grad():
        torch.testing.assert_close(dictionary.encode(7 * acts + 5).dense(), dictionary.encode(acts).dense(), atol=2e-4, rtol=0)
        torch.testing.assert_close(dictionary(7 * acts + 5), 7 * dictionary(acts) + 5, atol=2e-3, rtol=0)


@pytest.mark.parametrize("case", FILES)
def test_what_was_read_is_bit_equal_after_writing_and_reading_again(case, tmp_path):
    first = openai_topk.read(FILES[case])
    path = tmp_path / FILES[case].relative_to(GOLDEN)
    path.parent.mkdir(parents=True)
    openai_topk.write(first, path)
    second = openai_topk.read(path)
    assert second.digest == first.digest
    assert places(second) == places(first)
    assert second.provenance["foreign"]["config"] == first.provenance["foreign"]["config"]
    before, after = state(case), torch.load(path, weights_only=True)
    for name in ("pre_bias", "latent_bias", "encoder.weight", *(["decoder.weight"] if "decoder.weight" in before else [])):
        assert torch.equal(after[name], before[name])
    assert set(after) - {"decoder.weight"} == {name for name in before if not name.startswith(("activation.", "decoder"))}


@pytest.mark.parametrize("name", sorted(OURS))
def test_what_is_written_has_the_bytes_that_the_owners_code_has_checked(name, tmp_path):
    openai_topk.write(OURS[name], tmp_path / openai_topk_cases.FILE)
    assert {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in tmp_path.iterdir()} == CHECKED[name]["sha256"]
    assert CHECKED[name]["largest_difference"] < 1e-5


def test_the_owners_code_has_checked_every_case_and_no_other():
    assert sorted(CHECKED) == sorted(OURS)


@pytest.mark.parametrize("name", sorted(OURS))
def test_our_dictionaries_come_back_as_the_same_function_with_codes_in_activation_units(name, tmp_path):
    ours = OURS[name]
    openai_topk.write(ours, tmp_path / "6.pt")
    back, acts = openai_topk.read(tmp_path / "6.pt"), 2 * torch.randn(24, ours.d_in, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        torch.testing.assert_close(back(acts), ours(acts), atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(back.encode(acts).dense(), ours.encode(acts).dense() / ours.scaling.scale, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("gpt2-small/resid_post_mlp_v5_32k/autoencoders/6.pt", {"site": "blocks.6.hook_resid_post", "model": "gpt2"}),
        ("gpt2-small/resid_post_attn_v5_128k/autoencoders/0.pt", {"site": "blocks.0.hook_resid_mid", "model": "gpt2"}),
        ("resid_delta_attn_v5_32k/autoencoders/11.pt", {"site": "blocks.11.hook_attn_out"}),
        ("resid_delta_mlp_v4/autoencoders/3.pt", {"site": "blocks.3.hook_mlp_out"}),
        ("mlp_post_act/autoencoders/3.pt", {"site": "blocks.3.mlp.hook_post"}),
        ("mlp_post_act/autoencoders/03.pt", {}),
        ("mlp_post_act/autoencoders/final.pt", {}),
        ("mlp_post_act/3.pt", {}),
        ("mlp_post_act_v6/autoencoders/3.pt", {}),
        ("my_mlp_post_act/autoencoders/3.pt", {}),
    ],
)
def test_a_site_is_taken_from_a_path_only_where_the_path_is_the_published_one(path, expected, tmp_path):
    (tmp_path / path).parent.mkdir(parents=True)
    shutil.copy(FILES["topk"], tmp_path / path)
    dictionary = openai_topk.read(tmp_path / path)
    assert places(dictionary) == expected
    assert ("not known" in notes(dictionary)) == (not expected)


def test_what_had_to_be_decided_is_said(tmp_path):
    assert "normalised" in notes(openai_topk.read(FILES["topk"])) and "normalised" not in notes(openai_topk.read(FILES["relu"]))
    assert "tied" in notes(openai_topk.read(FILES["tied"]))
    silent = openai_topk.read(changed(tmp_path / "a.pt", "relu", activation=None, activation_state_dict=None))
    assert "names no activation" in notes(silent)
    assert silent.digest == openai_topk.read(FILES["relu"]).digest
    assert silent.provenance["foreign"]["config"] == {}
    half = openai_topk.read(changed(tmp_path / "b.pt", pre_bias=state()["pre_bias"].half()))
    assert "float16" in notes(half) and half.b_dec.dtype == torch.float32


def test_statistics_may_be_anything_or_absent(tmp_path):
    names = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")
    bare = openai_topk.read(changed(tmp_path / "bare.pt", **dict.fromkeys(names)))
    odd = openai_topk.read(changed(tmp_path / "odd.pt", latents_mean_square=torch.full((3,), torch.nan)))
    assert bare.digest == odd.digest == openai_topk.read(FILES["topk"]).digest


def test_options_in_a_dictionary_of_torchs_kind_are_read(tmp_path):
    ordered = changed(tmp_path / "a.pt", activation_state_dict=OrderedDict(k=5, postact_fn="ReLU"))
    assert openai_topk.read(ordered).digest == openai_topk.read(FILES["topk"]).digest


T = state()
NAN = T["latent_bias"].clone()
NAN[4] = torch.inf


@pytest.mark.parametrize(
    ("case", "changes", "words"),
    [
        ("topk", {"pre_bias": None, "decoder__weight": None}, ["lacks 'decoder.weight', 'pre_bias'", "'latent_bias'"]),
        ("topk", {"decoder__bias": torch.zeros(12)}, ["'decoder.bias'", "more than this format has"]),
        ("topk", {"encoder__weight": T["encoder.weight"].T.clone()}, ["encoder.weight must have shape [32, 12]", "it is transposed"]),
        ("topk", {"decoder__weight": T["decoder.weight"].T.clone()}, ["decoder.weight must have shape [12, 32]", "it is transposed"]),
        ("topk", {"latent_bias": NAN}, ["latent_bias must be finite", "1 of its 32 values"]),
        ("topk", {"pre_bias": torch.ones(12, dtype=torch.long)}, ["pre_bias must be of dtype", "int64"]),
        ("topk", {"pre_bias": "none"}, ["pre_bias must be a tensor, it is a str"]),
        ("topk", {"activation": "JumpReLU"}, ["activation must be 'TopK' or 'ReLU', got 'JumpReLU'"]),
        ("topk", {"activation": "Identity"}, ["got 'Identity'"]),
        ("topk", {"activation": torch.ones(2)}, ["activation must be 'TopK' or 'ReLU'"]),
        ("topk", {"activation_state_dict": {"k": 5}}, ["lacks the key 'postact_fn'"]),
        ("topk", {"activation_state_dict": None}, ["lacks the key 'k', 'postact_fn'"]),
        ("topk", {"activation_state_dict": [5]}, ["activation_state_dict must be a dictionary, got a list"]),
        ("topk", {"activation_state_dict": {"k": 5, "postact_fn": "ReLU", "jump": 1}}, ["unknown key 'jump'"]),
        ("topk", {"activation_state_dict": {"k": 5, "postact_fn": "Identity"}}, ["postact_fn must be 'ReLU'", "negative"]),
        ("topk", {"activation_state_dict": {"k": 0, "postact_fn": "ReLU"}}, ["k must be a positive whole number, got 0"]),
        ("topk", {"activation_state_dict": {"k": 2.5, "postact_fn": "ReLU"}}, ["got 2.5"]),
        ("topk", {"activation_state_dict": {"k": True, "postact_fn": "ReLU"}}, ["got True"]),
        ("topk", {"activation_state_dict": {"k": 33, "postact_fn": "ReLU"}}, ["k must be in 1..d_sae=32, got 33"]),
        ("relu", {"activation_state_dict": {"k": 5}}, ["unknown key 'k'"]),
        ("relu", {"activation__k": 5}, ["activation.k must be what activation_state_dict says"]),
        ("topk_of_state_dict", {"activation__k": 4}, ["activation.k must be what activation_state_dict says of k, 3; got 4"]),
        ("topk_of_state_dict", {"activation__k": torch.ones(2)}, ["activation.k must be"]),
        ("tied", {"decoder__linear__weight": 1.5 * state("tied")["encoder.weight"]}, ["decoder.linear.weight must be encoder.weight"]),
    ],
)
def test_what_is_not_the_formats_is_refused(case, changes, words, tmp_path):
    path = changed(tmp_path / "6.pt", case, **changes)
    with pytest.raises(FormatError) as caught:
        openai_topk.read(path)
    for word in (str(path), *words):
        assert word in str(caught.value), str(caught.value)


class Marker:
    """Pickled as a call that makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_the_file_is_refused_and_not_run(zipped, tmp_path):
    touched = tmp_path / "touched"
    torch.save(state() | {"activation_state_dict": Marker(touched)}, tmp_path / "6.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(FormatError, match=r"6\.pt.*never run"):
        openai_topk.read(tmp_path / "6.pt")
    assert not touched.exists()


def test_truncated_and_missing_files_are_named(tmp_path):
    for case in ("topk", "relu"):
        whole = FILES[case].read_bytes()
        (tmp_path / f"{case}.pt").write_bytes(whole[: len(whole) // 2])
        with pytest.raises(FormatError, match=rf"{case}\.pt"):
            openai_topk.read(tmp_path / f"{case}.pt")
    with pytest.raises(FormatError, match=r"missing\.pt does not exist"):
        openai_topk.read(tmp_path / "missing.pt")


@pytest.mark.parametrize(
    ("dictionary", "words"),
    [
        (random_autoencoder(TopK(3)), "normalisation must be 'layer_norm' for TopK in openai_topk, got 'none'"),
        (random_autoencoder(ReLU(), normalisation="layer_norm"), "normalisation must be 'none' for ReLU in openai_topk, got 'layer_norm'"),
        (random_autoencoder(TopK(3), normalisation="constant_norm"), "got 'constant_norm'"),
        (random_autoencoder(JumpReLU()), "activation must be TopK or ReLU for openai_topk, got JumpReLU"),
        (random_autoencoder(AbsTopK(3), normalisation="layer_norm"), "got AbsTopK"),
        (random_autoencoder(BatchTopK(3.0)), "got BatchTopK"),
        (random_autoencoder(TopK(3), d_out=8), "must not be a transcoder"),
        (MatchingPursuit(PursuitConfig(d_in=8, d_sae=24, k=3)), "got a MatchingPursuit"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, torch.nn.Module) else None,
)
def test_what_the_format_cannot_hold_is_refused(dictionary, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        openai_topk.write(dictionary, tmp_path / "6.pt")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_no_place_for_a_file(tmp_path):
    with pytest.raises(ConfigError, match="is a folder"):
        openai_topk.write(random_autoencoder(ReLU()), tmp_path)

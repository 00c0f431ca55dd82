"""Llama Scope v1 in and out. The oracle is the forward it was released with, recorded by scripts/golden/llama_scope.py."""

import hashlib
import json
import math
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from foreign_files import random_autoencoder
from safetensors.torch import load_file, save_file

from sae.dictionaries.activations import AbsTopK, BatchTopK, Gated, JumpReLU, ReLU, TopK
from sae.dictionaries.pursuit import MatchingPursuit, PursuitConfig
from sae.errors import ConfigError, FormatError
from sae.interop import llama_scope
from sae.interop.files import read_torch, write_torch
from sae.interop.formats import identify
from scripts.golden import llama_scope_cases

GOLDEN = Path(__file__).resolve().parents[2] / "golden/interop/llama_scope"
CASES = sorted(path.name for path in GOLDEN.iterdir() if path.is_dir())
CHECKED = json.loads((GOLDEN / "checked.json").read_text())["cases"]
OURS = llama_scope_cases.cases()
WEIGHTS = "checkpoints/final.safetensors"
D = 12


def changed(folder, case="released", *, tensors=None, **options):
    """A copy of a golden folder with other hyperparameters or other tensors; the text "nothing" takes one away."""
    shutil.copytree(GOLDEN / case, folder)
    said = json.loads((folder / "hyperparams.json").read_text()) | options
    (folder / "hyperparams.json").write_text(json.dumps({key: value for key, value in said.items() if value != "nothing"}))
    if tensors:
        found = load_file(folder / WEIGHTS) | tensors
        save_file({name: tensor.contiguous() for name, tensor in found.items() if tensor is not None}, folder / WEIGHTS)
    return folder


def notes(dictionary):
    return "; ".join(dictionary.provenance["foreign"]["notes"])


def rows(n=40, seed=5):
    return 2 * torch.randn(n, D, generator=torch.Generator().manual_seed(seed))


def written_out(folder, acts):
    """(codes, output) of the equations in float64, in the order in which the release folds."""
    said, found = json.loads((folder / "hyperparams.json").read_text()), load_file(folder / WEIGHTS)
    wide, x = {name: tensor.double() for name, tensor in found.items()}, acts.double()
    W_enc, b_enc, W_dec = wide["encoder.weight"].T, wide["encoder.bias"], wide["decoder.weight"].T
    b_dec, size = wide.get("decoder.bias", torch.zeros(D).double()), torch.ones(())
    if said["norm_activation"] == "dataset-wise":
        s_in, s_out = (math.sqrt(D) / said["dataset_average_activation_norm"][name] for name in ("in", "out"))
        b_enc, W_dec, b_dec = b_enc / s_in, W_dec * s_in / s_out, b_dec / s_out
    if said["norm_activation"] == "token-wise":
        size = math.sqrt(D) / x.norm(dim=1, keepdim=True)
    if said["sparsity_include_decoder_norm"]:
        norms = W_dec.norm(dim=1)
        W_enc, b_enc, W_dec = W_enc * norms, b_enc * norms, W_dec / norms[:, None]
    pre = (x * size - (b_dec if said["apply_decoder_bias_to_pre_encoder"] else 0)) @ W_enc + b_enc
    if said["act_fn"] == "topk":
        codes = torch.where(pre >= pre.topk(said["top_k"], 1).values[:, -1:], pre.relu(), 0)
    else:
        codes = torch.where(pre > (said["jump_relu_threshold"] if said["act_fn"] == "jumprelu" else 0), pre, 0)
    return codes, (codes @ W_dec + b_dec) / size


@pytest.mark.parametrize("case", CASES)
def test_codes_and_outputs_are_those_of_the_release(case):
    dictionary, said = llama_scope.read(GOLDEN / case), load_file(GOLDEN / case / "expected.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(dictionary.encode(said["acts"]).dense(), said["codes"], atol=1e-5, rtol=0)
        torch.testing.assert_close(dictionary(said["acts"]), said["output"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_codes_and_outputs_on_other_activations_are_the_equations(case):
    codes, output = written_out(GOLDEN / case, rows())
    dictionary = llama_scope.read(GOLDEN / case)
    with torch.no_grad():
        torch.testing.assert_close(dictionary.encode(rows()).dense().double(), codes, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(dictionary(rows()).double(), output, atol=1e-5, rtol=1e-5)


def test_the_order_that_another_loader_uses_is_another_function():
    """The threshold belongs to the folded weights: folding no norms of atoms, and scaling it, changes which latents are active."""
    said, found = json.loads((GOLDEN / "released/hyperparams.json").read_text()), load_file(GOLDEN / "released" / WEIGHTS)
    s_in = math.sqrt(D) / said["dataset_average_activation_norm"]["in"]
    pre = rows() @ (found["encoder.weight"].T * s_in) + found["encoder.bias"]
    other = pre > said["jump_relu_threshold"] * s_in
    with torch.no_grad():
        ours = llama_scope.read(GOLDEN / "released").encode(rows()).dense() > 0
    assert float((other != ours).float().mean()) > 0.03


@pytest.mark.parametrize("case", CASES)
def test_what_was_read_is_bit_equal_after_writing_and_reading_again(case, tmp_path):
    first = llama_scope.read(GOLDEN / case)
    llama_scope.write(first, tmp_path)
    second = llama_scope.read(tmp_path)
    assert second.digest == first.digest
    assert {**second.provenance, "foreign": 0} == {**first.provenance, "foreign": 0}
    assert json.loads((tmp_path / "lm_config.json").read_text()) == json.loads((GOLDEN / case / "lm_config.json").read_text())
    now, then = (json.loads((folder / "hyperparams.json").read_text()) for folder in (tmp_path, GOLDEN / case))
    folded = {
        "norm_activation",
        "sparsity_include_decoder_norm",
        "use_decoder_bias",
        "jump_relu_threshold",
        "apply_decoder_bias_to_pre_encoder",
    }
    assert {key: value for key, value in now.items() if key not in folded} == {
        key: value for key, value in then.items() if key not in folded
    }
    if then["act_fn"] == "jumprelu":
        assert now["jump_relu_threshold"] == then["jump_relu_threshold"]


@pytest.mark.parametrize("name", sorted(OURS))
def test_what_is_written_has_the_bytes_that_the_release_has_checked(name, tmp_path):
    llama_scope.write(OURS[name], tmp_path)
    files = {str(path.relative_to(tmp_path)): path for path in tmp_path.rglob("*") if path.is_file()}
    assert {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()} == CHECKED[name]["sha256"]
    assert CHECKED[name]["largest_difference"] < 1e-5


def test_the_release_has_checked_every_case_and_no_other():
    assert sorted(CHECKED) == sorted(OURS)


@pytest.mark.parametrize("name", sorted(OURS))
def test_our_dictionaries_come_back_as_the_same_function_with_codes_in_activation_units(name, tmp_path):
    ours, acts = OURS[name], rows()
    llama_scope.write(ours, tmp_path)
    back = llama_scope.read(tmp_path)
    assert {**back.provenance, "foreign": 0} == {**ours.provenance, "foreign": 0}
    assert back.is_transcoder == ours.is_transcoder
    with torch.no_grad():
        torch.testing.assert_close(back(acts), ours(acts), atol=3e-5, rtol=1e-5)
        torch.testing.assert_close(back.encode(acts).dense(), ours.encode(acts).dense() / ours.scaling.scale, atol=3e-5, rtol=1e-5)


def test_a_transcoder_that_subtracts_its_output_bias_from_its_input_does_so_in_b_enc(tmp_path):
    folder = changed(tmp_path / "a", "transcoder", apply_decoder_bias_to_pre_encoder=True)
    codes, output = written_out(folder, rows())
    dictionary = llama_scope.read(folder)
    assert "part of b_enc here" in notes(dictionary)
    with torch.no_grad():
        torch.testing.assert_close(dictionary.encode(rows()).dense().double(), codes, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(dictionary(rows()).double(), output, atol=1e-5, rtol=1e-5)


def test_weights_are_looked_for_where_the_library_looks_first(tmp_path):
    folder = changed(tmp_path / "a")
    found = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    write_torch(folder / "checkpoints/final.pt", {"sae": found, "version": "0.1.0"})
    assert llama_scope.read(folder).digest == llama_scope.read(GOLDEN / "released").digest
    assert identify(folder) == "llama_scope"
    pruned = found | {"encoder.bias": torch.zeros(36)}
    save_file(pruned, folder / "checkpoints/pruned.safetensors")
    assert not llama_scope.read(folder).b_enc.any()
    with pytest.raises(ConfigError, match=r"pruned\.safetensors, which the library would load first"):
        llama_scope.write(OURS["relu"], folder)


def test_what_was_decided_is_said(tmp_path):
    assert "mean norm 6.3125 scaled to sqrt(d)" in notes(llama_scope.read(GOLDEN / "released"))
    assert "atoms are scaled to unit norm" in notes(llama_scope.read(GOLDEN / "released"))
    assert "read as TopK" in notes(llama_scope.read(GOLDEN / "top_k_with_threshold"))
    assert not notes(llama_scope.read(GOLDEN / "plain"))
    two = changed(tmp_path / "a", dataset_average_activation_norm={"in": 6.0, "out": 7.0})
    assert "one site with two norms: 6.0 as input and 7.0 as output" in notes(llama_scope.read(two))
    half = {name: tensor.bfloat16() for name, tensor in load_file(GOLDEN / "released" / WEIGHTS).items()}
    assert "bfloat16" in notes(llama_scope.read(changed(tmp_path / "b", tensors=half)))


def test_sites_and_the_model_are_stated_where_the_files_state_them(tmp_path):
    found = llama_scope.read(GOLDEN / "transcoder").provenance
    assert (found["site"], found["target_site"], found["model"]) == (
        "blocks.8.hook_resid_mid",
        "blocks.8.hook_mlp_out",
        "meta-llama/Llama-3.1-8B",
    )
    llama_scope.write(random_autoencoder(d_out=8), tmp_path)
    again = llama_scope.read(tmp_path)
    assert again.is_transcoder
    assert not {"site", "target_site", "model"} & again.provenance.keys()


@pytest.mark.parametrize("threshold", [0.0, 1e-20, 0.4, 1e20])
def test_the_one_threshold_comes_back(threshold, tmp_path):
    first = llama_scope.read(changed(tmp_path / "a", jump_relu_threshold=threshold))
    llama_scope.write(first, tmp_path / "b")
    assert json.loads((tmp_path / "b/hyperparams.json").read_text())["jump_relu_threshold"] == threshold
    assert llama_scope.read(tmp_path / "b").digest == first.digest


def test_truncated_and_missing_files_are_named(tmp_path):
    folder = changed(tmp_path / "a")
    whole = (folder / WEIGHTS).read_bytes()
    for length in (0, 4, len(whole) // 2, len(whole) - 1):
        (folder / WEIGHTS).write_bytes(whole[:length])
        with pytest.raises(FormatError, match=r"final\.safetensors"):
            llama_scope.read(folder)
    (folder / WEIGHTS).unlink()
    with pytest.raises(FormatError, match="has no weights: none of"):
        llama_scope.read(folder)
    (folder / "hyperparams.json").unlink()
    with pytest.raises(FormatError, match=r"hyperparams\.json does not exist"):
        llama_scope.read(folder)


class Bomb:
    """Unpickled, it would make a file."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return (Path.touch, (Path(self.place),))


def test_a_pickle_with_code_in_it_is_refused_and_nothing_runs(tmp_path):
    folder = changed(tmp_path / "a")
    (folder / WEIGHTS).unlink()
    torch.save({"sae": {"encoder.weight": Bomb(tmp_path / "ran")}}, folder / "checkpoints/final.pt")
    with pytest.raises(FormatError, match="holds code"):
        llama_scope.read(folder)
    (folder / "checkpoints/final.pt").write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    with pytest.raises(FormatError, match=r"final\.pt"):
        llama_scope.read(folder)
    write_torch(folder / "checkpoints/final.pt", {"weights": {}})
    assert "sae" not in read_torch(folder / "checkpoints/final.pt")
    with pytest.raises(FormatError, match="under the name 'sae'"):
        llama_scope.read(folder)
    assert not (tmp_path / "ran").exists()


STATE = load_file(GOLDEN / "released" / WEIGHTS)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"encoder.weight": STATE["encoder.weight"].T}, "transposed"),
        ({"decoder.weight": STATE["decoder.weight"].T}, "transposed"),
        ({"encoder.weight": STATE["encoder.weight"].int()}, "dtype"),
        ({"encoder.bias": torch.full((36,), torch.nan)}, "must be finite"),
        ({"encoder_glu.weight": STATE["encoder.weight"], "another": torch.zeros(1)}, r"'another', 'encoder_glu\.weight'"),
        ({"decoder.bias": None, "encoder.bias": None}, r"lacks 'decoder\.bias', 'encoder\.bias'"),
        ({"decoder.weight": STATE["decoder.weight"] * (torch.arange(36) > 1)}, "2 atoms have no norm"),
    ],
)
def test_tensors_that_are_not_the_formats_are_refused(tensors, message, tmp_path):
    with pytest.raises(FormatError, match=message):
        llama_scope.read(changed(tmp_path / "a", tensors=tensors))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_glu_encoder": True}, "gated by a second encoder"),
        ({"norm_activation": "batch-wise"}, "depend on the other rows"),
        ({"norm_activation": "token-wise", "hook_point_out": "blocks.9.hook_mlp_out"}, "only the target has"),
        ({"norm_activation": "layer-wise"}, "norm_activation"),
        ({"dataset_average_activation_norm": None}, "two positive norms, 'in' and 'out'"),
        ({"dataset_average_activation_norm": {"in": 3.0}}, "two positive norms, 'in' and 'out'"),
        ({"dataset_average_activation_norm": {"in": 3.0, "out": -1.0}}, "two positive norms"),
        ({"dataset_average_activation_norm": {"in": 1e-320, "out": 1.0}}, "not finite"),
        ({"act_fn": "gelu"}, "act_fn"),
        ({"act_fn": "topk", "top_k": 37}, "k must be in"),
        ({"jump_relu_threshold": -0.1}, "at least 0"),
        ({"jump_relu_threshold": "high"}, "jump_relu_threshold"),
        ({"d_model": 36, "d_sae": 12}, "transposed"),
        ({"d_sae": 35}, "shape"),
        ({"d_model": "nothing"}, "lacks the key 'd_model'"),
        ({"speed": 3, "depth": 2}, "'depth', 'speed'"),
    ],
)
def test_hyperparameters_that_cannot_be_followed_are_refused(options, message, tmp_path):
    with pytest.raises(FormatError, match=message):
        llama_scope.read(changed(tmp_path / "a", **options))


def negative_threshold():
    dictionary = random_autoencoder(BatchTopK(4.0))
    dictionary.threshold.fill_(-1.0)
    return dictionary


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MatchingPursuit(PursuitConfig(d_in=8, d_sae=24, k=3)), "must be an Autoencoder"),
        (lambda: random_autoencoder(AbsTopK(4)), "got AbsTopK; `saelens` holds it"),
        (lambda: random_autoencoder(Gated()), "got Gated; `saelens` holds it"),
        (lambda: random_autoencoder(JumpReLU()), "`llamascopium` and `saelens` hold them"),
        (lambda: random_autoencoder(ReLU(), d_out=9), "one width"),
        (lambda: random_autoencoder(ReLU(), d_out=8, skip=True), "no linear path"),
        (lambda: random_autoencoder(TopK(4), normalisation="layer_norm"), "must have normalisation"),
        (lambda: random_autoencoder(TopK(4), d_out=8, normalisation="constant_norm"), "'none' for a transcoder"),
        (negative_threshold, "threshold must be at least 0"),
    ],
)
def test_what_the_format_does_not_have_is_refused_before_anything_is_written(make, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        llama_scope.write(make(), tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_file_is_not_taken_for_a_folder(tmp_path):
    (tmp_path / "a").write_text("notes")
    with pytest.raises(ConfigError, match="is a file"):
        llama_scope.write(random_autoencoder(), tmp_path / "a")

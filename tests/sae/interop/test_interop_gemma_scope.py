"""Gemma Scope in and out. The oracle is the published forward, recorded in tests/golden/interop/gemma_scope by scripts/golden/gemma_scope.py."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign_files import random_autoencoder
from safetensors.torch import load_file, save_file

from sae.dictionaries.activations import AbsTopK, BatchTopK, Gated, JumpReLU, ReLU, TopK
from sae.dictionaries.autoencoder import Autoencoder
from sae.dictionaries.codebook import Codebook, CodebookConfig
from sae.dictionaries.pursuit import MatchingPursuit, PursuitConfig
from sae.dictionaries.scaling import Scaling
from sae.errors import ConfigError, FormatError
from sae.interop import formats, gemma_scope
from scripts.golden import gemma_scope_cases

GOLDEN = Path(__file__).resolve().parents[2] / "golden/interop/gemma_scope"
CASES = sorted(path.name for path in GOLDEN.iterdir() if path.is_dir())
CHECKED = json.loads((GOLDEN / "checked.json").read_text())["cases"]
OURS = gemma_scope_cases.cases()


def arrays(case="v1"):
    return dict(np.load(GOLDEN / case / "params.npz"))


def saved(folder, **changes):
    """A copy of version 1's golden file with other arrays; None takes one away."""
    found = {name: array for name, array in (arrays() | changes).items() if array is not None}
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "params.npz", **found)
    return folder / "params.npz"


def configured(folder, case="v2", tensors=None, **changes):
    """A copy of a golden folder of version 2 with another configuration or other tensors; None takes one away."""
    shutil.copytree(GOLDEN / case, folder)
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    if tensors:
        found = load_file(folder / "params.safetensors") | tensors
        save_file({name: tensor.contiguous() for name, tensor in found.items() if tensor is not None}, folder / "params.safetensors")
    return folder


def notes(dictionary):
    return "; ".join(dictionary.provenance["foreign"]["notes"])


def places(dictionary):
    return {name: dictionary.provenance[name] for name in ("site", "target_site", "model") if name in dictionary.provenance}


def written_out(params, acts):
    """(codes, output) of the published equations in float64."""
    wide = {name.replace("w_", "W_"): np.asarray(array, np.float64) for name, array in params.items()}
    pre = acts @ wide["W_enc"] + wide["b_enc"]
    codes = np.where(pre > wide["threshold"], np.maximum(pre, 0), 0)
    return codes, codes @ wide["W_dec"] + wide["b_dec"] + acts @ wide.get("affine_skip_connection", np.zeros((acts.shape[1], 1)))


@pytest.mark.parametrize("case", CASES)
def test_codes_and_outputs_are_those_that_the_owner_publishes(case):
    dictionary, said = gemma_scope.read(GOLDEN / case), load_file(GOLDEN / case / "expected.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(dictionary.encode(said["acts"]).dense(), said["codes"], atol=1e-5, rtol=0)
        torch.testing.assert_close(dictionary(said["acts"]), said["output"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_codes_and_outputs_on_other_activations_are_the_equations(case):
    acts = np.random.default_rng(5).standard_normal((40, gemma_scope.read(GOLDEN / case).d_in)).astype(np.float32)
    npz = GOLDEN / case / "params.npz"
    codes, output = written_out(np.load(npz) if npz.exists() else load_file(GOLDEN / case / "params.safetensors"), acts.astype(np.float64))
    dictionary = gemma_scope.read(npz if npz.exists() else GOLDEN / case / "params.safetensors")
    with torch.no_grad():
        np.testing.assert_allclose(dictionary.encode(torch.from_numpy(acts)).dense(), codes, atol=1e-5)
        np.testing.assert_allclose(dictionary(torch.from_numpy(acts)), output, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_what_was_read_is_bit_equal_after_writing_and_reading_again(case, tmp_path):
    first = gemma_scope.read(GOLDEN / case)
    path = tmp_path / ("params.npz" if case.startswith("v1") else "again")
    gemma_scope.write(first, path)
    second = gemma_scope.read(path)
    assert second.digest == first.digest
    assert places(second) == places(first)
    if case.startswith("v2"):
        assert json.loads((path / "config.json").read_text()) == json.loads((GOLDEN / case / "config.json").read_text())


@pytest.mark.parametrize("name", sorted(OURS))
def test_what_is_written_has_the_bytes_that_both_readers_have_checked(name, tmp_path):
    gemma_scope.write(OURS[name], tmp_path / gemma_scope_cases.FILE.get(name, ""))
    assert {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in tmp_path.iterdir()} == CHECKED[name]["sha256"]
    assert CHECKED[name]["largest_difference"] < 1e-5


def test_both_readers_have_checked_every_case_and_no_other():
    assert sorted(CHECKED) == sorted(OURS)


@pytest.mark.parametrize("name", sorted(OURS))
def test_our_dictionaries_come_back_as_the_same_function_with_codes_in_activation_units(name, tmp_path):
    ours, path = OURS[name], tmp_path / gemma_scope_cases.FILE.get(name, "")
    gemma_scope.write(ours, path)
    back, acts = gemma_scope.read(path), 2 * torch.randn(24, ours.d_in, generator=torch.Generator().manual_seed(3))
    assert back.is_transcoder == ours.is_transcoder
    with torch.no_grad():
        torch.testing.assert_close(back(acts), ours(acts), atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(back.encode(acts).dense(), ours.encode(acts).dense() / ours.scaling.scale, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("threshold", [0.0, -0.0, -0.3, -1e30, 1e-44])
def test_a_threshold_of_nought_or_less_is_exactly_relu(threshold, tmp_path):
    params = arrays()
    params["threshold"] = np.full_like(params["threshold"], threshold)
    params["b_enc"][:4] = 0.0
    acts = torch.randn(50, 12, generator=torch.Generator().manual_seed(1))
    acts[0] = 0.0  # pre-activations of exactly 0
    dictionary = gemma_scope.read(saved(tmp_path, **params))
    with torch.no_grad():
        codes = dictionary.encode(acts).dense()
        pre = acts @ torch.from_numpy(params["W_enc"]) + torch.from_numpy(params["b_enc"])
        torch.testing.assert_close(codes, pre.relu(), atol=1e-6, rtol=1e-5)
        assert torch.equal(codes > 0, dictionary.with_activation(ReLU()).encode(acts).dense() > 0)
    assert ("32 of 32 thresholds are 0 or less" in notes(dictionary)) == (threshold <= 0)


def test_only_the_thresholds_of_nought_or_less_are_opened():
    params, dictionary = arrays("v1_small_names"), gemma_scope.read(GOLDEN / "v1_small_names")
    closed = params["threshold"] > 0
    assert 5 < closed.sum() < 30
    np.testing.assert_allclose(dictionary.log_threshold.detach().exp(), np.maximum(params["threshold"], 0), rtol=2e-7)
    assert torch.equal(torch.isneginf(dictionary.log_threshold), torch.from_numpy(~closed))


def test_thresholds_survive_writing_and_reading_over_their_whole_range(tmp_path):
    n = 4096
    threshold = np.geomspace(1e-37, 1e37, n).astype(np.float32)
    threshold[:1024] = np.linspace(0.3, 3.0, 1024, dtype=np.float32)
    wide = {"W_enc": np.ones((12, n), np.float32), "W_dec": np.ones((n, 12), np.float32), "b_enc": np.ones(n, np.float32)}
    first = gemma_scope.read(saved(tmp_path, threshold=threshold, **wide))
    gemma_scope.write(first, tmp_path / "again.npz")
    assert torch.equal(gemma_scope.read(tmp_path / "again.npz").log_threshold, first.log_threshold)
    np.testing.assert_allclose(np.load(tmp_path / "again.npz")["threshold"], threshold, rtol=8e-6)
    np.testing.assert_allclose(np.load(tmp_path / "again.npz")["threshold"][:1024], threshold[:1024], rtol=1.2e-7)


@pytest.mark.parametrize(
    ("path", "expected", "transcoder"),
    [
        (
            "gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71",
            {"site": "blocks.20.hook_resid_post", "model": "google/gemma-2-2b"},
            False,
        ),
        (
            "models--google--gemma-scope-9b-it-res/snapshots/0a/layer_9/width_16k/average_l0_88",
            {"site": "blocks.9.hook_resid_post", "model": "google/gemma-2-9b-it"},
            False,
        ),
        ("gemma-scope-2b-pt-mlp/layer_3/width_16k/average_l0_71", {"site": "blocks.3.hook_mlp_out", "model": "google/gemma-2-2b"}, False),
        ("gemma-scope-27b-pt-att/layer_0/width_1m/x", {"site": "blocks.0.attn.hook_z", "model": "google/gemma-2-27b"}, False),
        ("gemma-scope-2b-pt-transcoders/layer_5/w/x", {"target_site": "blocks.5.hook_mlp_out", "model": "google/gemma-2-2b"}, True),
        ("gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6", {"model": "google/gemma-2-2b"}, False),
        ("gemma-scope-2b-pt-res/layer_x/y", {"model": "google/gemma-2-2b"}, False),
        ("gemma-scope-2b-pt-res/layer_20/of/layer_3", {"model": "google/gemma-2-2b"}, False),
        ("gemma-scope-2b-pt-res-copy/layer_20", {}, False),
        ("my-gemma-scope-2b-pt-res/layer_20", {}, False),
        ("layer_20/width_16k/average_l0_71", {}, False),
    ],
)
def test_a_site_is_taken_from_a_path_only_where_the_path_is_the_published_one(path, expected, transcoder, tmp_path):
    dictionary = gemma_scope.read(saved(tmp_path / path))
    assert places(dictionary) == expected
    assert dictionary.is_transcoder == transcoder
    assert ("path" in notes(dictionary)) and ("embedding" in path) == ("sqrt(d_in)" in notes(dictionary))


def test_an_sae_of_embeddings_explains_what_the_model_makes_of_them_with_the_scaling_that_its_note_names(tmp_path):
    rows = gemma_scope.read(saved(tmp_path / "gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6"))
    multiplied = Autoencoder(rows.config, Scaling(torch.zeros(12), 12**-0.5))
    multiplied.load_state_dict(rows.state_dict())
    embeddings = torch.randn(30, 12, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        torch.testing.assert_close(multiplied.encode(12**0.5 * embeddings).dense(), rows.encode(embeddings).dense(), atol=1e-5, rtol=0)
        torch.testing.assert_close(multiplied(12**0.5 * embeddings), 12**0.5 * rows(embeddings), atol=2e-5, rtol=0)


def test_what_a_square_transcoder_of_version_1_is_must_be_in_the_path(tmp_path):
    published = tmp_path / "gemma-scope-2b-pt-transcoders/layer_5/width_16k/average_l0_5"
    dictionary = gemma_scope.read(saved(published))
    assert dictionary.is_transcoder and dictionary.d_in == dictionary.config.d_out
    with pytest.raises(ConfigError, match="does not say that it is one"):
        gemma_scope.write(dictionary, tmp_path / "params.npz")
    gemma_scope.write(dictionary, published / "again.npz")
    assert gemma_scope.read(published / "again.npz").digest == dictionary.digest
    gemma_scope.write(dictionary, tmp_path / "v2")
    assert gemma_scope.read(tmp_path / "v2").digest == dictionary.digest


@pytest.mark.parametrize(
    ("hook", "site"),
    [
        ("model.layers.7.output", "blocks.7.hook_resid_post"),
        ("model.layers.17.post_feedforward_layernorm.output", "blocks.17.hook_mlp_out"),
        ("model.layers.0.self_attn.o_proj.input", "blocks.0.attn.hook_z"),
        ("model.layers.7.pre_feedforward_layernorm.output", None),
        ("model.layers.07.output", None),
        ("vision.layers.7.output", None),
    ],
)
def test_hook_points_of_version_2_become_sites_where_there_is_one(hook, site, tmp_path):
    folder = configured(tmp_path / "v2", hf_hook_point_in=hook, hf_hook_point_out=hook)
    dictionary = gemma_scope.read(folder)
    assert dictionary.provenance.get("site") == site
    assert ("for which there is no site" in notes(dictionary)) == (site is None)
    gemma_scope.write(dictionary, tmp_path / "again")
    assert json.loads((tmp_path / "again/config.json").read_text()) == json.loads((folder / "config.json").read_text())


def test_a_folder_of_version_2_without_configuration_is_what_its_tensors_are(tmp_path):
    for case in ("v2", "v2_transcoder"):
        folder = configured(tmp_path / case, case)
        (folder / "config.json").unlink()
        bare, whole = gemma_scope.read(folder), gemma_scope.read(GOLDEN / case)
        assert bare.digest == whole.digest
        assert places(bare) == {} and "no config.json" in notes(bare)
        assert formats.read(folder).digest == formats.read(folder / "params.safetensors").digest == whole.digest


def test_a_transcoder_may_be_said_by_its_hooks_alone(tmp_path):
    hooks = {"hf_hook_point_in": "model.layers.3.output", "hf_hook_point_out": "model.layers.4.output", "type": None}
    dictionary = gemma_scope.read(configured(tmp_path / "v2", **hooks))
    assert dictionary.is_transcoder
    assert places(dictionary) == {
        "site": "blocks.3.hook_resid_post", "target_site": "blocks.4.hook_resid_post", "model": "google/gemma-3-1b-pt",
    }  # fmt: skip


def test_half_precision_is_widened_and_said(tmp_path):
    half = {name: array.astype(np.float16) for name, array in arrays().items()}
    dictionary = gemma_scope.read(saved(tmp_path, **half))
    assert dictionary.W_dec.dtype == torch.float32
    assert "float16" in notes(dictionary)
    np.testing.assert_array_equal(dictionary.W_dec.detach(), half["W_dec"].astype(np.float32))


V1 = arrays()
NAN = V1["W_dec"].copy()
NAN[3, 2] = np.nan


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"threshold": None}, ["lacks 'threshold'", "'W_enc'"]),
        ({"W_enc": None}, ["lacks 'W_enc'"]),
        ({"scaling_factor": np.ones(32, np.float32), "x": np.ones(1, np.float32)}, ["'scaling_factor', 'x'", "known are"]),
        ({"w_enc": V1["W_enc"]}, ["'w_enc'"]),
        ({"W_enc": V1["W_enc"].T}, ["W_enc must have shape [any, 32]", "it is transposed"]),
        ({"W_dec": V1["W_dec"].T}, ["W_dec must have shape [32, 12]", "it is transposed"]),
        ({"W_dec": NAN}, ["W_dec must be finite", "1 of its 384 values"]),
        ({"b_enc": V1["b_enc"].astype(np.int64)}, ["b_enc must be of dtype", "int64"]),
        ({"threshold": V1["threshold"][:5]}, ["threshold must have shape [32]", "[5]"]),
        ({"b_dec": V1["b_dec"][None]}, ["b_dec must have shape [any]"]),
        ({"W_dec": np.repeat(V1["W_dec"][:, None], 3, 1)}, ["cross-layer transcoder"]),
        ({"affine_skip_connection": np.zeros((3, 12), np.float32)}, ["affine_skip_connection must have shape [12, 12]"]),
    ],
)
def test_tensors_that_are_not_the_formats_are_refused(changes, words, tmp_path):
    path = saved(tmp_path, **changes)
    with pytest.raises(FormatError) as caught:
        gemma_scope.read(path)
    for word in (str(path), *words):
        assert word in str(caught.value), str(caught.value)


@pytest.mark.parametrize(
    ("case", "changes", "words"),
    [
        ("v2", {"colour": "red"}, ["unknown key 'colour'", "architecture"]),
        ("v2", {"architecture": None}, ["lacks the key 'architecture'"]),
        ("v2", {"architecture": "topk"}, ["architecture", "jump_relu"]),
        ("v2", {"width": 33}, ["width 33", "32 latents"]),
        ("v2", {"width": "32"}, ["width"]),
        ("v2", {"affine_connection": True}, ["affine_connection True", "has none"]),
        ("v2_transcoder", {"affine_connection": False}, ["affine_connection False", "has one"]),
        ("v2_transcoder", {"type": "sae"}, ["which a transcoder does"]),
        ("v2_transcoder", {"type": "sae", "hf_hook_point_out": None}, ["affine_skip_connection"]),
        ("v2", {"type": "clt"}, ["cross-layer transcoder"]),
        ("v2", {"type": "crosscoder"}, ["crosscoder"]),
        ("v2", {"type": None, "hf_hook_point_in": "model.layers.{5,9}.output"}, ["crosscoder"]),
    ],
)
def test_configurations_that_cannot_be_followed_are_refused(case, changes, words, tmp_path):
    folder = configured(tmp_path / "v2", case, **changes)
    with pytest.raises(FormatError) as caught:
        gemma_scope.read(folder)
    for word in (str(folder), *words):
        assert word in str(caught.value), str(caught.value)


def test_an_sae_whose_widths_differ_is_refused(tmp_path):
    with pytest.raises(FormatError, match=r"w_enc must have shape \[12, 32\], got \[5, 32\]"):
        gemma_scope.read(configured(tmp_path / "v2", tensors={"w_enc": torch.ones(5, 32)}))


def test_a_crosscoder_is_recognised_and_refused(tmp_path):
    save_file({"w_enc": torch.ones(2, 3)}, tmp_path / "params_layer_0.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "jump_relu", "type": "crosscoder"}))
    with pytest.raises(FormatError, match="crosscoder or cross-layer transcoder of Gemma Scope 2, which no dictionary here can hold"):
        formats.read(tmp_path)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([], "it holds neither"),
        (["params.npz", "params.safetensors"], "it holds params.npz, params.safetensors"),
        (["a.npz", "b.npz"], "it holds a.npz, b.npz"),
        (["params_layer_0.safetensors", "params_layer_1.safetensors", "config.json"], "cross-layer transcoder"),
        (["params.bin"], "it holds neither"),
    ],
)
def test_folders_that_hold_no_single_dictionary_are_refused(files, words, tmp_path):
    for name in files:
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(FormatError, match=words):
        gemma_scope.read(tmp_path)
    for name in files:
        if name.startswith("params_layer"):
            with pytest.raises(FormatError, match="cross-layer transcoder"):
                gemma_scope.read(tmp_path / name)


def test_hostile_and_missing_files_are_named(tmp_path):
    whole = (GOLDEN / "v1/params.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[:-200])
    np.savez(tmp_path / "pickled.npz", **(V1 | {"threshold": np.array([print, {}], dtype=object)}))
    for name in ("cut.npz", "pickled.npz", "missing.npz", "missing.safetensors", "dictionary.bin"):
        with pytest.raises(FormatError, match=name):
            gemma_scope.read(tmp_path / name)


def test_an_npz_of_any_name_alone_in_its_folder_is_read(tmp_path):
    saved(tmp_path).rename(tmp_path / "layer_20.npz")
    assert gemma_scope.read(tmp_path).digest == gemma_scope.read(GOLDEN / "v1").digest


def test_what_the_parameters_say_replaces_what_was_read(tmp_path):
    dictionary = gemma_scope.read(GOLDEN / "v2_transcoder")
    gemma_scope.write(random_autoencoder(JumpReLU(), d_in=6, d_sae=10, seed=1), tmp_path / "own")
    assert json.loads((tmp_path / "own/config.json").read_text()) == {
        "architecture": "jump_relu", "width": 10, "affine_connection": False, "type": "sae",
    }  # fmt: skip
    other = random_autoencoder(JumpReLU(), d_in=6, d_sae=10, seed=1)
    other.provenance = dictionary.provenance
    gemma_scope.write(other, tmp_path / "other")
    described = json.loads((tmp_path / "other/config.json").read_text())
    assert (described["width"], described["type"], described["affine_connection"]) == (10, "sae", False)


@pytest.mark.parametrize(
    ("dictionary", "path", "words"),
    [
        (random_autoencoder(TopK(3)), "v2", "activation must be JumpReLU, ReLU or BatchTopK"),
        (random_autoencoder(AbsTopK(3)), "v2", "got AbsTopK"),
        (random_autoencoder(Gated()), "v2", "got Gated"),
        (random_autoencoder(JumpReLU(), normalisation="layer_norm"), "v2", "normalisation"),
        (MatchingPursuit(PursuitConfig(d_in=8, d_sae=24, k=3)), "v2", "got a MatchingPursuit"),
        (Codebook(CodebookConfig(d_in=8, d_sae=24)), "v2", "got a Codebook"),
        (random_autoencoder(JumpReLU(), d_out=8), "params.npz", "does not say that it is one"),
        (random_autoencoder(JumpReLU(), d_out=5, skip=True), "params.npz", "skip connection"),
        (random_autoencoder(JumpReLU()), "v2/params.safetensors", "path must be a folder or end in .npz"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, torch.nn.Module) else None,
)
def test_what_the_format_cannot_hold_is_refused(dictionary, path, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        gemma_scope.write(dictionary, tmp_path / path)
    assert list(tmp_path.iterdir()) == []


def test_thresholds_that_the_format_cannot_hold_are_refused(tmp_path):
    low, high = random_autoencoder(BatchTopK(2.0)), random_autoencoder(JumpReLU())
    with torch.no_grad():
        low.threshold.fill_(-0.1)
        high.log_threshold[3] = 100.0
    with pytest.raises(ConfigError, match="threshold of at least 0"):
        gemma_scope.write(low, tmp_path / "params.npz")
    with pytest.raises(ConfigError, match="finite thresholds"):
        gemma_scope.write(high, tmp_path / "params.npz")


def test_version_2_is_not_written_beside_version_1(tmp_path):
    gemma_scope.write(random_autoencoder(JumpReLU()), tmp_path / "params.npz")
    with pytest.raises(ConfigError, match=r"has params\.npz"):
        gemma_scope.write(random_autoencoder(JumpReLU()), tmp_path)

"""Folders of SAELens in and out. The oracle is SAELens' own forward, recorded in tests/golden/interop/saelens by scripts/golden/saelens.py."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sae.dictionaries.activations import BatchTopK, Gated, JumpReLU, ReLU, TopK
from sae.dictionaries.autoencoder import Autoencoder, AutoencoderConfig
from sae.dictionaries.base import Dictionary
from sae.dictionaries.codebook import Codebook, CodebookConfig
from sae.dictionaries.pursuit import MatchingPursuit, PursuitConfig
from sae.errors import ConfigError, FormatError
from sae.interop import saelens
from sae.interop.saelens.config import VERSION
from scripts.golden import saelens_cases
from scripts.golden.exact import filled

GOLDEN = Path(__file__).resolve().parents[2] / "golden/interop/saelens"
CASES = sorted(path.name for path in GOLDEN.iterdir() if path.is_dir())
CHECKED = json.loads((GOLDEN / "checked.json").read_text())["cases"]
OURS = saelens_cases.cases()
CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"


def changed(
    folder: Path,
    case: str,
    config: Callable[[dict[str, Any]], Any] | None = None,
    tensors: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None,
) -> Path:
    """A copy of a golden folder with another configuration or other tensors."""
    shutil.copytree(GOLDEN / case, folder / case)
    path = folder / case
    if config:
        (path / CONFIG).write_text(json.dumps(config(json.loads((path / CONFIG).read_text()))))
    if tensors:
        save_file({name: tensor.contiguous() for name, tensor in tensors(load_file(path / WEIGHTS)).items()}, path / WEIGHTS)
    return path


def notes(dictionary: Dictionary) -> str:
    return "; ".join(dictionary.provenance["foreign"]["notes"])


def metadata(path: Path) -> dict[str, Any]:
    return json.loads((path / CONFIG).read_text())["metadata"]


@pytest.mark.parametrize("case", CASES)
def test_codes_and_outputs_are_those_of_saelens(case: str) -> None:
    dictionary, said = saelens.read(GOLDEN / case), load_file(GOLDEN / case / "expected.safetensors")
    with torch.no_grad():
        codes, output = dictionary.encode(said["acts"]), dictionary(said["acts"])
        torch.testing.assert_close(codes.dense(), said["codes"], atol=1e-5, rtol=0)
        torch.testing.assert_close(output, said["output"], atol=1e-5, rtol=0)
        if "skip" not in case:
            torch.testing.assert_close(dictionary.decode(codes), said["output"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_what_was_read_is_bit_equal_after_writing_and_reading_again(case: str, tmp_path: Path) -> None:
    first = saelens.read(GOLDEN / case)
    saelens.write(first, tmp_path / "again")
    second = saelens.read(tmp_path / "again")
    if isinstance(first.config, AutoencoderConfig) and isinstance(first.config.activation, BatchTopK):  # saved as JumpReLU
        torch.testing.assert_close(second.log_threshold.exp(), first.fold().threshold.expand(second.d_sae))
        torch.testing.assert_close(second.W_enc, first.W_enc, atol=0, rtol=0)
        saelens.write(second, tmp_path / "third")
        first, second = second, saelens.read(tmp_path / "third")
    assert second.digest == (first if first.scaling.is_identity else first.fold()).digest
    assert {name: second.provenance[name] for name in ("site", "model")} == {name: first.provenance[name] for name in ("site", "model")}
    if not case.startswith("before_6"):
        assert metadata(tmp_path / "again") == metadata(GOLDEN / case)


@pytest.mark.parametrize("name", sorted(OURS))
def test_what_is_written_has_the_bytes_that_saelens_has_checked(name: str, tmp_path: Path) -> None:
    saelens.write(OURS[name], tmp_path)
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in tmp_path.iterdir()}
    assert found == CHECKED[name]["sha256"]
    assert CHECKED[name]["largest_difference"] < 1e-5


def test_saelens_has_checked_every_case_and_no_other() -> None:
    assert sorted(CHECKED) == sorted(OURS)


@pytest.mark.parametrize("name", sorted(OURS))
def test_our_dictionaries_come_back_as_the_same_function_with_codes_in_activation_units(name: str, tmp_path: Path) -> None:
    ours = OURS[name]
    saelens.write(ours, tmp_path)
    back, acts = saelens.read(tmp_path), 2 * torch.randn(24, ours.d_in, generator=torch.Generator().manual_seed(3))
    assert back.scaling.is_identity
    with torch.no_grad():
        torch.testing.assert_close(back(acts), ours(acts), atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(back.encode(acts).dense(), ours.encode(acts).dense() / ours.scaling.scale, atol=2e-5, rtol=1e-5)


def test_ranking_by_atom_norm_is_the_written_out_rule(tmp_path: Path) -> None:
    weights = {name: tensor.double() for name, tensor in load_file(GOLDEN / "topk_rescaled" / WEIGHTS).items()}
    dictionary, acts = saelens.read(GOLDEN / "topk_rescaled"), torch.randn(20, 12, generator=torch.Generator().manual_seed(5))
    norms = weights["W_dec"].norm(dim=1)
    value = ((acts.double() - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]) * norms
    kept = value >= value.topk(5, dim=1).values[:, -1:]
    codes = value.clamp_min(0) * kept
    with torch.no_grad():
        torch.testing.assert_close(dictionary.encode(acts).dense().double(), codes, atol=1e-5, rtol=0)
        output = (codes / norms) @ weights["W_dec"] + weights["b_dec"]
        torch.testing.assert_close(dictionary(acts).double(), output, atol=1e-5, rtol=0)


def test_a_pursuit_takes_one_step_even_for_a_row_below_the_threshold() -> None:
    dictionary, said = saelens.read(GOLDEN / "pursuit_threshold"), load_file(GOLDEN / "pursuit_threshold/expected.safetensors")
    near = (said["acts"] - dictionary.b_dec.detach()).norm(dim=1) < 2.0
    assert near.any()
    assert (dictionary.encode(said["acts"]).counts[near] == 1).all()


def test_what_had_to_be_decided_is_said(tmp_path: Path) -> None:
    said = {case: notes(saelens.read(GOLDEN / case)) for case in CASES}
    assert said["standard"] == said["matching_pursuit"] == said["transcoder"] == ""
    assert "activations are taken as they are" in said["average"]
    assert "has the factor 0.37" in said["average_scaler"]
    assert "norms were folded" in said["topk_training"]
    assert "running threshold" in said["matryoshka_training"]
    assert "2 of 32 thresholds are negative" in said["jumprelu_low_thresholds"]
    assert "bfloat16" in said["bfloat16"]
    assert "lays the heads" in said["hook_z"]
    assert "lays the heads" in said["before_6_topk"]
    assert "before 6" in said["before_6"]
    assert "it is left out" in said["matching_pursuit_raw_input"]
    assert "not divided by |d|^2" in said["pursuit_default"]
    assert "max_iterations 40 is read as d_sae=32" in said["pursuit_more_than_atoms"]
    one_head = changed(
        tmp_path, "topk", lambda config: config | {"metadata": config["metadata"] | {"hook_head_index": 3}, "dtype": "float16"}
    )
    assert "on head 3 of the site" in notes(saelens.read(one_head))
    assert "dtype is float16 in cfg.json" in notes(saelens.read(one_head))


def test_site_model_and_the_configuration_itself_are_in_the_provenance() -> None:
    dictionary = saelens.read(GOLDEN / "skip_transcoder")
    assert dictionary.provenance["site"] == "blocks.3.ln2.hook_normalized"
    assert dictionary.provenance["target_site"] == "blocks.3.hook_mlp_out"
    assert dictionary.provenance["model"] == "tiny"
    assert dictionary.provenance["foreign"]["config"] == json.loads((GOLDEN / "skip_transcoder" / CONFIG).read_text())


def test_the_scaling_is_the_factor_of_the_trainer_and_writing_folds_it(tmp_path: Path) -> None:
    dictionary = saelens.read(GOLDEN / "average_scaler")
    assert dictionary.scaling.scale == 0.37
    saelens.write(dictionary, tmp_path)
    assert json.loads((tmp_path / CONFIG).read_text())["normalize_activations"] == "none"


def test_inputs_that_somebody_else_must_prepare_are_written_as_they_were_read(tmp_path: Path) -> None:
    for case, key in (
        ("average", "normalize_activations"),
        ("hook_z", "reshape_activations"),
        ("before_6_average", "normalize_activations"),
    ):
        saelens.write(saelens.read(GOLDEN / case), tmp_path / case)
        written = json.loads((tmp_path / case / CONFIG).read_text())
        assert written[key] == {"average": "expected_average_only_in", "hook_z": "hook_z"}[case.removeprefix("before_6_")]


def test_a_dictionary_of_z_is_handed_the_heads_apart(tmp_path: Path) -> None:
    for name, how in (("of_z", "hook_z"), ("relu", "none")):
        saelens.write(OURS[name], tmp_path / name)
        assert json.loads((tmp_path / name / CONFIG).read_text())["reshape_activations"] == how


def test_old_metadata_are_written_with_a_version_that_is_not_old(tmp_path: Path) -> None:
    saelens.write(saelens.read(GOLDEN / "before_6_topk"), tmp_path)
    assert metadata(tmp_path)["sae_lens_version"] == VERSION
    assert metadata(tmp_path)["sae_lens_training_version"] == "4.1"
    assert metadata(tmp_path)["hook_name"] == "blocks.3.attn.hook_z"


def test_metadata_of_our_own_dictionaries_name_site_target_and_model(tmp_path: Path) -> None:
    config = AutoencoderConfig(d_in=6, d_sae=9, activation=ReLU(), d_out=5, apply_b_dec_to_input=False)
    provenance = {"site": "blocks.0.hook_resid_mid", "model": "tiny", "training": {"feed": {"target_site": "blocks.0.hook_mlp_out"}}}
    saelens.write(filled(Autoencoder(config, provenance=provenance)), tmp_path)
    stated = {"model_name": "tiny", "hook_name": "blocks.0.hook_resid_mid", "hook_name_out": "blocks.0.hook_mlp_out"}
    assert metadata(tmp_path) == {"sae_lens_version": VERSION, "sae_lens_training_version": None, **stated}


@pytest.mark.parametrize(
    ("version", "old"),
    [("5.10.7", True), ("6.0.0-alpha.1", True), ("6.0.0b2", True), ("6.0.0-rc.0", False), ("6.0.0rc3", False), ("6.0.0", False),
     ("6.54.12", False), ("10.1.0", False), (None, True)],
)  # fmt: skip
def test_a_version_is_old_where_saelens_takes_it_for_old(version: str | None, old: bool, tmp_path: Path) -> None:
    path = changed(tmp_path, "topk", lambda config: config | {"metadata": {"sae_lens_version": version}, "lr": 0.1} if old else
                   config | {"metadata": {"sae_lens_version": version}})  # fmt: skip
    assert ("before 6" in notes(saelens.read(path))) is old


def test_thresholds_survive_writing_and_reading_over_their_whole_range(tmp_path: Path) -> None:
    config = AutoencoderConfig(d_in=4, d_sae=2000, activation=JumpReLU())
    dictionary = filled(Autoencoder(config))
    with torch.no_grad():
        dictionary.log_threshold.copy_(torch.linspace(-60, 60, 2000))
        dictionary.log_threshold[:2] = torch.tensor([-torch.inf, 95.0])
    saelens.write(dictionary, tmp_path / "a")
    back = saelens.read(tmp_path / "a")
    torch.testing.assert_close(back.log_threshold[2:], dictionary.log_threshold[2:], atol=1e-6, rtol=1e-6)
    assert back.log_threshold[0] == -torch.inf
    assert back.log_threshold[1] > 88
    saelens.write(back, tmp_path / "b")
    assert saelens.read(tmp_path / "b").digest == back.digest


def other(name: str, make: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: tensors | {name: make(tensors[name])}


def nan(tensor: Tensor) -> Tensor:
    return tensor.flatten().index_fill(0, torch.tensor([1]), torch.nan).reshape(tensor.shape)


@pytest.mark.parametrize(
    ("case", "change", "message"),
    [
        ("topk", other("W_enc", lambda W: W.T), r"W_enc must have shape \[12, 32\], got \[32, 12\]; it is transposed"),
        ("topk", other("W_dec", lambda W: W.T), r"W_dec must have shape \[32, 12\], got \[12, 32\]; it is transposed"),
        ("matching_pursuit", other("W_dec", lambda W: W.T), "it is transposed"),
        ("skip_transcoder", other("W_skip", lambda W: W.T), "it is transposed"),
        ("topk", other("b_dec", lambda b: b[:-1]), r"b_dec must have shape \[12\], got \[11\]"),
        ("topk", other("b_enc", nan), "b_enc must be finite"),
        ("topk", other("W_dec", lambda W: (100 * W).to(torch.int32)), "W_dec must be of dtype"),
        ("topk", lambda found: found | {"W_gate": torch.ones(3), "b_mag": torch.ones(32)}, "holds more than this format has: 'W_gate', 'b_mag'"),
        ("gated", lambda found: {n: t for n, t in found.items() if n not in ("b_gate", "b_dec")}, "lacks 'b_dec', 'b_gate'"),
        ("gated", lambda found: {n: t for n, t in found.items() if n != "r_mag"}, "lacks 'r_mag'"),
        ("jumprelu", lambda found: found | {"log_threshold": found["threshold"].log()}, "holds more than this format has: 'threshold'"),
        ("batchtopk_training", lambda found: {n: t for n, t in found.items() if n != "topk_threshold"}, "lacks 'topk_threshold'"),
        ("matching_pursuit", lambda found: found | {"W_enc": found["W_dec"].T}, "holds more than this format has: 'W_enc'"),
        ("before_6", lambda found: found | {"scaling_factor": torch.full((32,), 1.5)}, "scaling_factor must be 1 for every latent"),
    ],
)  # fmt: skip
def test_tensors_that_are_not_the_formats_are_refused(case: str, change: Callable, message: str, tmp_path: Path) -> None:
    path = changed(tmp_path, case, tensors=change)
    with pytest.raises(FormatError, match=message) as caught:
        saelens.read(path)
    assert str(path / WEIGHTS) in str(caught.value)


def stated(**keys: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda config: config | keys


@pytest.mark.parametrize(
    ("case", "change", "message"),
    [
        ("topk", stated(jump=1, leap=2), "unknown key 'jump', 'leap'; known are .*rescale_acts_by_decoder_norm"),
        ("standard", stated(k=5), "unknown key 'k'"),
        ("before_6", stated(jump=1), "unknown key 'jump'"),
        ("topk", lambda config: {n: v for n, v in config.items() if n != "d_sae"}, "lacks the key 'd_sae'"),
        ("transcoder", lambda config: {n: v for n, v in config.items() if n != "d_out"}, "lacks the key 'd_out'"),
        ("topk", stated(architecture="temporal"), "depend on earlier tokens"),
        ("topk", stated(architecture="other"), "architecture 'other', which cannot be read; known are standard"),
        ("topk", stated(architecture=["topk"]), "architecture"),
        ("topk", stated(normalize_activations="covariance_whitening"), "fold the whitening in SAELens"),
        ("topk", stated(normalize_activations="l2"), "normalize_activations must be one of"),
        ("topk", stated(normalize_activations=[]), "normalize_activations must be one of"),
        ("topk", stated(reshape_activations="hook_q"), "reshape_activations must be one of none, hook_z"),
        ("topk", stated(k=33), r"k must be in 1..d_sae=32, got 33"),
        ("topk", stated(k=True), "k must be a whole number of at least 1, got True"),
        ("topk", stated(k=0), "k must be a whole number"),
        ("topk", stated(k=5.5), "k must be a whole number"),
        ("batchtopk_training", stated(k="many"), "k must be a number, got 'many'"),
        ("batchtopk_training", stated(k=0), r"k must be in \(0, d_sae=32\]"),
        ("topk", stated(d_in=11), r"W_enc must have shape \[11, 32\], got \[12, 32\]"),
        ("topk", stated(d_sae=10**12), "W_enc must have shape"),
        ("topk", stated(d_in=-12), "d_in must be a whole number of at least 1, got -12"),
        ("topk", stated(apply_b_dec_to_input="yes"), "apply_b_dec_to_input must be true or false, got 'yes'"),
        ("transcoder", stated(apply_b_dec_to_input=True), "apply_b_dec_to_input must be false for a transcoder"),
        ("transcoder", stated(normalize_activations="layer_norm"), "a transcoder with normalize_activations 'layer_norm' cannot be read"),
        ("topk", stated(metadata="none"), "metadata must be an object"),
        ("topk", stated(metadata={"sae_lens_version": "new"}), "sae_lens_version must be a version such as"),
        ("matching_pursuit", stated(max_iterations=0), "max_iterations must be a whole number of at least 1"),
        ("matching_pursuit", stated(max_iterations=33, stop_on_duplicate_support=False), "max_iterations must be at most d_sae=32"),
        ("matching_pursuit", stated(residual_threshold=None), "residual_threshold must be a number"),
        ("before_6_topk", stated(activation_fn_str="tanh-relu"), "'tanh-relu', which SAELens dropped"),
        ("before_6_topk", stated(activation_fn_kwargs={}), "no k in activation_fn_kwargs"),
        ("before_6_topk", stated(activation_fn_kwargs={"k": 5, "postact_fn": "tanh"}), "only k is known"),
        ("before_6_topk", stated(architecture="gated"), "'standard' and 'topk' can have it"),
        ("before_6_topk", stated(hook_point="blocks.0.hook_resid_post"), "says both"),
    ],
)  # fmt: skip
def test_configurations_that_cannot_be_followed_are_refused(case: str, change: Callable, message: str, tmp_path: Path) -> None:
    path = changed(tmp_path, case, change)
    with pytest.raises(FormatError, match=message) as caught:
        saelens.read(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("case", "saved", "message"),
    [
        ("standard", {"scaling_factor": 2.0, "has_whitening": False}, "if the factor is folded into the weights already, remove activation_scaler.json"),
        ("average", {"scaling_factor": -2.0}, "scaling_factor must be a positive number or null, got -2.0"),
        ("average", {"scaling_factor": "2"}, "scaling_factor must be a positive number or null"),
        ("average", {"scaling_factor": None, "has_whitening": True}, "fold the whitening in SAELens"),
        ("average", {"scaling_factor": 1.0, "mean": 0}, "unknown key 'mean'"),
        ("average", {}, "lacks the key 'scaling_factor'"),
    ],
)  # fmt: skip
def test_a_scaler_that_contradicts_the_configuration_is_refused(case: str, saved: dict, message: str, tmp_path: Path) -> None:
    path = changed(tmp_path, case)
    (path / "activation_scaler.json").write_text(json.dumps(saved))
    with pytest.raises(FormatError, match=message):
        saelens.read(path)


def test_a_scaler_without_a_factor_changes_nothing(tmp_path: Path) -> None:
    path = changed(tmp_path, "standard")
    (path / "activation_scaler.json").write_text(json.dumps({"scaling_factor": None, "has_whitening": False}))
    assert saelens.read(path).digest == saelens.read(GOLDEN / "standard").digest


def test_truncated_and_missing_files_are_named(tmp_path: Path) -> None:
    path = changed(tmp_path, "topk")
    (path / WEIGHTS).write_bytes((path / WEIGHTS).read_bytes()[:-7])
    with pytest.raises(FormatError, match=WEIGHTS):
        saelens.read(path)
    (path / WEIGHTS).unlink()
    with pytest.raises(FormatError, match=f"{WEIGHTS} does not exist"):
        saelens.read(path)
    with pytest.raises(FormatError, match=CONFIG):
        saelens.read(tmp_path)


def transcoder(**options: Any) -> Autoencoder:
    return filled(Autoencoder(AutoencoderConfig(**({"d_in": 6, "d_sae": 9, "d_out": 5, "apply_b_dec_to_input": False} | options))))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Codebook(CodebookConfig(d_in=6, d_sae=9)), "got a Codebook"),
        (lambda: MatchingPursuit(PursuitConfig(d_in=6, d_sae=9, k=2, selection="signed")), "signed selection"),
        (lambda: MatchingPursuit(PursuitConfig(d_in=6, d_sae=9, k=2, orthogonal=True)), "orthogonal refitting"),
        (lambda: transcoder(activation=TopK(k=2)), "got a transcoder with TopK"),
        (lambda: transcoder(activation=Gated()), "got a transcoder with Gated"),
    ],
)
def test_what_the_format_does_not_have_is_refused_before_anything_is_written(make: Callable, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        saelens.write(make(), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_folder_with_the_scaler_of_another_dictionary_is_not_written_to(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds activation_scaler\.json of another dictionary"):
        saelens.write(OURS["relu"], changed(tmp_path, "average_scaler"))


def test_a_file_is_not_taken_for_a_folder(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(ConfigError, match=r"path must be a folder for SAELens, .*taken is a file"):
        saelens.write(OURS["relu"], tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "mine"


def test_a_pursuit_whose_atoms_are_nearly_unit_keeps_their_exact_norms(tmp_path: Path) -> None:
    path = changed(tmp_path, "matching_pursuit", tensors=other("W_dec", lambda W: W * 1.0005))
    assert saelens.read(path).config == replace(saelens.read(GOLDEN / "matching_pursuit").config, unit_norm=False)

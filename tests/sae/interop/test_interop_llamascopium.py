"""llamascopium in and out. The oracle is its own forward, recorded by scripts/golden/llamascopium.py."""

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
from sae.dictionaries.autoencoder import Autoencoder, AutoencoderConfig
from sae.dictionaries.pursuit import MatchingPursuit, PursuitConfig
from sae.dictionaries.scaling import Scaling
from sae.errors import ConfigError, FormatError
from sae.interop import llamascopium
from sae.interop.files import read_torch, write_torch
from sae.interop.formats import identify
from scripts.golden import llamascopium_cases

GOLDEN = Path(__file__).resolve().parents[2] / "golden/interop/llamascopium"
CASES = sorted(path.name for path in GOLDEN.iterdir() if path.is_dir())
CHECKED = json.loads((GOLDEN / "checked.json").read_text())["cases"]
OURS = llamascopium_cases.cases()
WEIGHTS, THRESHOLD, NORM = "sae_weights.safetensors", "activation_function.log_jumprelu_threshold", "dataset_average_activation_norm."
HOOK = NORM + "blocks.15.hook_resid_post"
D = 12


def weights(folder):
    return load_file(folder / WEIGHTS) if (folder / WEIGHTS).exists() else read_torch(folder / "sae_weights.pt")["sae"]


def changed(folder, case="jump_relu", *, tensors=None, **options):
    """A copy of a golden folder with another configuration or other tensors; the text "nothing", or None, takes one away."""
    shutil.copytree(GOLDEN / case, folder)
    said = json.loads((folder / "config.json").read_text()) | options
    (folder / "config.json").write_text(json.dumps({key: value for key, value in said.items() if value != "nothing"}))
    if tensors:
        found = load_file(folder / WEIGHTS) | tensors
        save_file({name: tensor.contiguous() for name, tensor in found.items() if tensor is not None}, folder / WEIGHTS)
    return folder


def notes(dictionary):
    return "; ".join(dictionary.provenance["foreign"]["notes"])


def rows(n=40, seed=5):
    return 2 * torch.randn(n, D, generator=torch.Generator().manual_seed(seed))


def written_out(folder, acts):
    """(the library's codes, output, what ours are multiplied by) of the equations in float64."""
    said = json.loads((folder / "config.json").read_text())
    wide, x = {name: tensor.double() for name, tensor in weights(folder).items()}, acts.double()
    early = "encoder.weight" in wide
    W_E, W_D = (wide["encoder.weight"].T, wide["decoder.weight"].T) if early else (wide["W_E"], wide["W_D"])
    b_E, b_D = wide["encoder.bias" if early else "b_E"], wide.get("decoder.bias" if early else "b_D", torch.zeros(D).double())
    s_in = s_out = torch.ones(())
    if said["norm_activation"] == "dataset-wise":
        s_in, s_out = (math.sqrt(D) / wide[NORM + said[hook]] for hook in ("hook_point_in", "hook_point_out"))
    if said["norm_activation"] == "token-wise":
        s_in = s_out = math.sqrt(D) / x.norm(dim=1, keepdim=True)
    norms = W_D.norm(dim=1) if said["sparsity_include_decoder_norm"] else torch.ones(len(W_D)).double()
    pre = (x * s_in - (b_D if said.get("apply_decoder_bias_to_pre_encoder") else 0)) @ W_E + b_E
    if said["act_fn"] == "topk":
        active = (pre * norms >= (pre * norms).topk(said["top_k"], 1).values[:, -1:]) & (pre > 0)
    else:
        threshold = wide["log_jumprelu_threshold" if early else THRESHOLD].exp() if said["act_fn"] == "jumprelu" else 0
        active = pre * norms > threshold
    codes = pre * active
    return codes, (codes @ W_D + b_D) / s_out, norms if said["act_fn"] == "topk" else torch.ones(len(W_D)).double()


@pytest.mark.parametrize("case", CASES)
def test_codes_and_outputs_are_those_of_the_owner(case):
    dictionary, said = llamascopium.read(GOLDEN / case), load_file(GOLDEN / case / "expected.safetensors")
    _, _, unit = written_out(GOLDEN / case, said["acts"])
    with torch.no_grad():
        torch.testing.assert_close(dictionary.encode(said["acts"]).dense(), said["codes"] * unit.float(), atol=1e-5, rtol=0)
        torch.testing.assert_close(dictionary(said["acts"]), said["output"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_codes_and_outputs_on_other_activations_are_the_equations(case):
    codes, output, unit = written_out(GOLDEN / case, rows())
    dictionary = llamascopium.read(GOLDEN / case)
    with torch.no_grad():
        torch.testing.assert_close(dictionary.encode(rows()).dense().double(), codes * unit, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(dictionary(rows()).double(), output, atol=1e-5, rtol=1e-5)


def test_ranking_by_norms_of_atoms_matters_in_the_golden_file(tmp_path):
    """Without it, other latents would be kept: the golden file can tell."""
    with torch.no_grad():
        ranked = llamascopium.read(GOLDEN / "top_k").encode(rows()).dense() > 0
        plain = llamascopium.read(changed(tmp_path / "a", "top_k", sparsity_include_decoder_norm=False)).encode(rows()).dense() > 0
    assert float((ranked != plain).float().mean()) > 0.03


@pytest.mark.parametrize("case", CASES)
def test_what_was_read_is_bit_equal_after_writing_and_reading_again(case, tmp_path):
    first = llamascopium.read(GOLDEN / case)
    llamascopium.write(first, tmp_path)
    second = llamascopium.read(tmp_path)
    assert second.digest == first.digest
    assert {**second.provenance, "foreign": 0} == {**first.provenance, "foreign": 0}
    now, then = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path, GOLDEN / case))
    folded = {"sparsity_include_decoder_norm", "use_decoder_bias", "apply_decoder_bias_to_pre_encoder"}
    assert {key: value for key, value in now.items() if key not in folded} == {
        key: value for key, value in then.items() if key not in folded
    }
    assert now["sparsity_include_decoder_norm"] == (then["act_fn"] == "relu")


@pytest.mark.parametrize("name", sorted(OURS))
def test_what_is_written_has_the_bytes_that_the_owner_has_checked(name, tmp_path):
    llamascopium.write(OURS[name], tmp_path)
    assert {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in tmp_path.iterdir()} == CHECKED[name]["sha256"]
    assert CHECKED[name]["largest_difference"] < 1e-5


def test_the_owner_has_checked_every_case_and_no_other():
    assert sorted(CHECKED) == sorted(OURS)


@pytest.mark.parametrize("name", sorted(OURS))
def test_our_dictionaries_come_back_as_the_same_function(name, tmp_path):
    ours, acts = OURS[name], rows()
    llamascopium.write(ours, tmp_path)
    back = llamascopium.read(tmp_path)
    assert back.provenance["site"] == ours.provenance["site"]
    assert back.provenance.get("target_site") == ours.provenance.get("target_site")
    assert back.is_transcoder == ours.is_transcoder
    ratio = ours.scaling.scale / back.scaling.scale
    assert ratio == (0.25 if name == "scaled_and_centred" else pytest.approx(1, rel=1e-7))
    with torch.no_grad():
        torch.testing.assert_close(back(acts), ours(acts), atol=3e-5, rtol=1e-5)
        torch.testing.assert_close(back.encode(acts).dense(), ours.encode(acts).dense() / ratio, atol=3e-5, rtol=1e-5)


def test_a_scale_without_a_mean_stays_a_mean_norm_and_any_other_scaling_is_folded(tmp_path):
    for name, norm in (
        ("scaled", "dataset-wise"),
        ("transcoder", "dataset-wise"),
        ("scaled_and_centred", "inference"),
        ("relu", "inference"),
    ):
        llamascopium.write(OURS[name], tmp_path / name)
        assert json.loads((tmp_path / name / "config.json").read_text())["norm_activation"] == norm
    found = load_file(tmp_path / "transcoder" / WEIGHTS)
    assert float(found[NORM + "blocks.15.hook_resid_mid"]) == pytest.approx(math.sqrt(12) / 0.25)
    assert float(found[NORM + "blocks.15.hook_mlp_out"]) == pytest.approx(math.sqrt(12) / 0.5)


@pytest.mark.parametrize(
    ("d_model", "d_sae"), [(12, 37), (3, 7), (49, 50), (768, 24577), (576, 4097), (7, 5), (1, 1), (2304, 16385), (113, 3)]
)
def test_the_library_finds_the_number_of_latents_in_the_factor(d_model, d_sae):
    factor = llamascopium._expansion(d_model, d_sae, None)
    assert int(d_model * factor) == d_sae
    assert llamascopium._expansion(d_model, d_sae, 8) == factor


def test_every_number_of_latents_survives_the_factor() -> None:
    """Of these quotients some round to below: the whole part of d_model times them would be one latent less."""
    pairs = [(d_model, d_sae) for d_model in range(1, 60) for d_sae in range(1, 200)]
    assert any(int(d_model * (d_sae / d_model)) != d_sae for d_model, d_sae in pairs)
    assert all(int(d_model * llamascopium._expansion(d_model, d_sae, None)) == d_sae for d_model, d_sae in pairs)


def test_uninitialised_norms_are_not_looked_at(tmp_path):
    assert math.isnan(load_file(GOLDEN / "jump_relu_inference" / WEIGHTS)[HOOK])
    assert llamascopium.read(GOLDEN / "jump_relu_inference").scaling.is_identity


def test_a_threshold_of_zero_is_an_infinite_logarithm_both_ways(tmp_path):
    stored = load_file(GOLDEN / "jump_relu" / WEIGHTS)[THRESHOLD].clone()
    stored[:5] = -torch.inf
    folder = changed(tmp_path / "a", tensors={THRESHOLD: stored})
    first = llamascopium.read(folder)
    assert int(torch.isneginf(first.log_threshold).sum()) == 5
    codes, _, _ = written_out(folder, rows())
    with torch.no_grad():
        torch.testing.assert_close(first.encode(rows()).dense().double(), codes, atol=1e-5, rtol=1e-5)
    llamascopium.write(first, tmp_path / "b")
    assert llamascopium.read(tmp_path / "b").digest == first.digest


def test_batch_top_k_is_written_as_the_threshold_that_it_encodes_with(tmp_path):
    llamascopium.write(OURS["batch_top_k"], tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["act_fn"] == "jumprelu"
    torch.testing.assert_close(load_file(tmp_path / WEIGHTS)[THRESHOLD].exp(), OURS["batch_top_k"].threshold.expand(37))


def test_what_was_decided_is_said(tmp_path):
    assert "leaves a JumpReLU's thresholds as they were" in notes(llamascopium.read(GOLDEN / "jump_relu_inference"))
    assert "leaves" not in notes(llamascopium.read(GOLDEN / "jump_relu")) + notes(llamascopium.read(GOLDEN / "torch_file"))
    assert "atoms are scaled to unit norm and codes by it" in notes(llamascopium.read(GOLDEN / "top_k"))
    assert "thresholds are divided by the norms of the atoms" in notes(llamascopium.read(GOLDEN / "jump_relu"))
    assert "part of b_enc here" in notes(llamascopium.read(GOLDEN / "early_pre_bias"))
    half = {name: tensor.bfloat16() for name, tensor in load_file(GOLDEN / "early" / WEIGHTS).items() if not name.startswith(NORM)}
    early = changed(tmp_path / "b", "early", tensors={"log_jumprelu_threshold": None}, act_fn="topk", top_k=5)
    assert "kept negative values too" in notes(llamascopium.read(early))
    assert "bfloat16" in notes(llamascopium.read(changed(tmp_path / "a", "early", tensors=half)))


def test_the_site_is_the_hook_and_unknown_ones_stay_unknown(tmp_path):
    found = llamascopium.read(GOLDEN / "transcoder").provenance
    assert (found["site"], found["target_site"]) == ("blocks.15.hook_resid_mid", "blocks.15.hook_mlp_out")
    llamascopium.write(random_autoencoder(d_out=8), tmp_path)
    again = llamascopium.read(tmp_path)
    assert again.is_transcoder
    assert not {"site", "target_site", "model"} & again.provenance.keys()


def test_early_files_may_name_the_threshold_as_later_ones(tmp_path):
    found = load_file(GOLDEN / "early" / WEIGHTS)
    renamed = {THRESHOLD: found["log_jumprelu_threshold"], "log_jumprelu_threshold": None}
    folder = changed(tmp_path / "a", "early", tensors=renamed, hook_point_out="nothing")
    assert llamascopium.read(folder).digest == llamascopium.read(GOLDEN / "early").digest


def test_weights_are_looked_for_where_the_library_looks_first(tmp_path):
    folder = changed(tmp_path / "a")
    found, digest = load_file(folder / WEIGHTS), llamascopium.read(GOLDEN / "jump_relu").digest
    (folder / WEIGHTS).unlink()
    (folder / "checkpoints").mkdir()
    write_torch(folder / "checkpoints/final.pt", {"sae": found, "version": "2"})
    assert llamascopium.read(folder).digest == digest
    assert identify(folder) == "llamascopium"
    (folder / "sae_weights.dcp").mkdir()
    with pytest.raises(FormatError, match=r"sae_weights\.dcp is in torch's distributed format"):
        llamascopium.read(folder)
    save_file(found | {"b_E": torch.zeros(36)}, folder / WEIGHTS)
    assert not llamascopium.read(folder).b_enc.any()


def test_truncated_and_missing_files_are_named(tmp_path):
    folder = changed(tmp_path / "a")
    whole = (folder / WEIGHTS).read_bytes()
    for length in (0, 4, len(whole) // 2, len(whole) - 1):
        (folder / WEIGHTS).write_bytes(whole[:length])
        with pytest.raises(FormatError, match=r"sae_weights\.safetensors"):
            llamascopium.read(folder)
    (folder / WEIGHTS).unlink()
    with pytest.raises(FormatError, match="has no weights: none of"):
        llamascopium.read(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FormatError, match=r"config\.json does not exist"):
        llamascopium.read(folder)


class Bomb:
    """Unpickled, it would make a file."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return (Path.touch, (Path(self.place),))


def test_a_pickle_with_code_in_it_is_refused_and_nothing_runs(tmp_path):
    folder = changed(tmp_path / "a", "torch_file")
    torch.save({"sae": {"W_E": Bomb(tmp_path / "ran")}}, folder / "sae_weights.pt")
    with pytest.raises(FormatError, match="holds code"):
        llamascopium.read(folder)
    (folder / "sae_weights.pt").write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    with pytest.raises(FormatError, match=r"sae_weights\.pt"):
        llamascopium.read(folder)
    write_torch(folder / "sae_weights.pt", {"weights": {}})
    with pytest.raises(FormatError, match="under the name 'sae'"):
        llamascopium.read(folder)
    assert not (tmp_path / "ran").exists()


STATE = load_file(GOLDEN / "jump_relu" / WEIGHTS)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"W_E": STATE["W_E"].T}, "transposed"),
        ({"W_D": STATE["W_D"].T}, "transposed"),
        ({"W_E": STATE["W_E"].int()}, "dtype"),
        ({"b_E": torch.full((36,), torch.nan)}, "b_E must be finite"),
        ({THRESHOLD: torch.full((36,), torch.inf)}, "must be finite"),
        ({THRESHOLD: None, "b_D": None}, rf"lacks '{THRESHOLD}', 'b_D'"),
        ({"W_E_glu": STATE["W_E"], "another": torch.zeros(1)}, "'W_E_glu', 'another'"),
        ({HOOK: None}, rf"lacks '{HOOK}'"),
        ({HOOK: torch.tensor(0.0)}, "must be a positive norm"),
        ({HOOK: torch.tensor(torch.nan)}, "must be finite"),
        ({HOOK: torch.ones(2)}, "must be one number"),
        ({"W_D": STATE["W_D"] * (torch.arange(36) > 1)[:, None]}, "2 are zero"),
    ],
)
def test_tensors_that_are_not_the_formats_are_refused(tensors, message, tmp_path):
    with pytest.raises(FormatError, match=message):
        llamascopium.read(changed(tmp_path / "a", tensors=tensors))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_glu_encoder": True}, "gated by a second encoder"),
        ({"norm_activation": "batch-wise"}, "depend on the other rows"),
        ({"act_fn": "batchtopk"}, "no threshold to encode one row with"),
        ({"act_fn": "layertopk"}, "only a cross-layer transcoder has"),
        ({"norm_activation": "token-wise", "hook_point_out": "blocks.9.hook_mlp_out"}, "only the target has"),
        ({"sae_type": "clt"}, "'clt', another kind of dictionary"),
        ({"sae_type": "new"}, "'new', not known"),
        ({"sae_type": ["sae"]}, "sae_type"),
        ({"act_fn": "gelu"}, "act_fn"),
        ({"act_fn": "topk", "top_k": 37, "norm_activation": "inference"}, THRESHOLD),
        ({"d_model": 36, "expansion_factor": 1 / 3}, "transposed"),
        ({"expansion_factor": 2.9}, "shape"),
        ({"expansion_factor": 1e300}, "number of latents"),
        ({"d_model": -12, "expansion_factor": -3.0}, "d_model must be at least 1"),
        ({"expansion_factor": "nothing"}, "lacks the key 'expansion_factor'"),
        ({"speed": 3, "depth": 2}, "'depth', 'speed'"),
    ],
)
def test_configurations_that_cannot_be_followed_are_refused(options, message, tmp_path):
    with pytest.raises(FormatError, match=message):
        llamascopium.read(changed(tmp_path / "a", **options))


def test_more_active_latents_than_there_are_is_refused(tmp_path):
    with pytest.raises(FormatError, match=r"k must be in 1\.\.d_sae=36, got 37"):
        llamascopium.read(changed(tmp_path / "a", "top_k", top_k=37))


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
        (lambda: random_autoencoder(ReLU(), d_out=9), "one width"),
        (lambda: random_autoencoder(ReLU(), d_out=8, skip=True), "no linear path"),
        (lambda: random_autoencoder(TopK(4), normalisation="layer_norm"), "must have normalisation"),
        (lambda: random_autoencoder(TopK(4), d_out=8, normalisation="constant_norm"), "'none' for a transcoder"),
        (negative_threshold, "threshold must be at least 0"),
    ],
)
def test_what_the_format_does_not_have_is_refused_before_anything_is_written(make, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        llamascopium.write(make(), tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_file_is_not_taken_for_a_folder(tmp_path):
    (tmp_path / "a").write_text("notes")
    with pytest.raises(ConfigError, match="is a file"):
        llamascopium.write(random_autoencoder(), tmp_path / "a")


def test_a_scaling_before_a_normalised_row_is_folded(tmp_path):
    config = AutoencoderConfig(d_in=D, d_sae=37, activation=JumpReLU(), normalisation="constant_norm")
    made = Autoencoder(config, Scaling(torch.randn(D, generator=torch.Generator().manual_seed(1)), 0.5))
    source = random_autoencoder(JumpReLU(), d_in=D, d_sae=37, normalisation="constant_norm")
    made.load_state_dict({**source.state_dict(), "scaling_mean": made.scaling_mean})
    llamascopium.write(made, tmp_path)
    back = llamascopium.read(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(back(rows()), made(rows()), atol=3e-5, rtol=1e-5)
        torch.testing.assert_close(back.encode(rows()).dense(), made.encode(rows()).dense() / 0.5, atol=3e-5, rtol=1e-5)

"""dictionary_learning in and out. The oracle is its own forward, recorded by scripts/golden/dictionary_learning.py."""

import hashlib
import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from foreign_files import random_autoencoder
from safetensors.torch import load_file

from sae.dictionaries.activations import AbsTopK, BatchTopK, Gated, JumpReLU, ReLU, TopK
from sae.dictionaries.autoencoder import Autoencoder
from sae.dictionaries.codebook import Codebook, CodebookConfig
from sae.dictionaries.pursuit import MatchingPursuit, PursuitConfig
from sae.dictionaries.scaling import Scaling
from sae.errors import ConfigError, FormatError
from sae.interop import dictionary_learning
from sae.interop.files import read_torch, write_torch
from scripts.golden import dictionary_learning_cases

GOLDEN = Path(__file__).resolve().parents[2] / "golden/interop/dictionary_learning"
CASES = sorted(path.name for path in GOLDEN.iterdir() if path.is_dir())
CHECKED = json.loads((GOLDEN / "checked.json").read_text())["cases"]
OURS = dictionary_learning_cases.cases()
TRAINED_BY = {"standard": "StandardTrainer", "gated": "GatedSAETrainer"}


def changed(folder, case="top_k", *, trainer=None, buffer=None, tensors=None, other=None):
    """A copy of a golden folder with other options or other tensors; None takes one away."""
    shutil.copytree(GOLDEN / case, folder)
    config = json.loads((folder / "config.json").read_text()) | (other or {})
    for name, changes in (("trainer", trainer), ("buffer", buffer)):
        if changes:
            config[name] = {key: value for key, value in (config[name] | changes).items() if value is not None}
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    if tensors:
        found = read_torch(folder / "ae.pt") | tensors
        write_torch(folder / "ae.pt", {name: tensor for name, tensor in found.items() if tensor is not None})
    return folder


def notes(dictionary):
    return "; ".join(dictionary.provenance["foreign"]["notes"])


def rows(n=40, width=12, seed=5):
    return 2 * torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def named(state):
    """(W_enc, b_enc, W_dec, b_dec, rest) of any class, in float64."""
    wide = {name: tensor.double() for name, tensor in state.items()}
    linear = "encoder.weight" in wide
    W_enc, W_dec = (wide["encoder.weight"].T, wide["decoder.weight"].T) if linear else (wide["W_enc"], wide["W_dec"])
    b_dec = next(wide[name] for name in ("bias", "decoder_bias", "decoder.bias", "b_dec") if name in wide)
    b_enc = next((wide[name] for name in ("encoder.bias", "b_enc") if name in wide), torch.zeros(()))
    return W_enc, b_enc, W_dec, b_dec, wide


def written_out(case, state, acts):
    """(codes, output) of a class's equations."""
    W_enc, b_enc, W_dec, b_dec, rest = named(state)
    x = acts.double()
    if case == "gated":
        projection = (x - b_dec) @ W_enc
        codes = (projection + rest["gate_bias"] > 0) * (rest["r_mag"].exp() * projection + rest["mag_bias"]).relu()
    elif case == "jump_relu":
        pre = x @ W_enc + b_enc
        codes = (pre * (pre > rest["threshold"])).relu()
    elif case == "standard_new":
        codes = (x @ W_enc + b_enc).relu()
    else:
        codes = ((x - b_dec) @ W_enc + b_enc).relu()
        if case == "top_k":
            codes = torch.where(codes >= codes.topk(int(rest["k"]), 1).values[:, -1:], codes, 0)
        elif case in ("batch_top_k", "matryoshka"):
            codes = codes * (codes > rest["threshold"])
    output = codes @ W_dec + b_dec
    return (codes * W_dec.norm(dim=1) if case == "standard" else codes), output


@pytest.mark.parametrize("case", CASES)
def test_codes_and_outputs_are_those_of_the_owner(case):
    dictionary, said = dictionary_learning.read(GOLDEN / case), load_file(GOLDEN / case / "expected.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(dictionary.encode(said["acts"]).dense(), said["codes"], atol=1e-5, rtol=0)
        torch.testing.assert_close(dictionary(said["acts"]), said["output"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", [case for case in CASES if case != "backup"])
def test_codes_and_outputs_on_other_activations_are_the_equations(case):
    acts, dictionary = rows(), dictionary_learning.read(GOLDEN / case)
    codes, output = written_out(case, read_torch(GOLDEN / case / "ae.pt"), acts)
    with torch.no_grad():
        torch.testing.assert_close(dictionary.encode(acts).dense().double(), codes, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(dictionary(acts).double(), output, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_what_was_read_is_bit_equal_after_writing_and_reading_again(case, tmp_path):
    first = dictionary_learning.read(GOLDEN / case)
    dictionary_learning.write(first, tmp_path / "again")
    second = dictionary_learning.read(tmp_path / "again")
    assert second.digest == first.digest
    assert {"site", "model"} <= second.provenance.keys()
    assert {**second.provenance, "foreign": 0} == {**first.provenance, "foreign": 0}
    assert json.loads((tmp_path / "again/config.json").read_text()) == json.loads((GOLDEN / case / "config.json").read_text())


@pytest.mark.parametrize("case", [case for case in CASES if case not in ("backup", "standard")])
def test_the_owners_own_tensors_come_back_unchanged(case, tmp_path):
    dictionary_learning.write(dictionary_learning.read(GOLDEN / case), tmp_path)
    again, first = read_torch(tmp_path / "ae.pt"), read_torch(GOLDEN / case / "ae.pt")
    assert again.keys() == first.keys()
    for name, tensor in first.items():
        assert again[name].dtype == tensor.dtype
        torch.testing.assert_close(again[name], tensor, atol=0, rtol=2.5e-7 if name == "threshold" else 0)


@pytest.mark.parametrize("name", sorted(OURS))
def test_what_is_written_has_the_bytes_that_the_owner_has_checked(name, tmp_path):
    dictionary_learning.write(OURS[name], tmp_path)
    assert {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in tmp_path.iterdir()} == CHECKED[name]["sha256"]
    assert CHECKED[name]["largest_difference"] < 1e-5


def test_the_owner_has_checked_every_case_and_no_other():
    assert sorted(CHECKED) == sorted(OURS)


@pytest.mark.parametrize("name", sorted(OURS))
def test_our_dictionaries_come_back_as_the_same_function_with_codes_in_activation_units(name, tmp_path):
    ours, acts = OURS[name], rows()
    dictionary_learning.write(ours, tmp_path)
    back = dictionary_learning.read(tmp_path)
    assert back.provenance["site"] == "blocks.3.hook_resid_post"
    assert back.provenance["model"] == ours.provenance["model"]
    with torch.no_grad():
        torch.testing.assert_close(back(acts), ours(acts), atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(back.encode(acts).dense(), ours.encode(acts).dense() / ours.scaling.scale, atol=2e-5, rtol=1e-5)


def test_relu_with_atoms_of_other_norms_is_written_as_the_class_whose_codes_the_loader_leaves_alone(tmp_path):
    for name, dict_class in (("relu_unit", "AutoEncoder"), ("relu", "AutoEncoderNew")):
        dictionary_learning.write(OURS[name], tmp_path / name)
        assert json.loads((tmp_path / name / "config.json").read_text())["trainer"]["dict_class"] == dict_class


def test_a_running_training_acts_on_activations_over_its_norm_factor():
    backup, plain = dictionary_learning.read(GOLDEN / "backup"), read_torch(GOLDEN / "backup/ae.pt")
    factor, acts = plain["norm_factor"], rows()
    codes, output = written_out("batch_top_k", plain["ae"], acts / factor)
    with torch.no_grad():
        torch.testing.assert_close(backup.encode(acts).dense().double(), factor * codes, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(backup(acts).double(), factor * output, atol=1e-5, rtol=1e-5)
    assert "saved at step 40 of a training on activations / 2.5" in notes(backup)


@pytest.mark.parametrize("case", ["standard", "gated", "jump_relu", "top_k"])
def test_a_running_training_of_every_class_is_the_same_function_at_another_scale(case, tmp_path):
    state, acts = read_torch(GOLDEN / case / "ae.pt"), rows()
    changed(tmp_path / "backup", case)
    write_torch(tmp_path / "backup/ae.pt", {"step": 3, "ae": state, "optimizer": {}, "config": {}, "norm_factor": 3.0})
    backup, plain = dictionary_learning.read(tmp_path / "backup"), dictionary_learning.read(GOLDEN / case)
    with torch.no_grad():
        torch.testing.assert_close(backup.encode(3 * acts).dense(), 3 * plain.encode(acts).dense(), atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(backup(3 * acts), 3 * plain(acts), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("case", [case for case in CASES if case != "backup"])
def test_in_to_out_is_a_transcoder_with_the_same_equations(case, tmp_path):
    acts = rows()
    dictionary = dictionary_learning.read(changed(tmp_path / case, case, buffer={"io": "in_to_out"}))
    codes, output = written_out(case, read_torch(GOLDEN / case / "ae.pt"), acts)
    assert dictionary.is_transcoder
    assert dictionary.provenance["target_site"] == "blocks.3.hook_resid_post"
    assert "site" not in dictionary.provenance
    dictionary_learning.write(dictionary, tmp_path / "again")
    again = dictionary_learning.read(tmp_path / "again")
    assert again.is_transcoder
    with torch.no_grad():
        torch.testing.assert_close(dictionary.encode(acts).dense().double(), codes, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(dictionary(acts).double(), output, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(again.encode(acts).dense().double(), codes, atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(again(acts).double(), output, atol=2e-5, rtol=1e-5)


def test_top_k_keeps_the_k_largest_whatever_the_threshold(tmp_path):
    dictionary = dictionary_learning.read(changed(tmp_path / "a", tensors={"threshold": torch.tensor(-1.0)}))
    assert dictionary.config.activation == TopK(5)
    dictionary_learning.write(dictionary, tmp_path / "b")
    assert float(read_torch(tmp_path / "b/ae.pt")["threshold"]) == -1.0


def test_a_checkpoint_is_read_with_the_configuration_of_its_trainer_and_its_own_k(tmp_path):
    changed(tmp_path / "trainer_0", tensors={"k": torch.tensor(9, dtype=torch.int)})
    (tmp_path / "trainer_0/checkpoints").mkdir()
    shutil.move(tmp_path / "trainer_0/ae.pt", tmp_path / "trainer_0/checkpoints/ae_40.pt")
    assert dictionary_learning.read(tmp_path / "trainer_0/checkpoints/ae_40.pt").k == 9
    shutil.copy(tmp_path / "trainer_0/checkpoints/ae_40.pt", tmp_path / "trainer_0/ae.pt")
    with pytest.raises(FormatError, match="k is 9, and its configuration says 5"):
        dictionary_learning.read(tmp_path / "trainer_0")


def test_the_name_that_the_library_misspelt_is_read_and_goes_back(tmp_path):
    old = changed(
        tmp_path / "old",
        "matryoshka",
        trainer={"dict_class": "MatroyshkaBatchTopKSAE", "trainer_class": "MatroyshkaBatchTopKTrainer", "weights_temperature": 2.0},
    )
    dictionary = dictionary_learning.read(old)
    assert dictionary.provenance["foreign"]["group_sizes"] == [8, 8, 16]
    dictionary_learning.write(dictionary, tmp_path / "again")
    assert json.loads((tmp_path / "again/config.json").read_text())["trainer"]["dict_class"] == "MatroyshkaBatchTopKSAE"
    assert read_torch(tmp_path / "again/ae.pt")["group_sizes"].tolist() == [8, 8, 16]


def test_files_older_than_dict_class_are_of_the_class_that_their_trainer_trained(tmp_path):
    old = {"dict_class": None, "activation_dim": None, "dict_size": None}
    for case in ("standard", "gated"):
        dictionary = dictionary_learning.read(changed(tmp_path / case, case, trainer={**old, "trainer_class": TRAINED_BY[case]}))
        assert dictionary.digest == dictionary_learning.read(GOLDEN / case).digest
        assert "older than dict_class" in notes(dictionary)
    with pytest.raises(FormatError, match="lacks 'bias'"):
        dictionary_learning.read(changed(tmp_path / "a", "gated", trainer={**old, "trainer_class": "StandardTrainer", "wandb_name": "x"}))


def test_another_activation_is_not_written_with_the_options_of_the_trainer_that_it_did_not_have(tmp_path):
    read = dictionary_learning.read(GOLDEN / "standard")
    dictionary_learning.write(read.with_activation(TopK(4)), tmp_path)
    back = dictionary_learning.read(tmp_path)
    assert back.config.activation == TopK(4)
    assert "l1_penalty" not in back.provenance["foreign"]["config"]["trainer"]
    assert back.provenance["model"] == "EleutherAI/pythia-70m-deduped"


@pytest.mark.parametrize(
    ("trainer", "buffer", "site"),
    [
        ({}, {}, "blocks.3.hook_resid_post"),
        ({"submodule_name": "resid_post_layer_11", "layer": 11}, {}, "blocks.11.hook_resid_post"),
        ({"submodule_name": "resid_post_layer_011", "layer": 11}, {}, None),
        ({"submodule_name": "mlp_layer_3"}, {}, None),
        ({"submodule_name": None}, {}, None),
        ({}, {"io": "in"}, None),
    ],
)
def test_a_site_is_stated_only_where_it_is_certain(trainer, buffer, site, tmp_path):
    dictionary = dictionary_learning.read(changed(tmp_path / "a", trainer=trainer, buffer=buffer))
    assert dictionary.provenance.get("site") == site
    assert dictionary.provenance["model"] == "EleutherAI/pythia-70m-deduped"
    assert ("not known" in notes(dictionary) or "not certain" in notes(dictionary)) == (site is None)


def test_what_was_decided_is_said(tmp_path):
    assert "scaled to unit norm, and with them the codes" in notes(dictionary_learning.read(GOLDEN / "standard"))
    negative = read_torch(GOLDEN / "jump_relu/ae.pt")["threshold"].clone()
    negative[:3] = -0.25
    dictionary = dictionary_learning.read(changed(tmp_path / "a", "jump_relu", tensors={"threshold": negative}))
    assert "3 thresholds are below 0" in notes(dictionary)
    codes, _ = written_out("jump_relu", read_torch(tmp_path / "a/ae.pt"), rows())
    with torch.no_grad():
        torch.testing.assert_close(dictionary.encode(rows()).dense().double(), codes, atol=1e-5, rtol=1e-5)
    assert "float16" in notes(
        dictionary_learning.read(
            changed(tmp_path / "b", tensors={"encoder.weight": read_torch(GOLDEN / "top_k/ae.pt")["encoder.weight"].half()})
        )
    )


def test_thresholds_survive_writing_and_reading_over_their_whole_range(tmp_path):
    dictionary = random_autoencoder(JumpReLU(), apply_b_dec_to_input=False, d_sae=6000)
    with torch.no_grad():
        dictionary.log_threshold.copy_(torch.linspace(-80, 80, 6000))
        dictionary.log_threshold[:2] = torch.tensor([-torch.inf, 95.0])
    dictionary_learning.write(dictionary, tmp_path / "a")
    back = dictionary_learning.read(tmp_path / "a")
    torch.testing.assert_close(back.log_threshold[2:], dictionary.log_threshold[2:], atol=1e-7, rtol=1e-7)
    assert back.log_threshold[0] == -torch.inf
    assert back.log_threshold[1] > 88
    dictionary_learning.write(back, tmp_path / "b")
    assert dictionary_learning.read(tmp_path / "b").digest == back.digest


class Bomb:
    """Unpickled, it would make a file."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return (Path.touch, (Path(self.place),))


def test_a_pickle_with_code_in_it_is_refused_and_nothing_runs(tmp_path):
    folder = changed(tmp_path / "a")
    torch.save({**read_torch(folder / "ae.pt"), "k": Bomb(tmp_path / "ran")}, folder / "ae.pt")
    with pytest.raises(FormatError, match="holds code"):
        dictionary_learning.read(folder)
    (folder / "ae.pt").write_bytes(pickle.dumps({"encoder.weight": Bomb(tmp_path / "ran")}))
    with pytest.raises(FormatError, match=r"ae\.pt"):
        dictionary_learning.read(folder)
    assert not (tmp_path / "ran").exists()


def test_truncated_and_missing_files_are_named(tmp_path):
    folder = changed(tmp_path / "a")
    whole = (folder / "ae.pt").read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        (folder / "ae.pt").write_bytes(whole[:length])
        with pytest.raises(FormatError, match=r"ae\.pt"):
            dictionary_learning.read(folder)
    (folder / "ae.pt").unlink()
    with pytest.raises(FormatError, match=r"ae\.pt does not exist"):
        dictionary_learning.read(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FormatError, match="it says of which class"):
        dictionary_learning.read(folder)


STATE = read_torch(GOLDEN / "top_k/ae.pt")


@pytest.mark.parametrize(
    ("case", "tensors", "message"),
    [
        ("top_k", {"encoder.weight": STATE["encoder.weight"].T.contiguous()}, "transposed"),
        ("top_k", {"decoder.weight": STATE["decoder.weight"].T.contiguous()}, "transposed"),
        ("top_k", {"encoder.weight": STATE["encoder.weight"].int()}, "dtype"),
        ("top_k", {"b_dec": torch.full((12,), torch.nan)}, "b_dec must be finite"),
        ("top_k", {"extra": torch.zeros(3), "another": torch.zeros(1)}, "'another', 'extra'"),
        ("top_k", {"b_dec": None, "encoder.bias": None}, "lacks 'b_dec', 'encoder.bias'"),
        ("top_k", {"k": torch.tensor(33)}, r"k must be a whole number in 1\.\.32"),
        ("top_k", {"b_dec": "none"}, "must be a tensor"),
        ("batch_top_k", {"threshold": torch.tensor(-1.0)}, "depend on its batch"),
        ("batch_top_k", {"threshold": None}, "lacks 'threshold'"),
        ("matryoshka", {"group_sizes": torch.tensor([8, 8])}, "sum to 32"),
        ("matryoshka", {"group_sizes": torch.tensor([8.0, 24.0])}, "whole numbers"),
        ("matryoshka", {"group_sizes": torch.tensor([], dtype=torch.int64)}, "whole numbers"),
        ("matryoshka", {"group_sizes": None}, "lacks 'group_sizes'"),
        ("gated", {"r_mag": None}, "lacks 'r_mag'"),
        ("jump_relu", {"threshold": torch.tensor(0.5)}, "shape"),
    ],
)
def test_tensors_that_are_not_the_classes_are_refused(case, tensors, message, tmp_path):
    with pytest.raises(FormatError, match=message):
        dictionary_learning.read(changed(tmp_path / "a", case, tensors=tensors))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trainer": {"lr_decay": 1, "speed": 2}}, "'lr_decay', 'speed'"),
        ({"trainer": {"trainer_class": "StandardTrainer"}}, "unknown key"),
        ({"trainer": {"trainer_class": "OtherTrainer"}}, "trainer_class must be one of"),
        ({"trainer": {"trainer_class": ["TopKTrainer"]}}, "trainer_class must be text"),
        ({"trainer": {"dict_class": "IdentityDict"}}, "it copies its input"),
        ({"trainer": {"dict_class": "CrossCoder"}}, "dict_class must be one of"),
        ({"trainer": {"dict_class": None}}, "lacks the key 'dict_class'"),
        ({"trainer": {"dict_class": {"a": 1}}}, "dict_class must be text"),
        ({"trainer": {"activation_dim": 32, "dict_size": 12}}, "transposed"),
        ({"trainer": {"activation_dim": -12}}, "positive whole number"),
        ({"trainer": {"dict_size": True}}, "positive whole number"),
        ({"trainer": {"k": 5.0}}, "positive whole number"),
        ({"trainer": {"k": 6}}, "k is 5, and its configuration says 6"),
        ({"trainer": {"layer": 4}}, "layer is 4, and submodule_name"),
        ({"trainer": {"lm_name": 3}}, "lm_name must be text"),
        ({"buffer": {"io": "sideways"}}, "io must be"),
        ({"buffer": {"speed": 1}}, "unknown key 'speed'"),
        ({"other": {"trainer": None}}, "lacks the key 'trainer'"),
        ({"other": {"trainer": [1]}}, "trainer must be an object"),
        ({"other": {"notes": 1}}, "unknown key 'notes'"),
    ],
)
def test_configurations_that_cannot_be_followed_are_refused(changes, message, tmp_path):
    with pytest.raises(FormatError, match=message):
        dictionary_learning.read(changed(tmp_path / "a", **changes))


@pytest.mark.parametrize(
    ("backup", "message"),
    [
        ({"norm_factor": 0.0}, "norm_factor must be positive"),
        ({"norm_factor": 1e300}, "not finite"),
        ({"norm_factor": "2"}, "must be one number"),
        ({"speed": 1}, "unknown key 'speed'"),
        ({"ae": 3}, "ae must hold the weights"),
    ],
)
def test_backups_that_cannot_be_followed_are_refused(backup, message, tmp_path):
    changed(tmp_path / "a", "backup")
    write_torch(tmp_path / "a/ae.pt", read_torch(GOLDEN / "backup/ae.pt") | backup)
    with pytest.raises(FormatError, match=message):
        dictionary_learning.read(tmp_path / "a")


def test_a_backup_without_a_norm_factor_is_refused_and_one_that_says_none_is_as_it_is(tmp_path):
    changed(tmp_path / "a", "backup")
    found = read_torch(GOLDEN / "backup/ae.pt")
    write_torch(tmp_path / "a/ae.pt", {name: value for name, value in found.items() if name != "norm_factor"})
    with pytest.raises(FormatError, match="lacks the key 'norm_factor'"):
        dictionary_learning.read(tmp_path / "a")
    write_torch(tmp_path / "a/ae.pt", found | {"norm_factor": None})
    assert torch.equal(dictionary_learning.read(tmp_path / "a").b_enc, found["ae"]["encoder.bias"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MatchingPursuit(PursuitConfig(d_in=8, d_sae=24, k=3)), "must be an Autoencoder"),
        (lambda: Codebook(CodebookConfig(d_in=8, d_sae=16)), "must be an Autoencoder"),
        (lambda: random_autoencoder(AbsTopK(4)), "got AbsTopK; `saelens` holds it"),
        (lambda: random_autoencoder(ReLU(), d_out=9), "one width"),
        (lambda: random_autoencoder(ReLU(), d_out=8, skip=True), "no linear path"),
        (lambda: random_autoencoder(TopK(4), normalisation="layer_norm"), "must have normalisation"),
        (lambda: random_autoencoder(BatchTopK(4.5)), r"with_activation\(BatchTopK\(4\.0\)\)"),
    ],
)
def test_what_the_format_does_not_have_is_refused_before_anything_is_written(make, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        dictionary_learning.write(make(), tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_threshold_below_zero_is_not_written(tmp_path):
    dictionary = random_autoencoder(BatchTopK(4.0))
    dictionary.threshold.fill_(-1.0)
    with pytest.raises(ConfigError, match="threshold must be at least 0"):
        dictionary_learning.write(dictionary, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_file_is_not_taken_for_a_folder(tmp_path):
    (tmp_path / "a").write_text("notes")
    with pytest.raises(ConfigError, match="is a file"):
        dictionary_learning.write(random_autoencoder(), tmp_path / "a")


@pytest.mark.parametrize("options", [{}, {"apply_b_dec_to_input": False}, {"d_out": 12}], ids=["subtracts", "does not", "transcoder"])
@pytest.mark.parametrize("activation", [Gated(), TopK(5), BatchTopK(4.0), JumpReLU(), ReLU()], ids=lambda activation: activation.kind)
def test_either_convention_for_b_dec_is_the_same_function_in_the_file(activation, options, tmp_path):
    made, generator = random_autoencoder(activation, d_in=12, **options), torch.Generator().manual_seed(2)
    scales = {"scaling": Scaling(torch.randn(12, generator=generator), 0.5)}
    if made.is_transcoder:
        scales["target_scaling"] = Scaling(torch.randn(12, generator=generator), 1.7)
    scaled = Autoencoder(made.config, **scales)
    means = {name: buffer for name, buffer in scaled.named_buffers() if "mean" in name}
    scaled.load_state_dict({**made.state_dict(), **means})
    if isinstance(activation, BatchTopK):
        scaled.threshold.fill_(0.4)
    dictionary_learning.write(scaled, tmp_path)
    back, acts = dictionary_learning.read(tmp_path), rows()
    assert back.is_transcoder == made.is_transcoder
    with torch.no_grad():
        torch.testing.assert_close(back(acts), scaled(acts), atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(back.encode(acts).dense(), scaled.encode(acts).dense() / 0.5, atol=1e-4, rtol=1e-5)

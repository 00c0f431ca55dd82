"""Recovery as a measure: 1 for the oracle in any order and scale, chance for random atoms, 0 for zeros."""

import dataclasses

import pytest
import torch
from planted_dictionaries import random_atoms

from sae.dictionaries.activations import ReLU
from sae.dictionaries.autoencoder import Autoencoder, AutoencoderConfig
from sae.evaluation.batteries import Battery, Inputs, perform, plan
from sae.evaluation.batteries.inputs import Truth
from sae.evaluation.suite.planted import RECOVERY, RecoveryConfig, implied_parents, only
from sae.storage import ResultCache
from sae.synthetic.hierarchy import CHILDREN, tree_codes, tree_features
from sae.synthetic.planted import planted_codes, planted_features

BATTERY = Battery("planted", "Planted", "planted features", (RECOVERY,), "evaluation")


def tree(seed=0, n=1500):
    """Twenty orthonormal features in a tree, with their codes."""
    generator = torch.Generator().manual_seed(seed)
    features, codes = tree_features(generator), tree_codes(n, generator)
    return Truth(features, codes, codes @ features)


def relu_of(atoms, *, encoder=None, bias=-0.2, decoder_bias=0.01):
    """relu(W_enc (x - b_dec) + b_enc) with biases that are not zero."""
    made = Autoencoder(AutoencoderConfig(d_in=atoms.shape[1], d_sae=len(atoms), activation=ReLU()))
    with torch.no_grad():
        made.W_dec.copy_(atoms)
        made.W_enc.copy_((atoms if encoder is None else encoder).T)
        made.b_enc.fill_(bias)
        made.b_dec.fill_(decoder_bias)
    return made.eval()


def measured(tmp_path, dictionary, truth, n_null=19):
    inputs = Inputs(ResultCache(tmp_path / "cache"), 0, dictionary, truth=truth)
    (task,) = plan(["planted"], inputs, known={"planted": BATTERY}, configs={"recovery": RecoveryConfig(n_null=n_null)})
    return perform(task, inputs)


def numbers_of(done):
    return {number.quantity: number for number in done.outcome.numbers}


SCORES = ("MCC", "features found", "mean best cosine", "firing F1")


def test_the_oracle_has_one_in_every_score_and_no_absorption(tmp_path):
    truth = tree()
    found = numbers_of(measured(tmp_path, relu_of(truth.features), truth))
    for name in SCORES:
        assert found[name].value == pytest.approx(1, abs=1e-6)
        assert found[name].p == 0.05 and found[name].null_mean < 0.75
    absorbed = found["absorption in the tree"]
    assert absorbed.value == pytest.approx(0, abs=1e-6) and absorbed.p == pytest.approx(0.5, abs=1e-4)
    assert absorbed.note == "9 of 9 children found; true value " + absorbed.note.rpartition(" ")[2]


def test_latents_in_another_order_and_scale_score_the_same(tmp_path):
    truth, generator = tree(1), torch.Generator().manual_seed(2)
    plain = relu_of(torch.cat([truth.features, random_atoms(10, 20)]))
    order, scale = torch.randperm(30, generator=generator), 0.3 + 2 * torch.rand(30, generator=generator)
    other = relu_of(torch.zeros(30, 20))
    with torch.no_grad():
        other.W_dec.copy_((plain.W_dec / scale[:, None])[order])
        other.W_enc.copy_((plain.W_enc * scale)[:, order])
        other.b_enc.copy_((plain.b_enc * scale)[order])
    one, two = (numbers_of(measured(tmp_path, each, truth)) for each in (plain, other))
    for name in (*SCORES, "absorption in the tree"):
        assert one[name].value == pytest.approx(two[name].value, abs=1e-6)


def test_random_atoms_score_what_their_null_scores(tmp_path):
    generator = torch.Generator().manual_seed(3)
    features, codes = planted_features(40, 24, generator), planted_codes(800, 40, generator, k=3.0)
    found = numbers_of(measured(tmp_path, relu_of(random_atoms(60, 24, seed=9)), Truth(features, codes, codes @ features), n_null=29))
    for name in ("MCC", "mean best cosine"):
        assert abs(found[name].value - found[name].null_mean) < 4 * found[name].null_sd
    assert found["features found"].value == 0
    assert "absorption in the tree" not in found


def test_a_dictionary_of_zeros_scores_zero(tmp_path):
    truth = tree()
    done = measured(tmp_path, relu_of(torch.zeros(25, 20)), truth)
    assert {name: number.value for name, number in numbers_of(done).items()} == dict.fromkeys(SCORES, 0.0)
    assert done.outcome.notes == ("All atoms are zero.",)


def test_a_dictionary_that_never_fires_has_its_atoms_and_no_firing(tmp_path):
    truth = tree()
    found = numbers_of(measured(tmp_path, relu_of(truth.features, encoder=0.0 * truth.features), truth))
    assert found["MCC"].value == pytest.approx(1, abs=1e-6)
    assert found["firing F1"].value == 0
    assert found["absorption in the tree"].value is None


def test_latents_of_child_and_parent_together_show_as_absorption(tmp_path):
    truth = tree()
    atoms = truth.features.clone()
    for parent, children in CHILDREN.items():
        for child in children:
            atoms[child] = (truth.features[child] + truth.features[parent]) / 2**0.5
    found = numbers_of(measured(tmp_path, relu_of(atoms, encoder=truth.features), truth))
    absorbed = found["absorption in the tree"]
    assert absorbed.value == pytest.approx(2**-0.5, abs=1e-5) and absorbed.p < 1e-6
    assert found["features found"].value == pytest.approx(11 / 20)


def test_atoms_of_zero_are_left_out_with_their_codes_and_absent_features_too(tmp_path):
    truth = tree()
    atoms, encoder = torch.zeros(23, 20), torch.zeros(23, 20)
    atoms[3:], encoder[3:] = truth.features, truth.features
    encoder[:3] = random_atoms(3, 20)
    more = Truth(torch.cat([truth.features, random_atoms(2, 20, seed=4)]), torch.nn.functional.pad(truth.codes, (0, 2)), truth.acts)
    done = measured(tmp_path, relu_of(atoms, encoder=encoder), more)
    assert [numbers_of(done)[name].value for name in SCORES] == pytest.approx([1.0] * 4, abs=1e-6)
    assert "20 features, 20 atoms, 1,500 samples" in numbers_of(done)["MCC"].note
    assert done.outcome.notes == ("2 features are in no sample and are left out.",)


def test_codes_of_some_latents_are_the_columns_of_the_dense_codes():
    generator = torch.Generator().manual_seed(5)
    codes = relu_of(random_atoms(12, 8), bias=0.1).encode(torch.randn(30, 8, generator=generator)).detach()
    there = torch.rand(12, generator=generator) < 0.6
    assert torch.equal(only(codes, there).dense(), codes.dense()[:, there])


def test_parents_are_read_from_the_codes_and_coincidences_are_none():
    codes = tree(4).codes
    assert implied_parents(codes) == {parent: list(children) for parent, children in CHILDREN.items()}
    rare = torch.zeros(1000, 3)
    rare[:900, 0], rare[:30, 1], rare[:10, 2] = 1.0, 1.0, 1.0
    assert implied_parents(rare) == {}
    rare[300:, 0] = 0.0
    assert implied_parents(rare) == {0: [1]}


def test_a_dictionary_of_another_width_is_refused(tmp_path):
    done = measured(tmp_path, relu_of(random_atoms(20, 16)), tree())
    assert "width 20 like the planted features, got d_in=16" in done.reason


def test_another_truth_is_measured_anew(tmp_path):
    truth = tree()
    first = measured(tmp_path, relu_of(truth.features), truth)
    assert measured(tmp_path, relu_of(truth.features), truth).cached
    other = dataclasses.replace(truth, features=random_atoms(20, 20, seed=8))
    again = measured(tmp_path, relu_of(truth.features), other)
    assert not again.cached and numbers_of(again)["MCC"].value < 0.7 < numbers_of(first)["MCC"].value

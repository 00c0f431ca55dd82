"""SCR and TPP over seeds on planted latents: the true dictionary beats one whose atoms are shuffled, and random latents do nothing."""

import itertools

import numpy as np
import pytest
import torch
from planted_dictionaries import dictionary_of, random_atoms
from scipy import sparse
from word_model import SITE, word_model

from probes.ablation import AblationCurve
from probes.evaluation import BATTERIES, ablations
from probes.evaluation.ablations import CAVEATS, SCR, TPP, AblationConfig, Concept, scr_curves, shared_rows, tpp_curves
from probes.evaluation.texts import Texts, TextsConfig
from probes.features import TokenRows
from probes.problem import Problem
from sae.errors import ConfigError
from sae.evaluation.batteries import Inputs, gather, perform, plan
from sae.storage import ResultCache

N, D_IN, D_SAE = 2400, 48, 60
CONFIG = AblationConfig(counts=(1, 2), n_seeds=3)


def planted(*, n_classes=0, seed=0):
    """(activations, codes, atoms, two concepts of two latents each, or one problem of classes with a latent each)."""
    rng = np.random.default_rng(seed)
    atoms = rng.normal(size=(D_SAE, D_IN))
    atoms = np.concatenate([np.linalg.qr(rng.normal(size=(D_IN, D_IN)))[0][:20], atoms[20:] / np.linalg.norm(atoms[20:], axis=1)[:, None]])
    codes = (rng.random((N, D_SAE)) < 0.05) * rng.uniform(0.2, 0.5, (N, D_SAE))
    codes[:, :12] = 0
    wanted, spurious, amplitude = rng.integers(0, 2, N), rng.integers(0, 2, N), rng.uniform(2, 3, N)
    documents = np.arange(N) // 2
    if n_classes:
        y = rng.integers(0, n_classes, N)
        codes[np.arange(N), y] = amplitude
        problems = Problem("classes", np.arange(N), y, documents, tuple("abcdefgh"[:n_classes]))
    else:
        codes[np.arange(N), wanted], codes[np.arange(N), 2 + spurious] = 0.6 * amplitude, amplitude
        problems = tuple(Problem(name, np.arange(N), y, documents, ("0", "1")) for name, y in (("wanted", wanted), ("spurious", spurious)))
    acts = (codes @ atoms + 0.2 * rng.normal(size=(N, D_IN)) + rng.normal(size=D_IN)).astype(np.float32)
    return acts, sparse.csr_matrix(codes.astype(np.float32)), atoms.astype(np.float32), problems


def test_the_true_latents_remove_the_spurious_concept_and_shuffled_atoms_do_not():
    acts, codes, atoms, pair = planted()
    found = scr_curves(acts, codes, atoms, pair, config=CONFIG, seed=0)
    shuffled = scr_curves(acts, codes, atoms[np.random.default_rng(1).permutation(D_SAE)], pair, config=CONFIG, seed=0)
    assert found.values().shape == (3, 2) and found.left_out == 0
    assert found.values()[:, 1] == pytest.approx(1.0, abs=0.1)
    assert abs(found.nulls()[0].mean()) < 0.2
    assert found.values()[:, 1].min() > shuffled.values()[:, 1].max() + 0.3
    assert all(curve.before < 0.9 < curve.oracle for curve in found.curves)


def test_the_direction_with_the_worse_biased_probe_is_reported():
    acts, codes, atoms, (wanted, spurious) = planted()
    one = scr_curves(acts, codes, atoms, (wanted, spurious), config=CONFIG, seed=0)
    other = scr_curves(acts, codes, atoms, (spurious, wanted), config=CONFIG, seed=0)
    # The stronger concept takes the biased probe over: wanted is the one that suffers, whichever is named first.
    assert [curve.before for curve in one.curves] == pytest.approx([curve.before for curve in other.curves], abs=0.06)
    assert max(curve.before for curve in one.curves) < 0.75


def test_of_two_defined_directions_the_one_with_the_lower_accuracy_counts(monkeypatch):
    acts, codes, atoms, pair = planted()
    before = itertools.cycle((0.7, 0.6))
    monkeypatch.setattr(ablations, "_removal", lambda *_: AblationCurve("SCR", (1,), (0.5,), (0.0,), (0.1,), next(before), 0.9, 10))
    assert [curve.before for curve in scr_curves(acts, codes, atoms, pair, config=CONFIG, seed=0).curves] == [0.6, 0.6, 0.6]


def test_the_latents_of_classes_are_apart_and_shuffled_or_no_latents_are_not():
    acts, codes, atoms, problem = planted(n_classes=4)
    found = tpp_curves(acts, codes, atoms, problem, config=CONFIG, seed=0)
    shuffled = tpp_curves(acts, codes, atoms[np.random.default_rng(1).permutation(D_SAE)], problem, config=CONFIG, seed=0)
    nothing = tpp_curves(acts, sparse.csr_matrix(codes.shape, dtype=np.float32), atoms, problem, config=CONFIG, seed=0)
    still = tpp_curves(acts, codes, 0 * atoms, problem, config=CONFIG, seed=0)
    assert found.values()[:, 0] == pytest.approx(0.5, abs=0.06)
    assert found.values()[:, 0].min() > shuffled.values()[:, 0].max() + 0.2
    assert abs(found.nulls()[0].mean()) < 0.1
    assert (nothing.values() == 0).all() and (still.values() == 0).all()


def test_permuted_and_rescaled_latents_give_the_same_curves():
    acts, codes, atoms, pair = planted()
    rng = np.random.default_rng(4)
    order, scale = rng.permutation(D_SAE), 2.0 ** rng.integers(-3, 3, D_SAE)
    changed = sparse.csr_matrix((codes.toarray() / scale)[:, order].astype(np.float32))
    rescaled = (atoms * scale[:, None])[order].astype(np.float32)
    found, other = (scr_curves(acts, z, W, pair, config=CONFIG, seed=0) for z, W in ((codes, atoms), (changed, rescaled)))
    np.testing.assert_allclose(other.values(), found.values(), atol=0.01)
    classes = planted(n_classes=3, seed=1)
    one = tpp_curves(*classes[:3], classes[3], config=CONFIG, seed=0)
    changed = sparse.csr_matrix((classes[1].toarray() / scale)[:, order].astype(np.float32))
    two = tpp_curves(classes[0], changed, (classes[2] * scale[:, None])[order].astype(np.float32), classes[3], config=CONFIG, seed=0)
    np.testing.assert_allclose(two.values(), one.values(), atol=0.01)


def test_a_rare_combination_and_concepts_without_bias_leave_the_seed_out():
    acts, codes, atoms, (wanted, spurious) = planted()
    rare = Problem("rare", wanted.rows, np.where(np.arange(N) % 80 == 0, 1 - spurious.y, spurious.y), wanted.groups, wanted.classes)
    found = scr_curves(acts, codes, atoms, (rare, spurious), config=CONFIG, seed=0)
    assert not found.curves and found.left_out == 3


def test_a_concept_is_a_task_of_two_answers_or_some_classes_of_several():
    problem = Problem("noun_class", np.arange(4), np.array([0, 2, 1, 2]), np.arange(4), ("animal", "plant", "food"))
    assert Concept("noun_class", ("animal", "food")).of(problem).y.tolist() == [1, 1, 0, 1]
    assert Concept("noun_class", ("animal", "food")).of(problem).name == "animal or food"
    assert Concept("noun_class").of(problem) is problem


def test_rows_that_both_problems_ask_about_keep_both_labels():
    one = Problem("one", np.array([5, 9, 2, 7]), np.array([0, 1, 1, 0]), np.array([1, 2, 3, 4]), ("a", "b"))
    other = Problem("other", np.array([7, 2, 8, 5]), np.array([1, 0, 1, 1]), np.array([4, 3, 9, 1]), ("c", "d"))
    assert [part.tolist() for part in shared_rows(one, other)] == [[2, 5, 7], [1, 0, 0], [0, 1, 1], [3, 1, 4]]


SMALL = AblationConfig(texts=TextsConfig(tasks=("ends_s", "leading_capital", "noun_class", "noun_frame")), counts=(2, 5), n_seeds=2)


def planted_texts(basis, *, seed=0):
    """Rows of one token each: capitals and ends are pairs of latents, a noun has one latent of three, the frame of its sentence is a pair."""
    rng = np.random.default_rng(seed)
    n = 1200
    codes = (rng.random((n, 32)) < 0.05) * rng.uniform(0.2, 0.5, (n, 32))
    capital, ends, frame, noun = rng.integers(0, 2, n), rng.integers(0, 2, n), rng.integers(0, 2, n), rng.integers(0, 3, n)
    amplitude = rng.uniform(2, 3, n)
    for label, first, factor in ((capital, 0, 1), (ends, 2, 0.6), (frame, 4, 2), (noun, 6, 1)):
        codes[np.arange(n), first + label] = factor * amplitude
    acts = torch.tensor(codes @ basis.numpy() + 0.1 * rng.normal(size=(n, 32)), dtype=torch.float32)
    every, documents = np.arange(n), np.arange(n) // 2
    named = (
        ("leading_capital", capital, ("no", "yes")),
        ("ends_s", ends, ("no", "yes")),
        ("noun_frame", frame, ("the word", "what it names")),
        ("noun_class", noun, ("animal", "plant", "food")),
    )
    problems = tuple(Problem(name, every, y, documents, classes) for name, y, classes in named)
    return Texts(problems, TokenRows(every, np.arange(n + 1), "mean"), acts)


def test_both_measures_tell_a_true_dictionary_from_others_say_that_they_are_unreliable_and_are_kept(tmp_path, monkeypatch):
    basis = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(0)))[0]
    texts = planted_texts(basis)
    monkeypatch.setattr(ablations, "read_texts", lambda *_: (texts, "planted"))
    known = {battery.name: battery for battery in BATTERIES}
    values = {}
    for name, atoms in (("true", basis), ("random", random_atoms(32, 32, seed=1)), ("zero", 0 * basis)):
        inputs = Inputs(cache=ResultCache(tmp_path / "cache"), dictionary=dictionary_of(atoms, k=6), model=word_model(), site=SITE)
        tasks = plan(["ablation"], inputs, configs={"scr": SMALL, "tpp": SMALL}, known=known)
        results = gather([perform(task, inputs) for task in tasks], seed=0)
        assert not results.left_out and [group.measure for group in results.groups] == ["scr", "tpp"]
        values[name] = {(found.name, found.subject): found.value for found in results.findings}
        for group in results.groups:
            measure = group.measure.upper()
            assert "unreliable" in group.text and CAVEATS[0] in group.notes
            assert {found.name for found in group.findings} >= {measure, f"{measure} of one"}
            whole = [found for found in group.findings if found.name == measure]
            assert [found.subject for found in whole] == ["n = 2", "n = 5"] and all(found.n_null == 10 for found in whole)
        assert all(perform(task, inputs).cached for task in tasks)
    assert values["true"]["SCR", "n = 2"] > 0.9 and values["true"]["TPP", "n = 2"] > 0.2
    assert values["true"]["SCR", "n = 2"] > values["random"]["SCR", "n = 2"] + 0.3
    assert values["true"]["TPP", "n = 2"] > values["random"]["TPP", "n = 2"] + 0.1
    assert values["zero"]["SCR", "n = 5"] == 0 and values["zero"]["TPP", "n = 5"] == 0


def test_every_battery_is_of_evaluation_and_every_quantity_has_a_source():
    assert [battery.family for battery in BATTERIES] == ["evaluation"] * 3
    measures = [measure for battery in BATTERIES for measure in battery.measures]
    assert [measure.name for measure in measures] == ["absorption", "letter_splitting", "sparse_probing", "scr", "tpp"]
    assert all(quantity.source and quantity.meaning for measure in measures for quantity in measure.quantities)


def test_settings_that_make_no_sense_and_tasks_that_lack_a_pair_are_refused(tmp_path):
    for wrong, words in (({"counts": ()}, "counts"), ({"n_seeds": 1}, "n_seeds"), ({"test_share": 0.0}, "test_share")):
        with pytest.raises(ConfigError, match=words):
            AblationConfig(**wrong)
    inputs = Inputs(cache=ResultCache(tmp_path / "cache"), dictionary=dictionary_of(torch.eye(32), site=SITE), model=word_model())
    with pytest.raises(ConfigError, match="noun_class and noun_frame or ends_s and leading_capital"):
        SCR.compute(inputs, AblationConfig(texts=TextsConfig(tasks=("noun_class",))))
    with pytest.raises(ConfigError, match="one of docstring_package"):
        TPP.compute(inputs, AblationConfig(texts=TextsConfig(tasks=("era", "noun_frame"))))

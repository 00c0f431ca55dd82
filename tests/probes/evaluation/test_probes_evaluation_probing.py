"""Sparse probing with planted latents: the oracle reaches what the label's noise allows with one, random directions do what dimensions do."""

import numpy as np
import pytest
import torch
from planted_dictionaries import dictionary_of, random_atoms
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from word_model import SITE, word_model

from probes.evaluation import sparse_probing, texts
from probes.evaluation.sparse_probing import SPARSE_PROBING, SparseProbingConfig, dense_scores, probing, questions, sparse_scores
from probes.evaluation.texts import Texts, TextsConfig, captured_texts, offline_tasks, read_texts
from probes.features import TokenRows, from_model
from probes.problem import Problem
from sae.errors import ConfigError
from sae.evaluation.batteries import Inputs
from sae.storage import ResultCache

OPTIONS = {"C": 1.0, "n_bootstrap": 200, "seed": 0}


def planted(*, n=3000, d_in=40, d_sae=120, flip=0.1, seed=0):
    """(true codes, activations, atoms, problem): the label is whether latent 7 fires, and wrong with chance `flip`."""
    rng = np.random.default_rng(seed)
    atoms = rng.normal(size=(d_sae, d_in))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    codes = (rng.random((n, d_sae)) < 0.05) * rng.uniform(1, 2, (n, d_sae))
    fires = rng.random(n) < 0.5
    codes[:, 7] = fires * rng.uniform(1, 2, n)
    acts = (codes @ atoms + 0.1 * rng.normal(size=(n, d_in)) + rng.normal(size=d_in)).astype(np.float32)
    y = (fires ^ (rng.random(n) < flip)).astype(np.int64)
    return codes.astype(np.float32), acts, atoms, Problem("planted", np.arange(n), y, np.arange(n) // 3, ("no", "yes"))


def asked(problem, **options):
    return questions(problem, **({"test_share": 0.3, "n_rows": 10_000, "seed": 0} | options))[0]


def test_the_true_latent_alone_reaches_the_bayes_accuracy():
    codes, _, _, problem = planted()
    question = asked(problem)
    one, five = sparse_scores(sparse.csr_matrix(codes), question, ks=(1, 5), **OPTIONS)
    assert one.values[0, 0] == pytest.approx(0.9, abs=0.03)  # the label is wrong one time in ten
    assert five.values[0, 0] == pytest.approx(one.values[0, 0], abs=0.02)
    fires, test = codes[question.rows[question.fold.test], 7] > 0, question.fold.test
    assert one.values[0, 0] == pytest.approx(float(np.mean(fires == question.y[test])), abs=0.005)
    assert one.values[1:, 0].std() == pytest.approx(np.sqrt(0.09 / len(test)), rel=0.2)  # rows of a document are independent here


def test_random_latents_do_what_random_directions_do_and_less_than_the_truth():
    codes, acts, _, problem = planted(flip=0.0)
    question = asked(problem)
    rng = np.random.default_rng(1)
    random = np.maximum(acts @ rng.normal(size=(acts.shape[1], 120)), 0).astype(np.float32)
    turned = (acts @ np.linalg.qr(rng.normal(size=(40, 40)))[0]).astype(np.float32)
    found = [sparse_scores(X, question, ks=(1,), **OPTIONS)[0].values[0, 0] for X in (codes, sparse.csr_matrix(random), turned)]
    assert found[0] == pytest.approx(1.0, abs=0.005)
    assert abs(found[1] - found[2]) < 0.12
    assert max(found[1:]) < 0.85


def test_shuffled_labels_are_at_chance_and_a_dictionary_of_zeros_says_one_class_only():
    codes, acts, _, problem = planted()
    shuffled = Problem("shuffled", problem.rows, np.random.default_rng(0).permutation(problem.y), problem.groups, problem.classes)
    question = asked(shuffled)
    for X in (sparse.csr_matrix(codes), acts):
        assert sparse_scores(X, question, ks=(1, 5), **OPTIONS)[1].values[0].tolist() == pytest.approx([0.5, 0.5], abs=0.05)
    for draws in sparse_scores(sparse.csr_matrix(codes.shape, dtype=np.float32), asked(problem), ks=(1, 2), **OPTIONS):
        assert draws.values[0].tolist() == [0.5, 0.5]


def test_scores_are_those_of_scikit_learn_sparse_or_dense():
    codes, acts, _, problem = planted()
    question = asked(problem)
    train, test = (question.rows[part] for part in question.fold)
    y = {"train": problem.y[train], "test": problem.y[test]}
    difference = np.abs(codes[train][y["train"] == 1].mean(0) - codes[train][y["train"] == 0].mean(0))
    best = np.argsort(-difference, kind="stable")[:5]
    scale = codes[train][:, best].std(0)
    model = LogisticRegression(C=1.0, tol=1e-8).fit(codes[train][:, best] / scale, y["train"])
    decision = model.decision_function(codes[test][:, best] / scale)
    expected = [np.mean((decision > 0) == y["test"]), roc_auc_score(y["test"], decision)]
    for X in (codes, sparse.csr_matrix(codes)):
        assert sparse_scores(X, question, ks=(5,), **OPTIONS)[0].values[0].tolist() == pytest.approx(expected, abs=2e-3)
    whole = sparse_scores(acts, question, ks=(40,), **OPTIONS)[0].values
    np.testing.assert_allclose(dense_scores(acts, question, **OPTIONS).values, whole, atol=2e-3)


def test_permuted_and_scaled_columns_have_the_same_scores():
    codes, _, _, problem = planted()
    question, order = asked(problem), np.random.default_rng(0).permutation(120)
    found = [sparse_scores(X, question, ks=(1, 5), **OPTIONS)[1].values for X in (codes, 0.01 * codes, codes[:, order])]
    np.testing.assert_allclose(found[1], found[0], atol=1e-9)
    np.testing.assert_allclose(found[2], found[0], atol=1e-9)


def test_questions_are_balanced_split_by_document_and_one_per_class():
    rng = np.random.default_rng(0)
    groups = np.arange(900) // 3
    problem = Problem("four", rng.permutation(2000)[:900], rng.choice(4, 900, p=[0.5, 0.3, 0.18, 0.02]), groups, ("a", "b", "c", "d"))
    found = questions(problem, test_share=0.3, n_rows=200, seed=1)
    assert [question.name for question in found] == ["four: a", "four: b", "four: c"]  # of d there are too few
    label_of = dict(zip(problem.rows.tolist(), problem.y.tolist(), strict=True))
    for label, question in enumerate(found):
        for part in question.fold:
            assert question.y[part].mean() == 0.5
        assert len(question.fold.train) == 200
        assert not np.intersect1d(question.groups[question.fold.train], question.groups[question.fold.test]).size
        assert [int(label_of[row] == label) for row in question.rows.tolist()] == question.y.tolist()


SMALL = SparseProbingConfig(
    texts=TextsConfig(tasks=("era", "noun_class"), n_per_speech=1, n_nouns=80, context=64), ks=(1, 4), n_bootstrap=100
)


def inputs_of(tmp_path, dictionary, **options):
    return Inputs(cache=ResultCache(tmp_path / "cache"), dictionary=dictionary, model=word_model(), site=SITE, **options)


def test_the_measure_reads_the_model_once_for_all_dictionaries(tmp_path, monkeypatch, unchecked):
    inputs = inputs_of(tmp_path, dictionary_of(random_atoms(64, 32), k=6))
    made = SPARSE_PROBING.compute(inputs, SMALL)
    monkeypatch.setattr(type(inputs.language_model), "capture", lambda *_: pytest.fail("the model ran again"))
    other = probing(inputs_of(tmp_path, dictionary_of(random_atoms(64, 32, seed=3), k=6)), SMALL)
    assert {number.quantity for number in made.numbers} == {quantity.name for quantity in SPARSE_PROBING.quantities}
    values = {(number.quantity, number.subject): number for number in made.numbers}
    others = {(number.quantity, number.subject): number for number in other.numbers}
    assert values["accuracy of latents", "k = 4"].value != others["accuracy of latents", "k = 4"].value
    assert values["accuracy of dimensions", "k = 4"] == others["accuracy of dimensions", "k = 4"]
    gain = values["accuracy of latents", "k = 1"].value - values["accuracy of dimensions", "k = 1"].value
    assert values["gain over dimensions", "k = 1"].value == pytest.approx(gain)
    by_task = [values["accuracy by task", f"{task}, k = 4"].value for task in ("era", "noun_class")]
    assert values["accuracy of latents", "k = 4"].value == pytest.approx(np.mean(by_task))
    assert all(number.low <= number.value <= number.high for number in made.numbers)
    assert probing(inputs, SMALL) == made

    read, key = read_texts(inputs, inputs.language_model.site(SITE), SMALL.texts)
    monkeypatch.setattr(sparse_probing, "site_of", None)
    with torch.no_grad():
        z = inputs.chosen("dictionary").encode(read.acts.float()).dense() * inputs.chosen("dictionary").W_dec.norm(dim=1)
    row = int(read.problem("era").rows[3])
    own = torch.from_numpy(read.rows.tokens[read.rows.starts[row] : read.rows.starts[row + 1]])
    codes = read.codes(inputs, key)
    assert sparse.issparse(codes) and codes.shape == (len(read.rows), 64)
    np.testing.assert_allclose(codes[row].toarray()[0], z[own].mean(0).numpy(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(read.pooled()[row], read.acts[own].float().mean(0).numpy(), rtol=1e-4, atol=1e-5)


def test_texts_are_read_as_probe_features_read_them(unchecked):
    model = word_model()
    tasks = offline_tasks(
        TextsConfig(tasks=("noun_class", "leading_capital", "ends_s"), n_per_speech=1, n_nouns=30, n_tokens=3000), model, seed=2
    )
    model_rows = from_model(model, tasks, [SITE], context=64, config=sparse_probing_rows())
    made = captured_texts(model, model.site(SITE), tasks, context=64)
    assert [problem.name for problem in made.problems] == ["noun_class", "leading_capital", "ends_s"]
    for ours, theirs in zip(made.problems, model_rows.problems, strict=True):
        np.testing.assert_array_equal(ours.y, theirs.y)
        np.testing.assert_allclose(made.pooled()[ours.rows], model_rows.source.read(SITE)[theirs.rows], atol=1e-5)
    np.testing.assert_array_equal(made.problem("ends_s").rows, made.problem("leading_capital").rows)
    with pytest.raises(ConfigError, match="task must be one of noun_class"):
        made.problem("era")


def test_rows_are_pooled_block_by_block_as_all_at_once(monkeypatch, tmp_path):
    rng = np.random.default_rng(0)
    starts = np.concatenate([[0], np.cumsum(rng.integers(1, 6, 40))])
    made = Texts((), TokenRows(rng.integers(0, 90, starts[-1]), starts, "mean"), torch.randn(90, 32))
    inputs = inputs_of(tmp_path, dictionary_of(random_atoms(64, 32), k=6))
    whole, codes = made.pooled(), made.codes(inputs, "whole").toarray()
    monkeypatch.setattr(texts, "BLOCK", 7)
    np.testing.assert_allclose(made.pooled(), whole, atol=1e-6)
    np.testing.assert_allclose(made.codes(inputs, "in blocks").toarray(), codes, atol=1e-6)
    np.testing.assert_allclose(whole[3], made.acts[made.rows.tokens[starts[3] : starts[4]]].mean(0).numpy(), atol=1e-5)


def sparse_probing_rows():
    from probes.features import RowConfig

    return RowConfig(missing="drop")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TextsConfig(tasks=("era", "weather")), "tasks must be one or more of era"),
        (lambda: TextsConfig(n_nouns=0), "n_nouns must be at least 1"),
        (lambda: SparseProbingConfig(ks=(1, 1)), "ks must be one or more different"),
        (lambda: SparseProbingConfig(test_share=1.0), "test_share must be inside"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, words):
    with pytest.raises(ConfigError, match=words):
        make()

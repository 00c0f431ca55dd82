"""Sparsity of neurons, activations and codes as measures: their numbers recomputed, planted effects that stand out, and chance that does not."""

import dataclasses
import functools
import math

import numpy as np
import pytest
import torch
from planted_dictionaries import dictionary_of, random_atoms
from tiny import TEXT, tiny_language_model
from tiny_store import RESID, tiny_store
from universal import check_calibrated

from sae.dictionaries.codes import SparseCodes
from sae.errors import ConfigError
from sae.evaluation.activation_sparsity import ActivationSparsity, ActivationSparsityConfig, activation_sparsity
from sae.evaluation.batteries import MEASURES, CodeSample, Inputs, gather, perform, plan
from sae.evaluation.batteries.measures import sparsity as module
from sae.evaluation.batteries.measures.clouds import SparsenessConfig, sparseness_of_activations
from sae.evaluation.batteries.measures.codes import CodeSparsenessConfig, NeededConfig, code_sparseness, needed
from sae.evaluation.batteries.measures.sparsity import ActivationSparsityMeasureConfig, activation_sparsity_of_model
from sae.evaluation.figures import Figure
from sae.evaluation.thinning import RULES, Calibration, calibrate, keep_contributions, keep_rule, prediction_losses
from sae.geometry.sparsity import tail_errors
from sae.models.sites import Site
from sae.storage import ResultCache

WORDS = TEXT.split()
TEXTS = tuple(" ".join(WORDS[i % 60 : i % 60 + 4 + i % 9]) for i in range(20))
CONFIG = ActivationSparsityMeasureConfig(
    increase=0.01,
    n_prompts=10,
    n_calibration=4,
    max_tokens=12,
    ratios=(0.8, 0.4),
    tolerance=0.02,
    null_tokens=20,
    n_null=5,
    n_random=4,
    n_flips=49,
)


@pytest.fixture(scope="module")
def model():
    return tiny_language_model(seed=MODEL_SEED, n_layers=2)


MODEL_SEED = 0
"""Of a random model to which its MLPs are of some use on these texts."""


@pytest.fixture(scope="module")
def inputs(model, tmp_path_factory):
    return Inputs(ResultCache(tmp_path_factory.mktemp("sparsity")), 3, model=model, prompts=TEXTS)


@pytest.fixture(scope="module")
def outcome(inputs):
    return activation_sparsity_of_model(inputs, CONFIG)


def text_of(model, prompts):
    """Tokens and mask, written a second time: the separator and 12 tokens, predictions of what follows a token of the prompt."""
    rows = sorted(([model.separator_id, *ids[:12]] for ids in model.tokenize(list(prompts))), key=len)
    tokens, mask = torch.zeros(len(rows), 13, dtype=torch.long), torch.zeros(len(rows), 13, dtype=torch.bool)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row)
        mask[i, 1 : len(row) - 1] = True
    return tokens, mask


@pytest.fixture(scope="module")
def expected(model, inputs):
    """What the battery's PPL-p% must be: the thresholds of the same split."""
    order = torch.randperm(20, generator=inputs.generator("prompts of activation sparsity")).tolist()
    calibration, text = text_of(model, [TEXTS[i] for i in order[:4]]), text_of(model, [TEXTS[i] for i in order[4:14]])
    config = ActivationSparsityConfig(increase=0.01, tolerance=0.002)
    return text, calibration, activation_sparsity(model, *text, calibration=calibration[0], calibration_mask=calibration[1], config=config)


def numbers_of(outcome, name):
    return {number.subject: number for number in outcome.numbers if number.quantity == name}


def test_the_thresholds_are_those_of_ppl_p(outcome, expected):
    (_, mask), (_, calibration_mask), found = expected
    (cett,) = numbers_of(outcome, "CETT at PPL-p %").values()
    (rise,) = numbers_of(outcome, "rise of the perplexity").values()
    assert cett.value == pytest.approx(found.cett) and cett.p is None
    assert rise.value == pytest.approx(found.perplexity_sparse / found.perplexity_dense - 1, rel=1e-4)
    assert rise.value <= 0.01 and rise.n_null == 4
    (mean,) = numbers_of(outcome, "mean activation ratio").values()
    ratios = numbers_of(outcome, "activation ratio")
    assert list(ratios) == [site.name for site in found.sites]
    assert mean.value == pytest.approx(np.mean([number.value for number in ratios.values()]))
    assert mean.null_mean == pytest.approx(np.mean([number.null_mean for number in ratios.values()]))
    for number, ratio in zip(ratios.values(), found.activation_ratio.tolist(), strict=True):
        assert number.note.endswith(f"{ratio:.3f} on those of the perplexity")
        assert number.n_null == 5 and number.value == pytest.approx(ratio, abs=0.15)
    assert f"10 prompts, {int(mask.sum())} predictions" in outcome.notes[0]
    assert f"from {int(calibration_mask.sum())} tokens of 4 other prompts" in outcome.notes[0]


def test_losses_beyond_cett_are_means_over_predictions_with_signs_of_prompts(model, outcome, expected):
    (tokens, mask), calibration, found = expected
    calibrated = calibrate(model, *calibration)
    best = prediction_losses(
        model, tokens, mask, keep=keep_contributions(calibrated, dict(zip(found.sites, found.thresholds.tolist(), strict=True)))
    )
    for rule, name in (("fixed", "fixed threshold"), ("top_k", "largest of each token")):
        keep = keep_rule(rule, calibrated, found.activation_ratio.mean().item())
        difference = prediction_losses(model, tokens, mask, keep=keep) - best
        number = numbers_of(outcome, "loss beyond CETT")[name]
        assert number.value == pytest.approx(difference.mean().item(), rel=1e-3, abs=1e-6)
        of_prompt = torch.stack([part.sum() for part in difference.split(mask.sum(1).tolist())]) / len(difference)
        assert abs(number.null_mean) < 4 * of_prompt.norm().item() / 49**0.5
        assert number.null_sd == pytest.approx(of_prompt.norm().item(), rel=0.35)  # of a sum with random signs
        assert number.n_null == 49


def test_each_rule_has_the_share_that_it_needs_and_a_curve(outcome, expected):
    found = numbers_of(outcome, "activation ratio at PPL-p %")
    assert set(found) == set(module.NAMES.values()) == {series.name for series in outcome.figures[0].series}
    chance = found["random neurons"]
    assert chance.null_mean is None
    assert all(number.null_mean == chance.value and number.p is None for name, number in found.items() if name != "random neurons")
    curves, layers = outcome.figures
    dense = expected[2].perplexity_dense
    for series in curves.series:
        assert (series.x[0], series.y[0]) == (1.0, pytest.approx(dense, rel=1e-4))
        assert list(series.x) == sorted(series.x, reverse=True) and len(series.x) >= 3
    assert [series.role for series in curves.series] == ["null", "result", "result", "result"]
    for series in layers.series:
        assert np.mean(series.y) == pytest.approx(found[series.name].value)
    assert layers.x.names == ("0", "1")


def test_the_measure_runs_in_its_battery_and_draws_the_layers(inputs):
    tasks = plan(["sparsity"], inputs, configs={"activation_sparsity": CONFIG})
    (group,) = gather([perform(task, inputs) for task in tasks], seed=3).groups
    assert {figure.title for figure in group.figures} >= {"activation ratio, by site", "Perplexity against the share of neurons kept"}
    assert all(f.null for f in group.findings if f.p is not None)


def test_without_prompts_or_a_rise_the_reason_is_said(model, inputs):
    with pytest.raises(ConfigError, match="prompts must be at least 4, got 3: give more lines"):
        activation_sparsity_of_model(dataclasses.replace(inputs, prompts=TEXTS[:3]), CONFIG)
    with pytest.raises(ConfigError, match="mask must have the shape"):
        activation_sparsity_of_model(dataclasses.replace(inputs, prompts=("a",) * 8), CONFIG)
    configs = {"activation_sparsity": dataclasses.replace(CONFIG, increase=1e6)}
    (task,) = plan(["sparsity"], inputs, configs=configs)
    assert "increase must be crossed" in perform(task, inputs).reason


def planted_calibration(acts, writers):
    site = Site(name="blocks.0.mlp.hook_post", layer=0, kind="mlp_post", width=acts.shape[1])
    curve = tail_errors(acts, writers)
    return Calibration((site,), {site: acts}, {site: writers}, {site: curve}, acts.flatten().abs().sort().values)


def ratio_of(acts, writers, seed=0):
    """The number of one planted layer at CETT 0.2."""
    calibration = planted_calibration(acts, writers)
    one = torch.ones(1).double()
    found = ActivationSparsity(calibration.sites, 0.2, one, one, one, 10.0, 10.1, torch.zeros(1, 2).double(), 9)
    inputs = Inputs(ResultCache("unused"), seed)
    config = dataclasses.replace(CONFIG, null_tokens=60, n_null=19)
    return module._ratios(inputs, calibration, found, config)[1]


def test_few_neurons_of_each_token_stand_out_from_gaussian_ones_and_gaussian_ones_do_not():
    generator = torch.Generator().manual_seed(0)
    writers = torch.randn(48, 12, generator=generator)
    sparse = torch.randn(300, 48, generator=generator) * (torch.rand(300, 48, generator=generator) < 0.1)
    sparse += 0.01 * torch.randn(300, 48, generator=generator)
    number = ratio_of(sparse, writers)
    assert number.p == pytest.approx(1 / 20) and number.value < 0.2 < number.null_mean
    scales = torch.logspace(-1, 0, 48)  # unequal neurons are the null's own
    assert 0.05 < ratio_of(torch.randn(300, 48, generator=generator) * scales, writers).p < 0.96

    def p(seed):
        drawn = torch.Generator().manual_seed(1000 + seed)
        return ratio_of(torch.randn(300, 48, generator=drawn) * scales + 0.1, writers, seed).p

    check_calibrated(p, n_draws=60)


@dataclasses.dataclass(frozen=True, eq=False)
class Planted(Inputs):
    """Inputs whose activations, or codes, are given."""

    cloud: object = None
    sample: object = None

    def points(self, site, n):
        return self.cloud[:n].float()

    def codes(self, n_tokens, which="dictionary"):
        codes = self.sample
        return CodeSample(codes, torch.arange(len(codes)), torch.arange(len(codes)))


def activations(cloud, seed=0):
    return Planted(ResultCache("unused"), seed, site=RESID, cloud=cloud)


def test_sparseness_of_activations_is_that_of_tokens_and_of_coordinates():
    cloud = torch.randn(90, 7, generator=torch.Generator().manual_seed(0)).double().float() ** 3
    found = {n.quantity: n for n in sparseness_of_activations(activations(cloud), SparsenessConfig(n_tokens=80, n_null=9)).numbers}
    x = cloud[:80].double().numpy()

    def gini(v):
        v = np.abs(v)
        return np.abs(v[:, None] - v).sum() / (2 * len(v) * v.sum())

    hoyer = [(math.sqrt(7) - np.abs(v).sum() / np.linalg.norm(v)) / (math.sqrt(7) - 1) for v in x]
    kurtosis = ((x - x.mean(0)) ** 4).mean(0) / x.var(0) ** 2
    assert found["Gini of a token"].value == pytest.approx(np.mean([gini(v) for v in x]))
    assert found["Hoyer of a token"].value == pytest.approx(np.mean(hoyer))
    assert found["Gini of a coordinate"].value == pytest.approx(np.median([gini(v) for v in x.T]))
    assert found["kurtosis of a coordinate"].value == pytest.approx(np.median(kurtosis))
    assert found["largest kurtosis"].value == pytest.approx(kurtosis.max())
    assert all(number.p == pytest.approx(0.1) and number.value > number.null_mean for number in found.values())
    assert found["largest kurtosis"].note == "80 tokens of width 7"


def test_gaussian_activations_of_any_covariance_are_not_sparse():
    mixing = torch.randn(6, 6, generator=torch.Generator().manual_seed(1))

    @functools.cache
    def p_values(seed):
        cloud = torch.randn(150, 6, generator=torch.Generator().manual_seed(seed)) @ mixing + 0.5
        outcome = sparseness_of_activations(activations(cloud, seed), SparsenessConfig(n_tokens=150, n_null=19))
        return {number.quantity: number.p for number in outcome.numbers}

    for name in ("Gini of a token", "Gini of a coordinate", "kurtosis of a coordinate", "largest kurtosis"):
        check_calibrated(lambda seed, name=name: p_values(seed)[name], n_draws=60)


def test_constant_coordinates_are_left_out_and_constant_activations_refused():
    cloud = torch.randn(50, 5, generator=torch.Generator().manual_seed(0))
    with_constant = torch.cat([cloud, torch.full((50, 2), 3.0)], dim=1)
    found = sparseness_of_activations(activations(with_constant), SparsenessConfig(n_null=2))
    alone = sparseness_of_activations(activations(cloud), SparsenessConfig(n_null=2))
    assert [n.value for n in found.numbers] == [n.value for n in alone.numbers]
    assert found.numbers[0].note.endswith("2 constant coordinates left out")
    with pytest.raises(ConfigError, match="must have a coordinate that varies"):
        sparseness_of_activations(activations(torch.ones(50, 5)), SparsenessConfig(n_null=2))
    with pytest.raises(ConfigError, match="at least 4 tokens"):
        sparseness_of_activations(activations(cloud[:3]), SparsenessConfig(n_null=2))


def coded(values, seed=0, d_sae=40, dictionary=None):
    """Inputs whose tokens have these values [n, k] at latents drawn without replacement."""
    n, k = values.shape
    generator = torch.Generator().manual_seed(seed)
    indices = torch.rand(n, d_sae, generator=generator).argsort(dim=1)[:, :k]
    codes = SparseCodes(indices, values, torch.full((n,), k), d_sae)
    return Planted(ResultCache("unused"), seed, dictionary=dictionary, sample=codes)


def test_values_that_are_alike_within_a_token_are_less_unequal_than_values_dealt_anew():
    generator = torch.Generator().manual_seed(0)
    alike = (3 * torch.rand(200, 1, generator=generator) + 0.1).expand(200, 5) * (1 + 0.01 * torch.rand(200, 5, generator=generator))
    found = {n.quantity: n for n in code_sparseness(coded(alike.contiguous()), CodeSparsenessConfig(n_null=39)).numbers}
    gini, effective = found["Gini of a token's code"], found["effective latents of a token"]
    assert gini.value == pytest.approx(1 - 5 / 40, abs=0.002) and gini.value < gini.null_mean and gini.p == pytest.approx(2 / 40)
    assert effective.value == pytest.approx(5, abs=0.01) and effective.value > effective.null_mean and effective.p == pytest.approx(2 / 40)
    dense = coded(alike.contiguous()).sample.dense().double().abs().numpy().T
    expected = [np.abs(v[:, None] - v).sum() / (2 * len(v) * v.sum()) for v in dense if v.any()]
    assert found["Gini of a latent"].value == pytest.approx(np.median(expected), abs=0.003)


def test_values_without_structure_have_uniform_p_values():
    @functools.cache
    def p_values(seed):
        values = torch.rand(60, 4, generator=torch.Generator().manual_seed(seed)) + 0.1
        return {number.quantity: number.p for number in code_sparseness(coded(values, seed), CodeSparsenessConfig(n_null=19)).numbers}

    for name in ("Gini of a token's code", "effective latents of a token", "Gini of a latent"):
        check_calibrated(lambda seed, name=name: p_values(seed)[name], n_draws=60)


def test_orthonormal_atoms_need_the_share_of_latents_that_pythagoras_leaves():
    inputs = coded(torch.full((30, 10), 0.7), dictionary=dictionary_of(torch.eye(40)))
    outcome = needed(inputs, NeededConfig(errors=(0.3, 0.55, 0.8), n_null=5))
    found = {n.subject: n for n in outcome.numbers}
    assert [n.value for n in found.values()] == [10 - math.floor(e**2 * 10) for e in (0.3, 0.55, 0.8)]
    assert all(n.null_sd == 0 and n.p == 1 for n in found.values())  # no deal changes the angles
    assert list(found) == ["relative error 0.3", "relative error 0.55", "relative error 0.8"]
    assert outcome.figures[0].series[1].y == tuple(n.value for n in found.values())


def test_atoms_that_add_up_need_fewer_latents_than_atoms_dealt_at_random():
    groups = torch.arange(40) // 4
    atoms = random_atoms(10, 64)[groups] + 1e-3 * random_atoms(40, 64, seed=1)
    generator = torch.Generator().manual_seed(0)
    indices = torch.randint(0, 10, (80, 1), generator=generator) * 4 + torch.arange(4)  # a token has the four atoms of a group
    codes = SparseCodes(indices, torch.rand(80, 4, generator=generator) * 0.02 + 1, torch.full((80,), 4), 40)
    inputs = Planted(ResultCache("unused"), 0, dictionary=dictionary_of(atoms), sample=codes)
    (number,) = needed(inputs, NeededConfig(errors=(0.4,), n_null=39)).numbers
    assert number.value == 3 and number.null_mean > 3.5 and number.p == pytest.approx(2 / 40)  # a quarter of the length may go


def test_codes_without_latents_are_refused():
    codes = SparseCodes(torch.zeros(5, 2).long(), torch.zeros(5, 2), torch.zeros(5).long(), 40)
    inputs = Planted(ResultCache("unused"), 0, dictionary=dictionary_of(torch.eye(40)), sample=codes)
    with pytest.raises(ConfigError, match="a latent that fires"):
        needed(inputs, NeededConfig())
    with pytest.raises(ConfigError, match="at least 2 active latents"):
        code_sparseness(inputs, CodeSparsenessConfig())


def test_measures_of_sparseness_run_on_a_real_store_with_their_figures(tmp_path):
    store = tiny_store(tmp_path / "acts")
    site = store.site_names[0]
    inputs = Inputs(ResultCache(tmp_path / "cache"), 0, dictionary_of(random_atoms(48, 32)), store=store, sites=(site,), site=site)
    chosen = {"sparseness", "code_sparseness", "needed_latents"}
    tasks = [task for task in plan(["codes", "activations"], inputs, quick=True) if task.measure.name in chosen]
    results = gather([perform(task, inputs) for task in tasks], seed=0)
    assert {group.measure for group in results.groups} == chosen
    figures = {group.measure: group.figures for group in results.groups}
    assert all(isinstance(figure, Figure) for several in figures.values() for figure in several)
    assert len(figures["sparseness"]) == len(figures["needed_latents"]) == 1
    assert all(f.p is not None for f in results.findings)


def test_rules_have_names_and_measures_their_place():
    assert set(module.NAMES) == set(RULES)
    assert MEASURES["activation_sparsity"].needs == ("model",)

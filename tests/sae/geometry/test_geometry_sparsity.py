"""CETT, the latents an error needs, and statistics of sparse codes, against closed forms and dense loops."""

import builtins
import math

import numpy as np
import pytest
import torch
from universal import Measure, check, check_calibrated

from sae.dictionaries.codes import SparseCodes
from sae.errors import ConfigError
from sae.geometry.densities import densities, row_sparseness, sparseness
from sae.geometry.nulls import compare
from sae.geometry.sparsity import (
    activation_ratio_for,
    cett_for_increase,
    common_cett,
    gaussian_like,
    needed_latents,
    tail_error,
    tail_errors,
    threshold_for,
)


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def direct(acts, weights, threshold):
    """CETT by the definition, a token at a time."""
    found = []
    for x in acts.numpy():
        terms = x[:, None] * weights.numpy()
        out = np.linalg.norm(terms.sum(0))
        if out > 0:
            small = np.linalg.norm(terms, axis=1) <= threshold * (1 + 1e-12)
            found.append(np.linalg.norm(terms[small].sum(0)) / out)
    return np.mean(found)


def orthonormal_case(n=100, k=10, small=0.01, n_tokens=7):
    """Every token has k neurons at 1 and the others at `small`, which ones at random; w_i orthonormal."""
    acts = torch.full((n_tokens, n), small, dtype=torch.float64)
    for row in acts:
        row[torch.randperm(n, generator=torch.Generator().manual_seed(int(row[0] * 0) + 3))[:k]] = 1
    return acts, torch.linalg.qr(gaussian(n, n)).Q


def test_orthonormal_neurons_have_the_closed_form():
    acts, weights = orthonormal_case()
    expected = 0.01 * math.sqrt(90) / math.sqrt(10 + 0.01**2 * 90)
    assert expected == pytest.approx(0.02999, abs=1e-5)
    for threshold in (0.0101, 0.5, 0.999):
        assert tail_error(acts, weights, threshold) == pytest.approx(expected, rel=1e-9)
    curve = tail_errors(acts, weights)
    assert threshold_for(curve, expected * 1.0001) == pytest.approx(0.01, rel=1e-6)
    assert activation_ratio_for(curve, expected * 1.0001) == pytest.approx(0.1, abs=1e-9)
    assert tail_error(acts, weights, 1.1) == pytest.approx(1)


@pytest.mark.parametrize(("n_tokens", "m", "d"), [(5, 12, 4), (9, 3, 20), (1, 6, 6)])
def test_the_curve_is_the_definition_at_every_contribution(n_tokens, m, d):
    acts, weights = gaussian(n_tokens, m), gaussian(m, d, seed=1)
    acts[0, :2] = 0
    curve = tail_errors(acts, weights)
    lengths = (acts.abs() * weights.norm(dim=1)).flatten()
    torch.testing.assert_close(curve.thresholds, lengths.unique())
    for threshold, error, kept in zip(curve.thresholds.tolist(), curve.errors.tolist(), curve.kept.tolist(), strict=True):
        assert error == pytest.approx(direct(acts, weights, threshold), abs=1e-10)
        assert kept == pytest.approx((lengths > threshold).double().mean().item(), abs=1e-12)
        assert tail_error(acts, weights, threshold) == pytest.approx(error, abs=1e-10)
    assert curve.errors[-1] == pytest.approx(1) and curve.kept[-1] == pytest.approx(0, abs=1e-12)


def test_torch_and_the_compiled_loop_give_the_same_curve(monkeypatch):
    acts, weights = gaussian(6, 15), gaussian(15, 5, seed=1)
    expected = tail_errors(acts, weights)
    plain = builtins.__import__

    def without_numba(name, *arguments, **options):
        if name == "sae.geometry.tail_loops":
            raise ImportError(name)
        return plain(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without_numba)
    found = tail_errors(acts, weights)
    torch.testing.assert_close(found.errors, expected.errors)
    torch.testing.assert_close(found.thresholds, expected.thresholds)


def test_contributions_do_not_depend_on_how_they_are_split_between_acts_and_weights():
    acts, weights = gaussian(6, 9), gaussian(9, 4, seed=1)
    scales = torch.linspace(0.2, 5, 9, dtype=torch.float64)
    torch.testing.assert_close(tail_errors(acts, weights).errors, tail_errors(acts / scales, weights * scales[:, None]).errors)
    turned = tail_errors(acts, weights @ torch.linalg.qr(gaussian(4, 4, seed=2)).Q)
    torch.testing.assert_close(turned.errors, tail_errors(acts, weights).errors)
    single = tail_errors(acts.float(), weights.float())
    torch.testing.assert_close(single.errors, tail_errors(acts.float().double(), weights.float().double()).errors)


def test_fewer_points_keep_exact_values_and_both_ends():
    acts, weights = gaussian(8, 30), gaussian(30, 6, seed=1)
    whole, some = tail_errors(acts, weights), tail_errors(acts, weights, max_points=17)
    assert len(some.thresholds) == 17 and some.thresholds[0] == whole.thresholds[0] and some.thresholds[-1] == whole.thresholds[-1]
    places = torch.searchsorted(whole.thresholds, some.thresholds)
    assert torch.equal(whole.errors[places], some.errors) and torch.equal(whole.kept[places], some.kept)


def test_a_threshold_is_the_largest_up_to_which_the_error_stays_in_bounds():
    # contributions 1, 2 and 3 along one axis, the second against the others: errors 1/2, -1/2, 2/2
    curve = tail_errors(torch.tensor([[1.0, -2.0, 3.0]]), torch.ones(3, 1))
    assert curve.errors.tolist() == pytest.approx([0.5, 0.5, 1.0])
    assert threshold_for(curve, 0.4) == 0 and activation_ratio_for(curve, 0.4) == 1
    assert threshold_for(curve, 0.6) == 2 and activation_ratio_for(curve, 0.6) == pytest.approx(1 / 3)
    falling = tail_errors(torch.tensor([[2.0, -3.0, 4.0, 5.0]]), torch.ones(4, 1))
    assert falling.errors.tolist() == pytest.approx([0.25, 0.125, 0.375, 1.0])
    assert threshold_for(falling, 0.2) == 0  # the first step exceeds it, though the second would not
    assert threshold_for(falling, 1.0) == 5


def test_zero_neurons_cost_nothing_and_silent_tokens_are_left_out():
    acts = torch.tensor([[0.0, 0.0, 1.0, 2.0], [0.0, 0.0, 0.0, 0.0], [1.0, -1.0, 0.0, 0.0]])
    weights = torch.ones(4, 2)
    curve = tail_errors(acts, weights)
    assert (curve.n_tokens, curve.n_silent) == (1, 2)
    assert threshold_for(curve, 0.0) == 0 and activation_ratio_for(curve, 0.0) == 0.5
    assert tail_error(acts, weights, 1.5) == pytest.approx(1 / 3, rel=1e-6)


def test_bisection_finds_the_crossing_from_below():
    calls = []

    def increase_at(cett):
        calls.append(cett)
        return cett**2 - 0.001

    found = cett_for_increase(increase_at, 0.01, tolerance=1e-6)
    assert found <= math.sqrt(0.011) and found == pytest.approx(math.sqrt(0.011), abs=2e-6)
    assert increase_at(found) <= 0.01 and len(calls) < 26
    for increase, high in ((2.0, 1.0), (-0.5, 1.0), (0.01, 0.05)):
        with pytest.raises(ConfigError, match="increase must be crossed"):
            cett_for_increase(increase_at, increase, high=high)


def random_codes(n=40, d_sae=25, k=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    indices = torch.stack([torch.randperm(d_sae, generator=generator)[:k] for _ in range(n)])
    values = torch.randn(n, k, generator=generator, dtype=torch.float64)
    counts = torch.randint(0, k + 1, (n,), generator=generator)
    used = torch.arange(k) < counts[:, None]
    return SparseCodes(indices * used, values * used, counts, d_sae)


def slots(codes):
    return codes.indices, codes.values, codes.counts


def test_needed_latents_are_those_left_when_the_smallest_go():
    codes, atoms = random_codes(), gaussian(25, 7, seed=1)
    errors = (0.0, 0.1, 0.5, 0.99, 2.0)
    found = needed_latents(*slots(codes), atoms, errors=errors)
    for t in range(len(codes)):
        z = codes.dense()[t].numpy()
        terms = z[:, None] * atoms.numpy()
        total = np.linalg.norm(terms.sum(0))
        order = [i for i in np.argsort(np.linalg.norm(terms, axis=1), kind="stable") if z[i] != 0]
        for e, error in enumerate(errors):
            dropped = 0
            while dropped < len(order) and np.linalg.norm(terms[order[: dropped + 1]].sum(0)) <= error * total * (1 + 1e-12):
                dropped += 1
            assert found[e, t] == (len(order) - dropped if total > 0 else 0), (t, error)
    assert torch.equal(found[0], codes.counts)


def test_orthonormal_atoms_need_as_many_latents_as_the_error_leaves():
    values = torch.tensor([[4.0, 3.0, 2.0, 1.0]])
    indices = torch.tensor([[3, 0, 2, 1]])
    total = math.sqrt(30)
    errors = [0.99 / total, 1.01 / total, math.sqrt(5.01) / total, math.sqrt(14.01) / total]
    found = needed_latents(indices, values, torch.tensor([4]), torch.eye(4), errors=errors)
    assert found[:, 0].tolist() == [4, 3, 2, 1]


def test_an_error_that_falls_again_does_not_let_more_latents_go():
    values, indices = torch.tensor([[4.0, 2.0, 5.0, -3.0]]), torch.tensor([[0, 1, 2, 3]])
    # without the smallest 1, 2, 3 of them the errors are 2/8, 1/8 and 3/8
    found = needed_latents(indices, values, torch.tensor([4]), torch.ones(4, 1), errors=[0.2, 0.3, 0.4])
    assert found[:, 0].tolist() == [4, 2, 1]


def test_densities_count_what_fired():
    codes = random_codes(n=500)
    dense = codes.dense()
    found = densities(*slots(codes), n_latents=25)
    torch.testing.assert_close(found.frequency, (dense != 0).double().mean(0))
    l0 = (dense != 0).sum(1).double()
    assert found.mean_l0 == pytest.approx(l0.mean().item()) == pytest.approx(codes.mean_l0())
    torch.testing.assert_close(found.l0_quantiles, l0.quantile(torch.tensor([0, 0.25, 0.5, 0.75, 1.0], dtype=torch.float64)))
    expected = np.histogram(found.frequency.log10().numpy(), bins=found.bin_edges.numpy())[0]
    assert found.histogram.tolist() == expected.tolist() and found.n_dead == 0
    assert found.always_share == pytest.approx((found.frequency > 0.1).double().mean().item())


def test_dead_latents_are_counted_and_bounded_by_the_rule_of_three():
    indices = torch.tensor([[0, 1], [0, 2], [0, 3], [0, 0]])
    values = torch.tensor([[1.0, 2.0], [1.0, 0.0], [-1.0, 2.0], [1.0, 0.0]])
    found = densities(indices, values, torch.tensor([2, 2, 2, 1]), n_latents=6)
    assert found.frequency.tolist() == [1, 0.25, 0, 0.25, 0, 0]
    assert found.n_dead == 3 and found.dead_bound == 0.75 and found.histogram.sum() == 3 and found.histogram[-1] == 1
    assert densities(indices[:1], values[:1], torch.tensor([2]), n_latents=6).dead_bound == 1


@pytest.mark.parametrize("over", ["latents", "tokens"])
def test_sparseness_from_codes_is_that_of_the_dense_matrix(over):
    codes = random_codes()
    found = sparseness(*slots(codes), n_latents=25, over=over)
    dense = codes.dense().numpy()
    for g, z in enumerate(dense if over == "latents" else dense.T):
        n, size = len(z), np.abs(z)
        if not size.any():
            assert math.isnan(found.hoyer[g]) and math.isnan(found.gini[g]) and math.isnan(found.participation_ratio[g])
            continue
        assert found.hoyer[g].item() == pytest.approx((math.sqrt(n) - size.sum() / np.linalg.norm(z)) / (math.sqrt(n) - 1), abs=1e-9)
        gini = np.abs(size[:, None] - size).sum() / (2 * n * size.sum())
        assert found.gini[g].item() == pytest.approx(gini, abs=1e-9)
        assert found.kurtosis[g].item() == pytest.approx(((z - z.mean()) ** 4).mean() / z.var() ** 2, rel=1e-9)
        assert found.participation_ratio[g].item() == pytest.approx((z**2).sum() ** 2 / (z**4).sum(), rel=1e-9)


def test_one_active_latent_and_equal_latents_are_the_ends_of_the_scales():
    n = 16
    one = sparseness(torch.tensor([[5]]), torch.tensor([[-2.0]]), torch.tensor([1]), n_latents=n, over="latents")
    assert (one.hoyer.item(), one.gini.item(), one.participation_ratio.item()) == pytest.approx((1, 1 - 1 / n, 1))
    equal = sparseness(torch.arange(n)[None], torch.full((1, n), 0.3), torch.tensor([n]), n_latents=n, over="latents")
    assert (equal.hoyer.item(), equal.gini.item(), equal.participation_ratio.item()) == pytest.approx((0, 0, n), abs=1e-7)
    assert math.isnan(equal.kurtosis.item())


def test_rows_have_the_sparseness_of_their_codes_and_columns_that_of_the_tokens():
    codes = random_codes()
    dense = codes.dense().double()
    for rows, over in ((dense, "latents"), (dense.T, "tokens")):
        found, expected = row_sparseness(rows), sparseness(*slots(codes), n_latents=25, over=over)
        for name in ("hoyer", "gini", "kurtosis", "participation_ratio"):
            torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-9, atol=1e-9, equal_nan=True)


def test_gaussian_rows_have_the_sparseness_of_the_closed_forms():
    found = row_sparseness(gaussian(20, 20_000))
    assert found.gini.mean().item() == pytest.approx(math.sqrt(2) - 1, abs=0.002)
    assert found.hoyer.mean().item() == pytest.approx(
        (math.sqrt(20_000) * (1 - math.sqrt(2 / math.pi))) / (math.sqrt(20_000) - 1), abs=0.002
    )
    assert found.kurtosis.mean().item() == pytest.approx(3, abs=0.05)
    assert found.participation_ratio.mean().item() == pytest.approx(20_000 / 3, rel=0.02)
    laplace = torch.distributions.Laplace(0.0, 1.0).icdf(torch.rand(20, 20_000, generator=torch.Generator().manual_seed(1)).double())
    assert row_sparseness(laplace).gini.mean().item() == pytest.approx(0.5, abs=0.003)  # of an exponential law
    assert row_sparseness(laplace).kurtosis.mean().item() == pytest.approx(6, abs=0.3)


@pytest.mark.parametrize(
    "measure",
    [
        Measure("gini", lambda x: row_sparseness(x).gini.mean(), rotation=False, scale=True, translation=False, constant_column=True),
        Measure("hoyer", lambda x: row_sparseness(x).hoyer.mean(), rotation=False, scale=True, translation=False),
        Measure("kurtosis", lambda x: row_sparseness(x.T).kurtosis.nan_to_num(1).mean(), rotation=False, scale=True, translation=True),
    ],
    ids=str,
)
def test_sparseness_has_the_properties_of_a_measure(measure):
    check(measure)


def test_gaussian_rows_have_the_mean_and_the_covariance_of_the_points():
    points = gaussian(40, 6) @ gaussian(6, 6, seed=1) + 3 * gaussian(6, seed=2)
    drawn = gaussian_like(points, 200_000, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.mean(0), points.mean(0), rtol=0, atol=0.05)
    torch.testing.assert_close(drawn.T.cov(), points.T.cov(), rtol=0.03, atol=0.1)
    assert row_sparseness(drawn.T).kurtosis.tolist() == pytest.approx([3] * 6, abs=0.08)
    assert gaussian_like(points.half(), 3, generator=torch.Generator().manual_seed(0)).dtype == torch.float32


def test_p_values_of_sparseness_are_uniform_on_gaussian_points():
    def p(seed):
        generator = torch.Generator().manual_seed(seed)
        points = torch.randn(120, 5, generator=generator, dtype=torch.float64) @ gaussian(5, 5) + 1
        draws = [row_sparseness(gaussian_like(points, 120, generator=generator).T).kurtosis.median() for _ in range(19)]
        return compare(row_sparseness(points.T).kurtosis.median().item(), torch.stack(draws)).p_greater

    check_calibrated(p, n_draws=120)


def test_the_common_cett_is_the_smallest_that_keeps_no_more_than_the_share():
    curves = [tail_errors(gaussian(6, 8, seed=s) * 10.0**s, gaussian(8, 3, seed=9)) for s in range(3)]
    levels = torch.cat([curve.errors.cummax(0).values for curve in curves]).sort().values

    def kept(cett):
        return np.mean([activation_ratio_for(curve, cett) for curve in curves])

    for ratio in (0.05, 0.3, 0.5, 0.9):
        expected = next(level for level in levels.tolist() if kept(level) <= ratio)
        found = common_cett(curves, ratio)
        assert found == pytest.approx(expected, rel=1e-12) and kept(found) <= ratio
    assert common_cett(curves, 1.0) == 0 and kept(common_cett(curves, 0.0)) == 0
    acts, weights = orthonormal_case()
    both = [tail_errors(acts, weights), tail_errors(100 * acts, weights)]
    assert common_cett(both, 0.1) == pytest.approx(0.02999, abs=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tail_errors(gaussian(3, 4), gaussian(5, 2)), "a column per row"),
        (lambda: tail_errors(torch.zeros(3, 4), gaussian(4, 2)), "3 silent tokens"),
        (lambda: tail_errors(gaussian(3, 4) * math.nan, gaussian(4, 2)), "finite"),
        (lambda: tail_errors(gaussian(3, 4), gaussian(4, 2), max_points=1), "max_points"),
        (lambda: tail_error(gaussian(3, 4), gaussian(4, 2), -1.0), "threshold must be"),
        (lambda: tail_error(torch.zeros(3, 4), gaussian(4, 2), 1.0), "silent"),
        (lambda: threshold_for(tail_errors(gaussian(3, 4), gaussian(4, 2)), math.nan), "cett must be"),
        (lambda: cett_for_increase(lambda c: c, 0.5, tolerance=0.0), "tolerance"),
        (lambda: needed_latents(*slots(random_codes()), gaussian(20, 3), errors=[0.1]), "indices must be in 0..19"),
        (lambda: needed_latents(*slots(random_codes()), gaussian(25, 3), errors=[]), "errors must hold"),
        (lambda: densities(*slots(random_codes()), n_latents=25, n_bins=0), "n_bins"),
        (
            lambda: densities(torch.tensor([[1, 1]]), torch.ones(1, 2), torch.tensor([2]), n_latents=3),
            "merge codes first",
        ),
        (lambda: densities(torch.tensor([[1]]), torch.ones(1, 1), torch.tensor([2]), n_latents=3), "counts must hold"),
        (lambda: densities(torch.tensor([[1]]), torch.ones(1, 1) * math.inf, torch.tensor([1]), n_latents=3), "values must be finite"),
        (lambda: sparseness(*slots(random_codes()), n_latents=25, over="rows"), "over must be"),
        (lambda: row_sparseness(gaussian(3, 1)), "at least 2 numbers"),
        (lambda: row_sparseness(gaussian(3, 4) * math.nan), "finite"),
        (lambda: gaussian_like(gaussian(1, 4), 3, generator=torch.Generator()), "at least 2"),
        (lambda: gaussian_like(gaussian(5, 4), 0, generator=torch.Generator()), "n must be at least 1"),
        (lambda: common_cett([], 0.5), "curves must be one or more"),
        (lambda: common_cett([tail_errors(gaussian(3, 4), gaussian(4, 2))], 1.5), r"ratio in 0\.\.1"),
        (lambda: sparseness(torch.tensor([[0]]), torch.ones(1, 1), torch.tensor([1]), n_latents=1, over="latents"), "at least 2 latents"),
    ],
)
def test_bad_input_to_sparsity_is_refused_by_name(call, message, unchecked):
    with pytest.raises(ConfigError, match=message):
        call()

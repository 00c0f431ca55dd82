"""Matrices of a measure over layers, and the null of their largest entry."""

import pytest
import torch
from universal import check_calibrated

from sae.errors import ConfigError
from sae.geometry.representations import (
    Cka,
    Cknna,
    CycleNeighbours,
    HeldOutProcrustes,
    MutualNeighbours,
    ProcrustesSimilarity,
    RbfCka,
    Rsa,
    Svcca,
    compare_layers,
    compare_representations,
    layer_matrix,
    stimulus_orders,
)


def normal(n, d, seed):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def stack(n, n_layers, seed, d=4):
    return [normal(n, d + i, 100 * seed + i) for i in range(n_layers)]


ALL = [Cka(), Cka("biased"), RbfCka(), Cknna(k=5), MutualNeighbours(k=5), CycleNeighbours(k=3), Svcca(n_components=3), Rsa(),
       ProcrustesSimilarity(), HeldOutProcrustes(2)]  # fmt: skip


@pytest.mark.parametrize("measure", ALL, ids=[f"{i}-{type(m).__name__}" for i, m in enumerate(ALL)])
def test_a_matrix_holds_the_measure_of_every_pair_of_layers(measure):
    first, second = stack(24, 2, 1), stack(24, 3, 2)
    second[1] = first[0] + 0.3 * normal(24, 4, 7)
    between = layer_matrix(measure, first, second)
    assert between.shape == (2, 3)
    for i, x in enumerate(first):
        for j, y in enumerate(second):
            assert float(between[i, j]) == pytest.approx(measure(x, y), abs=1e-12)
    within = layer_matrix(measure, second)
    for i, x in enumerate(second):
        for j, y in enumerate(second):
            assert float(within[i, j]) == pytest.approx(measure(x, y), abs=1e-9)
    assert measure.symmetric == torch.allclose(within, within.T, atol=1e-9)


def test_the_null_of_the_largest_pair_is_the_largest_pair_under_the_same_shuffles():
    first, second = stack(20, 3, 3), stack(20, 2, 4)
    measure = Cka("biased")
    found = compare_layers(measure, first, second, n_null=15, generator=torch.Generator().manual_seed(5))
    orders = list(stimulus_orders(20, 15, generator=torch.Generator().manual_seed(5)))
    draws = torch.stack([layer_matrix(measure, first, [y[order] for y in second]) for order in orders])
    assert torch.allclose(found.null_mean, draws.mean(dim=0)) and torch.allclose(found.null_sd, draws.std(dim=0))
    largest = draws.flatten(1).max(dim=1).values
    assert found.maximum.null_mean == pytest.approx(float(largest.mean()))
    assert found.maximum.value == float(found.values.max()) == float(found.values[found.best])
    assert found.maximum.p_greater == pytest.approx((1 + int((largest >= found.values.max()).sum())) / 16)
    for i in range(3):
        for j in range(2):
            assert float(found.p_greater[i, j]) == pytest.approx((1 + int((draws[:, i, j] >= found.values[i, j]).sum())) / 16)
            together = [torch.cat([found.values[a, b, None], draws[:, a, b]]) for a in range(3) for b in range(2)]
            z = torch.stack([(each - each.mean()) / each.std() for each in together])
            assert float(found.p_family[i, j]) == pytest.approx((1 + int((z[:, 1:].amax(dim=0) >= z[2 * i + j, 0]).sum())) / 16)
    assert torch.allclose(found.calibrated, (found.values - found.null_mean) / (1 - found.null_mean))


def test_the_largest_of_many_pairs_is_calibrated_although_the_single_p_value_of_the_best_pair_is_not(unchecked):
    def result(seed):
        generator = torch.Generator().manual_seed(seed)
        return compare_layers(Cka(), stack(14, 4, 10 + seed), stack(14, 4, 5000 + seed), n_null=19, generator=generator)

    found = [result(seed) for seed in range(60)]
    check_calibrated(lambda seed: found[seed].maximum.p_greater, n_draws=60)
    naive = [float(each.p_greater[each.best]) for each in found]
    assert sum(p <= 0.05 for p in naive) > 15  # expected: 3 of 60
    family = [float(each.p_family.min()) for each in found]
    assert sum(p <= 0.05 for p in family) <= 9


def test_a_planted_pair_of_layers_is_found_and_stands_out_alone():
    first, second = stack(60, 4, 6), stack(60, 3, 7)
    second[2] = first[1] @ normal(5, 5, 8) + 0.5 * normal(60, 5, 9)
    found = compare_layers(MutualNeighbours(k=5, metric="euclidean"), first, second, n_null=49, generator=torch.Generator().manual_seed(0))
    assert found.best == (1, 2) and found.maximum.p_greater == 0.02
    assert int((found.p_family <= 0.05).sum()) == 1


def test_a_pair_of_low_bias_stands_out_beside_pairs_of_high_bias():
    """Biased CKA of wide noise is 0.8 by chance, that of a planted narrow pair 0.5: less, and yet the one that is real."""
    first = [normal(40, 200, 31), normal(40, 2, 32)]
    second = [normal(40, 200, 33), first[1] + 0.7 * normal(40, 2, 34)]
    found = compare_layers(Cka("biased"), first, second, n_null=99, generator=torch.Generator().manual_seed(0))
    assert found.best == (0, 0) and found.maximum.p_greater > 0.05
    assert float(found.values[1, 1]) < float(found.null_mean[0, 0])
    assert [(i, j) for i in range(2) for j in range(2) if float(found.p_family[i, j]) <= 0.05] == [(1, 1)]


def test_within_one_model_the_diagonal_does_not_count_as_the_best_pair():
    layers = stack(40, 3, 8)
    layers.append(layers[0] + 0.8 * normal(40, 4, 11))
    found = compare_layers(Cka(), layers, n_null=19, generator=torch.Generator().manual_seed(0))
    assert found.best == (0, 3) and found.maximum.value < 0.99
    assert found.values.diagonal().tolist() == pytest.approx([1] * 4)
    assert torch.equal(found.values, found.values.T) and torch.equal(found.null_mean, found.null_mean.T)


def test_one_pair_of_layers_is_the_comparison_of_two_representations():
    x, y = normal(30, 4, 12), normal(30, 5, 13)
    pair = compare_representations(Rsa(), x, y, n_null=9, generator=torch.Generator().manual_seed(1))
    layers = compare_layers(Rsa(), [x], [y], n_null=9, generator=torch.Generator().manual_seed(1))
    assert layers.maximum == pair


def test_bad_stacks_of_layers_are_refused_with_a_reason():
    x = normal(20, 3, 14)
    generator = torch.Generator()
    with pytest.raises(ConfigError, match="at least 1 layer"):
        layer_matrix(Cka(), [])
    with pytest.raises(ConfigError, match="20 and 19 rows"):
        layer_matrix(Cka(), [x], [x[:19]])
    with pytest.raises(ConfigError, match="at least 2 layers"):
        compare_layers(Cka(), [x], n_null=9, generator=generator)
    with pytest.raises(ConfigError, match="n_null"):
        compare_layers(Cka(), [x], [x], n_null=1, generator=generator)
    clumped = [normal(20, 6, s) for s in range(3)]
    code = Cknna(k=2, variant="code", metric="inner")
    if layer_matrix(code, clumped).isnan().any():
        with pytest.raises(ConfigError, match="another variant"):
            compare_layers(code, clumped, n_null=2, generator=generator)

"""Feature families from co-firing: planted families, chance, and the leak of an absolute cut."""

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import matthews_corrcoef

from sae.dictionaries.codes import SparseCodes
from sae.errors import ConfigError
from sae.geometry.atoms import Family, FamilyConfig, block_ratio, co_firings, families, phi_and_lift

PLANTED = {(0, tuple(range(3, 9))), (1, tuple(range(9, 15))), (2, tuple(range(15, 21)))}


def of_dense(z):
    return SparseCodes.of_slots(torch.arange(z.shape[1]).expand(z.shape).contiguous(), z, z.shape[1])


def planted(rate, seed, *, n=20_000, n_parents=3, n_children=6, share=0.3):
    """Parents that fire at `rate`, each with children that fire only with it."""
    generator = torch.Generator().manual_seed(seed)
    parents = torch.rand(n, n_parents, generator=generator) < rate
    children = (torch.rand(n, n_parents, n_children, generator=generator) < share) & parents[:, :, None]
    return of_dense(torch.cat([parents, children.flatten(1)], dim=1) * (0.1 + torch.rand(n, 1, generator=generator)))


def found(result):
    return {(family.parent, family.children) for family in result.families}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("edges", ["association", "share"])
def test_rare_parents_are_recovered_with_their_children_by_both_rules(edges, seed):
    firings = co_firings([planted(0.05, seed)])
    result = families(firings, FamilyConfig(edges=edges))
    assert found(result) == PLANTED
    assert len(result.parents) == 18
    ratios = [[block_ratio(firings, family, diagonal=diagonal) for family in result.families] for diagonal in (True, False)]
    # 1 / (1/6 + 5/6 q) and 1 / q for a share q that two children share, a little above .3 as min(f) is taken of two counts.
    assert np.mean(ratios[0]) == pytest.approx(2.32, abs=0.1)
    assert np.mean(ratios[1]) == pytest.approx(3.15, abs=0.2)


@pytest.mark.parametrize("seed", range(3))
def test_frequent_parents_leak_through_the_absolute_cut_and_not_through_association(seed):
    firings = co_firings([planted(0.2, seed)])
    by_share = families(firings, FamilyConfig(edges="share"))
    assert len(by_share.parents) == 20  # one tree of all 21 features
    assert found(by_share) != PLANTED
    ours = families(firings)
    assert len(ours.parents) == 18
    assert found(ours) == PLANTED


def test_counts_equal_a_slow_count_in_batches_and_values_below_zero_do_not_fire():
    generator = torch.Generator().manual_seed(4)
    dense = torch.randn(150, 9, generator=generator) * (torch.rand(150, 9, generator=generator) < 0.4)
    codes = of_dense(dense)
    firings = co_firings([codes[:40], codes[40:41], codes[41:]])
    active = (dense > 0).long()
    assert firings.n_rows == 150
    assert firings.counts.tolist() == active.sum(0).tolist()
    assert firings.together.toarray().tolist() == (active.T @ active).tolist()


def test_phi_and_lift_are_those_of_their_definitions():
    active = (torch.rand(500, 2, generator=torch.Generator().manual_seed(5)) < torch.tensor([0.3, 0.6])).long()
    active[:100, 1] = active[:100, 0]
    counts, both = active.sum(0), (active[:, 0] * active[:, 1]).sum()
    phi, lift = phi_and_lift(both[None].double(), counts[:1].double(), counts[1:].double(), 500)
    assert phi.item() == pytest.approx(matthews_corrcoef(active[:, 0], active[:, 1]))
    assert lift.item() == pytest.approx(active[:, 0][active[:, 1] == 1].double().mean().item() / active[:, 0].double().mean().item())
    always, _ = phi_and_lift(torch.tensor([7.0]), torch.tensor([7.0]), torch.tensor([20.0]), 20)
    assert always.item() == 0


def test_independent_features_make_no_edges_however_often_they_fire():
    generator = torch.Generator().manual_seed(6)
    rates = torch.linspace(0.01, 0.6, 40)
    n_edges = []
    for _ in range(5):
        firings = co_firings([of_dense((torch.rand(3000, 40, generator=generator) < rates).float())])
        result = families(firings, FamilyConfig(minimum_phi=0.0))
        assert result.families == ()
        n_edges.append(len(result.parents))
        assert len(families(firings, FamilyConfig(edges="share")).parents) == 39  # the absolute cut joins them all
    assert sum(n_edges) == 0
    # Above the mean, the chance that is compared is never below that of the exact law, the hypergeometric.
    for i, j, n in ((100, 400, 1000), (5, 30, 1000), (50, 50, 100)):
        both = np.arange(int(i * j / n) + 2, min(i, j) + 1)
        assert (stats.poisson.sf(both - 1, i * j / n) >= stats.hypergeom.sf(both - 1, n, i, j)).all()


def test_forest_has_the_largest_weight_of_all_spanning_forests():
    import networkx

    firings = co_firings([planted(0.2, 7, n=3000)])
    result = families(firings, FamilyConfig(minimum_phi=0.0, alpha=1.0))
    together, counts = firings.together.toarray(), firings.counts.numpy()
    graph = networkx.Graph()
    n_pairs = 21 * 20 / 2
    for i in range(21):
        for j in range(i):
            phi = phi_and_lift(*(torch.tensor([float(v)]) for v in (together[i, j], counts[i], counts[j])), 3000)[0].item()
            if together[i, j] and phi > 0 and stats.poisson.sf(together[i, j] - 1, counts[i] * counts[j] / 3000) * n_pairs < 1:
                graph.add_edge(i, j, weight=phi)
    expected = {frozenset(edge): data["weight"] for *edge, data in networkx.maximum_spanning_edges(graph)}
    ours = dict(
        zip(map(frozenset, zip(result.parents.tolist(), result.children.tolist(), strict=True)), result.weights.tolist(), strict=True)
    )
    assert ours.keys() == expected.keys()
    assert ours == pytest.approx(expected)
    assert (firings.counts[result.parents] >= firings.counts[result.children]).all()


def test_a_chain_of_features_hangs_each_from_its_nearest_and_grandchildren_belong_to_the_family():
    generator = torch.Generator().manual_seed(8)
    n = 20_000
    top = torch.rand(n, 1, generator=generator) < 0.3
    middle = (torch.rand(n, 4, generator=generator) < 0.4) & top
    low = (torch.rand(n, 4, generator=generator) < 0.5) & middle
    result = families(co_firings([of_dense(torch.cat([top, middle, low], dim=1).float())]))
    edges = set(zip(result.parents.tolist(), result.children.tolist(), strict=True))
    assert edges == {(0, i) for i in range(1, 5)} | {(i, i + 4) for i in range(1, 5)}
    assert found(result) == {(0, tuple(range(1, 9)))}


def test_features_that_are_not_eligible_take_no_part():
    eligible = torch.ones(21, dtype=torch.bool)
    eligible[[1, 5]] = False
    result = families(co_firings([planted(0.05, 1)]), eligible=eligible)
    assert not {1, 5} & {*result.parents.tolist(), *result.children.tolist()}
    members = {family.parent: family.children for family in result.families}
    assert members[0] == (3, 4, 6, 7, 8)


def test_limits_and_bad_settings():
    nothing = families(co_firings([of_dense(torch.zeros(10, 4))]))
    assert nothing.families == ()
    assert len(nothing.parents) == 0
    alone = co_firings([of_dense(torch.eye(6))])
    assert families(alone).families == ()
    assert block_ratio(alone, Family(0, (1, 2), 0)) == float("inf")
    assert np.isnan(block_ratio(alone, Family(0, (1,), 0)))
    for options, message in (({"alpha": 0.0}, "alpha"), ({"n_passes": 0}, "n_passes"), ({"minimum_phi": -0.1}, "minimum_phi")):
        with pytest.raises(ConfigError, match=message):
            FamilyConfig(**options)
    with pytest.raises(ConfigError, match="over the 6 features"):
        families(alone, eligible=torch.ones(5, dtype=torch.bool))

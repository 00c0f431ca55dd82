"""From a small dictionary to a large one: classes, swap groups, exact curves, the reference's orthogonal case."""

import pytest
import torch

from sae.errors import ConfigError
from sae.geometry.atoms import (
    Swap,
    insertion_effects,
    latent_classes,
    latents,
    stitching_curve,
    stitching_plan,
    swap_groups,
)

D = 90


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def tied(atoms, offset=None):
    """The dictionary z = max(x . d, 0) of unit atoms."""
    offset = torch.zeros(atoms.shape[1], dtype=atoms.dtype) if offset is None else offset
    return latents(atoms.T, torch.zeros(len(atoms), dtype=atoms.dtype), atoms, offset, subtracted=offset)


def orthogonal_case(seed=0):
    """80 orthogonal truths, ten of which come in two kinds; small: truths 1..50, large: 1..80 with those ten split in their kinds."""
    basis = torch.linalg.qr(torch.randn(D, D, generator=seeded(seed), dtype=torch.float64)).Q
    kinds = torch.stack([basis[:10] + basis[80:], basis[:10] - basis[80:]]).flatten(0, 1) / 2**0.5
    small, large = basis[:50], torch.cat([kinds, basis[10:80]])
    generator = seeded(seed + 1)
    codes = torch.rand(2000, 90, generator=generator, dtype=torch.float64) * (torch.rand(2000, 90, generator=generator) < 0.1)
    return small, large, codes @ large


def random_dictionary(n, d, seed, with_threshold=True):
    generator = seeded(seed)
    W_enc, W_dec = torch.randn(d, n, generator=generator), torch.randn(n, d, generator=generator)
    threshold = torch.rand(n, generator=generator) if with_threshold else 0.0
    b_enc, b_dec = torch.randn(n, generator=generator), torch.randn(d, generator=generator)
    return W_enc, b_enc, W_dec, b_dec, threshold


def slow(dictionary, chosen, x, offset):
    """x_hat without its b_dec, and the number of active latents of each row, for some latents of a dictionary in float64."""
    W_enc, b_enc, W_dec, b_dec, threshold = (torch.as_tensor(each).double() for each in dictionary)
    pre_acts = (x.double() - b_dec) @ W_enc + b_enc
    z = torch.where(pre_acts > threshold, pre_acts, 0.0)[:, chosen]
    return z @ W_dec[chosen], (z != 0).sum(1).double()


def test_in_the_orthogonal_case_the_novel_set_is_what_the_small_dictionary_lacks():
    small, large, _ = orthogonal_case()
    classes = latent_classes(small, large, tau=0.7)
    assert classes.novel.nonzero()[:, 0].tolist() == list(range(60, 90))  # truths 51..80, after twenty halves and truths 11..50
    assert classes.nearest[:20].tolist() == [*range(10), *range(10)]
    torch.testing.assert_close(classes.cosines[:20], torch.full((20,), 0.5**0.5, dtype=torch.float64))


def test_in_the_orthogonal_case_the_way_ends_at_the_large_dictionarys_error():
    small, large, x = orthogonal_case()
    plan = stitching_plan(small, large, tau=0.7)
    assert [(len(step.out), len(step.into)) for step in plan] == [(0, 1)] * 30 + [(1, 2)] * 10 + [(1, 1)] * 40
    curve = stitching_curve(tied(small), tied(large), [x[:700], x[700:]], plan)
    large_mse = tied(large).residual(x).square().sum(1).mean()
    assert large_mse < 1e-20
    assert curve.mse[-1] == pytest.approx(large_mse.item(), abs=1e-6)
    assert (curve.mse[:31].diff() < 0).all()  # each novel latent lowers the error
    assert curve.n_latents.tolist() == [50 + i for i in range(31)] + [80 + i for i in range(1, 11)] + [90] * 40
    # Without the split features, adding the novel latents alone is enough.
    plain = x @ large[20:].T @ large[20:]
    inserted = stitching_curve(tied(small), tied(large), [plain], plan[:30])
    assert inserted.mse[-1] == pytest.approx(tied(large).residual(plain).square().sum(1).mean().item(), abs=1e-6)


def test_novel_latents_lower_the_error_and_reconstruction_latents_raise_it():
    small, large, x = orthogonal_case(3)
    effects = insertion_effects(tied(small), tied(large), [x[:300], x[300:]])
    novel = latent_classes(small, large, tau=0.7).novel
    assert (effects[novel] < 0).all()
    assert (effects[20:60] > 0).all()  # latents that the small dictionary has already


@pytest.mark.parametrize("interpolate", [True, False])
@pytest.mark.parametrize("order", ["inserts first", "swaps first"])
def test_every_point_of_the_way_equals_a_dictionary_built_and_run_anew(order, interpolate):
    d = 6
    first, second = random_dictionary(9, d, 1), random_dictionary(14, d, 2)
    x = torch.randn(50, d, generator=seeded(3)) + 0.5
    plan = stitching_plan(first[2], second[2], tau=0.6, order=order)
    made = [latents(*each, subtracted=each[3]) for each in (first, second)]
    curve = stitching_curve(*made, [x[:20], x[20:]], plan, interpolate_offset=interpolate)
    kept, added = list(range(9)), []
    for point in range(len(plan) + 1):
        if point:
            kept = [i for i in kept if i not in plan[point - 1].out.tolist()]
            added += plan[point - 1].into.tolist()
        share = point / len(plan) if interpolate else 0.0
        offset = (1 - share) * first[3].double() + share * second[3].double()
        one, two = slow(first, kept, x, offset), slow(second, added, x, offset)
        error = x.double() - one[0] - two[0] - offset
        assert curve.mse[point].item() == pytest.approx(error.square().sum(1).mean().item(), rel=1e-6)
        assert curve.l0[point].item() == pytest.approx((one[1] + two[1]).mean().item())
        assert curve.n_latents[point] == len(kept) + len(added)
    assert (kept, sorted(added)) == ([], list(range(14)))


def test_insertion_effects_equal_errors_measured_one_by_one():
    first, second = random_dictionary(7, 5, 4), random_dictionary(6, 5, 5, with_threshold=False)
    x = torch.randn(40, 5, generator=seeded(6))
    small, large = (latents(*each, subtracted=each[3]) for each in (first, second))
    effects = insertion_effects(small, large, [x])
    before = small.residual(x)
    for j in range(6):
        after = before - large.codes(x)[:, j : j + 1] @ second[2].double()[j : j + 1]
        assert effects[j].item() == pytest.approx((after.square().sum(1).mean() - before.square().sum(1).mean()).item(), rel=1e-9)
        alone = stitching_curve(small, large, [x], [Swap(torch.zeros(0, dtype=torch.long), torch.tensor([j]))], interpolate_offset=False)
        assert effects[j].item() == pytest.approx((alone.mse[1] - alone.mse[0]).item(), abs=1e-9)


@pytest.mark.parametrize("block_elements", [1, 30, 2**24])
def test_swap_groups_are_the_connected_components_of_the_bipartite_graph(block_elements):
    import networkx

    small, large = torch.randn(12, 4, generator=seeded(7)), torch.randn(17, 4, generator=seeded(8))
    cosines = torch.nn.functional.cosine_similarity(small[:, None], large[None], dim=2)
    graph = networkx.Graph()
    graph.add_nodes_from(range(29))
    graph.add_edges_from((i, 12 + j) for i, j in (cosines >= 0.75).nonzero().tolist())
    expected = {frozenset(component) for component in networkx.connected_components(graph)}
    groups = swap_groups(small, large, tau=0.75, block_elements=block_elements)
    assert {frozenset(each.out.tolist()) | frozenset((each.into + 12).tolist()) for each in groups} == expected
    assert any(len(each.out) and len(each.into) for each in groups)


def test_a_dictionary_stitched_to_itself_goes_nowhere():
    dictionary = random_dictionary(8, 12, 9)
    made = latents(*dictionary)
    plan = stitching_plan(dictionary[2], dictionary[2], tau=0.999)
    assert [(step.out.tolist(), step.into.tolist()) for step in plan] == [([i], [i]) for i in range(8)]
    curve = stitching_curve(made, made, [torch.randn(30, 12, generator=seeded(1))], plan)
    torch.testing.assert_close(curve.mse, curve.mse[:1].expand(9))
    torch.testing.assert_close(curve.l0, curve.l0[:1].expand(9))


def test_a_latent_that_the_large_dictionary_lost_leaves_at_the_end():
    basis = torch.eye(6)
    plan = stitching_plan(basis[:3], basis[1:5])
    assert [(step.out.tolist(), step.into.tolist()) for step in plan] == [([], [2]), ([], [3]), ([1], [0]), ([2], [1]), ([0], [])]


def test_bad_input_of_stitching_is_refused():
    W_enc, b_enc, W_dec, b_dec, _ = random_dictionary(5, 4, 1)
    made, x = latents(W_enc, b_enc, W_dec, b_dec), torch.randn(3, 4)
    none = torch.zeros(0, dtype=torch.long)
    with pytest.raises(ConfigError, match="W_enc must be finite"):
        latents(W_enc * float("nan"), b_enc, W_dec, b_dec)
    with pytest.raises(ConfigError, match="tau must be a cosine"):
        swap_groups(W_dec, W_dec, tau=0.0)
    with pytest.raises(ConfigError, match="at most once in into"):
        stitching_curve(made, made, [x], [Swap(none, torch.tensor([1])), Swap(none, torch.tensor([1]))])
    with pytest.raises(ConfigError, match="at most once in out"):
        stitching_curve(made, made, [x], [Swap(torch.tensor([5]), none)])
    for call in (lambda batches: stitching_curve(made, made, batches, []), lambda batches: insertion_effects(made, made, batches)):
        with pytest.raises(ConfigError, match="at least one row"):
            call([])
        with pytest.raises(ConfigError, match="x must be finite"):
            call([x * float("inf")])
    with pytest.raises(ConfigError, match="no zero row"):
        latent_classes(W_dec * 0, W_dec)
    half = latents(W_enc.half(), b_enc.half(), W_dec.half(), b_dec.half())
    assert stitching_curve(half, half, [x.half()], []).mse.isfinite().all()

"""Toy models of superposition: the measures against slow references and bounds, the loss and its gradient against quadrature and autograd,
and trained models against closed forms and against the geometry they are known to find."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from sae.errors import ConfigError, SaeError
from sae.synthetic.polytopes import arrangement, describe
from sae.synthetic.superposition import (
    ToyConfig,
    ToyModels,
    _Problem,
    antipodal_boundary,
    antipodal_loss,
    antipodality,
    dedicated_loss,
    dimensions_per_feature,
    feature_dimensionality,
    feature_norms,
    reconstruct,
    represented,
    sample_features,
    superposition,
    sweep,
    train_toy_models,
)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_weights(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def expected_loss(
    W: torch.Tensor, b: torch.Tensor, density: float, importance: float, *, linear: bool = False, n: int = 400
) -> torch.Tensor:
    """L of two features in one dimension by the midpoint rule: (1-p)^2 at 0, p (1-p) on either axis, p^2 on the square."""
    grid = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    nothing, weights = torch.zeros(1, dtype=torch.float64), torch.tensor([1.0, importance], dtype=torch.float64)
    total = torch.zeros((), dtype=torch.float64)
    for first, second, chance in (
        (nothing, nothing, (1 - density) ** 2),
        (grid, nothing, density * (1 - density)),
        (nothing, grid, density * (1 - density)),
        (grid, grid, density**2),
    ):
        x = torch.cartesian_prod(first, second).reshape(-1, 2)
        pre_acts = x @ W.T @ W + b
        error = x - (pre_acts if linear else pre_acts.relu())
        total = total + chance * (error.square() @ weights).mean()
    return total


def exact_optimum(W: torch.Tensor, b: torch.Tensor, density: float) -> float:
    """The least expected loss of two equal features near (W, b), by quadrature and L-BFGS."""
    parameters = torch.cat([W.flatten(), b]).double().requires_grad_()
    optimiser = torch.optim.LBFGS([parameters], max_iter=50, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        loss = expected_loss(parameters[None, :2], parameters[2:], density, 1.0, n=100)
        loss.backward()
        return loss

    optimiser.step(closure)
    return float(expected_loss(parameters[None, :2].detach(), parameters[2:].detach(), density, 1.0))


# --- measures -------------------------------------------------------------------------------------------------------------------------


def test_dimensionality_and_superposition_are_what_the_sums_say():
    W = random_weights(3, 4, 7, seed=0)
    for instance, D, others in zip(W, feature_dimensionality(W), superposition(W), strict=True):
        for i in range(7):
            unit = instance[:, i] / instance[:, i].norm()
            overlaps = [float(unit @ instance[:, j]) ** 2 for j in range(7)]
            assert float(D[i]) == pytest.approx(float(instance[:, i] @ instance[:, i]) / sum(overlaps))
            assert float(others[i]) == pytest.approx(sum(overlaps) - overlaps[i])
    assert feature_norms(W).shape == (3, 7)
    assert float(dimensions_per_feature(W)[1]) == pytest.approx(4 / float((W[1] ** 2).sum()))


@pytest.mark.parametrize(("d_hidden", "n_features"), [(1, 5), (3, 3), (5, 20), (6, 4)])
def test_dimensionalities_stay_below_the_leverage_and_sum_to_less_than_the_rank(d_hidden, n_features):
    W = random_weights(d_hidden, n_features, seed=d_hidden) * torch.rand(n_features, generator=generator(9), dtype=torch.float64)
    leverage = ((torch.linalg.pinv(W @ W.T) @ W) * W).sum(0)
    D = feature_dimensionality(W)
    rank = min(d_hidden, n_features)
    assert ((D - leverage) < 1e-12).all()
    assert float(leverage.sum()) == pytest.approx(rank)
    assert float(D.sum()) == pytest.approx(rank) if d_hidden == 1 else float(D.sum()) < rank - 0.01


def test_the_sum_of_dimensionalities_reaches_the_rank_exactly_when_all_columns_are_eigenvectors_of_the_frame():
    from sae.synthetic.polytopes import polygon, simplex, tegum

    rotation = torch.linalg.qr(random_weights(8, 8, seed=3)).Q
    frames = tegum(0.3 * polygon(5), 2.0 * simplex(3), 1.1 * simplex(1), 0.7 * polygon(7))  # lengths differ between the frames only
    W = rotation @ frames.T
    F = W @ W.T
    ratio = (F @ W) / W
    assert torch.allclose(ratio, ratio[:1].expand_as(ratio))  # every column is an eigenvector
    assert float(feature_dimensionality(W).sum()) == pytest.approx(8, abs=1e-10)
    W[:, 0] *= 1.05  # no longer tight: the other vertices of the pentagon are not eigenvectors now
    assert 7.9 < float(feature_dimensionality(W).sum()) < 8 - 1e-4


def test_rotating_the_hidden_space_or_scaling_all_weights_changes_no_dimensionality():
    W = random_weights(4, 9, seed=4)
    rotation = torch.linalg.qr(random_weights(4, 4, seed=5)).Q
    assert torch.allclose(feature_dimensionality(3 * rotation @ W), feature_dimensionality(W))
    assert torch.allclose(superposition(3 * rotation @ W), 9 * superposition(W))


def test_an_ignored_feature_has_dimensionality_zero_and_is_not_represented():
    W = torch.tensor([[1.0, -1.0, 0.0, 0.15, 0.2]])
    assert represented(W).tolist() == [True, True, False, False, True]
    assert float(feature_dimensionality(W)[2]) == 0 == float(superposition(W)[2])
    assert feature_dimensionality(torch.zeros(2, 3)).tolist() == [0, 0, 0]
    assert float(dimensions_per_feature(torch.zeros(2, 3))) == math.inf


def test_antipodality_tells_a_pair_from_a_dedicated_dimension():
    W = torch.tensor([[[0.7, -0.7]], [[0.0, 1.3]], [[0.5, 0.5]], [[0.9, -0.3]], [[0.0, 0.0]]])
    assert antipodality(W).tolist() == pytest.approx([1, 0, -1, 0.6, 0])


# --- data, loss, gradient -------------------------------------------------------------------------------------------------------------


def test_features_are_active_with_their_density_and_uniform_when_active():
    x = sample_features(50_000, 8, 0.2, generator(6))
    assert float((x > 0).double().mean()) == pytest.approx(0.2, abs=0.003)
    assert float(x[x > 0].mean()) == pytest.approx(0.5, abs=0.005)
    assert float(x[x > 0].var()) == pytest.approx(1 / 12, abs=0.002)
    active = (x > 0).double()
    assert float((active.T.corrcoef() - torch.eye(8)).abs().max()) < 0.02
    assert (sample_features(10, 3, 1.0, generator(7)) > 0).all()


def test_training_inputs_are_the_features_given_that_one_is_active():
    densities = torch.tensor([0.02, 0.3, 0.9, 1.0])
    problem = _Problem(densities, torch.ones(4, 3), False)
    n = 200_000
    x = problem._inputs(torch.rand(2, n, 3, generator=generator(8)), torch.rand(n, generator=generator(9)), slice(None))
    for inputs, p in zip(x, densities.tolist(), strict=True):
        codes = ((inputs > 0).double() @ torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)).long()
        share = torch.bincount(codes, minlength=8) / n
        for code in range(8):
            active = code.bit_count()
            chance = p**active * (1 - p) ** (3 - active) / (1 - (1 - p) ** 3) if code else 0.0
            assert float(share[code]) == pytest.approx(chance, abs=0.005)
    assert float(x[0][x[0] > 0].mean()) == pytest.approx(0.5, abs=0.005)


@pytest.mark.parametrize("linear", [False, True])
def test_the_gradient_is_autograds(linear):
    n_instances, d_hidden, n_features, n = 3, 2, 5, 64
    W = random_weights(n_instances, d_hidden, n_features, seed=10).float()
    b = 0.3 * random_weights(n_instances, n_features, seed=11).float()
    problem = _Problem(torch.tensor([0.1, 0.5, 1.0]), torch.rand(n_instances, n_features, generator=generator(12)) + 0.5, linear)
    draws, first = torch.rand(2, n, n_features, generator=generator(13)), torch.rand(n, generator=generator(14))
    W.grad, b.grad = torch.full_like(W, 7.0), torch.full_like(b, 7.0)
    problem.gradients_(draws, first, W, b)

    x = problem._inputs(draws, first, slice(None)).double()
    W64, b64 = W.detach().double().requires_grad_(), b.detach().double().requires_grad_()
    q = 1 - (1 - problem.density.double()) ** n_features
    loss = torch.zeros((), dtype=torch.float64)
    for i in range(n_instances):
        outputs = [x[i] @ W64[i].T @ W64[i] + b64[i], b64[i]]
        answered, rest = outputs if linear else [output.relu() for output in outputs]
        weight = problem.importance[i].double()
        loss = loss + q[i] * ((x[i] - answered).square() @ weight).mean() + (1 - q[i]) * (rest.square() @ weight)
    loss.backward()
    assert W64.grad is not None and b64.grad is not None
    assert torch.allclose(W.grad.double(), W64.grad, atol=1e-5)
    assert torch.allclose(b.grad.double(), b64.grad, atol=1e-5)


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("density", [0.05, 0.4, 1.0])
def test_the_estimated_loss_is_the_quadratures_and_plain_samplings(density, linear):
    W, b, importance = random_weights(1, 2, seed=15), 0.3 * random_weights(2, seed=16), 0.4
    exact = float(expected_loss(W, b, density, importance, linear=linear))
    problem = _Problem(torch.tensor([density]), torch.tensor([[1.0, importance]]), linear)
    loss, error = (float(v) for v in problem.losses(100_000, W.float()[None], b.float()[None], generator(17)))
    assert loss == pytest.approx(exact, abs=4 * error)
    assert error < 0.01 * exact
    x = sample_features(400_000, 2, density, generator(18))
    residual = x - reconstruct(x, W.float(), b.float(), activation="linear" if linear else "relu")
    plain = residual.square() @ torch.tensor([1.0, importance])
    assert float(plain.mean()) == pytest.approx(exact, abs=4 * float(plain.std()) / 400_000**0.5)


def test_the_training_gradient_is_that_of_the_expected_loss():
    W, b, density, importance = random_weights(1, 2, seed=19), 0.2 * random_weights(2, seed=20), 0.3, 0.6
    W, b = W.requires_grad_(), b.requires_grad_()
    expected_loss(W, b, density, importance).backward()
    problem, n = _Problem(torch.tensor([density]), torch.tensor([[1.0, importance]]), False), 2**19
    mine, bias = W.detach().float()[None], b.detach().float()[None]
    mine.grad, bias.grad = torch.zeros_like(mine), torch.zeros_like(bias)
    problem.gradients_(torch.rand(2, n, 2, generator=generator(21)), torch.rand(n, generator=generator(22)), mine, bias)
    assert W.grad is not None and b.grad is not None
    assert torch.allclose(mine.grad[0].double(), W.grad, atol=3e-3)
    assert torch.allclose(bias.grad[0].double(), b.grad, atol=3e-3)


# --- closed forms of the phase diagram ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("importance", [0.2, 1.0, 3.0])
def test_the_closed_form_losses_are_the_quadratures(density, importance):
    mean = density / 2
    first = expected_loss(torch.tensor([[1.0, 0.0]]).double(), torch.tensor([0.0, mean]).double(), density, importance)
    second = expected_loss(torch.tensor([[0.0, 1.0]]).double(), torch.tensor([mean, 0.0]).double(), density, importance)
    pair = expected_loss(torch.tensor([[1.0, -1.0]]).double(), torch.zeros(2).double(), density, importance)
    assert dedicated_loss(density, importance) == pytest.approx(min(float(first), float(second)), abs=1e-5)
    assert antipodal_loss(density, importance) == pytest.approx(float(pair), abs=1e-5)


@pytest.mark.parametrize("importance", [0.05, 0.3, 1.0, 2.0, 9.0])
def test_the_closed_form_losses_cross_at_the_boundary(importance):
    boundary = antipodal_boundary(importance)
    assert antipodal_loss(boundary, importance) == pytest.approx(dedicated_loss(boundary, importance))
    assert antipodal_loss(boundary - 0.01, importance) < dedicated_loss(boundary - 0.01, importance)
    assert antipodal_loss(boundary + 0.01, importance) > dedicated_loss(boundary + 0.01, importance)
    assert boundary == pytest.approx(antipodal_boundary(1 / importance))  # the features may change places


def test_equally_important_features_pair_below_a_density_of_four_sevenths():
    assert antipodal_boundary(1.0) == pytest.approx(4 / 7)
    assert antipodal_boundary(0.3) == pytest.approx(4 * 0.3 / (2 + 5 * 0.3))


# --- trained models -------------------------------------------------------------------------------------------------------------------


def best_of(n_features: int, d_hidden: int, *sparsities: float, n_seeds: int = 8, **options) -> ToyModels:
    """The best of several starts at every sparsity."""
    config = ToyConfig(n_features=n_features, d_hidden=d_hidden, density=1.0, **options)
    return sweep(config, densities=[1 - s for s in sparsities], n_seeds=n_seeds, seed=0)


def sorted_dimensionalities(W: torch.Tensor) -> list[float]:
    return sorted(feature_dimensionality(W)[represented(W)].tolist())


def test_two_features_pair_up_when_sparse_and_not_when_dense():
    sparse, dense = [0.05, 0.15, 0.3], [0.95, 1.0]
    config = ToyConfig(n_features=2, d_hidden=1, density=1.0, n_steps=1500, batch_size=256)
    best = sweep(config, densities=(*sparse, *dense), n_seeds=12, seed=1)
    assert (antipodality(best.W)[:3] > 0.99).all()
    assert (best.W[:3, 0].prod(1) < -0.95).all()
    shares = best.W[:, 0].abs().amin(1) / best.W[:, 0].abs().amax(1)
    assert (shares[:3] > 0.95).all()
    assert (shares[3:] < 0.7).all()  # one feature has most of the dimension; the sign of the other hardly matters
    assert torch.allclose(feature_dimensionality(best.W[:3]), torch.tensor(0.5), atol=0.01)
    for i, p in enumerate((*sparse, *dense)):
        exact = float(expected_loss(best.W[i].double(), best.b[i].double(), p, 1.0))
        assert float(best.loss[i]) == pytest.approx(exact, abs=4 * float(best.loss_se[i]))
        assert exact < min(antipodal_loss(p, 1.0), dedicated_loss(p, 1.0))  # norms and biases are tuned beyond the closed forms
        assert exact < 1.005 * exact_optimum(best.W[i], best.b[i], p)


def test_the_less_important_feature_is_ignored_beyond_the_boundary():
    config = ToyConfig(n_features=2, d_hidden=1, density=1.0, n_steps=1000, batch_size=256)
    best = sweep(config, densities=[0.6], importance_decays=[0.05, 20.0], seed=2)
    for W, b, kept in zip(best.W, best.b, (0, 1), strict=True):
        assert float(W[0, kept].abs()) == pytest.approx(1, abs=0.05)
        assert float(W[0, 1 - kept].abs()) < 0.2
        assert float(b[1 - kept]) == pytest.approx(0.3, abs=0.05)  # its mean, p / 2


def test_five_features_in_the_plane_become_a_pentagon():
    best = best_of(5, 2, 0.9, 0.97, 0.99, n_steps=1500, batch_size=256)
    for W, b, norm, bias in zip(best.W, best.b, (1.10, 1.15, 1.16), (-0.21, -0.26, -0.28), strict=True):
        assert sorted_dimensionalities(W) == pytest.approx([0.4] * 5, abs=0.004)
        assert feature_norms(W).tolist() == pytest.approx([norm] * 5, abs=0.015)
        assert b.tolist() == pytest.approx([bias] * 5, abs=0.015)
        assert float(feature_dimensionality(W).sum()) == pytest.approx(2, abs=1e-3)
        assert describe(arrangement(W)) == "pentagon"


def test_four_features_in_three_dimensions_are_a_digon_and_two_dedicated_dimensions_and_no_tetrahedron():
    best = best_of(4, 3, 0.9, 0.97, n_steps=1500, batch_size=256)
    for W in best.W:
        assert sorted_dimensionalities(W) == pytest.approx([0.5, 0.5, 1, 1], abs=0.01)
        assert describe(arrangement(W)) == "digon + 2 dedicated"


def test_eight_features_in_three_dimensions_become_a_square_antiprism():
    best = best_of(8, 3, 0.97)
    assert sorted_dimensionalities(best.W[0]) == pytest.approx([0.375] * 8, abs=0.01)
    assert float(feature_dimensionality(best.W[0]).sum()) == pytest.approx(2.957, abs=0.01)
    assert describe(arrangement(best.W[0])) == "square antiprism"


GEOMETRY = [
    (3, 2, 0.9, [0.5, 0.5, 1], "digon + 1 dedicated"),
    (4, 2, 0.9, [0.5] * 4, "2 digons"),
    (5, 2, 0.7, [0.5] * 4, "2 digons"),
    (6, 2, 0.8, [0.4] * 5, "pentagon"),
    (6, 2, 0.99, [1 / 3] * 6, "hexagon"),
    (5, 3, 0.9, [0.5] * 4 + [1], "2 digons + 1 dedicated"),
    (6, 3, 0.9, [0.5] * 6, "3 digons"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("n_features", "d_hidden", "sparsity", "expected", "name"), GEOMETRY)
def test_small_models_find_the_known_arrangements(n_features, d_hidden, sparsity, expected, name):
    best = best_of(n_features, d_hidden, sparsity, n_seeds=10)
    assert sorted_dimensionalities(best.W[0]) == pytest.approx(expected, abs=0.01)
    assert describe(arrangement(best.W[0])) == name


@pytest.mark.slow
@pytest.mark.parametrize(("n_features", "d_hidden", "low", "high"), [(7, 3, 0.40, 0.445), (9, 4, 0.41, 0.46)])
def test_seven_in_three_and_nine_in_four_dimensions_are_irregular_within_a_narrow_band(n_features, d_hidden, low, high):
    best = best_of(n_features, d_hidden, 0.97, n_seeds=10)
    found = sorted_dimensionalities(best.W[0])
    assert low - 0.01 < found[0] and found[-1] < high + 0.01
    assert d_hidden - 0.03 < sum(found) <= d_hidden + 1e-4
    assert describe(arrangement(best.W[0])) == f"irregular ({n_features} in {d_hidden})"


@pytest.mark.parametrize("density", [0.01, 0.5])
def test_the_linear_model_keeps_the_most_important_features_and_never_superposes(density):
    config = ToyConfig(n_features=8, d_hidden=3, density=density, importance_decay=0.6, activation="linear", n_steps=1200, batch_size=256)
    best = train_toy_models([config] * 4, seed=3).best()
    kept = torch.diag(torch.tensor([1.0] * 3 + [0.0] * 5))
    assert torch.allclose(best.W[0].T @ best.W[0], kept, atol=0.03)
    assert torch.allclose(best.b[0], density / 2 * (1 - kept.diagonal()), atol=0.01)
    least = (density / 3 - density**2 / 4) * sum(0.6**i for i in range(3, 8))
    assert float(best.loss[0]) == pytest.approx(least, rel=0.02, abs=4 * float(best.loss_se[0]))
    assert float(superposition(best.W[0])[represented(best.W[0])].max()) < 0.01


@pytest.mark.slow
def test_many_equal_features_stick_at_two_per_dimension_as_antipodal_pairs():
    best = best_of(80, 8, 0.65, 0.7, n_seeds=3)
    assert torch.allclose(dimensions_per_feature(best.W), torch.tensor(0.5), atol=0.02)
    for W in best.W:
        assert describe(arrangement(W)) == "8 digons"
        assert sorted_dimensionalities(W) == pytest.approx([0.5] * 16, abs=0.01)


# --- results, seeds, errors -----------------------------------------------------------------------------------------------------------


def quick(**options) -> ToyConfig:
    return ToyConfig(**{"n_features": 6, "d_hidden": 2, "density": 0.1, "n_steps": 40, "batch_size": 64} | options)


def test_the_same_seed_gives_the_same_bits_and_another_one_does_not():
    configs = [quick(density=p, importance_decay=r) for p, r in itertools.product((0.1, 0.5), (1.0, 0.8))]
    first, again, other = (train_toy_models(configs, seed=s, n_evaluation=500) for s in (4, 4, 5))
    for name in ("W", "b", "loss", "loss_se"):
        assert torch.equal(getattr(first, name), getattr(again, name))
        assert not torch.equal(getattr(first, name), getattr(other, name))
    assert first.W.shape == (4, 2, 6) and first.b.shape == (4, 6) and first.loss.shape == (4,)
    assert not first.W.requires_grad and first.W.grad is None
    torch.rand(1)  # the global generator is neither read nor set
    assert torch.equal(train_toy_models(configs, seed=4, n_evaluation=500).W, first.W)


def test_equal_configs_are_different_starts_and_the_best_is_the_one_of_lowest_loss():
    models = train_toy_models([quick(), quick(density=0.3), quick(), quick(), quick(density=0.3)], seed=6, n_evaluation=500)
    assert len({tuple(W.flatten().tolist()) for W in models.W}) == 5
    best = models.best()
    assert best.configs == (quick(), quick(density=0.3))
    for row, members in enumerate(([0, 2, 3], [1, 4])):
        chosen = members[int(models.loss[members].argmin())]
        assert torch.equal(best.W[row], models.W[chosen]) and torch.equal(best.b[row], models.b[chosen])
        assert float(best.loss[row]) == float(models.loss[members].min())


def test_a_sweep_is_the_best_of_several_starts_at_every_point_of_the_grid():
    best = sweep(quick(), densities=[0.5, 0.1], importance_decays=[1.0, 0.8, 0.6], n_seeds=3, seed=7, n_evaluation=500)
    assert [(c.density, c.importance_decay) for c in best.configs] == list(itertools.product((0.5, 0.1), (1.0, 0.8, 0.6)))
    everyone = train_toy_models([config for config in best.configs for _ in range(3)], seed=7, n_evaluation=500)
    assert torch.equal(best.loss, everyone.loss.reshape(6, 3).amin(1))
    assert sweep(quick(), densities=[0.2], n_seeds=1, seed=7, n_evaluation=500).configs == (quick(density=0.2),)
    for options, name in (({"densities": []}, "densities"), ({"densities": [0.1, 0.1]}, "densities"), ({"n_seeds": 0}, "n_seeds")):
        with pytest.raises(ConfigError, match=f"{name} must be"):
            sweep(quick(), **({"densities": [0.1], "seed": 0} | options))


def test_importances_fall_by_the_stated_factor():
    assert quick(importance_decay=0.7).importance().tolist() == pytest.approx([0.7**i for i in range(6)])
    assert quick(density=0.25).sparsity == 0.75


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_features", 0),
        ("d_hidden", 0),
        ("density", 0.0),
        ("density", 1.1),
        ("density", math.nan),
        ("importance_decay", 0.0),
        ("importance_decay", math.inf),
        ("n_steps", 0),
        ("batch_size", 0),
        ("learning_rate", 0.0),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=f"{name} must be .* got {value}"):
        quick(**{name: value})


def test_configs_that_cannot_be_trained_together_are_refused():
    with pytest.raises(ConfigError, match="one or more"):
        train_toy_models([], seed=0)
    with pytest.raises(ConfigError, match="differ in density and importance_decay only"):
        train_toy_models([quick(), replace(quick(), d_hidden=3)], seed=0)
    with pytest.raises(ConfigError, match="n_evaluation must be at least 2, got 1"):
        train_toy_models([quick()], seed=0, n_evaluation=1)


def test_a_run_that_diverges_is_an_error():
    with pytest.raises(SaeError, match="diverged"):
        train_toy_models([quick(learning_rate=1e25, activation="linear")], seed=0)

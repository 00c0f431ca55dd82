"""Absorption scores: their unit values, planted absorption, and dictionaries trained on the tree."""

import itertools
import math

import pytest
import torch

from sae.dictionaries.activations import BatchTopK
from sae.dictionaries.autoencoder import Autoencoder, AutoencoderConfig
from sae.dictionaries.base import Dictionary
from sae.dictionaries.codes import SparseCodes
from sae.dictionaries.pursuit import MatchingPursuit, PursuitConfig
from sae.errors import ConfigError
from sae.evaluation.absorption import TreeAbsorption, absorption_fraction, probe_absorption, tree_absorption
from sae.evaluation.recovery import Match, activation_overlap, best_cosines, match
from sae.synthetic.hierarchy import CHILDREN, CONSTANT, MEAN_L0, STANDARD, Amplitude, tree_batches, tree_codes, tree_features
from sae.training.loop import TrainConfig, train
from sae.training.objectives import ReconstructionObjective
from sae.training.optimisers import OptimiserConfig
from sae.training.schedules import KAnnealing

FAMILIES = [(child, parent) for parent, children in CHILDREN.items() for child in children]


def identity_match(n: int) -> Match:
    return Match(torch.arange(n), torch.ones(n, dtype=torch.float64))


def test_tree_score_is_zero_for_the_truth_and_the_cosine_of_what_was_planted():
    features = tree_features(torch.Generator().manual_seed(0), parent_cosine=0.4, child_cosine=0.2)
    assert tree_absorption(features, features, identity_match(20), CHILDREN).score == pytest.approx(0, abs=1e-6)
    atoms = features.clone()
    for child, parent in FAMILIES[:3]:
        atoms[child] = 2 * (features[child] + features[parent])
    atoms[FAMILIES[3][0]] += features[FAMILIES[3][1]] / math.sqrt(3)
    made = tree_absorption(features, atoms, identity_match(20), CHILDREN)
    assert made.children.tolist() == [child for child, _ in FAMILIES]
    assert made.cosines.tolist() == pytest.approx([math.sqrt(0.5)] * 3 + [0.5] + [0.0] * 5, abs=1e-6)
    assert made.score == pytest.approx((3 * math.sqrt(0.5) + 0.5) / 9, abs=1e-6)
    assert made.n_found == 9


def test_tree_score_follows_the_matching_and_leaves_out_children_that_were_not_found():
    draw = torch.Generator().manual_seed(1)
    features, order = tree_features(draw), torch.randperm(20, generator=draw)
    similarities = torch.ones(20, dtype=torch.float64)
    latents = order.argsort()
    latents[1], similarities[1] = -1, 0
    similarities[2] = 0
    atoms = features.clone()
    atoms[3] += features[0]
    made = tree_absorption(features, atoms[order], Match(latents, similarities), CHILDREN)
    assert made.cosines[:2].isnan().all() and made.n_found == 7
    assert made.score == pytest.approx(math.sqrt(0.5) / 7, abs=1e-6)
    nothing = tree_absorption(features, features, Match(torch.full((20,), -1), torch.zeros(20, dtype=torch.float64)), CHILDREN)
    assert math.isnan(nothing.score) and nothing.n_found == 0


def test_tree_score_of_random_atoms_has_the_stated_spread():
    draw = torch.Generator().manual_seed(2)
    features = tree_features(draw)
    scores = torch.tensor([tree_absorption(features, tree_features(draw), identity_match(20), CHILDREN).score for _ in range(400)])
    assert abs(float(scores.mean())) < 4 * float(scores.std()) / 20
    assert float(scores.std()) == pytest.approx(1 / math.sqrt(20 * 9), rel=0.15)


@pytest.mark.parametrize(
    ("main", "absorber", "total", "expected"),
    [(0, 5, 10, 1), (5, 5, 10, 0.5), (5, 3, 10, 0), (2, 5, 10, 5 / 7), (10, 5, 10, 0), (8, 5, 10, 0.2), (0, 0, -1, 0), (-2, 3, -1, 0)],
)
def test_absorption_fraction_has_its_unit_values(main, absorber, total, expected):
    values = (torch.tensor([float(main)]), torch.tensor([[float(absorber)]]), torch.tensor([float(total)]))
    assert float(absorption_fraction(*values)) == pytest.approx(expected)


def test_absorption_fraction_counts_the_three_largest_positive_absorbers():
    main, total = torch.tensor([2.0]), torch.tensor([10.0])
    absorbers = torch.tensor([[1.0, 2.0, -9.0, 1.5, 0.9]])
    assert float(absorption_fraction(main, absorbers, total)) == pytest.approx(4.5 / 6.5)
    assert float(absorption_fraction(main, absorbers, total, n_absorbers=5)) == pytest.approx(5.4 / 7.4)
    assert float(absorption_fraction(main, absorbers, total, least_share=0.5)) == 0


def slow_fraction(x: list[float], z: list[float], atoms: torch.Tensor, probe: torch.Tensor, main: set[int]) -> float:
    """The definition for one token, in float64, with loops."""
    unit = (probe.double() / probe.double().norm()).tolist()
    dot = [sum(a * b for a, b in zip(atom, unit, strict=True)) for atom in atoms.double().tolist()]
    norm = [math.sqrt(sum(a * a for a in atom)) for atom in atoms.double().tolist()]
    total = sum(a * b for a, b in zip(x, unit, strict=True))
    own = sum(z[j] * dot[j] for j in main)
    others = sorted((z[j] * dot[j] for j in range(len(z)) if j not in main and dot[j] / norm[j] >= 0.1 and z[j] * dot[j] > 0), reverse=True)
    taken = sum(others[:3])
    if total <= 0 or own >= total or taken / total < 0.4:
        return 0.0
    if own <= 0:
        return 1.0
    taken = min(taken, total - own)
    return taken / (taken + own)


def test_probe_absorption_equals_a_slow_computation_on_random_dictionaries():
    draw = torch.Generator().manual_seed(3)
    n, d_in, d_sae, k = 300, 6, 15, 5
    atoms = torch.randn(d_sae, d_in, generator=draw)
    indices = torch.stack([torch.randperm(d_sae, generator=draw)[:k] for _ in range(n)])
    indices[::4, 1] = indices[::4, 0]  # pursuit may select a latent twice
    values = torch.rand(n, k, generator=draw)
    codes = SparseCodes(indices, values, torch.full((n,), k), d_sae)
    acts, probe = codes.dense() @ atoms + 0.3 * torch.randn(n, d_in, generator=draw), torch.randn(d_in, generator=draw)
    made = probe_absorption(acts, codes, atoms, probe, [2, 7])
    dense = codes.dense().double().tolist()
    expected = [slow_fraction(acts[i].double().tolist(), dense[i], atoms, probe, {2, 7}) for i in range(n)]
    assert made.tolist() == pytest.approx(expected, abs=1e-5)
    assert len({round(value, 3) for value in expected}) > 20
    scale = 0.5 + torch.rand(d_sae, generator=draw)
    rescaled = SparseCodes(indices, values / scale[indices], codes.counts, d_sae)
    assert torch.allclose(probe_absorption(acts, rescaled, atoms * scale[:, None], 4 * probe, [7, 2]), made, atol=1e-5)


def test_probe_absorption_counts_a_latent_selected_twice_once_and_leaves_out_latents_away_from_the_probe():
    cosine = torch.tensor([1.0, 0.5, 0.5, 0.5, 0.5, 0.09, 0.11])
    atoms = torch.stack([cosine, (1 - cosine**2).sqrt()], dim=1)
    acts, probe = torch.tensor([[10.0, 3.0]]), torch.tensor([1.0, 0.0])

    def fraction(indices: list[int], along: list[float]) -> float:
        values = torch.tensor([along]) / cosine[indices]
        codes = SparseCodes(torch.tensor([indices]), values, torch.tensor([len(indices)]), 7)
        return float(probe_absorption(acts, codes, atoms, probe, [0]))

    assert fraction([0, 1, 1, 2, 3, 4], [2, 2, 2, 1.5, 1, 0.9]) == pytest.approx(6.5 / 8.5)
    assert fraction([0, 6], [2, 5]) == pytest.approx(5 / 7)
    assert fraction([0, 5], [2, 5]) == 0


def test_probe_absorption_is_zero_for_the_true_dictionary_and_one_where_a_child_took_the_parent_over():
    draw = torch.Generator().manual_seed(4)
    features, truth = tree_features(draw), tree_codes(3000, draw)
    truth = truth[truth[:, 0] != 0]
    acts = truth @ features
    with_child = truth[:, 1] != 0

    def codes(z: torch.Tensor) -> SparseCodes:
        return SparseCodes(torch.arange(20).expand_as(z), z, torch.full((len(z),), 20), 20)

    assert float(probe_absorption(acts, codes(truth), features, features[0], [0]).max()) == 0
    absorbed, atoms = truth.clone(), features.clone()
    absorbed[with_child, 0] = 0
    atoms[1] += features[0]
    fraction = probe_absorption(acts, codes(absorbed), atoms, features[0], [0])
    assert fraction.tolist() == with_child.double().tolist()


def test_what_does_not_fit_is_refused():
    features = tree_features(torch.Generator().manual_seed(5))
    codes = SparseCodes(torch.zeros(3, 1, dtype=torch.long), torch.ones(3, 1), torch.ones(3, dtype=torch.long), 20)
    with pytest.raises(ConfigError, match="one latent per feature, 20, got 19"):
        tree_absorption(features, features, identity_match(19), CHILDREN)
    with pytest.raises(ConfigError, match="at least one child"):
        tree_absorption(features, features, identity_match(20), {0: ()})
    with pytest.raises(ConfigError, match="must have 2 rows"):
        probe_absorption(features[:2], codes, features, features[0], [0])
    with pytest.raises(ConfigError, match=r"main_latents must be in 0\.\.d_sae-1=19, got 20"):
        probe_absorption(features[:3], codes, features, features[0], [20])
    with pytest.raises(ConfigError, match="no zero row"):
        probe_absorption(features[:3], codes, features, torch.zeros(20), [0])


def trained(
    dictionary: Dictionary, n_steps: int, seed: int, amplitude: Amplitude = STANDARD, annealing: KAnnealing | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(true features, atoms learned from the uncorrelated tree), the start shown to be at chance."""
    features = tree_features(torch.Generator().manual_seed(10_000 + seed))
    assert 0.33 < float(best_cosines(features, dictionary.W_dec).mean()) < 0.48  # 20 random directions in R^20: 0.41 +- 0.02
    batches = tree_batches(features, torch.Generator().manual_seed(20_000 + seed), parent=amplitude, child=amplitude)
    config = TrainConfig(
        n_steps=n_steps,
        learning_rate=3e-2,
        warmup_steps=100,
        decay_share=0.2,
        final_share=0.1,
        optimiser=OptimiserConfig(betas=(0.5, 0.9375)),
        annealing=annealing,
    )
    for _ in train(dictionary, batches, ReconstructionObjective(), config):
        pass
    return features, dictionary.W_dec.detach()


def pursuit(seed: int, k: int = 3) -> MatchingPursuit:
    """As in the paper's experiment, without a decoder bias."""
    made = MatchingPursuit(PursuitConfig(d_in=20, d_sae=20, k=k), seed=seed)
    made.b_dec.requires_grad_(False)
    return made


def absorption(features: torch.Tensor, dictionary: Dictionary, seed: int) -> TreeAbsorption:
    truth = tree_codes(2000, torch.Generator().manual_seed(30_000 + seed))
    with torch.no_grad():
        pursues = isinstance(dictionary, MatchingPursuit)
        codes = dictionary.encode(truth @ features, k=20, tol=1 / 30) if pursues else dictionary.eval().encode(truth @ features)
    assert codes.mean_l0() == pytest.approx(MEAN_L0, abs=0.05)
    return tree_absorption(features, dictionary.W_dec, match(activation_overlap(truth, codes)), CHILDREN)


def check_pursuit_recovers_the_tree(dictionary: MatchingPursuit, seed: int, n_steps: int, annealing: KAnnealing | None = None) -> None:
    features, atoms = trained(dictionary, n_steps, seed, annealing=annealing)
    best = best_cosines(features, atoms)
    assert float(best.mean()) > 0.99 and float(best.min()) > 0.99
    absorbed = absorption(features, dictionary, seed)
    assert absorbed.n_found == 9 and abs(absorbed.score) < 0.02


def test_pursuit_recovers_the_tree_without_absorption():
    # From 4 selections down to 2, pursuit is there after 1,500 steps from every start tried; with 3 throughout, after 2,500.
    check_pursuit_recovers_the_tree(pursuit(0, k=2), 0, 1500, KAnnealing(start=4.0, share=0.6))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_pursuit_recovers_the_tree_without_absorption_from_every_start(seed):
    check_pursuit_recovers_the_tree(pursuit(seed), seed, 5000)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_batch_top_k_absorbs_parents_into_their_children(seed):
    dictionary = Autoencoder(AutoencoderConfig(d_in=20, d_sae=20, activation=BatchTopK(MEAN_L0)), seed=seed)
    features, _ = trained(dictionary, 5000, seed, annealing=KAnnealing(start=3.0, share=0.2, shape="step"))
    absorbed = absorption(features, dictionary, seed)
    assert absorbed.n_found >= 7 and absorbed.score > 0.2


def test_without_variance_pursuit_learns_exact_sums_of_parent_and_child():
    features, atoms = trained(pursuit(1), 1500, 1, CONSTANT)
    cosine = features @ atoms.T
    both = [(float(cosine[child, j]), float(cosine[parent, j])) for (child, parent), j in zip(FAMILIES, best_atoms(cosine), strict=True)]
    assert sum(abs(a - math.sqrt(0.5)) < 0.01 and abs(b - math.sqrt(0.5)) < 0.01 for a, b in both) >= 1


def best_atoms(cosine: torch.Tensor) -> list[int]:
    """For every child the atom with the largest cosine."""
    return [int(cosine[child].argmax()) for child in itertools.chain(*CHILDREN.values())]

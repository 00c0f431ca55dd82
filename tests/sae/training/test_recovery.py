"""Training finds what was planted. Every case first shows that the start is no better than chance."""

from collections.abc import Iterator

import pytest
import torch

from sae.dictionaries.activations import TopK
from sae.dictionaries.autoencoder import Autoencoder, AutoencoderConfig
from sae.dictionaries.pursuit import MatchingPursuit, PursuitConfig
from sae.synthetic.hierarchy import CHILDREN, tree_codes, tree_features
from sae.synthetic.planted import planted_codes, planted_features, recovery
from sae.training.loop import TrainConfig, train
from sae.training.objectives import ReconstructionObjective
from sae.training.optimisers import OptimiserConfig


def planted_stream(features: torch.Tensor, rows: int, seed: int, k: float) -> Iterator[torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    while True:
        yield planted_codes(rows, len(features), draw, k=k) @ features


def train_planted(n_features: int, d_in: int, d_sae: int, n_steps: int, seed: int) -> float:
    features = planted_features(n_features, d_in, torch.Generator().manual_seed(1000 + seed))
    made = Autoencoder(AutoencoderConfig(d_in=d_in, d_sae=d_sae, activation=TopK(4)), seed=seed)
    chance = recovery(features, planted_features(d_sae, d_in, torch.Generator().manual_seed(2000 + seed))).mean()
    start = recovery(features, made.W_dec.detach())
    assert abs(float(start.mean() - chance)) < 0.05
    assert float((start > 0.9).double().mean()) < 0.02
    config = TrainConfig(n_steps=n_steps, learning_rate=1e-3, warmup_steps=100, decay_share=0.2, dead_tokens=50_000)
    for _ in train(made, planted_stream(features, 512, 3000 + seed, k=4.0), ReconstructionObjective(), config):
        pass
    return float((recovery(features, made.W_dec.detach()) > 0.9).double().mean())


def test_top_k_recovers_a_small_planted_dictionary():
    assert train_planted(n_features=32, d_in=24, d_sae=64, n_steps=1000, seed=0) >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_top_k_recovers_ninety_six_features_in_thirty_two_dimensions(seed):
    assert train_planted(n_features=96, d_in=32, d_sae=192, n_steps=4000, seed=seed) >= 0.9


def train_tree(n_steps: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, float]:
    """(true features, learned atoms, mean number of active latents) after pursuit on the uncorrelated tree."""
    draw = torch.Generator().manual_seed(500 + seed)
    features = tree_features(draw)
    made = MatchingPursuit(PursuitConfig(d_in=20, d_sae=20, k=4), seed=seed)
    assert float(recovery(features, made.W_dec.detach()).mean()) < 0.6
    data = (tree_codes(200, draw) @ features for _ in range(n_steps))
    config = TrainConfig(
        n_steps=n_steps, learning_rate=3e-2, warmup_steps=100, decay_share=0.2, optimiser=OptimiserConfig(betas=(0.5, 0.9375))
    )
    for _ in train(made, data, ReconstructionObjective(), config):
        pass
    with torch.no_grad():
        l0 = made.encode(tree_codes(2000, draw) @ features, k=20, tol=0.05).mean_l0()
    return features, made.W_dec.detach(), l0


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_pursuit_recovers_every_node_of_the_tree_and_does_not_absorb(seed):
    features, atoms, l0 = train_tree(2500, seed)
    assert float(recovery(features, atoms).min()) > 0.99
    cosine = features @ atoms.T
    for parent, children in CHILDREN.items():
        best = cosine[list(children)].argmax(1)
        assert float(cosine[parent, best].abs().max()) < 0.02
    assert 1.3 < l0 < 1.42

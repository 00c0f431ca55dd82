"""Scores of transcoders and of the linear maps they are read against."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from sae.dictionaries.activations import TopK
from sae.dictionaries.autoencoder import Autoencoder, AutoencoderConfig
from sae.dictionaries.scaling import Scaling
from sae.errors import ConfigError
from sae.evaluation.reconstruction import pca_fvu
from sae.evaluation.transcoding import linear_fvu, transcoding

D_IN, D_OUT = 7, 5


def pairs(n_batches=4, rows=60, seed=0, noise=0.5):
    draw = torch.Generator().manual_seed(seed)
    mix, map_ = torch.randn(D_IN, D_IN, generator=draw), torch.randn(D_IN, D_OUT, generator=draw)
    found = []
    for _ in range(n_batches):
        x = torch.randn(rows, D_IN, generator=draw) @ mix + 2
        found.append((x, torch.tanh(x @ map_) + x @ map_ + noise * torch.randn(rows, D_OUT, generator=draw) - 3))
    return found


def joined(found):
    return tuple(torch.cat(parts).double().numpy() for parts in zip(*found, strict=True))


@pytest.mark.parametrize("skip", [False, True])
def test_scores_are_those_written_out_token_by_token(skip):
    draw = torch.Generator().manual_seed(1)
    config = AutoencoderConfig(d_in=D_IN, d_sae=20, activation=TopK(3), d_out=D_OUT, skip=skip)
    scalings = Scaling(torch.randn(D_IN, generator=draw), 0.7), Scaling(torch.randn(D_OUT, generator=draw), 1.3)
    made = Autoencoder(config, scalings[0], target_scaling=scalings[1], seed=2)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=draw))
    found = transcoding(made, pairs())
    x, y = joined(pairs())
    weights = {name: tensor.double().numpy() for name, tensor in made.state_dict().items()}
    error, n_active, fired = 0.0, 0, set()
    for row, target in zip(x, y, strict=True):
        scaled = (row - scalings[0].mean.double().numpy()) * 0.7
        pre_acts = scaled @ weights["W_enc"] + weights["b_enc"]
        out = weights["b_dec"] + (scaled @ weights["W_skip"] if skip else 0)
        for latent in np.argsort(-pre_acts)[:3]:
            if pre_acts[latent] > 0:
                out = out + pre_acts[latent] * weights["W_dec"][latent]
                n_active, fired = n_active + 1, fired | {int(latent)}
        error += ((target - (out / 1.3 + scalings[1].mean.double().numpy())) ** 2).sum()
    assert found.fvu == pytest.approx(error / ((y - y.mean(0)) ** 2).sum(), rel=1e-5)
    assert found.l0 == n_active / len(x)
    assert found.dead_share == pytest.approx(1 - len(fired) / 20)
    assert found.n_tokens == len(x)


def test_the_linear_map_of_full_rank_is_least_squares():
    x, y = joined(pairs())
    design = np.c_[x, np.ones(len(x))]
    solution = np.linalg.lstsq(design, y, rcond=None)[0]
    held_x, held_y = joined(pairs(seed=0, n_batches=6)[4:])
    error = ((held_y - np.c_[held_x, np.ones(len(held_x))] @ solution) ** 2).sum() / ((held_y - held_y.mean(0)) ** 2).sum()
    assert linear_fvu(pairs(), pairs(n_batches=6)[4:], [D_OUT]).fvu[0] == pytest.approx(error, rel=1e-8)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_no_map_of_the_same_rank_fits_better_than_the_linear_one(rank):
    found = linear_fvu(pairs(), pairs(), [rank]).fvu[0]
    x, y = (torch.from_numpy(part - part.mean(0)) for part in joined(pairs()))
    draw = torch.Generator().manual_seed(rank)
    # Alternating least squares for A [d_in, r] C [r, d_out] from random starts, an optimum found another way.
    best = np.inf
    for _ in range(3):
        c = torch.randn(rank, D_OUT, generator=draw, dtype=torch.float64)
        for _ in range(300):
            a = torch.linalg.lstsq(x, y @ torch.linalg.pinv(c)).solution
            c = torch.linalg.lstsq(x @ a, y).solution
        best = min(best, float((y - x @ a @ c).square().sum() / y.square().sum()))
    assert found == pytest.approx(best, rel=1e-6)


def test_a_site_explained_by_itself_is_pca():
    same = [(x, x) for x, _ in pairs()]
    ranks = [1, 3, D_IN]
    expected = pca_fvu([x for x, _ in same], [x for x, _ in same], ranks).fvu
    assert linear_fvu(same, same, ranks).fvu == pytest.approx(expected, abs=1e-9)
    x = joined(same)[0]
    assert expected[0] == pytest.approx(1 - PCA(1).fit(x).explained_variance_ratio_[0], abs=1e-9)


def test_an_input_that_says_nothing_leaves_all_of_the_variance():
    draw = torch.Generator().manual_seed(5)
    fit = [(torch.randn(4000, D_IN, generator=draw), torch.randn(4000, D_OUT, generator=draw))]
    assert linear_fvu(fit, fit, [2]).fvu[0] == pytest.approx(1, abs=0.01)


def test_what_cannot_be_measured_is_refused():
    made = Autoencoder(AutoencoderConfig(d_in=D_IN, d_sae=9, activation=TopK(2), d_out=D_OUT))
    with pytest.raises(ConfigError, match="pairs must hold at least one row"):
        transcoding(made, [])
    with pytest.raises(ConfigError, match="the output must vary"):
        transcoding(made, [(torch.randn(4, D_IN), torch.ones(4, D_OUT))])
    with pytest.raises(ConfigError, match=r"ranks must hold positive integers, got \[0\]"):
        linear_fvu(pairs(), pairs(), [0])
    with pytest.raises(ConfigError, match="fit must hold at least two rows, got 0"):
        linear_fvu([], pairs(), [1])

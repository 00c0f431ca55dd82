"""Codebooks: both rules start at the same reconstruction, and unused codes find the clusters that have none."""

import pytest
import torch

from sae.dictionaries.codebook import Codebook, CodebookConfig
from sae.dictionaries.init import initialise_
from sae.synthetic.planted import recovery
from sae.training.loop import TrainConfig, train
from sae.training.objectives import ReconstructionObjective
from sae.training.revival import Resampling


def test_added_codes_start_at_the_reconstruction_of_averaged_ones():
    x = torch.randn(300, 16, generator=torch.Generator().manual_seed(41)) + 1
    started = {reduce: Codebook(CodebookConfig(d_in=16, d_sae=64, k=8, reduce=reduce)) for reduce in ("mean", "sum")}
    for made in started.values():
        initialise_(made, x, seed=3)
    added, averaged = (made(x).detach() for made in (started["sum"], started["mean"]))
    torch.testing.assert_close(added, averaged)
    assert float((added - x).square().sum()) < 1.2 * float((x - x.mean(0)).square().sum())


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_a_codebook_with_resampling_finds_a_hundred_clusters_down_to_their_noise(seed):
    draw = torch.Generator().manual_seed(21 + seed)
    centres = torch.nn.functional.normalize(torch.randn(100, 128, generator=draw), dim=1)
    made = Codebook(CodebookConfig(d_in=128, d_sae=200, k=1), seed=100 + seed)
    assert float(recovery(centres, made.W_dec.detach()).max()) < 0.6

    def clusters(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        label = torch.randint(0, 100, (rows,), generator=draw)
        return centres[label] + 0.3 * torch.randn(rows, 128, generator=draw) / 128**0.5, label

    config = TrainConfig(n_steps=1000, learning_rate=1e-2, dead_tokens=10_000, resampling=Resampling(every=100))
    for _ in train(made, (clusters(512)[0] for _ in range(1000)), ReconstructionObjective(), config):
        pass
    x, label = clusters(8000)
    code = made.encode(x).indices[:, 0]
    table = torch.zeros(200, 100).index_put_((code, label), torch.ones(len(x)), accumulate=True)
    assert float(table.amax(1).sum()) == len(x)
    fvu = float((made(x).detach() - x).square().sum() / (x - x.mean(0)).square().sum())
    floor = 0.09 / (0.09 + 1 - 1 / 100)
    assert floor * 0.97 < fvu < floor * 1.05

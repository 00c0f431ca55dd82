"""The objective against its formula, the reach of AuxK's gradient, and the data-driven start."""

import pytest
import torch

from sae.dictionaries.activations import TopK
from sae.dictionaries.autoencoder import Autoencoder, AutoencoderConfig
from sae.dictionaries.explained import Ask
from sae.dictionaries.init import best_gain, geometric_median, initialise_
from sae.dictionaries.pursuit import MatchingPursuit, PursuitConfig
from sae.errors import ConfigError, SaeError
from sae.training.objectives import Moment, ReconstructionObjective

D_IN, D_SAE = 12, 40


def autoencoder(seed: int = 0) -> Autoencoder:
    made = Autoencoder(AutoencoderConfig(d_in=D_IN, d_sae=D_SAE, activation=TopK(3)), seed=seed).double()
    draw = torch.Generator().manual_seed(seed + 100)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=draw, dtype=torch.float64))
    made.normalise_()
    return made


def sample(n: int = 30, seed: int = 1) -> torch.Tensor:
    return torch.randn(n, D_IN, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.5


@pytest.mark.parametrize("k_aux", [2, 64])
def test_the_objective_and_every_gradient_are_those_of_dense_autograd(k_aux):
    made, x = autoencoder(), sample()
    dead = torch.zeros(D_SAE, dtype=torch.bool)
    dead[[1, 5, 9, 22]] = True
    objective = ReconstructionObjective(aux_coefficient=0.25, aux_share=k_aux / D_IN if k_aux <= D_IN else 1.0)
    k_aux = min(objective.k_aux(D_IN), 4)
    losses = objective(made, x, None, Moment(dead=dead))
    pre_acts = (x - made.b_dec) @ made.W_enc + made.b_enc
    top = pre_acts.topk(3)
    x_hat = torch.zeros_like(pre_acts).scatter(1, top.indices, top.values.relu()) @ made.W_dec + made.b_dec
    fvu = (x - x_hat).square().sum() / (x - x.mean(0)).square().sum()
    e = (x - x_hat).detach()
    fixed = (x - made.b_dec.detach()) @ made.W_enc + made.b_enc  # AuxK does not move b_dec
    masked = fixed.masked_fill(~dead, -torch.inf).topk(k_aux)
    e_hat = torch.zeros_like(fixed).scatter(1, masked.indices, masked.values.relu()) @ made.W_dec
    expected = fvu + 0.25 * (e - e_hat).square().sum() / (e - e.mean(0)).square().sum()
    assert float(losses.total.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)
    assert float(losses.fvu) == pytest.approx(float(fvu.detach()), rel=1e-12)
    parameters = list(made.parameters())
    torch.testing.assert_close(torch.autograd.grad(losses.total, parameters), torch.autograd.grad(expected, parameters))


def test_aux_k_moves_the_encoder_and_the_decoder_of_dead_latents_only():
    made, x = autoencoder(), sample()
    latents = torch.tensor([1, 5, 9, 22])
    made.explain(x, Ask(latents=latents, k_aux=3)).revival.backward()
    others = torch.ones(D_SAE, dtype=torch.bool)
    others[latents] = False
    for name, grad in (("W_enc", made.W_enc.grad.T), ("b_enc", made.b_enc.grad[:, None]), ("W_dec", made.W_dec.grad)):
        assert (grad[latents].abs().sum(1) > 0).all(), name
        assert not grad[others].any(), name


def test_aux_k_draws_dead_pursuit_atoms_to_the_residual():
    made = MatchingPursuit(PursuitConfig(d_in=D_IN, d_sae=D_SAE, k=3), seed=2).double()
    x, latents = sample(), torch.tensor([4, 7])
    residual = made.explain(x, Ask()).residual
    made.explain(x, Ask(latents=latents, k_aux=64)).revival.backward()
    assert (made.W_dec.grad[latents].abs().sum(1) > 0).all()
    others = torch.ones(D_SAE, dtype=torch.bool)
    others[latents] = False
    assert not made.W_dec.grad[others].any()

    def left() -> float:
        atoms = made.W_dec.detach()[latents]
        return float((residual - (residual @ atoms.T).relu() @ atoms).square().sum())

    before = left()
    with torch.no_grad():
        made.W_dec[latents] -= 0.05 * made.W_dec.grad[latents] / made.W_dec.grad[latents].norm()
    made.normalise_()
    assert left() < before


def test_without_dead_latents_the_loss_is_the_fvu_and_the_coefficient_can_be_zero():
    made, x = autoencoder(), sample()
    nobody, somebody = Moment(dead=torch.zeros(D_SAE, dtype=torch.bool)), Moment(dead=torch.arange(D_SAE) == 3)
    losses = ReconstructionObjective()(made, x, None, nobody)
    assert float(losses.total.detach()) == float(losses.fvu)
    off = ReconstructionObjective(aux_coefficient=0.0)(made, x, None, somebody)
    assert float(off.total.detach()) == float(off.fvu)
    assert float(ReconstructionObjective()(made, x, None, somebody).total.detach()) > float(off.fvu)


@pytest.mark.parametrize(("d_in", "k_aux"), [(576, 256), (768, 512), (512, 256), (64, 32), (1, 1)])
def test_k_aux_is_half_the_width_rounded_to_a_power_of_two(d_in, k_aux):
    assert ReconstructionObjective().k_aux(d_in) == k_aux


def test_a_batch_without_variance_is_refused_and_silent_dead_latents_explain_nothing():
    made, everybody = autoencoder(), Moment(dead=torch.ones(D_SAE, dtype=torch.bool))
    with pytest.raises(SaeError, match="x must vary within the batch, got 4 equal rows"):
        ReconstructionObjective()(made, torch.zeros(4, D_IN, dtype=torch.float64), None, everybody)
    with torch.no_grad():
        made.b_enc.fill_(-1e6)  # no latent is active: e = x - b_dec, whose variance is that of x, and e_hat = 0
    losses = ReconstructionObjective()(made, sample(), None, everybody)
    assert float(losses.total.detach()) == pytest.approx(float(losses.fvu) * (1 + 1 / 32))


@pytest.mark.parametrize(
    ("name", "value"), [("aux_coefficient", -1.0), ("aux_coefficient", float("nan")), ("aux_share", 0.0), ("aux_share", 2.0)]
)
def test_objective_options_out_of_range_are_refused(name, value):
    with pytest.raises(ConfigError, match=f"^{name} must be"):
        ReconstructionObjective(**{name: value})


def test_the_geometric_median_minimises_the_sum_of_distances():
    x = sample(200, seed=4)
    x[:20] += 1000  # a tenth of outliers moves the mean far, the median hardly
    median = geometric_median(x, max_iterations=1000, tolerance=1e-9)
    assert float((median - 0.5).norm()) < 1
    total = (x - median).norm(dim=1).sum()
    draw = torch.Generator().manual_seed(5)
    for _ in range(50):
        other = median + 1e-2 * torch.randn(D_IN, generator=draw, dtype=torch.float64)
        assert float((x - other).norm(dim=1).sum()) > float(total)
    unit = (x - median) / (x - median).norm(dim=1, keepdim=True)
    assert float(unit.mean(0).norm()) < 1e-6


def test_the_geometric_median_of_copies_and_of_a_line_is_exact():
    row = sample(1)
    torch.testing.assert_close(geometric_median(row.expand(7, D_IN).clone()), row[0])
    line = torch.tensor([[0.0], [1.0], [10.0]], dtype=torch.float64)
    assert float(geometric_median(line, max_iterations=10_000, tolerance=1e-9)) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("atoms", ["data", "random"])
@pytest.mark.parametrize("n", [10, 200])
def test_a_start_from_data_is_centred_tied_and_of_best_gain(atoms, n):
    made, acts = autoencoder().float(), sample(n).float()
    initialise_(made, acts, atoms=atoms, seed=3)
    torch.testing.assert_close(made.b_dec.detach(), geometric_median(acts), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(made.W_dec.norm(dim=1), torch.ones(D_SAE))
    assert not made.b_enc.any()
    cosine = torch.nn.functional.cosine_similarity(made.W_enc.T, made.W_dec)
    torch.testing.assert_close(cosine, torch.ones(D_SAE))
    assert best_gain(made, acts) == pytest.approx(1.0, abs=1e-4)
    again = autoencoder(seed=9).float()
    initialise_(again, acts, atoms=atoms, seed=3)
    assert again.digest == made.digest
    if atoms == "data":
        rows = torch.nn.functional.normalize(acts - made.b_dec, dim=1)
        n_found = int(((made.W_dec @ rows.T).amax(1) > 1 - 1e-5).sum())
        assert n_found == min(n, D_SAE)


def test_starting_from_nothing_is_refused():
    with pytest.raises(ConfigError, match="acts must have at least one row, got 0"):
        initialise_(autoencoder(), sample(0))
    with pytest.raises(ConfigError, match="acts must have shape"):
        initialise_(autoencoder(), torch.zeros(3, D_IN + 1))

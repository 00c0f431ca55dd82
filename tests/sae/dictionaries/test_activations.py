"""Every activation against its definition, and the straight-through estimates against their reference values."""

import copy

import pytest
import torch

from sae.dictionaries.activations import AbsTopK, BatchTopK, Gated, Jump, JumpReLU, ReLU, Step, TopK
from sae.dictionaries.autoencoder import Autoencoder, AutoencoderConfig
from sae.dictionaries.checkpoint import load_dictionary, save_dictionary
from sae.dictionaries.explained import Ask
from sae.errors import ConfigError

D_IN, D_SAE = 16, 48


def autoencoder(activation, seed: int = 0, **options) -> Autoencoder:
    made = Autoencoder(AutoencoderConfig(d_in=D_IN, d_sae=D_SAE, activation=activation, **options), seed=seed).double()
    draw = torch.Generator().manual_seed(seed + 50)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=draw, dtype=torch.float64))
    made.normalise_()
    return made


def sample(n: int = 40, seed: int = 1) -> torch.Tensor:
    return torch.randn(n, D_IN, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pre_acts(made: Autoencoder, x: torch.Tensor) -> torch.Tensor:
    return (x - made.b_dec) @ made.W_enc + made.b_enc


def kept(z: torch.Tensor, k: int) -> torch.Tensor:
    return torch.zeros_like(z).scatter(1, z.topk(k).indices, 1.0)


def definition(made: Autoencoder, x: torch.Tensor) -> torch.Tensor:
    """The dense codes that the papers' formulas give outside training."""
    pi, activation = pre_acts(made, x), made.config.activation
    match activation:
        case TopK():
            return pi.relu() * kept(pi, activation.k)
        case AbsTopK():
            return pi * kept(pi.abs(), activation.k)
        case BatchTopK():
            return pi * (pi > made.threshold)
        case ReLU():
            return pi.relu()
        case JumpReLU():
            return pi * (pi > made.log_threshold.exp())
        case Gated():
            return (pi > 0) * (made.r_mag.exp() * ((x - made.b_dec) @ made.W_enc) + made.b_mag).relu()


ACTIVATIONS = pytest.mark.parametrize(
    "activation", [TopK(5), AbsTopK(5), BatchTopK(5.0), ReLU(), JumpReLU(threshold=0.4, bandwidth=0.3), Gated()], ids=lambda a: a.kind
)


@ACTIVATIONS
def test_codes_are_those_of_the_definition(activation):
    made = autoencoder(activation)
    if isinstance(activation, BatchTopK):
        made.threshold.fill_(0.7)
    torch.testing.assert_close(made.encode(sample()).dense(), definition(made, sample()))


@ACTIVATIONS
def test_in_training_the_codes_are_those_of_the_definition_but_for_the_coupling_of_a_batch(activation):
    made, x = autoencoder(activation), sample()
    z = made.explain(x, Ask()).codes.dense()
    if isinstance(activation, BatchTopK):
        pi = pre_acts(made, x)
        expected = pi.relu() * kept(pi.reshape(1, -1), 5 * len(x)).view_as(pi)
    else:
        expected = definition(made, x)
    torch.testing.assert_close(z, expected.detach())


REFERENCE = torch.tensor([0.40, 0.4501, 0.46, 0.50, 0.52, 0.5499, 0.56, 0.9], dtype=torch.float64)
INSIDE = torch.tensor([0, 1, 1, 1, 1, 1, 0, 0], dtype=torch.float64)


def test_the_straight_through_estimates_have_the_reference_values():
    theta = torch.full_like(REFERENCE, 0.5, requires_grad=True)
    z = REFERENCE.clone().requires_grad_()
    (of_pi, of_theta) = torch.autograd.grad(Jump.apply(z, theta, 0.1).sum(), (z, theta))
    torch.testing.assert_close(of_theta, -5 * INSIDE)
    torch.testing.assert_close(of_pi, (REFERENCE > 0.5).double())
    (of_pi, of_theta) = torch.autograd.grad(Step.apply(z, theta, 0.1).sum(), (z, theta), allow_unused=True)
    torch.testing.assert_close(of_theta, -10 * INSIDE)
    assert of_pi is None
    torch.testing.assert_close(Step.apply(z, theta, 0.1).detach(), (REFERENCE > 0.5).double())


def test_the_estimate_of_the_gradient_of_l0_is_unbiased_and_the_post_activation_variant_would_give_half_of_it():
    z = torch.rand(2_000_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)  # density 1 at the threshold
    theta = torch.full_like(z, 0.5, requires_grad=True)
    (grad,) = torch.autograd.grad(Step.apply(z, theta, 0.1).mean(), theta)
    assert float(grad.sum()) == pytest.approx(-1.0, abs=0.01)
    jumped = z * (z > 0.5)
    (grad,) = torch.autograd.grad(Step.apply(jumped, theta, 0.1).mean(), theta)
    assert float(grad.sum()) == pytest.approx(-0.5, abs=0.01)


def test_jump_relu_thresholds_feel_pre_activations_just_below_them():
    """The whole chain: the gradient of error and L0 in log theta, written out from the estimates' formulas."""
    epsilon = 0.3
    made, x = autoencoder(JumpReLU(threshold=0.4, bandwidth=epsilon)), sample()
    pi, theta = pre_acts(made, x).detach(), made.log_threshold.detach().exp()
    window = ((pi - theta).abs() < epsilon / 2).double()
    assert float((window * (pi < theta)).sum()) > 20
    z = pi * (pi > theta)
    towards = -2 * (x - z @ made.W_dec - made.b_dec).detach() @ made.W_dec.detach().T  # d error / d z
    explained = made.explain(x, Ask())
    (of_error,) = torch.autograd.grad(explained.error, made.log_threshold, retain_graph=True)
    torch.testing.assert_close(of_error, theta * (-(theta / epsilon) * window * towards).sum(0))
    (of_l0,) = torch.autograd.grad(explained.penalty, made.log_threshold)
    torch.testing.assert_close(of_l0, theta * (-window / epsilon).sum(0) / len(x))
    assert float(explained.penalty.detach()) == pytest.approx(explained.l0)
    assert explained.l0 == pytest.approx(float((z != 0).sum()) / len(x))


def test_gated_equals_relu_where_magnitude_and_gate_share_their_weights():
    made = autoencoder(Gated())
    with torch.no_grad():
        made.r_mag.zero_()
        made.b_mag.copy_(made.b_enc)
    torch.testing.assert_close(made.encode(sample()).dense(), pre_acts(made, sample()).relu())


def test_the_gates_own_reconstruction_trains_the_encoder_through_a_decoder_that_stays_fixed():
    made, x = autoencoder(Gated()), sample()
    explained = made.explain(x, Ask())
    gates = pre_acts(made, x).relu()
    expected = (x - gates @ made.W_dec.detach() - made.b_dec.detach()).square().sum()
    torch.testing.assert_close(explained.gate_error, expected)
    got = torch.autograd.grad(explained.gate_error, [made.W_enc, made.b_enc], retain_graph=True)
    torch.testing.assert_close(got, torch.autograd.grad(expected, [made.W_enc, made.b_enc]))
    assert torch.autograd.grad(explained.gate_error, made.W_dec, allow_unused=True)[0] is None
    assert float(explained.penalty.detach()) == pytest.approx(float(gates.sum(1).mean().detach()))


def test_relu_is_charged_its_l1_norm():
    made, x = autoencoder(ReLU()), sample()
    explained, pi = made.explain(x, Ask()), pre_acts(made, x)
    torch.testing.assert_close(explained.penalty, pi.relu().sum(1).mean())
    got = torch.autograd.grad(explained.penalty, [made.W_enc, made.b_enc])
    torch.testing.assert_close(got, torch.autograd.grad(pi.relu().sum(1).mean(), [made.W_enc, made.b_enc]))


def test_a_signed_latent_answers_to_two_opposite_directions():
    made = Autoencoder(AutoencoderConfig(d_in=D_IN, d_sae=D_SAE, activation=AbsTopK(1)), seed=3)
    atom = made.W_dec.detach()[7]
    codes = made.encode(torch.stack([2 * atom, -2 * atom]))
    assert codes.indices.tolist() == [[7], [7]]
    torch.testing.assert_close(codes.values, torch.tensor([[2.0], [-2.0]]))


def test_batch_top_k_keeps_k_a_row_on_average_and_not_in_each():
    made = autoencoder(BatchTopK(4.5))
    explained = made.explain(sample(200), Ask())
    assert explained.l0 == 4.5
    assert float(explained.codes.counts.double().var()) > 1


def test_the_threshold_is_the_running_mean_of_the_smallest_value_kept_and_is_saved(tmp_path):
    made = autoencoder(BatchTopK(4.5))
    assert float(made.threshold) == 0
    least = []
    for seed in range(3):
        codes = made.explain(sample(seed=seed), Ask()).codes
        least.append(float(codes.values[codes.active()].min()))
        made.settle_(codes)
    expected = least[0]
    for value in least[1:]:
        expected = 0.95 * expected + 0.05 * value
    assert float(made.threshold) == pytest.approx(expected)
    save_dictionary(made, tmp_path / "saved")
    loaded = load_dictionary(tmp_path / "saved")
    assert torch.equal(loaded.threshold, made.threshold)
    twin = copy.deepcopy(made)
    twin.threshold.add_(1)
    assert float(made.threshold) == pytest.approx(expected)
    assert twin.digest != made.digest


def test_in_threshold_mode_held_out_codes_have_about_k_active_latents():
    made = autoencoder(BatchTopK(6.0))
    for seed in range(20):
        made.settle_(made.explain(sample(500, seed=seed), Ask()).codes)
    assert made.encode(sample(5000, seed=99)).mean_l0() == pytest.approx(6.0, rel=0.05)


@pytest.mark.parametrize(("coherence", "n_draws"), [(0.04, 400)])
def test_one_shot_selection_is_exact_under_the_coherence_condition(coherence, n_draws):
    """Makhzani & Frey 2013, theorem 3.1: k mu < z_(k) / (2 z_(1)) makes the k largest projections the true support."""
    draw = torch.Generator().manual_seed(0)
    d_in, n_atoms, k = 512, 24, 3
    atoms = torch.linalg.qr(torch.randn(d_in, n_atoms, generator=draw, dtype=torch.float64)).Q.T
    atoms = torch.nn.functional.normalize(atoms + coherence / 4 * torch.randn(n_atoms, d_in, generator=draw) / d_in**0.5 * 4, dim=1)
    mu = float((atoms @ atoms.T - torch.eye(n_atoms)).abs().max())
    made = Autoencoder(AutoencoderConfig(d_in=d_in, d_sae=n_atoms, activation=TopK(k))).double()
    with torch.no_grad():
        made.W_enc.copy_(atoms.T)
    n_met = 0
    for _ in range(n_draws):
        support = torch.randperm(n_atoms, generator=draw)[:k]
        amplitude = 0.3 + torch.rand(k, generator=draw, dtype=torch.float64)
        if k * mu < float(amplitude.min() / (2 * amplitude.max())):
            n_met += 1
            codes = made.encode((amplitude @ atoms[support])[None])
            assert set(codes.indices[0].tolist()) == set(support.tolist())
    assert n_met > 50


@pytest.mark.parametrize(("activation", "message"), [
    (BatchTopK(0.0), r"k must be in \(0, d_sae=48\], got 0.0 \(BatchTopK\)"), (BatchTopK(49.0), "k must be in"),
    (AbsTopK(0), r"k must be in 1..d_sae=48, got 0 \(AbsTopK\)"), (JumpReLU(threshold=0.0), "threshold must be positive"),
    (JumpReLU(bandwidth=-1.0), "bandwidth must be positive"),
])  # fmt: skip
def test_options_that_do_not_suit_the_width_are_refused(activation, message):
    with pytest.raises(ConfigError, match=message):
        AutoencoderConfig(d_in=D_IN, d_sae=D_SAE, activation=activation)


def test_a_k_is_refused_where_there_is_none():
    with pytest.raises(ConfigError, match=r"k must be absent for an activation without one, got 3.0 \(ReLU\)"):
        autoencoder(ReLU()).explain(sample(), Ask(k=3.0))


@pytest.mark.parametrize("skip", [False, True])
def test_a_transcoder_needs_a_target_and_an_autoencoder_must_not_have_one(skip):
    made, x = autoencoder(TopK(3), d_out=9, skip=skip), sample()
    with pytest.raises(ConfigError, match="target must be given for a transcoder"):
        made.explain(x, Ask())
    with pytest.raises(ConfigError, match="target must be absent for an autoencoder"):
        autoencoder(TopK(3)).explain(x, Ask(target=x))
    target = torch.randn(40, 9, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    pi = x @ made.W_enc + made.b_enc
    expected = target - (pi.relu() * kept(pi, 3)) @ made.W_dec - made.b_dec - (x @ made.W_skip if skip else 0)
    torch.testing.assert_close(made.explain(x, Ask(target=target)).residual, expected.detach())


def test_a_linear_path_without_another_output_is_refused():
    with pytest.raises(ConfigError, match="skip must be False without d_out"):
        AutoencoderConfig(d_in=D_IN, d_sae=D_SAE, skip=True)

"""The forms that other libraries save dictionaries in: normalised rows, b_dec not subtracted, pursuits that end early or have free atoms."""

import math

import pytest
import torch

from sae.dictionaries.activations import JumpReLU, TopK
from sae.dictionaries.autoencoder import Autoencoder, AutoencoderConfig
from sae.dictionaries.codes import SparseCodes
from sae.dictionaries.pursuit import MatchingPursuit, PursuitConfig
from sae.dictionaries.scaling import Scaling, normalised, row_statistics
from sae.errors import ConfigError

D_IN, D_SAE = 20, 90


def rows(n: int = 30, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(n, D_IN, generator=torch.Generator().manual_seed(seed)) + 0.7


def slow_pursuit(x, atoms, k, tolerance, stop_on_repeat):
    """Every row by itself in float64; (dense codes, residual, number of steps)."""
    codes = torch.zeros(len(x), len(atoms), dtype=torch.float64)
    residuals, n_steps = [], []
    atoms = atoms.double()
    for row, r in enumerate(x.double()):
        chosen: list[int] = []
        for _ in range(k):
            c = atoms @ r
            j = int(c.argmax())
            if c[j] <= 1e-6 * x[row].norm():
                break
            a = c[j].clone()
            codes[row, j] += a
            r = r - a * atoms[j]
            repeated = j in chosen
            chosen.append(j)
            if float(r.norm()) < tolerance or (stop_on_repeat and repeated):
                break
        residuals.append(r)
        n_steps.append(len(chosen))
    return codes, torch.stack(residuals), n_steps


@pytest.mark.parametrize("unit_norm", [True, False])
@pytest.mark.parametrize(("tolerance", "stop_on_repeat"), [(0.0, False), (4.0, False), (0.0, True), (3.0, True)])
def test_pursuit_ends_where_the_slow_one_ends(unit_norm, tolerance, stop_on_repeat):
    config = PursuitConfig(d_in=D_IN, d_sae=D_SAE, k=70, unit_norm=unit_norm, tolerance=tolerance, stop_on_repeat=stop_on_repeat)
    dictionary = MatchingPursuit(config, seed=1)
    with torch.no_grad():
        dictionary.b_dec.copy_(rows(1, 5)[0])
        if not unit_norm:
            dictionary.W_dec.mul_(torch.empty(D_SAE, 1).uniform_(0.6, 1.2, generator=torch.Generator().manual_seed(2)))
    acts = rows()
    found = dictionary.pursue(acts)
    codes, residuals, n_steps = slow_pursuit(acts - dictionary.b_dec.detach(), dictionary.W_dec.detach(), 70, tolerance, stop_on_repeat)
    if tolerance or stop_on_repeat:
        assert found.steps.counts.tolist() == n_steps
        assert len(set(n_steps)) > 1
    torch.testing.assert_close(found.codes.dense().double(), codes, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.energies[:, -1].double(), residuals.square().sum(1), rtol=1e-3, atol=1e-4)
    assert found.energies.shape == (30, 71)


def test_a_longer_pursuit_goes_on_from_where_the_first_steps_end():
    easy = PursuitConfig(d_in=D_IN, d_sae=300, k=200, tolerance=1e-3)
    found = MatchingPursuit(easy, seed=1).pursue(rows())
    assert int(found.steps.counts.max()) > 32
    assert bool((found.energies[:, -1].sqrt() < 1e-3).all())
    assert bool((found.energies.diff(dim=1) <= 1e-4).all())


def test_values_of_a_pursuit_that_ends_early_have_the_gradient_of_the_fixed_selection():
    dictionary = MatchingPursuit(PursuitConfig(d_in=D_IN, d_sae=D_SAE, k=6, unit_norm=False, tolerance=1.0), seed=1).double()
    x = rows(2).double().requires_grad_()
    order = dictionary.pursue(x).order
    dictionary.pursue(x).steps.values.square().sum().backward()

    def explicit(x):
        total, r = 0.0, x
        for t in range(order.shape[1]):
            d = dictionary.W_dec[order[:, t]]
            a = (r * d).sum(1)
            total, r = total + a.square().sum(), r - a[:, None] * d
        return total

    expected = torch.autograd.functional.jacobian(explicit, x.detach())
    torch.testing.assert_close(x.grad, expected)


@pytest.mark.parametrize(
    "wrong",
    [{"tolerance": -1.0}, {"tolerance": math.inf}, {"orthogonal": True, "tolerance": 1.0}, {"orthogonal": True, "unit_norm": False}],
)
def test_rules_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ConfigError, match="MatchingPursuit"):
        PursuitConfig(d_in=D_IN, d_sae=D_SAE, k=4, **wrong)


def test_layer_norm_is_torchs_but_for_the_unbiased_deviation():
    acts = rows()
    biased = torch.nn.functional.layer_norm(acts, (D_IN,))
    torch.testing.assert_close(normalised(acts, "layer_norm"), biased * math.sqrt((D_IN - 1) / D_IN), rtol=1e-4, atol=1e-5)


def test_constant_norm_gives_every_row_the_norm_sqrt_d_in_and_leaves_zeros():
    acts = torch.cat([rows(), torch.zeros(1, D_IN)])
    norms = normalised(acts, "constant_norm").norm(dim=1)
    torch.testing.assert_close(norms[:-1], torch.full((30,), math.sqrt(D_IN)))
    assert float(norms[-1]) == 0


@pytest.mark.parametrize("normalisation", ["layer_norm", "constant_norm"])
def test_statistics_of_rows_undo_the_normalisation(normalisation):
    acts = rows()
    back = row_statistics(acts, normalisation).undo(normalised(acts, normalisation))
    torch.testing.assert_close(back, acts, rtol=1e-4, atol=1e-4)


def test_codes_of_normalised_rows_do_not_change_with_the_scale_of_a_row_and_outputs_follow_it():
    dictionary = Autoencoder(AutoencoderConfig(d_in=D_IN, d_sae=D_SAE, activation=TopK(8), normalisation="constant_norm"), seed=1)
    acts = rows()
    torch.testing.assert_close(dictionary.encode(5 * acts).dense(), dictionary.encode(acts).dense(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(dictionary(5 * acts), 5 * dictionary(acts), rtol=1e-4, atol=1e-4)


def test_row_statistics_travel_with_codes_and_decoding_without_them_is_refused():
    dictionary = Autoencoder(AutoencoderConfig(d_in=D_IN, d_sae=D_SAE, activation=TopK(8), normalisation="layer_norm"), seed=1)
    acts = rows()
    codes = dictionary.encode(acts)
    again = SparseCodes.concatenate([codes[:7], codes[7:].merged()]).to("cpu")
    torch.testing.assert_close(dictionary.decode(again), dictionary(acts))
    with pytest.raises(ConfigError, match="statistics of their rows"):
        dictionary.decode(SparseCodes(codes.indices, codes.values, codes.counts, codes.d_sae))


def test_b_dec_that_is_not_subtracted_equals_an_encoder_bias_that_makes_up_for_it():
    draw = torch.Generator().manual_seed(3)
    plain = Autoencoder(
        AutoencoderConfig(d_in=D_IN, d_sae=D_SAE, activation=JumpReLU(), apply_b_dec_to_input=False), Scaling(rows(1)[0], 0.5)
    )
    usual = Autoencoder(AutoencoderConfig(d_in=D_IN, d_sae=D_SAE, activation=JumpReLU()), Scaling(rows(1)[0], 0.5))
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=draw))
        usual.load_state_dict(plain.state_dict())
        usual.b_enc.add_(plain.b_dec @ plain.W_enc)
    acts = rows()
    torch.testing.assert_close(plain.encode(acts).dense(), usual.encode(acts).dense(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(plain.fold()(acts), usual(acts), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(plain(acts), Autoencoder(usual.config, usual.scaling, seed=0)(acts))


def test_configurations_without_the_later_fields_keep_their_digest(monkeypatch):
    from sae.dictionaries import base

    now = MatchingPursuit(PursuitConfig(d_in=D_IN, d_sae=D_SAE, k=4), seed=1).digest
    other = MatchingPursuit(PursuitConfig(d_in=D_IN, d_sae=D_SAE, k=4, stop_on_repeat=True), seed=1).digest
    assert now != other
    monkeypatch.setattr(base, "LATER_FIELDS", ())
    assert MatchingPursuit(PursuitConfig(d_in=D_IN, d_sae=D_SAE, k=4), seed=1).digest != now

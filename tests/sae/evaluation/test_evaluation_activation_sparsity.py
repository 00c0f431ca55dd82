"""PPL-p% on tiny models: the thresholds against the definition of CETT, and the rise that they allow."""

import pytest
import torch
from spoken_rows import rows, spoken
from tiny import tiny_language_model

from sae.errors import ConfigError
from sae.evaluation.activation_sparsity import ActivationSparsityConfig, activation_sparsity
from sae.evaluation.thinning import mlp_writers
from sae.geometry.sparsity import tail_error

CONFIG = ActivationSparsityConfig(increase=0.01, tolerance=1e-3, batch_rows=3)


@pytest.fixture(scope="module")
def model():
    return tiny_language_model(seed=0)


@pytest.fixture(scope="module")
def found(model):
    tokens, mask = spoken(model, 5, 14, 1)
    calibration, calibration_mask = rows(model, 4, 11, 2)
    return activation_sparsity(model, tokens, mask, calibration=calibration, calibration_mask=calibration_mask, config=CONFIG)


def test_the_found_thresholds_share_a_relative_error_and_allow_the_rise(model, found):
    calibration, mask = rows(model, 4, 11, 2)
    acts = model.capture(calibration, found.sites)
    writers = mlp_writers(model)
    for i, site in enumerate(found.sites):
        values = acts[site][mask]
        error = tail_error(values, writers[site.layer], found.thresholds[i].item())
        assert error <= found.cett + 1e-6 and error == pytest.approx(found.cett, abs=0.02)
        ratio = (values.abs() * writers[site.layer].norm(dim=1) > found.thresholds[i]).double().mean().item()
        assert found.calibration_ratio[i].item() == pytest.approx(ratio, abs=1e-3)
    assert found.perplexity_sparse / found.perplexity_dense - 1 <= 0.01 + 1e-9
    assert 0 < found.cett < 1 and ((found.activation_ratio > 0.05) & (found.activation_ratio < 1)).all()
    torch.testing.assert_close(found.activation_ratio, found.calibration_ratio, rtol=0, atol=0.1)
    assert found.n_tokens == 5 * 12 - 2


def test_the_steps_of_the_bisection_are_kept_and_rows_are_plain(found):
    assert found.steps[0].tolist() == [0.0, pytest.approx(0, abs=1e-6)] and found.steps[1, 0] == 1
    within = found.steps[found.steps[:, 1] <= 0.01, 0].max()
    beyond = found.steps[found.steps[:, 1] > 0.01, 0].min()
    assert within == found.cett and 0 < beyond - within <= 1e-3
    assert [row["layer"] for row in found.rows()] == [0, 1, 2, 3]
    assert found.rows()[2]["threshold"] == found.thresholds[2].item()


def test_bad_requests_are_refused_by_name(model, unchecked):
    tokens, mask = rows(model, 5, 14, 1)
    for bad in (mask[:, 1:], torch.zeros_like(mask)):
        with pytest.raises(ConfigError, match="mask must have the shape"):
            activation_sparsity(model, tokens, bad, calibration=tokens, calibration_mask=mask, config=CONFIG)
        with pytest.raises(ConfigError, match="calibration_mask must have"):
            activation_sparsity(model, tokens, mask, calibration=tokens, calibration_mask=bad, config=CONFIG)
    with pytest.raises(ConfigError, match="increase must be crossed"):
        config = ActivationSparsityConfig(increase=1e6, batch_rows=8)
        activation_sparsity(model, tokens, mask, calibration=tokens, calibration_mask=mask, config=config)

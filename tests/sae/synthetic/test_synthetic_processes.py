"""The synthetic processes have the moments that their definitions say."""

import pytest
import torch

from sae.synthetic.planted import planted_codes, planted_features, recovery


def test_planted_codes_have_the_stated_sparsity_and_amplitudes():
    codes = planted_codes(40_000, 96, torch.Generator().manual_seed(0), k=4.0)
    assert float((codes > 0).sum(1).double().mean()) == pytest.approx(4, abs=0.05)
    assert float(codes[codes > 0].min()) == pytest.approx(0.1)
    assert float(codes[codes > 0].median()) == pytest.approx(1, abs=0.02)


def test_recovery_is_one_for_the_features_themselves_and_chance_for_others():
    features = planted_features(96, 32, torch.Generator().manual_seed(1))
    assert torch.allclose(recovery(features, features.flip(0) * 3), torch.ones(96))
    assert 0.4 < float(recovery(features, planted_features(96, 32, torch.Generator().manual_seed(2))).mean()) < 0.55

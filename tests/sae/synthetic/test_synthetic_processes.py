"""The synthetic processes have the moments that their definitions say."""

import pytest
import torch

from sae.synthetic.hierarchy import CHILDREN, PARENTS, tree_codes, tree_features
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


def test_the_tree_has_one_parent_and_at_most_one_child_of_it():
    codes = tree_codes(40_000, torch.Generator().manual_seed(3))
    active = codes > 0
    assert (active[:, list(PARENTS)].sum(1) == 1).all()
    for parent, children in CHILDREN.items():
        own = active[:, list(children)]
        assert (own.sum(1) <= active[:, parent]).all()
        assert float(own.sum(1)[active[:, parent]].double().mean()) == pytest.approx(0.6, abs=0.02)
        assert float(active[:, parent].double().mean()) == pytest.approx(0.2, abs=0.01)
    assert float(active.sum(1).double().mean()) == pytest.approx(1.36, abs=0.01)
    assert float(codes[active].mean()) == pytest.approx(1.5, abs=0.01)
    assert float(codes[active].std()) == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize(("mix", "cosine"), [(0.0, 0.0), (0.529, 0.3), (0.692, 0.6)])
def test_parents_mixed_by_the_published_amounts_have_the_published_cosines(mix, cosine):
    features = tree_features(torch.Generator().manual_seed(4), parent_mix=mix, child_mix=0.226)
    gram = features @ features.T
    parents = gram[list(PARENTS)][:, list(PARENTS)]
    assert torch.allclose(parents[~torch.eye(11, dtype=torch.bool)], torch.tensor(cosine), atol=1e-3)
    assert float(gram[1, 2]) == pytest.approx(0.3, abs=1e-3)
    assert float(gram[0, 1]) == pytest.approx(0, abs=1e-5)

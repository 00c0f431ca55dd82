"""SparseCodes against the dense matrix they stand for; Scaling against its formula."""

import pytest
import torch

from sae.dictionaries.codes import SparseCodes
from sae.dictionaries.scaling import Scaling
from sae.errors import ConfigError


def random_codes(n: int, k_max: int, d_sae: int, seed: int) -> SparseCodes:
    """Codes with repeated latents, negative values and rows of every length."""
    draw = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, k_max + 1, (n,), generator=draw)
    active = torch.arange(k_max) < counts[:, None]
    indices = torch.randint(0, d_sae, (n, k_max), generator=draw) * active
    return SparseCodes(indices, torch.randn(n, k_max, generator=draw) * active, counts, d_sae)


def obvious_dense(codes: SparseCodes) -> torch.Tensor:
    z = torch.zeros(len(codes), codes.d_sae)
    for row in range(len(codes)):
        for slot in range(int(codes.counts[row])):
            z[row, codes.indices[row, slot]] += codes.values[row, slot]
    return z


def test_dense_csr_and_merged_views_are_the_same_matrix():
    codes = random_codes(50, 7, 9, seed=0)
    expected = obvious_dense(codes)
    torch.testing.assert_close(codes.dense(), expected)
    torch.testing.assert_close(torch.from_numpy(codes.csr().toarray()), expected)
    torch.testing.assert_close(codes.merged().dense(), expected)
    assert codes.csr().has_canonical_format


def test_merged_keeps_each_latent_once_in_order_of_first_appearance():
    codes = random_codes(200, 8, 6, seed=1)
    merged = codes.merged()
    for row in range(len(codes)):
        raw = codes.indices[row, : codes.counts[row]].tolist()
        assert merged.indices[row, : merged.counts[row]].tolist() == list(dict.fromkeys(raw))
    assert not merged.values[~merged.active()].any()
    assert not merged.indices[~merged.active()].any()
    assert codes.mean_l0() == pytest.approx(float(merged.counts.double().mean()))


def test_merged_and_dense_pass_the_gradient_to_the_values():
    codes = random_codes(5, 4, 3, seed=2)
    weight = torch.randn(5, 3, generator=torch.Generator().manual_seed(3))
    grads = []
    for view in (lambda c: c.dense(), lambda c: c.merged().dense()):
        values = codes.values.clone().requires_grad_()
        (view(SparseCodes(codes.indices, values, codes.counts, 3)) * weight).sum().backward()
        grads.append(values.grad)
    torch.testing.assert_close(grads[0], weight.gather(1, codes.indices) * codes.active())
    torch.testing.assert_close(grads[1], grads[0])


def test_concatenation_pads_and_slicing_takes_rows():
    first, second = random_codes(4, 3, 10, seed=4), random_codes(6, 5, 10, seed=5)
    both = SparseCodes.concatenate([first, second])
    assert both.k_max == 5
    torch.testing.assert_close(both.dense(), torch.cat([first.dense(), second.dense()]))
    torch.testing.assert_close(both[2:7].dense(), both.dense()[2:7])
    torch.testing.assert_close(both[torch.tensor([9, 0])].dense(), both.dense()[[9, 0]])
    torch.testing.assert_close(both[both.counts > 2].dense(), both.dense()[both.counts > 2])


def test_what_cannot_be_joined_or_indexed_is_refused():
    with pytest.raises(ConfigError, match=r"parts must share one d_sae, got \[3, 4\]"):
        SparseCodes.concatenate([random_codes(2, 2, 3, 0), random_codes(2, 2, 4, 0)])
    with pytest.raises(ConfigError, match="at least one"):
        SparseCodes.concatenate([])


def test_scaling_undoes_itself_and_states_its_formula():
    draw = torch.Generator().manual_seed(0)
    acts = 5 * torch.randn(2000, 16, generator=draw) + torch.randn(16, generator=draw)
    scaling = Scaling.fitted(acts)
    x = scaling.apply(acts)
    torch.testing.assert_close(x, (acts - scaling.mean) * scaling.scale)
    torch.testing.assert_close(x.mean(0), torch.zeros(16), atol=1e-5, rtol=0)
    assert float(x.norm(dim=1).mean()) == pytest.approx(4.0, rel=1e-5)
    torch.testing.assert_close(scaling.undo(x), acts, rtol=1e-5, atol=1e-5)
    assert Scaling.identity(16).is_identity
    assert not scaling.is_identity


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_that_is_not_positive_is_refused(scale):
    with pytest.raises(ConfigError, match="scale must be positive and finite"):
        Scaling(torch.zeros(3), scale)


def test_constant_activations_have_no_fitted_scaling():
    with pytest.raises(ConfigError, match="must differ from their mean"):
        Scaling.fitted(torch.ones(5, 3))

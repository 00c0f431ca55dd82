"""The sparse kernels against dense autograd, obvious loops and finite differences."""

import pytest
import torch

from sae.dictionaries import kernels
from sae.dictionaries.activations import TopK, largest
from sae.dictionaries.kernels import pursuit, reference


def draws(seed: int, *shapes, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def unit(rows: torch.Tensor) -> torch.Tensor:
    return rows / rows.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("width", [64, 96, 100, 97, 2048, 4608])
@pytest.mark.parametrize("k", [1, 4, 32])
def test_the_largest_entries_are_those_of_a_full_sort(width, k):
    rows = torch.randn(23, width, generator=torch.Generator().manual_seed(width + k))
    values, indices = largest(rows, k)
    expected = rows.sort(dim=1, descending=True).values[:, :k]
    assert torch.equal(values, expected)
    assert torch.equal(rows.gather(1, indices), values)
    assert all(len(set(row.tolist())) == k for row in indices)


def test_the_largest_entries_survive_ties_and_constant_rows():
    rows = torch.randint(0, 3, (40, 256), generator=torch.Generator().manual_seed(0)).float()
    rows[0] = 1.0
    values, indices = largest(rows, 8)
    assert torch.equal(values, rows.topk(8).values)
    assert torch.equal(rows.gather(1, indices), values)
    assert all(len(set(row.tolist())) == 8 for row in indices)


def test_weighted_rows_and_both_its_gradients_are_those_of_the_dense_product():
    generator = torch.Generator().manual_seed(0)
    indices = torch.randint(0, 30, (20, 6), generator=generator)
    values, rows, target = draws(1, (20, 6), (30, 11), (20, 11))
    y = kernels.weighted_rows(values, indices, rows)
    (y * target).sum().backward()
    grads = values.grad.clone(), rows.grad.clone()
    values.grad = rows.grad = None
    expected = torch.zeros(20, 30, dtype=torch.float64).scatter_add(1, indices, values) @ rows
    (expected * target).sum().backward()
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(grads, (values.grad, rows.grad))


@pytest.mark.parametrize("d_sae", [40, 40_000])
def test_the_transposed_product_sums_rows_by_latent(d_sae):
    generator = torch.Generator().manual_seed(0)
    indices = torch.randint(0, d_sae, (50, 5), generator=generator)
    values, y = (torch.randn(shape, generator=generator) for shape in ((50, 5), (50, 7)))
    expected = torch.zeros(d_sae, 7).index_add_(0, indices.reshape(-1), (values[:, :, None] * y[:, None, :]).reshape(-1, 7))
    torch.testing.assert_close(reference.weighted_rows_t(values, indices, y, d_sae), expected)


@pytest.mark.parametrize("block", [1, 1 << 9, 4 << 20])
def test_the_encoder_and_all_its_gradients_are_those_of_naive_dense_autograd(block, monkeypatch):
    monkeypatch.setattr(reference, "ENCODE_BLOCK_BYTES", block)
    n, d_in, d_sae, k = 33, 12, 64, 40
    x, b_dec, W_enc, b_enc, target = draws(3, (n, d_in), (d_in,), (d_in, d_sae), (d_sae,), (n, d_sae))
    inputs = (x, b_dec, W_enc, b_enc)
    values, indices = kernels.encode(*inputs, TopK(k))
    z = torch.zeros(n, d_sae, dtype=torch.float64).scatter(1, indices, values)
    grads = torch.autograd.grad((z * target).sum(), inputs)
    pre_acts = (x - b_dec) @ W_enc + b_enc
    top = pre_acts.topk(k)
    assert (top.values < 0).any(), "the case must hold kept entries that ReLU sets to 0"
    dense = torch.zeros_like(pre_acts).scatter(1, top.indices, top.values.relu())
    torch.testing.assert_close(z, dense)
    torch.testing.assert_close(grads, torch.autograd.grad((dense * target).sum(), inputs))


def test_float32_encoding_and_decoding_agree_with_float64_dense_autograd():
    n, d_in, d_sae, k = 128, 64, 512, 16
    wide = draws(5, (n, d_in), (d_in,), (d_in, d_sae), (d_sae,), (d_sae, d_in))
    narrow = [t.detach().float().requires_grad_() for t in wide]

    def loss(x, b_dec, W_enc, b_enc, W_dec, sparse):
        if sparse:
            values, indices = kernels.encode(x, b_dec, W_enc, b_enc, TopK(k))
            x_hat = kernels.weighted_rows(values, indices, W_dec) + b_dec
        else:
            values, indices = ((x - b_dec) @ W_enc + b_enc).topk(k)
            x_hat = torch.zeros(n, d_sae, dtype=x.dtype).scatter(1, indices, values.relu()) @ W_dec + b_dec
        return (x - x_hat).square().sum() / x.square().sum()

    ours, theirs = loss(*narrow, True), loss(*wide, False)
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-5)
    for a, b in zip(torch.autograd.grad(ours, narrow), torch.autograd.grad(theirs, wide), strict=True):
        assert float((a.double() - b).norm() / b.norm()) < 1e-5


def unrolled(x, atoms, k, signed=False):
    """Matching pursuit written as in the paper, with autograd through every step."""
    r, values, picks, residuals = x, [], [], [x]
    for _ in range(k):
        c = r @ atoms.T
        j = (c.abs() if signed else c).argmax(1)
        a = (r * atoms[j]).sum(1) * (1.0 if signed else (c.amax(1) > 0))
        r = r - a[:, None] * atoms[j]
        values.append(a)
        picks.append(j)
        residuals.append(r)
    return torch.stack(values, 1), torch.stack(picks, 1), residuals


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("with_gram", [True, False])
def test_pursuit_and_its_gradients_are_those_of_the_unrolled_steps(signed, with_gram, monkeypatch):
    if not with_gram:
        monkeypatch.setattr(pursuit, "GRAM_BYTES", 0)
    monkeypatch.setattr(pursuit, "CACHE_BYTES", 64 * 8 * 7)  # several chunks, the last one short
    monkeypatch.setattr(pursuit, "SWEEP_BYTES", 12 * 8 * 9)
    x, atoms = draws(4, (40, 12), (64, 12))
    atoms = unit(atoms.detach()).requires_grad_()
    path = kernels.pursue(x, atoms, 10, None, signed)
    values, picks, residuals = unrolled(x, atoms, 10, signed)
    assert torch.equal(path.indices, picks)
    assert (torch.stack([row.unique(return_counts=True)[1].max() for row in picks]) > 1).any(), "the case must hold re-selected atoms"
    torch.testing.assert_close(path.values, values)
    torch.testing.assert_close(path.residual, residuals[-1])
    energies = torch.stack([r.square().sum(1) for r in residuals], 1)
    torch.testing.assert_close(path.energies, energies.detach())
    g_values, g_residual = draws(9, (40, 10), (40, 12))
    for ours, theirs in (
        ((path.values * g_values).sum(), (values * g_values).sum()),
        ((path.residual * g_residual).sum(), (residuals[-1] * g_residual).sum()),
        (path.residual.square().sum() + path.values.sin().sum(), residuals[-1].square().sum() + values.sin().sum()),
    ):
        got = torch.autograd.grad(ours, (x, atoms), retain_graph=True)
        expected = torch.autograd.grad(theirs, (x, atoms), retain_graph=True)
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-8)


def test_what_has_no_gradient_does_not_pretend_to():
    x, atoms = draws(4, (5, 6), (16, 6))
    path = kernels.pursue(x, unit(atoms.detach()).requires_grad_(), 3, None, False)
    assert path.values.requires_grad
    assert path.residual.requires_grad
    assert not path.energies.requires_grad
    assert not path.indices.requires_grad


def test_gradients_stay_exact_for_rows_that_stop_early():
    x = draws(6, (30, 4))[0]
    atoms = torch.eye(4, dtype=torch.float64).requires_grad_()
    path = kernels.pursue(x, atoms, 6, None, False)
    assert path.counts.tolist() == (x > 0).sum(1).tolist()
    values, _, residuals = unrolled(x, atoms, 6)
    weight = draws(8, (30, 6))[0].detach()
    got = torch.autograd.grad((path.values * weight).sum() + path.residual.pow(4).sum(), (x, atoms))
    active = torch.arange(6) < path.counts[:, None]
    expected = torch.autograd.grad((values * active * weight).sum() + residuals[-1].pow(4).sum(), (x, atoms))
    torch.testing.assert_close(got, expected)


def test_the_gram_matrix_is_the_matrix_of_inner_products():
    atoms = torch.randn(600, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(pursuit.gram(atoms), atoms @ atoms.T)


def test_the_gram_matrix_is_used_only_where_it_fits_and_pays():
    assert pursuit.uses_gram(n=1024, k=32, d_sae=2048, element_size=4)
    assert not pursuit.uses_gram(n=1, k=32, d_sae=2048, element_size=4)
    assert not pursuit.uses_gram(n=10**6, k=32, d_sae=1 << 15, element_size=4)


def test_orthogonal_pursuit_has_the_gradient_of_least_squares_on_its_support():
    x, atoms = draws(10, (12, 9), (20, 9))
    atoms = unit(atoms.detach()).requires_grad_()
    path = kernels.pursue_orthogonally(x, atoms, 4, None, True)
    weight, g = draws(11, (12, 4), (12, 9))
    got = torch.autograd.grad((path.values * weight).sum() + (path.residual * g).sum(), (x, atoms))
    chosen = atoms[path.indices]
    values = torch.einsum("nkd,nd->nk", torch.linalg.pinv(chosen).mT, x)
    residual = x - torch.einsum("nk,nkd->nd", values, chosen)
    torch.testing.assert_close(path.values, values)
    torch.testing.assert_close(got, torch.autograd.grad((values * weight).sum() + (residual * g).sum(), (x, atoms)))


@pytest.mark.skipif(not torch.cpu._is_avx512_bf16_supported(), reason="the CPU does not multiply bfloat16 in hardware")
@pytest.mark.parametrize("case", ["random", "near ties", "few positive", "large bias", "huge rows"])
def test_selection_in_bfloat16_gives_the_float32_slots(case):
    generator = torch.Generator().manual_seed(0)
    n, d_in, d_sae, k = 200, 48, 1024, 16
    x, W_enc, bias = (torch.randn(shape, generator=generator) for shape in ((n, d_in), (d_in, d_sae), (d_sae,)))
    if case == "near ties":  # thousands of latents within a bfloat16 step of each other
        W_enc = W_enc[:, :1] + 1e-3 * W_enc
        x = x.abs() * W_enc[:, 0].sign()
    elif case == "few positive":
        bias -= 20
    elif case == "large bias":
        bias *= 100
    elif case == "huge rows":
        x[::7] *= 1000
    assert reference.selects_in_bfloat16(x, d_sae, k + reference.N_SPARE)
    values, indices = reference.encode(x, W_enc, bias, TopK(k))
    exact = x.double() @ W_enc.double() + bias.double()
    top = exact.topk(k).values
    scale = float(exact.abs().max())
    torch.testing.assert_close(values.double(), top.relu(), rtol=1e-5, atol=1e-6 * scale)
    torch.testing.assert_close(exact.gather(1, indices).relu(), top.relu(), rtol=1e-5, atol=1e-6 * scale)
    assert all(len(set(row.tolist())) == k for row in indices)


@pytest.mark.skipif(not torch.cpu._is_avx512_bf16_supported(), reason="the CPU does not multiply bfloat16 in hardware")
def test_the_proof_is_what_keeps_near_ties_exact(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    x, W_enc = torch.randn(200, 48, generator=generator).abs(), torch.randn(48, 1024, generator=generator)
    W_enc = W_enc[:, :1].abs() + 1e-3 * W_enc
    exact = (x.double() @ W_enc.double()).topk(16).values
    bias = torch.zeros(1024)
    torch.testing.assert_close(reference.encode(x, W_enc, bias, TopK(16)).values.double(), exact, rtol=1e-6, atol=0)
    rough = (x.bfloat16() @ W_enc.bfloat16()).float().topk(16 + reference.N_SPARE).indices
    unproved = (x @ W_enc).gather(1, rough).topk(16).values.double()
    assert float((unproved - exact).abs().max()) > 1e-4, "without the proof this case must come out wrong"

"""The sparse kernels against dense autograd, obvious loops and finite differences."""

import pytest
import torch

from sae.dictionaries import kernels
from sae.dictionaries.explained import prefix_errors
from sae.dictionaries.kernels import reference
from sae.dictionaries.kernels.reference import pursuit


def draws(seed: int, *shapes, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def unit(rows: torch.Tensor) -> torch.Tensor:
    return rows / rows.norm(dim=1, keepdim=True)


def dense_top(pre_acts: torch.Tensor, k: int, signed: bool) -> torch.Tensor:
    """The codes of TopK as a matrix, by a full sort."""
    order = (pre_acts.abs() if signed else pre_acts).argsort(1, descending=True)[:, :k]
    kept = torch.zeros_like(pre_acts).scatter(1, order, pre_acts.gather(1, order))
    return kept if signed else kept.relu()


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


def rules(d_sae: int) -> dict:
    """Rules by name, with the dense codes that each must give."""
    floor = torch.linspace(-0.5, 1.5, d_sae, dtype=torch.float64)
    return {
        "top": (kernels.Top(40), lambda pre: dense_top(pre, 40, False)),
        "few": (kernels.Top(3), lambda pre: dense_top(pre, 3, False)),
        "signed": (kernels.Top(7, signed=True), lambda pre: dense_top(pre, 7, True)),
        "batch": (kernels.TopOfBatch(2.5), lambda pre: dense_top(pre.reshape(1, -1), round(2.5 * len(pre)), False).view_as(pre)),
        "batch of most": (kernels.TopOfBatch(30.0), lambda pre: dense_top(pre.reshape(1, -1), 30 * len(pre), False).view_as(pre)),
        "above": (kernels.Above(floor), lambda pre: pre * (pre > floor)),
        "above all": (kernels.Above(floor + 1e6), lambda pre: pre * 0),
    }


@pytest.mark.parametrize("block", [1, 1 << 9, 4 << 20])
@pytest.mark.parametrize("rule", rules(64))
@pytest.mark.parametrize("shifted", [True, False])
def test_the_encoder_and_all_its_gradients_are_those_of_naive_dense_autograd(block, rule, shifted, monkeypatch):
    monkeypatch.setattr(reference.products, "ENCODE_BLOCK_BYTES", block)
    n, d_in, d_sae = 33, 12, 64
    rule, dense = rules(d_sae)[rule]
    x, shift, W_enc, b_enc, target = draws(3, (n, d_in), (d_in,), (d_in, d_sae), (d_sae,), (n, d_sae))
    inputs = (x, shift, W_enc, b_enc) if shifted else (x, W_enc, b_enc)
    values, indices = kernels.encode(x, shift if shifted else None, W_enc, b_enc, rule)
    z = torch.zeros(n, d_sae, dtype=torch.float64).scatter_add(1, indices, values)
    grads = torch.autograd.grad((z * target).sum(), inputs)
    pre_acts = (x - shift if shifted else x) @ W_enc + b_enc
    torch.testing.assert_close(z, dense(pre_acts))
    torch.testing.assert_close(grads, torch.autograd.grad((dense(pre_acts) * target).sum(), inputs))


@pytest.mark.parametrize("rule", ["top", "few", "signed", "batch"])  # "top" goes through the dense products
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_the_whole_step_and_all_its_gradients_are_those_of_naive_dense_autograd(rule, tied, precision):
    n, d_in, d_out, d_sae, k_aux = 40, 12, 9, 64, 2
    rule, dense = rules(d_sae)[rule]
    x, shift, W_enc, b_enc, W_dec, b_dec, target = draws(
        4,
        (n, d_in),
        (d_in,),
        (d_in, d_sae),
        (d_sae,),
        (d_sae, d_in if tied else d_out),
        (d_in if tied else d_out,),
        (n, d_in if tied else d_out),
    )
    asked = torch.tensor([5, 0, 39, 17])
    inputs = (W_enc, b_enc, W_dec, b_dec) if tied else (x, W_enc, b_enc, W_dec, b_dec, target)
    shift, target = (b_dec, x.detach()) if tied else (None, target)
    pre_acts = (x - shift if tied else x) @ W_enc + b_enc
    residual = target - dense(pre_acts) @ W_dec - b_dec
    answers = ((x - shift if tied else x).detach() @ W_enc + b_enc)[:, asked]
    rest = residual.detach() - dense_top(answers, k_aux, False) @ W_dec[asked]
    expected = torch.autograd.grad(0.7 * residual.square().sum() + 1.3 * rest.square().sum(), inputs, retain_graph=True)
    narrow = {
        id(t): t.detach().to(getattr(torch, precision)).requires_grad_(t.requires_grad) for t in (x, W_enc, b_enc, W_dec, b_dec, target)
    }
    ours = [narrow[id(t)] for t in (x, W_enc, b_enc, W_dec, b_dec, target)]
    errors = kernels.explain(ours[0], ours[4] if tied else None, (ours[1], ours[2]), (ours[3], ours[4]), ours[5], rule, asked, k_aux)
    got = torch.autograd.grad(0.7 * errors.error + 1.3 * errors.revival, [narrow[id(t)] for t in inputs], retain_graph=True)
    exact = precision == "float64"
    assert float(errors.error.detach()) == pytest.approx(float(residual.square().sum().detach()), rel=1e-12 if exact else 1e-5)
    assert float(errors.revival.detach()) == pytest.approx(float(rest.square().sum().detach()), rel=1e-12 if exact else 2e-3)
    torch.testing.assert_close(errors.residual.double(), residual.detach(), rtol=1e-5, atol=1e-9 if exact else 1e-4)
    for a, b in zip(got, expected, strict=True):
        assert float((a.double() - b).norm() / b.norm()) < (1e-12 if exact else 4e-3)
    alone = kernels.explain(ours[0], ours[4] if tied else None, (ours[1], ours[2]), (ours[3], ours[4]), ours[5], rule)
    assert float(alone.revival.detach()) == 0
    got = torch.autograd.grad(alone.error, [narrow[id(t)] for t in inputs])
    for a, b in zip(got, torch.autograd.grad(residual.square().sum(), inputs), strict=True):
        assert float((a.double() - b).norm() / b.norm()) < (1e-12 if exact else 1e-5)


@pytest.mark.parametrize("prefixes", [(40,), (1, 2, 40), (5, 17, 30), (10, 20, 30, 40)])
def test_prefix_errors_and_their_gradients_are_those_of_the_cut_dense_codes(prefixes):
    n, d_out, d_sae, k = 25, 9, 40, 6
    indices = torch.stack([torch.randperm(d_sae, generator=torch.Generator().manual_seed(i))[:k] for i in range(n)])
    values, W_dec, target = draws(4, (n, k), (d_sae, d_out), (n, d_out))
    weights = torch.arange(1.0, 1 + len(prefixes), dtype=torch.float64)
    errors = prefix_errors(values, indices, W_dec, target, prefixes)
    z = torch.zeros(n, d_sae, dtype=torch.float64).scatter_add(1, indices, values)
    expected = torch.stack([(target - z[:, :m] @ W_dec[:m]).square().sum() for m in prefixes])
    torch.testing.assert_close(errors, expected)
    inputs = (values, W_dec, target)
    got = torch.autograd.grad((errors * weights).sum(), inputs)
    torch.testing.assert_close(got, torch.autograd.grad((expected * weights).sum(), inputs))


def test_the_batch_rule_looks_further_where_one_row_holds_most_of_the_largest():
    draw = torch.Generator().manual_seed(0)
    x, rows, bias = torch.randn(16, 8, generator=draw), torch.randn(512, 8, generator=draw), torch.randn(512, generator=draw)
    x[3] *= 1000
    values, indices = kernels.TopOfBatch(4.0).select(reference, x, rows, bias)
    assert values.shape[1] == 64, "one row holds all of the 64 largest"
    assert int((values[3] > 0).sum()) == 64
    z = torch.zeros(16, 512).scatter_add(1, indices, values)
    torch.testing.assert_close(z, dense_top((x @ rows.T + bias).reshape(1, -1), 64, False).view(16, 512), rtol=1e-5, atol=1e-3)


def test_float32_encoding_and_decoding_agree_with_float64_dense_autograd():
    n, d_in, d_sae, k = 128, 64, 512, 16
    wide = draws(5, (n, d_in), (d_in,), (d_in, d_sae), (d_sae,), (d_sae, d_in))
    narrow = [t.detach().float().requires_grad_() for t in wide]

    def loss(x, b_dec, W_enc, b_enc, W_dec, sparse):
        if sparse:
            values, indices = kernels.encode(x, b_dec, W_enc, b_enc, kernels.Top(k))
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

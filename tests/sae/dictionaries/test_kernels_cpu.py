"""The compiled CPU kernels against the torch kernels, float64 loops and torch's own optimiser."""

import math

import numpy as np
import pytest
import torch

from sae.dictionaries.kernels import reference
from sae.dictionaries.kernels.cpu import dense, memory, revival, rough, scan, selection, sparse, team, updates
from sae.dictionaries.kernels.cpu.rough import rough_input, rough_rows
from sae.dictionaries.kernels.cpu.selection import top, top_in
from sae.dictionaries.kernels.reference import Slots

LADDERS = {"int8": ("int8", "bfloat16", "float32"), "bfloat16": ("bfloat16", "float32"), "float32": ("float32",)}
TOLERANCE = 2e-6
"""Largest relative difference between two float32 sums of some hundred terms in different order."""


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + 97 * math.prod(shape)))


def case(name: str, n: int, d_in: int, d_sae: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(x, rows, bias) of one kind."""
    x, rows, bias = draw(n, d_in, seed=1), draw(d_sae, d_in, seed=2) / d_in**0.5, 0.3 * draw(d_sae, seed=3)
    if name == "trained":  # inputs made of few atoms, unequal norms, most latents rarely on
        rows *= draw(d_sae, 1, seed=4).exp()
        codes = (draw(n, d_sae, seed=5) - 2.2).relu()
        x = 20 * codes @ rows / d_in**0.5 + 0.3 * x
        bias -= 0.5
    elif name == "outliers":  # a few coordinates hundreds of times the others, as in language models; some rows scaled besides
        x[:, :3] *= 300
        x[::7] *= 50
        rows[:, 1] *= 20
    elif name == "all negative":
        bias = bias - 1e4
    elif name == "ties":
        rows = rows[torch.arange(d_sae) % 11].contiguous()
        bias = torch.zeros(d_sae)
    elif name == "rising":  # nearly every latent exceeds all before it: the buffers fill again and again
        x = x[:1] + 0.3 * x
        rows = torch.linspace(0.1, 3, d_sae)[:, None] * x[0] / d_in + 0.02 * rows
        bias = torch.zeros(d_sae)
    elif name == "zeros":
        x[::2] = 0
        rows[::3] = 0
    return x, rows, bias


def check_top(slots: Slots, x: torch.Tensor, rows: torch.Tensor, bias: torch.Tensor, k: int, signed: bool) -> None:
    """Against a sort in float64: the same values, every value that of its latent, no latent twice."""
    pre_acts = x.double() @ rows.double().T + bias.double()
    scores = pre_acts.abs() if signed else pre_acts.relu()
    scale = (x.double().abs() @ rows.double().abs().T + bias.double().abs()).amax(1, keepdim=True) + 1e-30
    expected = scores.sort(1, descending=True).values[:, :k]
    got = slots.values.double().abs() if signed else slots.values.double()
    assert slots.values.shape == slots.indices.shape == (len(x), k)
    assert ((got - expected).abs() <= TOLERANCE * scale).all()
    own = pre_acts.gather(1, slots.indices)
    assert ((slots.values - (own if signed else own.relu())).abs() <= TOLERANCE * scale).all()
    assert (got.diff(dim=1) <= 0).all()
    assert all(len(row.unique()) == k for row in slots.indices)
    assert signed or (slots.values >= 0).all()


@pytest.mark.parametrize("ladder", LADDERS)
@pytest.mark.parametrize("signed", [False, True], ids=["top", "signed"])
@pytest.mark.parametrize("name", ["random", "trained", "outliers", "all negative", "ties", "rising", "zeros"])
def test_top_is_the_largest_of_a_float64_sort(name, signed, ladder):
    x, rows, bias = case(name, 300, 96, 2500)
    check_top(top_in(LADDERS[ladder], x, rows, bias, 16, signed), x, rows, bias, 16, signed)


@pytest.mark.parametrize("ladder", LADDERS)
@pytest.mark.parametrize("signed", [False, True], ids=["top", "signed"])
@pytest.mark.parametrize(
    ("n", "d_in", "d_sae", "k"),
    [(1, 8, 1, 1), (1, 64, 3000, 5), (3, 1, 70, 2), (257, 33, 1025, 8), (70, 64, 64, 64), (65, 33, 129, 129), (40, 16, 1500, 700)],
)
def test_top_takes_any_shape(n, d_in, d_sae, k, signed, ladder):
    x, rows, bias = case("random", n, d_in, d_sae)
    check_top(top(x, rows, bias, k, signed), x, rows, bias, k, signed)
    if d_in > 1:
        check_top(top_in(LADDERS[ladder], x, rows, bias, k, signed), x, rows, bias, k, signed)


@pytest.mark.parametrize("signed", [False, True], ids=["top", "signed"])
def test_top_names_the_latents_that_torch_names(signed):
    x, rows, bias = case("random", 200, 576, 4608)
    expected = reference.top(x, rows, bias, 32, signed)
    for ladder in LADDERS.values():
        got = top_in(ladder, x, rows, bias, 32, signed)
        assert (got.indices == expected.indices).float().mean() > 0.9995  # others are equal to within rounding: checked above
        torch.testing.assert_close(got.values.abs(), expected.values.abs(), rtol=1e-5, atol=1e-6)


def test_top_of_nothing_is_nothing():
    slots = top(torch.zeros(0, 8), draw(20, 8), torch.zeros(20), 3, False)
    assert slots.values.shape == slots.indices.shape == (0, 3)


def test_top_does_not_care_about_layout_and_leaves_its_arguments_alone():
    x, rows, bias = case("random", 80, 48, 900)
    before = [tensor.clone() for tensor in (x, rows, bias)]
    expected = top(x, rows, bias, 4, False)
    strided = torch.stack([x, x], dim=2)[:, :, 0]
    got = top(strided, rows.T.contiguous().T, bias.requires_grad_(), 4, False)
    assert torch.equal(got.values, expected.values) and torch.equal(got.indices, expected.indices)
    assert all(torch.equal(a, b.detach()) for a, b in zip(before, (x, rows, bias), strict=True))
    assert not got.values.requires_grad


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), 1e38])
@pytest.mark.parametrize("ladder", LADDERS)
def test_numbers_that_are_not_finite_end_and_stay_in_their_row(bad, ladder):
    x, rows, bias = case("random", 100, 40, 1500)
    expected = top_in(LADDERS[ladder], x, rows, bias, 8, False)
    x[50, 3] = bad
    got = top_in(LADDERS[ladder], x, rows, bias, 8, False)
    others = torch.arange(100) != 50
    assert torch.equal(got.indices[others], expected.indices[others])
    assert ((got.indices >= 0) & (got.indices < 1500)).all()
    dense.keep_largest_(torch.full((3, 100), bad), 5)
    updates.project_(torch.full((3, 8), bad), draw(3, 8))


def rough_error(x: torch.Tensor, rows: torch.Tensor, precision: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(|rough - exact|, bound) of every pre-activation."""
    held = rough_rows(rows, x, precision)
    given = rough_input(x, held)
    product = held.product(given, slice(None), torch.empty(len(x) * len(rows), dtype=torch.int32))
    p = torch.from_numpy(given.scale).double()[:, None] * held.scale.double() * product.double()
    bound = torch.from_numpy(given.slack).double()[:, None] * held.spread.double()
    return (p - x.double() @ rows.double().T).abs(), bound


@pytest.mark.parametrize("precision", ["int8", "bfloat16"])
@pytest.mark.parametrize("name", ["random", "trained", "outliers", "zeros"])
def test_rough_pre_activations_stay_within_their_bound(name, precision):
    x, rows, _ = case(name, 300, 96, 2500)
    error, bound = rough_error(x, rows, precision)
    assert (error <= bound).all()
    assert error.max() > 0


def test_the_int8_bound_is_not_far_above_the_error():
    """Hoeffding at 1e-9 is 3.27 ranges; a uniform error has standard deviation 0.29 of its range: the bound is 11.3 deviations."""
    x, rows, _ = case("random", 400, 576, 3000)
    error, bound = rough_error(x, rows, "int8")
    ratio = bound.mean() / error.square().mean().sqrt()
    assert 9 < ratio < 16


def test_few_rows_fall_back_on_real_looking_outliers(monkeypatch):
    x, rows, bias = case("outliers", 512, 96, 2500)
    seen = []
    select = selection._select
    monkeypatch.setattr(
        selection, "_select", lambda precision, x, *rest: (seen.append((precision, len(x))), select(precision, x, *rest))[1]
    )
    top_in(LADDERS["int8"], x, rows, bias, 16, False)
    assert seen[0] == ("int8", 512)
    assert sum(n for _, n in seen[1:]) < 26, seen


def test_a_row_whose_candidates_overflow_is_done_again_exactly(monkeypatch):
    """With a bound a thousand times too wide every candidate stays in the window."""
    monkeypatch.setattr(rough, "FAILURE", 1e-300)
    original = rough.round_rows

    def coarse(rows, factor, low, scale, norm):
        original(rows, factor, low, scale, norm)
        norm *= 1000

    monkeypatch.setattr(rough, "round_rows", coarse)
    x, rows, bias = case("random", 130, 40, 3000)
    check_top(top_in(LADDERS["int8"], x, rows, bias, 8, False), x, rows, bias, 8, False)


def slots(n: int, k: int, d_sae: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Values with zeros among them and latents, some often and some never used, repeated within rows."""
    generator = torch.Generator().manual_seed(seed)
    indices = (torch.rand(n, k, generator=generator).pow(3) * (d_sae - 1)).long()
    return draw(n, k, seed=seed) * (torch.rand(n, k, generator=generator) > 0.3), indices


@pytest.mark.parametrize("width", [1, 37, 576])
def test_the_sparse_products_are_those_of_the_dense_matrix(width):
    n, k, d_sae = 150, 9, 400
    (values, indices), rows, y = slots(n, k, d_sae), draw(d_sae, width), draw(n, width)
    z = torch.zeros(n, d_sae, dtype=torch.float64).scatter_add_(1, indices, values.double())
    near = {"rtol": 1e-5, "atol": 1e-4}
    torch.testing.assert_close(sparse.weighted_rows(values, indices, rows).double(), z @ rows.double(), **near)
    dots = (y.double() @ rows.double().T).gather(1, indices)
    torch.testing.assert_close(sparse.row_dots(y, indices, rows).double(), dots, **near)
    torch.testing.assert_close(sparse.weighted_rows_t(values, indices, y, d_sae).double(), z.T @ y.double(), **near)
    torch.testing.assert_close(sparse.scattered_sum(values, indices, d_sae).double(), z.sum(0), **near)
    residual, dots = sparse.decode_error(values, indices, rows, y)
    expected = y.double() - z @ rows.double()
    torch.testing.assert_close(residual.double(), expected, **near)
    torch.testing.assert_close(dots.double(), (expected @ rows.double().T).gather(1, indices), **near)


def test_latents_in_no_slot_get_exact_zero_even_in_memory_used_before():
    memory.recycled(5000, 64).fill_(float("nan"))
    values, indices = slots(100, 4, 50)
    gradient = sparse.weighted_rows_t(values, indices, draw(100, 64), 5000)
    assert torch.equal(gradient[50:], torch.zeros(4950, 64))
    assert torch.isfinite(gradient).all()


def test_one_latent_may_hold_every_slot():
    values, indices, y = draw(900, 3), torch.full((900, 3), 7), draw(900, 20)
    expected = torch.zeros(10, 20, dtype=torch.float64)
    expected[7] = (values.double().sum(1)[:, None] * y.double()).sum(0)
    torch.testing.assert_close(sparse.weighted_rows_t(values, indices, y, 10).double(), expected, rtol=1e-5, atol=1e-4)


def test_slots_with_value_zero_never_touch_their_row():
    rows = draw(10, 16)
    rows[3] = float("nan")
    values, indices = draw(5, 2), torch.tensor([[3, 1]] * 5)
    values[:, 0] = 0
    assert torch.isfinite(sparse.weighted_rows(values, indices, rows)).all()
    residual, _ = sparse.decode_error(values, indices, rows, draw(5, 16))
    assert torch.isfinite(residual).all()


@pytest.mark.parametrize("k", [1, 7, 256, 699, 700, 900])
def test_keep_largest_keeps_what_a_sort_keeps(k):
    answers = draw(90, 700)
    answers[0], answers[1], answers[2, :650] = -1.0, 0.0, -3.0
    answers[3] = answers[3].round()  # many equal
    answers[4] = 5.0
    given = answers.clone()
    dense.keep_largest_(answers, k)
    expected = given.relu().sort(1, descending=True).values
    got = answers.sort(1, descending=True).values
    expected[:, k:] = 0
    assert torch.equal(got, expected)
    assert ((answers == 0) | (answers == given)).all()


@pytest.mark.parametrize("transposed", [False, True])
def test_product_is_near_the_exact_one(transposed):
    a, b = draw(150, 90), draw(90, 70)
    if transposed:
        a, b = a.T.contiguous().T, b.T.contiguous().T
    exact = a.double() @ b.double()
    error = (dense.product(a, b).double() - exact).norm() / exact.norm()
    assert error < 4e-3


def test_product_is_exact_to_float32_without_bfloat16_in_hardware(monkeypatch):
    monkeypatch.setattr(dense, "available", lambda: ("float32",))
    a, b = draw(150, 90), draw(90, 70)
    torch.testing.assert_close(dense.product(a, b).double(), a.double() @ b.double(), rtol=1e-5, atol=1e-4)


def test_projection_leaves_nothing_along_the_atoms():
    grad, atoms = draw(700, 65), draw(700, 65, seed=1)
    atoms /= atoms.norm(dim=1, keepdim=True)
    expected = grad.double() - (grad.double() * atoms.double()).sum(1, keepdim=True) * atoms.double()
    total = updates.project_(grad, atoms)
    torch.testing.assert_close(grad.double(), expected, rtol=1e-5, atol=1e-5)
    assert total == pytest.approx(float(expected.square().sum()), rel=1e-6)
    assert updates.sum_squares(grad) == pytest.approx(total, rel=1e-6)
    assert updates.sum_squares(grad[0]) == pytest.approx(float(grad[0].double().square().sum()), rel=1e-6)


@pytest.mark.parametrize("shape", [(70, 33), (40,), (600, 576)])
def test_adam_is_that_of_torch(shape):
    parameter = draw(*shape).requires_grad_()
    optimiser = torch.optim.Adam([parameter], lr=3e-2, betas=(0.8, 0.95), eps=1e-6)
    ours, average, square = parameter.detach().clone(), torch.zeros(shape), torch.zeros(shape)
    for step in range(1, 6):
        grad = draw(*shape, seed=step)
        parameter.grad = 0.3 * grad
        optimiser.step()
        updates.adam_(ours, grad, average, square, rate=3e-2, betas=(0.8, 0.95), epsilon=1e-6, step=step, scale=0.3, unit_rows=False)
    torch.testing.assert_close(ours, parameter.detach(), rtol=1e-5, atol=1e-6)
    state = optimiser.state[parameter]
    torch.testing.assert_close((average, square), (state["exp_avg"], state["exp_avg_sq"]), rtol=1e-5, atol=1e-7)


def test_adam_with_unit_rows_divides_by_the_norm_and_spares_rows_of_zeros():
    options = {"rate": 1e-2, "betas": (0.9, 0.999), "epsilon": 1e-8, "step": 2, "scale": 1.0}
    start, grad = draw(50, 31), draw(50, 31, seed=1)
    start[7], grad[7] = 0, 0
    moments = 0.1 * draw(50, 31, seed=2), draw(50, 31, seed=3).square()
    moments[0][7] = 0
    plain, unit = start.clone(), start.clone()
    updates.adam_(plain, grad, *(moment.clone() for moment in moments), unit_rows=False, **options)
    updates.adam_(unit, grad, *(moment.clone() for moment in moments), unit_rows=True, **options)
    expected = plain / plain.norm(dim=1, keepdim=True)
    expected[7] = 0
    torch.testing.assert_close(unit, expected, rtol=1e-6, atol=1e-7)


def test_results_do_not_depend_on_the_number_of_threads():
    x, rows, bias = case("trained", 700, 96, 2500)
    values, indices = slots(700, 9, 2500)
    answers = []
    n_threads = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            gradient = sparse.weighted_rows_t(values, indices, x, 2500)
            answers.append((*top(x, rows, bias, 16, False), gradient, updates.project_(gradient.clone(), rows), updates.sum_squares(x)))
    finally:
        torch.set_num_threads(n_threads)
    for other in answers[1:]:
        assert all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(answers[0], other, strict=True))


@pytest.mark.parametrize("threads", [1, 2])
def test_a_fault_in_a_block_reaches_the_caller(threads):
    def block(b: int) -> None:
        if b == 3:
            raise ValueError("block 3")

    n_threads = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with pytest.raises(ValueError, match="block 3"):
            team.each(block, 8)
    finally:
        torch.set_num_threads(n_threads)


def test_recycled_memory_is_not_shared_between_living_tensors():
    a = memory.recycled(1024, 1024)
    b = memory.recycled(1024, 1024)
    assert a.data_ptr() != b.data_ptr()
    address = a.data_ptr()
    view = a[10:20]
    del a
    assert memory.recycled(1024, 1024).data_ptr() != address  # a view keeps it
    del view
    assert memory.recycled(1024, 1024).data_ptr() == address


def revival_by_autograd(x, residual, rows_enc, bias, rows_dec, kept):
    """(error, gradients) in float64 with the kept entries given."""
    leaves = [tensor.double().requires_grad_() for tensor in (rows_enc, bias, rows_dec)]
    answers = (x.double() @ leaves[0].T + leaves[1]) * kept
    error = (residual.double() - answers @ leaves[2]).square().sum()
    return float(error.detach()), torch.autograd.grad(error, leaves)


@pytest.mark.parametrize(("n", "m", "k"), [(300, 130, 200), (300, 130, 20), (7, 3, 1)])
@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_revival_and_its_gradient_are_those_of_autograd(n, m, k, precision, monkeypatch):
    monkeypatch.setattr(revival, "available", lambda: (precision, "float32"))
    x, residual, bias = draw(n, 48), draw(n, 40, seed=1), 0.3 * draw(m)
    rows_enc, rows_dec = draw(m, 48, seed=2) / 7, draw(m, 40, seed=3) / 6
    got = revival.revive(x, residual, rows_enc, bias, rows_dec, k)
    answers = x @ rows_enc.T + bias
    kept = answers.clone()
    dense.keep_largest_(kept, k)
    error, gradients = revival_by_autograd(x, residual, rows_enc, bias, rows_dec, kept > 0)
    tolerance = 1e-5 if precision == "float32" else 5e-3
    assert got.error == pytest.approx(error, rel=tolerance)
    for ours, theirs in zip((got.grad_enc, got.grad_bias, got.grad_dec), gradients, strict=True):
        assert (ours.double() - theirs).norm() <= tolerance * theirs.norm()


def test_revival_of_silent_latents_is_the_residual_itself():
    x, residual, rows = draw(30, 16), draw(30, 16, seed=1), draw(5, 16, seed=2)
    got = revival.revive(x, residual, rows, torch.full((5,), -1e3), rows, 2)
    assert got.error == pytest.approx(float(residual.double().square().sum()), rel=1e-6)
    assert not got.grad_enc.any()
    assert not got.grad_bias.any()
    assert not got.grad_dec.any()


@pytest.mark.parametrize(("count", "k"), [(40, 40), (41, 40), (150, 40), (192, 1)])
@pytest.mark.parametrize("margin", [0.0, 0.3])
def test_shrinking_keeps_every_candidate_that_may_be_among_the_k_largest(count, k, margin):
    for seed in range(20):
        low = draw(200, seed=seed).numpy()
        high, numbers, keys = low + np.float32(margin), np.arange(200, dtype=np.int32), np.empty(264, np.int32)
        ranked = np.sort(low[:count])[::-1]
        possible = set(np.flatnonzero(high[:count] >= ranked[k - 1]))
        kept, floor = scan.shrink(count, np.float32(-9), k, margin == 0, high, low, numbers, keys)
        assert possible <= set(numbers[:kept])
        assert kept >= k if margin else kept == k
        assert count == k or (count > k and ranked[k] < floor <= ranked[k - 1])

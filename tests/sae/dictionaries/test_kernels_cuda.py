"""The Triton kernels without a GPU: run by Triton's interpreter against the torch kernels and float64 arithmetic, and compiled for real chips.

Triton decides on import whether it interprets or compiles, so both happen in processes of their own; this one never imports it. A test under
`interpreted` or `compiled` runs its body there.
"""

import contextlib
import functools
import importlib.metadata
import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from unittest import mock

import pytest
import torch

ROOT = Path(__file__).parents[3]
BODIES = {}


def has_triton() -> bool:
    """Older interpreters do not work with numpy 2.4, and take what to compile in another form."""
    try:
        major, minor = importlib.metadata.version("triton").split(".")[:2]
    except importlib.metadata.PackageNotFoundError:
        return False
    return (int(major), int(minor)) >= (3, 9)


needs_triton = pytest.mark.skipif(not has_triton(), reason="needs triton>=3.9")


class Worker:
    """A process that runs bodies of tests by name, one JSON line each."""

    def __init__(self, folder: Path, *, interpret: bool):
        settings = {"TRITON_INTERPRET": str(int(interpret)), "TRITON_CACHE_DIR": str(folder), "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, **settings}
        )

    def run(self, name: str, arguments: dict) -> None:
        print(json.dumps([name, arguments]), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        assert answer, f"the process that ran {name} died"
        error = json.loads(answer)
        if error:
            pytest.fail(error, pytrace=False)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def interpreter(tmp_path_factory):
    with contextlib.closing(Worker(tmp_path_factory.mktemp("triton"), interpret=True)) as worker:
        yield worker


@pytest.fixture(scope="module")
def compiler(tmp_path_factory):
    with contextlib.closing(Worker(tmp_path_factory.mktemp("triton"), interpret=False)) as worker:
        yield worker


def elsewhere(fixture: str):
    """A decorator: the test runs in the process of that fixture."""

    def decorate(body):
        @functools.wraps(body)
        def test(**arguments):
            arguments.pop(fixture).run(body.__name__, arguments)

        signature = inspect.signature(body)
        worker = inspect.Parameter(fixture, inspect.Parameter.KEYWORD_ONLY)
        test.__signature__ = signature.replace(parameters=[*signature.parameters.values(), worker])
        BODIES[body.__name__] = body
        return needs_triton(test)

    return decorate


interpreted, compiled = elsewhere("interpreter"), elsewhere("compiler")


def kernels():
    from sae.dictionaries.kernels import cuda, reference

    return cuda, reference


def draws(seed: int, *shapes):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def unit(rows):
    return rows / rows.norm(dim=1, keepdim=True)


def coded(n, k, d_sae, seed=0):
    """Values and indices with repeated latents and slots of value 0."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(n, k, generator=generator) * (torch.rand(n, k, generator=generator) < 0.8)
    return values, torch.randint(0, d_sae, (n, k), generator=generator)


def dense(values, indices, d_sae):
    return torch.zeros(len(values), d_sae, dtype=torch.float64).scatter_add(1, indices, values.double())


def agree(ours, *others, rtol=1e-5, atol=1e-5):
    for other in others:
        torch.testing.assert_close(ours.double(), other.double(), rtol=rtol, atol=atol)


def test_the_package_does_not_need_triton():
    program = """import sys
sys.modules["triton"] = None
import torch, sae
from sae.dictionaries.kernels import weighted_rows
weighted_rows(torch.ones(2, 1), torch.zeros(2, 1, dtype=torch.long), torch.ones(3, 4))"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


SHAPES = [[1, 1, 1, 1], [5, 3, 7, 10], [0, 4, 8, 9], [4, 33, 130, 20], [3, 12, 300, 12]]


@interpreted
@pytest.mark.parametrize("shape", SHAPES)
def test_products_with_codes_are_the_dense_ones(shape):
    (n, k, width, d_sae), (cuda, reference) = shape, kernels()
    values, indices = coded(n, k, d_sae)
    rows, y = draws(1, (d_sae, width), (n, width))
    z = dense(values, indices, d_sae)
    agree(cuda.weighted_rows(values, indices, rows), reference.weighted_rows(values, indices, rows), z @ rows.double())
    dots = (y.double() @ rows.double().T).gather(1, indices)
    agree(cuda.row_dots(y, indices, rows), reference.row_dots(y, indices, rows), dots, atol=1e-4)
    agree(cuda.weighted_rows_t(values, indices, y, d_sae), reference.weighted_rows_t(values, indices, y, d_sae), z.T @ y.double())
    agree(cuda.scattered_sum(values, indices, d_sae), reference.scattered_sum(values, indices, d_sae), z.sum(0))


@interpreted
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("at_once", [512, 2])
def test_the_residual_and_its_dots_are_the_dense_ones_at_unused_slots_too(shape, at_once):
    (n, k, width, d_sae), (cuda, reference) = shape, kernels()
    values, indices = coded(n, k, d_sae)
    rows, target = draws(1, (d_sae, width), (n, width))
    expected = target.double() - dense(values, indices, d_sae) @ rows.double()
    with mock.patch.object(cuda.sparse, "MOST_SLOTS_AT_ONCE", at_once):
        residual, dots = cuda.decode_error(values, indices, rows, target)
    theirs = reference.decode_error(values, indices, rows, target)
    agree(residual, theirs[0], expected, atol=1e-4)
    agree(dots, theirs[1], (expected @ rows.double().T).gather(1, indices), atol=1e-3)


@interpreted
def test_rows_of_slots_with_value_0_are_not_read():
    cuda, _ = kernels()
    values, indices = coded(6, 5, 10)
    indices[values == 0] = 9
    indices[values != 0] %= 9
    rows, y = draws(1, (10, 20), (6, 20))
    rows[9] = torch.nan
    assert cuda.weighted_rows(values, indices, rows).isfinite().all()
    values[2] = 0
    y[2] = torch.nan
    assert cuda.weighted_rows_t(values, indices, y, 10).isfinite().all()


@interpreted
@pytest.mark.parametrize("short", [1 << 15, 4])
def test_latents_in_no_slot_get_exactly_0_and_repeated_ones_all_they_are_owed(short):
    cuda, _ = kernels()
    values, y = draws(0, (40, 3), (40, 17))
    indices = torch.tensor([[258, 2, 258]]).expand(40, 3)
    with mock.patch.object(cuda.sparse, "SHORT_KEYS", short):
        sums = cuda.weighted_rows_t(values, indices, y, 260)
    assert sorted(sums.any(1).nonzero().view(-1).tolist()) == [2, 258]
    agree(sums[258], ((values[:, 0] + values[:, 2])[:, None] * y).double().sum(0))
    agree(sums[2], (values[:, 1:2] * y).double().sum(0))


def check_top(x, rows, bias, k, signed):
    """The slots of `top`, checked against the torch kernel and a float64 sort."""
    cuda, reference = kernels()
    values, indices = cuda.top(x, rows, bias, k, signed)
    theirs = reference.top(x, rows, bias, k, signed)
    exact = x.double() @ rows.double().T + bias.double()
    ranked = (exact.abs() if signed else exact.relu()).sort(1, descending=True).values[:, :k]
    atol = 1e-6 * float(exact[exact.isfinite()].abs().max()) if len(x) else 0.0
    agree(values.abs() if signed else values, theirs.values.abs() if signed else theirs.values, ranked, atol=atol)
    chosen = exact.gather(1, indices)
    agree(values, chosen if signed else chosen.relu(), atol=atol)
    assert all(len(set(row.tolist())) == k for row in indices)
    return values, indices


@interpreted
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("shape", [[0, 5, 9, 2], [1, 5, 9, 9], [3, 40, 600, 4], [40, 8, 20, 20], [33, 20, 517, 3], [70, 65, 640, 9]])
def test_the_largest_pre_activations_are_those_of_a_full_sort(shape, signed):
    n, d_in, d_sae, k = shape
    check_top(*draws(0, (n, d_in), (d_sae, d_in), (d_sae,)), k, signed)


@interpreted
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("case", ["near ties", "few positive", "large bias", "huge rows", "zero rows", "switched off"])
def test_hard_cases_of_the_first_look_come_out_exact(case, signed):
    n, d_in, d_sae, k = 40, 30, 517, 5
    x, rows, bias = draws(2, (n, d_in), (d_sae, d_in), (d_sae,))
    if case == "near ties":  # hundreds of latents within a bfloat16 step of each other
        rows = rows[:1].abs() + 1e-3 * rows
        x = x.abs()
    elif case == "few positive":
        bias -= 15
    elif case == "large bias":
        bias *= 100
    elif case == "huge rows":
        x[::7] *= 1000
    elif case == "zero rows":
        x[::3] = 0
        bias[:] = 0
    elif case == "switched off" and not signed:
        bias[8:-1] = -torch.inf
    check_top(x, rows, bias, k, signed)


@interpreted
@pytest.mark.parametrize("signed", [False, True])
def test_candidates_that_are_no_latents_get_the_value_that_is_kept_last(signed):
    cuda, _ = kernels()
    x, rows, bias = draws(3, (2, 5), (7, 5), (7,))
    indices = torch.tensor([[7, 6, 0], [2, 9, 8]])
    exact = cuda.selection._second_look(x, rows, bias, indices, signed)
    assert indices.tolist() == [[6, 6, 0], [2, 6, 6]]
    nothing = 0.0 if signed else -torch.inf
    assert [exact[0, 0], exact[1, 1], exact[1, 2]] == [nothing] * 3
    dots = x.double() @ rows.double().T + bias.double()
    agree(torch.stack([exact[0, 1], exact[0, 2], exact[1, 0]]), torch.stack([dots[0, 6], dots[0, 0], dots[1, 2]]))


@interpreted
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("block", [1 << 27, 4 * 530 * 33])
def test_clear_cases_need_no_second_product(signed, block):
    cuda, _ = kernels()
    n, d_in, d_sae, k = 70, 250, 530, 4
    rows = unit(draws(3, (d_sae, d_in))[0])
    planted = torch.stack([torch.randperm(d_sae, generator=torch.Generator().manual_seed(row))[:k] for row in range(n)])
    signs = torch.where(torch.arange(k) % 2 == 1, -1.0, 1.0) if signed else torch.ones(k)
    x = torch.einsum("nkd,k->nd", rows[planted], signs * torch.tensor([8.0, 7.0, 6.0, 5.0]))
    with (
        mock.patch.object(cuda.selection, "BLOCK_BYTES", block),
        mock.patch.object(cuda.selection, "float32_products", side_effect=AssertionError("a row was computed again")),
    ):
        _, indices = check_top(x, rows, torch.zeros(d_sae), k, signed)
    assert float((indices.sort(1).values == planted.sort(1).values).float().mean()) > 0.8, "the planted latents must be what is found"


@interpreted
def test_the_proof_is_what_keeps_near_ties_exact():
    cuda, _ = kernels()
    x, rows = draws(0, (40, 48), (640, 48))
    x, rows, bias = x.abs(), rows[:1].abs() + 1e-3 * rows, torch.zeros(640)
    exact = (x.double() @ rows.double().T).topk(8).values
    agree(cuda.top(x, rows, bias, 8, False).values, exact, rtol=1e-6, atol=0)
    rough = (x.bfloat16() @ rows.bfloat16().T).float().topk(8 + cuda.selection.N_SPARE).indices
    unproved = (x.double() @ rows.double().T).gather(1, rough).topk(8).values
    assert float((unproved - exact).abs().max()) > 1e-4, "without the proof this case must come out wrong"


@interpreted
@pytest.mark.parametrize("case", [[3, 1, 1], [4, 77, 10], [3, 77, 76], [3, 20, 20], [2, 20, 35], [2, 8200, 50], [0, 5, 2]])
def test_only_the_largest_positive_answers_are_kept(case):
    (n, m, k), (cuda, reference) = case, kernels()
    answers = draws(4, (n, m))[0]
    if n > 1:
        answers[1] = -answers[1].abs()
        answers[1, :2] = 0.5
    ours, theirs = answers.clone(), answers.clone()
    cuda.keep_largest_(ours, k)
    reference.keep_largest_(theirs, k)
    agree(ours, theirs, rtol=0, atol=0)
    for row, kept in zip(answers, ours, strict=True):
        ranked = sorted((entry for entry in row.tolist() if entry > 0), reverse=True)[:k]
        assert sorted(kept[kept > 0].tolist(), reverse=True) == ranked


@interpreted
def test_of_equal_answers_exactly_enough_are_kept_the_first_ones():
    cuda, _ = kernels()
    answers = torch.tensor([[1.0, 2.0, 1.0, -3.0, 1.0, 0.0, 1.0], [-0.0, 0.0, -1.0, 5.0, 5.0, 5.0, 5.0]])
    cuda.keep_largest_(answers, 3)
    assert answers.tolist() == [[1.0, 2.0, 1.0, 0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 5.0, 5.0, 5.0, 0.0]]
    close = 1 + torch.arange(20.0)[None] * torch.finfo(torch.float32).eps  # a bit apart
    cuda.keep_largest_(close, 5)
    assert close.nonzero()[:, 1].tolist() == list(range(15, 20))
    wide = torch.ones(1, 8200)  # more than one block
    cuda.keep_largest_(wide, 8195)
    assert wide.nonzero()[:, 1].tolist() == list(range(8195))


@interpreted
def test_the_dense_product_takes_views():
    cuda, _ = kernels()
    a, b = draws(5, (9, 7), (9, 4))
    agree(cuda.product(a.T, b), a.double().T @ b.double(), rtol=2e-3, atol=2e-3)


def unrolled(x, atoms, k, signed):
    """Matching pursuit written as in the paper, with autograd through every step; a step whose largest correlation is not above 0 does
    nothing.
    """
    r, values, picks, residuals = x, [], [], [x]
    for _ in range(k):
        c = r @ atoms.T
        j = (c.abs() if signed else c).argmax(1)
        a = (r * atoms[j]).sum(1)
        if not signed:
            a = a * (a > 0)
        r = r - a[:, None] * atoms[j]
        values.append(a)
        picks.append(j)
        residuals.append(r)
    return torch.stack(values, 1), torch.stack(picks, 1), residuals


GRAMS = ["given", "computed", "none", "too wide"]


def pursued(x, atoms, k, tol, signed, gram):
    """The path by each of the ways."""
    cuda, _ = kernels()
    given = atoms @ atoms.T if gram in ("given", "too wide") else None
    with (
        mock.patch.object(cuda.pursuit, "uses_gram", return_value=gram == "computed"),
        mock.patch.object(cuda.pursuit, "MOST_ATOMS_IN_REGISTERS", 8 if gram == "too wide" else 1 << 14),
        mock.patch.object(cuda.pursuit, "BLOCK_BYTES", 4 * len(atoms) * 5),  # several chunks, the last one short
    ):
        return cuda.pursue(x, atoms, k, tol, signed, given)


@interpreted
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("gram", GRAMS)
@pytest.mark.parametrize("shape", [[0, 6, 9, 3], [1, 5, 40, 1], [12, 9, 50, 10], [33, 40, 401, 4]])
def test_pursuit_takes_the_steps_of_the_paper(shape, gram, signed):
    (n, d_in, d_sae, k), (_, reference) = shape, kernels()
    x, atoms = draws(6, (n, d_in), (d_sae, d_in))
    atoms = unit(atoms)
    path = pursued(x, atoms, k, None, signed, gram)
    theirs = reference.pursue(x, atoms, k, None, signed)
    values, picks, residuals = unrolled(x.double(), atoms.double(), k, signed)
    assert torch.equal(path.indices, theirs.indices)
    assert torch.equal(path.indices, picks)
    assert path.counts.tolist() == [k] * n
    if n == 12:
        assert max(row.unique(return_counts=True)[1].max() for row in picks) > 1, "the case must hold re-selected atoms"
    energies = torch.stack([r.square().sum(1) for r in residuals], 1)
    for ours, others in zip(path, (theirs.values, None, None, theirs.energies, theirs.residual), strict=True):
        if others is not None:
            agree(ours, others, atol=1e-4)
    agree(path.values, values)
    agree(path.energies, energies, atol=1e-4)
    agree(path.residual, residuals[-1])


@interpreted
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("gram", GRAMS)
def test_pursuit_stops_where_nothing_is_left_or_wanted(gram, signed):
    _, reference = kernels()
    x = draws(7, (10, 4))[0]
    x[3] = 0
    path = pursued(x, torch.eye(4), 12, None, signed, gram)
    assert path.counts.tolist() == ((x != 0) if signed else (x > 0)).sum(1).tolist()
    assert not path.indices[path.values == 0].any()
    atoms = unit(draws(8, (60, 9))[0])
    x = draws(9, (10, 9))[0]
    path, theirs = pursued(x, atoms, 12, 0.5, signed, gram), reference.pursue(x, atoms, 12, 0.5, signed)
    assert torch.equal(path.counts, theirs.counts)
    assert torch.equal(path.indices, theirs.indices)
    assert path.counts.unique().numel() > 1
    share = path.residual.double().norm(dim=1) / x.double().norm(dim=1)
    before = path.energies.gather(1, path.counts[:, None] - 1).view(-1).sqrt() / x.norm(dim=1)
    assert (share <= 0.5 + 1e-5).all()
    assert (before > 0.5 - 1e-5).all()


@interpreted
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("shape", [[0, 3, 5, 2], [1, 3, 5, 1], [9, 9, 40, 7], [4, 140, 30, 3]])
def test_the_reverse_sweep_is_the_gradient_of_the_unrolled_steps(shape, signed):
    (n, d_in, d_sae, k), (cuda, reference) = shape, kernels()
    x, atoms, g_values, g_residual = draws(10, (n, d_in), (d_sae, d_in), (n, k), (n, d_in))
    path = reference.pursue(x, unit(atoms), k, None, signed)
    wide = [x.double().requires_grad_(), unit(atoms).double().requires_grad_()]
    values, _, residuals = unrolled(*wide, k, signed)
    with mock.patch.object(cuda.pursuit, "BLOCK_BYTES", 4 * k * d_in * 4):
        grads = cuda.reverse_sweep(path, unit(atoms), g_values, g_residual)
    loss = (values * g_values).sum() + (residuals[-1] * g_residual).sum()
    expected, theirs = torch.autograd.grad(loss, wide), reference.reverse_sweep(path, unit(atoms), g_values, g_residual)
    for ours, other, exact in zip(grads, theirs, expected, strict=True):
        agree(ours, other, exact, atol=2e-5)


@interpreted
def test_the_reverse_sweep_leaves_out_the_steps_that_a_row_did_not_take():
    cuda, _ = kernels()
    x, g_values, g_residual = draws(11, (8, 4), (8, 6), (8, 4))
    path = cuda.pursue(x, torch.eye(4), 6, None, False)
    wide = [x.double().requires_grad_(), torch.eye(4, dtype=torch.float64).requires_grad_()]
    values, _, residuals = unrolled(*wide, 6, False)
    active = torch.arange(6) < path.counts[:, None]
    assert not active.all()
    expected = torch.autograd.grad((values * active * g_values).sum() + (residuals[-1] * g_residual).sum(), wide)
    for ours, exact in zip(cuda.reverse_sweep(path, torch.eye(4), g_values, g_residual), expected, strict=True):
        agree(ours, exact)


@interpreted
@pytest.mark.parametrize("shape", [[1, 1], [6, 40], [3, 300]])
def test_the_projected_gradient_has_no_part_along_its_atom(shape):
    cuda, reference = kernels()
    grad, atoms = draws(12, shape, shape)
    atoms = unit(atoms)
    ours, theirs = grad.clone(), grad.clone()
    total, other = cuda.project_(ours, atoms), reference.project_(theirs, atoms)
    g, d = grad.double(), atoms.double()
    exact = g - (g * d).sum(1, keepdim=True) * d
    agree(ours, theirs, exact)
    assert total == pytest.approx(other, rel=1e-5, abs=1e-5)
    assert total == pytest.approx(float(exact.square().sum()), rel=1e-5, abs=1e-5)
    assert cuda.sum_squares(grad) == pytest.approx(float(g.square().sum()), rel=1e-6)
    assert cuda.sum_squares(grad) == pytest.approx(reference.sum_squares(grad), rel=1e-6)


@interpreted
@pytest.mark.parametrize("unit_rows", [False, True])
@pytest.mark.parametrize("shape", [[1, 1], [5, 33], [1100]])
def test_the_update_is_torchs_adam(shape, unit_rows):
    cuda, reference = kernels()
    if unit_rows and len(shape) == 1:
        shape = [4, 200]
    parameter, *grads = draws(13, shape, shape, shape, shape)
    options = {"rate": 0.05, "betas": (0.8, 0.95), "epsilon": 1e-3, "scale": 0.3, "unit_rows": unit_rows}
    ours = [parameter.clone(), torch.zeros(shape), torch.zeros(shape)]
    theirs = [tensor.clone() for tensor in ours]
    exact = parameter.double().requires_grad_()
    optimiser = torch.optim.Adam([exact], lr=0.05, betas=(0.8, 0.95), eps=1e-3)
    for step, grad in enumerate(grads, start=1):
        for kernel, state in ((cuda.adam_, ours), (reference.adam_, theirs)):
            kernel(state[0], grad, *state[1:], step=step, **options)
        exact.grad = 0.3 * grad.double()
        optimiser.step()
        if unit_rows:
            with torch.no_grad():
                exact.div_(exact.norm(dim=1, keepdim=True))
        moments = optimiser.state[exact]
        for mine, other, true in zip(ours, theirs, (exact.detach(), moments["exp_avg"], moments["exp_avg_sq"]), strict=True):
            agree(mine, other, true, rtol=2e-6, atol=1e-6)


@interpreted
def test_a_tensor_that_is_not_contiguous_is_refused_before_it_is_changed():
    from sae.errors import SaeError

    cuda, _ = kernels()
    grad, atoms = draws(14, (6, 4), (4, 6))
    before = grad.clone()
    with pytest.raises(SaeError, match=r"contiguous, got strides \(1, 4\) for shape \(4, 6\)"):
        cuda.project_(grad.T, atoms)
    assert torch.equal(grad, before)


@interpreted
def test_an_empty_grid_starts_nothing():
    from sae.dictionaries.kernels.cuda.launch import launch

    kernel = mock.MagicMock()
    launch(kernel, (0, 2), torch.zeros(1))
    assert not kernel.mock_calls
    launch(kernel, (1, 2), torch.zeros(1))
    assert kernel.mock_calls


@interpreted
@pytest.mark.parametrize("precision", ["highest", "high"])
def test_exact_products_ignore_the_programs_precision_and_give_it_back(precision):
    from sae.dictionaries.kernels.cuda.launch import float32_products

    torch.set_float32_matmul_precision(precision)
    before = torch.backends.cuda.matmul.allow_tf32
    assert before == (precision == "high")
    with pytest.raises(KeyError), float32_products():
        inside = torch.backends.cuda.matmul.fp32_precision
        raise KeyError
    assert inside == "ieee"
    assert torch.backends.cuda.matmul.allow_tf32 == before
    torch.set_float32_matmul_precision("highest")


class Compilation:
    """Takes the place of `launch`: compiles what would run, for one chip, as it would be specialised, and runs nothing."""

    def __init__(self, chip: int):
        self.chip, self.built = chip, {}

    def launch(self, kernel, grid, *arguments, n_warps=4, **constants):
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource, compile

        types = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int64: "*i64", torch.int32: "*i32"}
        signature, fixed, attributes = {}, dict(constants), {}
        for place, (name, argument) in enumerate(zip(kernel.arg_names, arguments, strict=False)):
            if isinstance(argument, torch.Tensor):
                assert argument.is_contiguous()
                signature[name] = types[argument.dtype]
                attributes[place,] = [["tt.divisibility", 16]]
            elif isinstance(argument, float):
                signature[name] = "fp32"
            elif argument == 1:
                signature[name], fixed[name] = "constexpr", 1
            else:
                signature[name] = "i32"
                if argument % 16 == 0:
                    attributes[place,] = [["tt.divisibility", 16]]
        assert [*signature, *constants] == kernel.arg_names
        signature |= dict.fromkeys(constants, "constexpr")
        key = (kernel.fn.__name__, str(signature), str(fixed), str(attributes), n_warps)
        if key not in self.built:
            source = ASTSource(kernel, signature, fixed, attributes)
            options = {"num_warps": n_warps, "enable_fp_fusion": True}
            self.built[key] = compile(source, target=GPUTarget("cuda", self.chip, 32), options=options)

    def stack_bytes(self, built) -> int:
        import triton

        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(built.asm["cubin"])
            file.flush()
            usage = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True).stdout
        return int(re.search(r"STACK:(\d+)", usage).group(1))


def call_everything(cuda, n, k, d_in, d_sae, both_signs):
    values, indices = coded(n, k, d_sae)
    x, rows, bias, gram = draws(15, (n, d_in), (d_sae, d_in), (d_sae,), (d_sae, d_sae))
    cuda.weighted_rows(values, indices, rows)
    cuda.row_dots(x, indices, rows)
    cuda.decode_error(values, indices, rows, x)
    cuda.weighted_rows_t(values, indices, x, d_sae)
    cuda.scattered_sum(values, indices, d_sae)
    cuda.keep_largest_(x, 20)
    for signed in (True, False) if both_signs else (False,):
        cuda.top(x, rows, bias, k, signed)
        path = cuda.pursue(x, rows, 2, None, signed, gram)
        with mock.patch.object(cuda.pursuit, "uses_gram", return_value=False):
            cuda.pursue(x, rows, 2, None, signed)
    cuda.reverse_sweep(path, rows, values[:, :2].contiguous(), x)
    cuda.project_(rows, rows)
    for unit_rows in (False, True):
        options = {"rate": 0.1, "betas": (0.9, 0.999), "epsilon": 1e-8, "step": 2, "scale": 1.0, "unit_rows": unit_rows}
        cuda.adam_(rows, rows, rows, rows, **options)


@compiled
@pytest.mark.parametrize(("chip", "sizes"), [(90, [33, 32, 576, 4608]), (90, [33, 31, 77, 1537]), (80, [33, 31, 77, 1537])])
def test_every_kernel_compiles_for_the_chip_without_spilling_and_without_float_atomics(chip, sizes):
    from triton.runtime.jit import JITFunction

    cuda, _ = kernels()
    modules, compilation = (cuda.sparse, cuda.selection, cuda.pursuit, cuda.update), Compilation(chip)
    with contextlib.ExitStack() as stack:
        for module in modules:
            stack.enter_context(mock.patch.object(module, "launch", compilation.launch))
        call_everything(cuda, *sizes, both_signs=sizes[2] == 576)
    names = {name for module in modules for name, value in vars(module).items() if isinstance(value, JITFunction)}
    assert {key[0] for key in compilation.built} == names
    assert len(names) == 11
    for (name, *_), built in compilation.built.items():
        text = built.asm["ptx"]
        assert not re.search(r"\b(atom|red)\.global", text), f"{name} adds atomically"
        assert compilation.stack_bytes(built) == 0, f"{name} spills"
        assert built.metadata.shared <= 99 << 10, f"{name} needs {built.metadata.shared} bytes of shared memory"
        if name == "_rough_scores":
            assert ("wgmma" if chip == 90 else "mma.sync") in text
        elif sizes[2] % 4 == 0 and name not in ("_segment_sums", "_keep_largest"):
            assert re.search(r"ld\.global(\.\w+)*\.v4", text), f"{name} does not read 16 bytes at a time"


def serve() -> None:
    """Run bodies as asked on standard input, until it ends."""
    from jaxtyping import install_import_hook

    torch.set_num_threads(1)
    with install_import_hook("sae", "beartype.beartype"):
        cuda, _ = kernels()
    if os.environ["TRITON_INTERPRET"] == "1":
        # The interpreter's `tl.dot` multiplies bfloat16 operands as the integers that hold their bits; it gets the same values as float32.
        rounded = cuda.selection._bfloat16
        cuda.selection._bfloat16 = lambda rows: rounded(rows).float()
    for line in sys.stdin:
        name, arguments = json.loads(line)
        error = ""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                BODIES[name](**arguments)
        except Exception:  # noqa: BLE001  the test that asked reports it
            error = traceback.format_exc()
        print(json.dumps(error), flush=True)


if __name__ == "__main__":
    serve()

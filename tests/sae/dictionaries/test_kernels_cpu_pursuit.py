"""The numba pursuit against the torch oracle, a replay of every step in float64, and autograd through the unrolled loop."""

import pytest
import torch

from sae.dictionaries.kernels.cpu import pursuit
from sae.dictionaries.kernels.cpu.gram import UNITS, gram, gram_of, multiplies_integers, quantised
from sae.dictionaries.kernels.reference import pursuit as oracle

needs_integers = pytest.mark.skipif(not multiplies_integers(), reason="the CPU does not multiply eight-bit integers in hardware")


def unit(rows: torch.Tensor) -> torch.Tensor:
    return rows / rows.norm(dim=1, keepdim=True)


def random_case(n=96, d_in=80, d_sae=1100, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(n, d_in, generator=draw), unit(torch.randn(d_sae, d_in, generator=draw))


def trained():
    """Sparse sums of positive features, over a dictionary that holds them and noise."""
    _, atoms = random_case(seed=1)
    draw = torch.Generator().manual_seed(2)
    codes = torch.rand(96, 1100, generator=draw).add_(0.5) * (torch.rand(96, 1100, generator=draw) < 0.01)
    return codes @ atoms + 0.05 * torch.randn(96, 80, generator=draw), unit(atoms + 0.02 * torch.randn(1100, 80, generator=draw))


def outliers():
    """Three inputs a hundred times as large as the others, in signals and atoms."""
    x, atoms = random_case(seed=3)
    loud = torch.ones(80)
    loud[[4, 5, 77]] = 100.0
    return x * loud, unit(atoms * loud.sqrt())


def duplicates():
    """Every atom twice, and one forty times."""
    x, atoms = random_case(seed=4)
    return x, torch.cat([atoms[:500], atoms[:500], atoms[:1].expand(40, -1)]).contiguous()


def near_ties():
    """A thousand atoms within a thousandth of each other."""
    x, atoms = random_case(seed=5)
    return x.abs(), unit(1.0 + 1e-3 * atoms)


def one_hot():
    """The coordinate axes and random atoms: rows of one large entry."""
    x, atoms = random_case(seed=6)
    return x, torch.cat([torch.eye(80), atoms])


def many_scales():
    """Rows from a millionth to a million, zero rows among them."""
    x, atoms = random_case(seed=7)
    x = x * torch.logspace(-6, 6, 96)[:, None]
    x[::10] = 0
    return x, atoms


def vanishing():
    """Signals in eight dimensions: the residual soon is a thousandth of the signal."""
    draw = torch.Generator().manual_seed(8)
    span = torch.linalg.qr(torch.randn(80, 80, generator=draw)).Q[:8]
    return torch.randn(96, 8, generator=draw) @ span, unit(torch.randn(1100, 8, generator=draw) @ span)


CASES = {
    "random": random_case, "trained": trained, "outliers": outliers, "duplicates": duplicates, "near ties": near_ties, "one hot": one_hot,
    "many scales": many_scales, "vanishing": vanishing, "odd sizes": lambda: random_case(d_in=79, d_sae=1101),
    "few atoms": lambda: random_case(n=33, d_in=20, d_sae=7), "one row": lambda: random_case(n=1),
}  # fmt: skip
WAYS = ("gram", "given", "given in float32", "products", "without integers")


def run(way: str, monkeypatch, x, atoms, k, tol=None, signed=False):
    """The pursuit by one of its ways."""
    monkeypatch.setattr(pursuit, "uses_integers", lambda *_: way != "without integers" and multiplies_integers())
    monkeypatch.setattr(pursuit, "GRAM_BYTES", 0 if way == "products" else 1 << 30)
    given = {"given": gram, "given in float32": oracle.gram}.get(way)
    return pursuit.pursue(x, atoms, k, tol, signed, given(atoms) if given else None)


def replay(path, x, atoms, signed: bool):
    """Walk through the path in float64: every choice must be the largest correlation, with its value, up to rounding in float32."""
    r, d = x.double(), atoms.double()
    scale, rows = x.double().norm(dim=1), torch.arange(len(x))
    for t in range(path.values.shape[1]):
        torch.testing.assert_close(path.energies[:, t].double(), r.square().sum(1), rtol=1e-5, atol=1e-5 * float(scale.max()) ** 2)
        c = r @ d.T
        best = (c.abs() if signed else c).amax(1)
        j, a, going = path.indices[:, t], path.values[:, t].double(), path.counts > t
        chosen = c[rows, j]
        assert ((best - (chosen.abs() if signed else chosen))[going] <= 2e-6 * scale[going]).all()
        assert ((a - chosen).abs()[going] <= 2e-6 * scale[going]).all()
        assert (best[~going] <= 2e-6 * scale[~going]).all()
        assert not a[~going].any() and not j[~going].any()
        r = r - a[:, None] * d[j]
    assert ((path.residual.double() - r).norm(dim=1) <= 2e-6 * scale).all()


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", CASES)
def test_every_choice_is_the_largest_exact_correlation(case, way, signed, monkeypatch):
    x, atoms = CASES[case]()
    path = run(way, monkeypatch, x, atoms, min(24, len(atoms)), signed=signed)
    replay(path, x, atoms, signed)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", ["random", "trained", "outliers", "odd sizes", "one row"])
@pytest.mark.parametrize("k", [1, 16])
def test_pursuit_takes_the_oracles_steps(case, way, k, monkeypatch):
    x, atoms = CASES[case]()
    k = min(k, len(atoms))
    path, expected = run(way, monkeypatch, x, atoms, k), oracle.pursue(x.double(), atoms.double(), k, None, False)
    assert torch.equal(path.indices, expected.indices)
    assert torch.equal(path.counts, expected.counts)
    scale = float(x.abs().max())
    for ours, theirs in zip(path, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs.double(), rtol=1e-5, atol=1e-6 * scale)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("signed", [False, True])
def test_rows_stop_where_the_oracle_stops_at_a_tolerance(way, signed, monkeypatch):
    x, atoms = trained()
    path, expected = run(way, monkeypatch, x, atoms, 30, 0.4, signed), oracle.pursue(x.double(), atoms.double(), 30, 0.4, signed)
    assert 1 < int(expected.counts.min()) < int(expected.counts.max()) < 30
    assert torch.equal(path.counts, expected.counts)
    assert torch.equal(path.indices, expected.indices)
    torch.testing.assert_close(path.energies.double(), expected.energies, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("way", WAYS)
def test_positive_pursuit_stops_when_no_correlation_is_positive(way, monkeypatch):
    draw = torch.Generator().manual_seed(0)
    x, atoms = torch.randn(64, 64, generator=draw), torch.eye(64)
    path = run(way, monkeypatch, x, atoms, 64)
    assert path.counts.tolist() == (x > 0).sum(1).tolist()
    torch.testing.assert_close(path.residual, x.clamp(max=0), atol=1e-6, rtol=0)


@pytest.mark.parametrize("way", WAYS)
def test_zero_rows_take_no_step(way, monkeypatch):
    x, atoms = many_scales()
    path = run(way, monkeypatch, x, atoms, 8)
    assert (path.counts[::10] == 0).all()
    assert not path.energies[::10].any()
    everything_zero = run(way, monkeypatch, torch.zeros_like(x), atoms, 8)
    assert not everything_zero.counts.any()


def test_an_empty_batch_has_an_empty_path_and_no_gradient():
    _, atoms = random_case()
    path = pursuit.pursue(torch.zeros(0, 80), atoms, 5, None, False)
    assert [tuple(field.shape) for field in path] == [(0, 5), (0, 5), (0,), (0, 6), (0, 80)]
    grad_x, grad_atoms = pursuit.reverse_sweep(path, atoms, path.values, path.residual)
    assert grad_x.shape == (0, 80)
    assert not grad_atoms.any()


def test_atoms_are_selected_again_where_that_is_the_largest_correlation(monkeypatch):
    x, atoms = random_case(n=40, d_in=10, d_sae=64)
    path = run("gram", monkeypatch, x, atoms, 20)
    assert any(len(set(row.tolist())) < 20 for row in path.indices)
    replay(path, x, atoms, False)


@pytest.mark.parametrize("signed", [False, True])
def test_energy_falls_by_the_square_of_each_coefficient(signed, monkeypatch):
    x, atoms = outliers()
    path = run("gram", monkeypatch, x, atoms, 20, signed=signed)
    fall = path.energies[:, :1] - path.values.double().square().cumsum(1)
    torch.testing.assert_close(path.energies[:, 1:].double(), fall, rtol=1e-5, atol=1e-6 * float(path.energies.max()))
    torch.testing.assert_close(path.residual.double().square().sum(1), fall[:, -1], rtol=1e-4, atol=1e-6 * float(path.energies.max()))


def test_a_gram_matrix_is_built_only_where_it_fits_and_pays(monkeypatch):
    built = []
    monkeypatch.setattr(pursuit, "gram_of", lambda atoms: built.append(1) or gram_of(atoms))
    x, atoms = random_case()
    pursuit.pursue(x, atoms, 16, None, False)
    assert len(built) == 1
    monkeypatch.setattr(pursuit, "GRAM_BYTES", 2 * 1100**2 - 1)
    pursuit.pursue(x, atoms, 16, None, False)
    pursuit.pursue(x, atoms, 16, None, False, oracle.gram(atoms))
    assert len(built) == 1, "no Gram matrix may be built where it does not fit or is given"
    assert not pursuit.uses_gram(n=1, k=32, d_sae=2048)
    assert not pursuit.uses_gram(n=2048, k=1, d_sae=64)


def test_the_gram_matrix_is_that_of_the_inner_products():
    for d_sae, d_in in ((1100, 80), (517, 30), (5, 3), (300, 576)):
        _, atoms = random_case(d_in=d_in, d_sae=d_sae)
        exact = atoms.double() @ atoms.double().T
        assert float((gram(atoms) / UNITS - exact).abs().max()) < 0.51 / UNITS
        low = quantised(atoms)
        sigma = float(low.scales.max()) * (2 / 12) ** 0.5
        assert float((gram_of(low) / UNITS - exact).abs().max()) < 6 * sigma + 0.51 / UNITS


@pytest.mark.parametrize("case", ["random", "trained", "outliers", "one hot", "odd sizes", "vanishing"])
def test_errors_of_eight_bit_products_have_the_stated_standard_deviation(case):
    x, atoms = CASES[case]()
    low, low_x = quantised(atoms), quantised(x)
    rough = (low_x.integers.double() @ low.integers.double().T) * low_x.scales[:, None] * low.scales
    sigma = ((low.scales.square() * x.square().sum(1, keepdim=True) + low_x.scales.square()[:, None]) / 12).sqrt()
    z = (rough - x.double() @ atoms.double().T) / sigma
    assert 0.5 < float(z.square().mean().sqrt()) < 1.1
    assert float(z.abs().max()) < 6.5


def test_rotation_spreads_one_loud_input_over_the_range_of_eight_bits():
    x = torch.randn(50, 130, generator=torch.Generator().manual_seed(0))
    x[:, 70] = 50.0
    assert float((quantised(x).scales * 127 / x.abs().amax(1)).max()) < 0.5
    norms = quantised(x).integers.float().norm(dim=1) * quantised(x).scales
    torch.testing.assert_close(norms, x.norm(dim=1), rtol=1e-2, atol=0)


def unrolled(x, atoms, path):
    """The coefficients and the last residual along the path's selections, with autograd through every step."""
    r, values = x, []
    for t in range(path.values.shape[1]):
        d = atoms[path.indices[:, t]]
        a = (r * d).sum(1) * (path.counts > t)
        r = r - a[:, None] * d
        values.append(a)
    return torch.stack(values, 1), r


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("case", ["random", "trained", "outliers", "vanishing", "few atoms", "one row"])
def test_the_reverse_sweep_is_autograd_through_the_unrolled_steps(case, n_threads, monkeypatch):
    x, atoms = CASES[case]()
    k = min(16, len(atoms))
    threads = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        path = run("gram", monkeypatch, x, atoms, k)
        draw = torch.Generator().manual_seed(9)
        h, g = torch.randn(len(x), k, generator=draw), torch.randn(x.shape, generator=draw)
        got = pursuit.reverse_sweep(path, atoms, h, g)
    finally:
        torch.set_num_threads(threads)
    leaves = [tensor.double().requires_grad_() for tensor in (x, atoms)]
    values, residual = unrolled(*leaves, path)
    expected = torch.autograd.grad((values * h).sum() + (residual * g).sum(), leaves)
    for ours, theirs in zip(got, expected, strict=True):
        assert float((ours.double() - theirs).norm() / theirs.norm()) < 2e-5
    untouched = torch.ones(len(atoms), dtype=torch.bool)
    untouched[path.indices[torch.arange(k) < path.counts[:, None]]] = False
    assert not got[1][untouched].any()


def test_gradients_use_one_buffer_where_more_do_not_fit(monkeypatch):
    x, atoms = random_case()
    path = run("gram", monkeypatch, x, atoms, 8)
    h, g = torch.ones(96, 8), path.residual
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        both = pursuit.reverse_sweep(path, atoms, h, g)
        monkeypatch.setattr(pursuit, "SWEEP_BYTES", 0)
        one = pursuit.reverse_sweep(path, atoms, h, g)
    finally:
        torch.set_num_threads(threads)
    for a, b in zip(both, one, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n_threads", [1, 2])
def test_results_are_equal_to_the_bit_from_run_to_run(n_threads):
    x, atoms = random_case(n=700)
    threads = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        runs = []
        for _ in range(4):
            path = pursuit.pursue(x, atoms, 12, None, False)
            runs.append([*path, *pursuit.reverse_sweep(path, atoms, path.values, path.residual)])
    finally:
        torch.set_num_threads(threads)
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


@needs_integers
def test_looking_twice_is_what_keeps_near_ties_right(monkeypatch):
    x, atoms = near_ties()
    c = x.double() @ atoms.double().T
    low, low_x = quantised(atoms), quantised(x)
    rough = (low_x.integers.double() @ low.integers.double().T) * low_x.scales[:, None] * low.scales
    wrong = c.amax(1) - c.gather(1, rough.argmax(1, keepdim=True))[:, 0]
    assert float((wrong > 1e-4).double().mean()) > 0.5, "the case must be one that eight bits get wrong"
    ours = run("gram", monkeypatch, x, atoms, 1).indices
    assert float((c.amax(1) - c.gather(1, ours)[:, 0]).max()) < 1e-5

"""What the theory of matching pursuit says must hold, in closed form or by a count over random signals."""

import pytest
import scipy.linalg
import torch

from sae.dictionaries.pursuit import MatchingPursuit, PursuitConfig
from sae.errors import ConfigError


def dictionary(atoms: torch.Tensor, **options) -> MatchingPursuit:
    """A float64 pursuit over the given atoms with a random b_dec."""
    d_sae, d_in = atoms.shape
    made = MatchingPursuit(PursuitConfig(d_in=d_in, d_sae=d_sae, **options)).double()
    with torch.no_grad():
        made.W_dec.copy_(atoms)
        made.b_dec.copy_(torch.randn(d_in, generator=torch.Generator().manual_seed(99)))
    return made.requires_grad_(False)


def random_unit(d_sae: int, d_in: int, seed: int) -> torch.Tensor:
    atoms = torch.randn(d_sae, d_in, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return atoms / atoms.norm(dim=1, keepdim=True)


def identity_and_hadamard() -> torch.Tensor:
    """128 unit atoms in R^64 with coherence exactly 1/8: orthogonal pursuit is guaranteed for k <= 4."""
    return torch.cat([torch.eye(64, dtype=torch.float64), torch.from_numpy(scipy.linalg.hadamard(64) / 8.0)])


def support_recovery(k: int, method: str) -> float:
    """Share of 300 random signed k-sparse signals whose support the method's first k choices are."""
    atoms, draw = identity_and_hadamard(), torch.Generator().manual_seed(k)
    support = torch.stack([torch.randperm(128, generator=draw)[:k] for _ in range(300)])
    amplitude = 0.5 + torch.rand(300, k, generator=draw, dtype=torch.float64)
    sign = torch.randint(0, 2, (300, k), generator=draw) * 2 - 1
    x = torch.einsum("nk,nkd->nd", amplitude * sign, atoms[support])
    if method == "one-shot":
        chosen = (x @ atoms.T).abs().topk(k).indices
    else:
        made = dictionary(atoms, selection="signed", orthogonal=method == "omp")
        chosen = made.pursue(x + made.b_dec, k=k).order
    return float((chosen.sort(1).values == support.sort(1).values).all(1).double().mean())


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 8, 12])
def test_orthogonal_pursuit_finds_every_support_in_identity_and_hadamard(k):
    assert support_recovery(k, "omp") == 1.0


@pytest.mark.parametrize(("k", "low", "high"), [(1, 1, 1), (3, 1, 1), (5, 1, 1), (8, 0.94, 1), (12, 0.75, 0.95)])
def test_plain_pursuit_begins_to_miss_supports_as_they_grow(k, low, high):
    assert low <= support_recovery(k, "mp") <= high


@pytest.mark.parametrize(("k", "low", "high"), [(1, 1, 1), (2, 0.98, 1), (4, 0.93, 1), (5, 0.7, 0.88), (8, 0.1, 0.3), (12, 0, 0.05)])
def test_one_shot_selection_fails_long_before_pursuit(k, low, high):
    assert low <= support_recovery(k, "one-shot") <= high


@pytest.mark.parametrize("selection", ["positive", "signed"])
def test_energy_falls_by_the_square_of_each_coefficient(selection):
    made = dictionary(random_unit(60, 20, 0), k=15, selection=selection)
    acts = torch.randn(50, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    run = made.pursue(acts)
    x = acts - made.b_dec
    torch.testing.assert_close(run.energies[:, 0], x.square().sum(1))
    torch.testing.assert_close(run.energies[:, :-1] - run.energies[:, 1:], run.steps.values.square(), rtol=1e-12, atol=1e-12)
    residual = acts - made.decode(run.steps)
    torch.testing.assert_close(run.energies[:, -1], residual.square().sum(1), rtol=1e-12, atol=1e-12)
    last = made.W_dec[run.order[:, -1]]
    torch.testing.assert_close((residual * last).sum(1), torch.zeros(50, dtype=torch.float64), atol=1e-13, rtol=0)


def test_every_prefix_of_a_long_pursuit_is_the_shorter_pursuit():
    made = dictionary(random_unit(60, 20, 2), k=4)
    acts = torch.randn(30, 20, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    long = made.pursue(acts, k=25)
    for k in (1, 4, 25):
        short = made.pursue(acts, k=k)
        assert torch.equal(short.order, long.order[:, :k])
        torch.testing.assert_close(short.energies, long.energies[:, : k + 1])
        error = (acts - made.decode(made.encode(acts, k=k))).square().sum(1)
        torch.testing.assert_close(error, long.energies[:, k])


def test_the_relative_tolerance_stops_each_row_as_soon_as_it_is_met():
    made = dictionary(random_unit(100, 16, 4), k=4)
    acts = 10 * torch.randn(40, 16, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    full, run = made.pursue(acts, k=60), made.pursue(acts, k=60, tol=0.3)
    met = full.energies <= 0.09 * full.energies[:, :1]
    assert met.any(1).all()
    assert run.steps.counts.tolist() == met.int().argmax(1).tolist()
    for row, count in enumerate(run.steps.counts.tolist()):
        assert torch.equal(run.order[row, :count], full.order[row, :count])
        assert not run.order[row, count:].any()
        assert (run.energies[row, count:] == run.energies[row, count]).all()


def test_positive_pursuit_stalls_where_signed_pursuit_does_not():
    acts = torch.zeros(1, 8, dtype=torch.float64)
    acts[0, 0] = -1
    positive, signed = (dictionary(torch.eye(8, dtype=torch.float64), k=8, selection=s) for s in ("positive", "signed"))
    assert int(positive.encode(acts + positive.b_dec).counts) == 0
    codes = signed.encode(acts + signed.b_dec, k=1)
    assert codes.indices.tolist() == [[0]]
    assert codes.values.tolist() == [[pytest.approx(-1.0)]]


def test_positive_pursuit_never_takes_a_negative_coefficient():
    atoms = random_unit(6, 20, 16)  # so few atoms that all correlations soon turn negative
    for orthogonal in (False, True):
        made = dictionary(atoms, k=6, orthogonal=orthogonal)
        acts = torch.randn(60, 20, generator=torch.Generator().manual_seed(17), dtype=torch.float64)
        run = made.pursue(acts)
        residual = acts - made.b_dec
        for t in range(6):
            going = run.steps.counts > t
            assert ((residual @ atoms.T).amax(1)[going] > 0).all()
            residual = acts - made.decode(made.pursue(acts, k=t + 1).steps)
        assert (run.steps.counts < 6).any()
        stopped = run.steps.counts < 6
        assert float((residual @ atoms.T)[stopped].max()) < 1e-12


def test_pursuit_stops_when_nothing_but_rounding_is_left():
    made = dictionary(torch.eye(8, dtype=torch.float64), k=8, selection="signed").float()
    acts = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    acts[:, 5:] = made.b_dec[5:]
    assert made.pursue(acts).steps.counts.tolist() == [5] * 20


def test_signed_pursuit_converges_to_the_projection_on_the_span():
    atoms = random_unit(12, 30, 6)
    made = dictionary(atoms, k=4, selection="signed")
    acts = torch.randn(10, 30, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    energies = torch.stack([made.pursue(acts[i : i + 1], k=12).energies[0, -1] for i in range(10)])
    x = acts - made.b_dec
    projection = x @ torch.linalg.pinv(atoms) @ atoms
    floor = (x - projection).square().sum(1)
    assert (energies > floor - 1e-12).all()
    r = x.clone()
    for _ in range(40):  # forty restarts of twelve steps are one pursuit of 480
        r = r - (made.decode(made.pursue(r + made.b_dec, k=12).steps) - made.b_dec)
    torch.testing.assert_close(r.square().sum(1), floor, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("selection", ["positive", "signed"])
def test_orthogonal_pursuit_leaves_a_residual_orthogonal_to_every_chosen_atom(selection):
    made = dictionary(random_unit(80, 24, 8), k=10, selection=selection, orthogonal=True)
    acts = torch.randn(30, 24, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    run = made.pursue(acts)
    residual = acts - made.decode(run.codes)
    inner = torch.einsum("nkd,nd->nk", made.W_dec[run.order], residual) * run.steps.active()
    assert float(inner.abs().max()) < 1e-12
    torch.testing.assert_close(residual.square().sum(1), run.energies[:, -1])
    for row in range(30):
        count = int(run.steps.counts[row])
        assert len(set(run.order[row, :count].tolist())) == count
    plain = dictionary(made.W_dec, k=10, selection=selection)
    assert float(run.energies[:, -1].mean()) < float(plain.pursue(acts).energies[:, -1].mean())


def test_orthogonal_pursuit_stops_at_the_dimension_of_the_span():
    flat = torch.zeros(20, 10, dtype=torch.float64)
    flat[:, :3] = random_unit(20, 3, 10)
    made = dictionary(flat, k=6, selection="signed", orthogonal=True)
    acts = torch.randn(10, 10, generator=torch.Generator().manual_seed(11), dtype=torch.float64)
    run = made.pursue(acts)
    assert run.steps.counts.tolist() == [3] * 10
    assert torch.isfinite(made(acts)).all()


def test_atoms_that_are_not_unit_are_refused_until_normalised():
    made = dictionary(random_unit(12, 6, 12), k=3)
    acts = torch.randn(4, 6, generator=torch.Generator().manual_seed(13), dtype=torch.float64)
    before = made(acts)
    made.W_dec[7] *= 1.6
    with pytest.raises(ConfigError, match=r"atoms must have unit norm, got 1.6 for latent 7; call normalise_\(\)"):
        made(acts)
    made.normalise_()
    torch.testing.assert_close(made(acts), before)


@pytest.mark.parametrize(("options", "text"), [
    ({"k": 0}, r"k must be in 1..d_sae=12, got 0"),
    ({"k": 13}, r"k must be in 1..d_sae=12, got 13"),
    ({"tol": 1.5}, r"tol must be in \[0, 1\), relative to the norm of x - b_dec, got 1.5"),
    ({"tol": -0.1}, r"tol must be in \[0, 1\)"),
])  # fmt: skip
def test_steps_and_tolerances_out_of_range_are_refused(options, text):
    made = dictionary(random_unit(12, 6, 14), k=3)
    with pytest.raises(ConfigError, match=text):
        made.encode(torch.zeros(2, 6, dtype=torch.float64), **options)


def test_orthogonal_pursuit_takes_no_more_steps_than_dimensions():
    with pytest.raises(ConfigError, match=r"k must be in 1..d_in=6 for orthogonal pursuit, got 7"):
        PursuitConfig(d_in=6, d_sae=12, k=7, orthogonal=True)


def test_float32_selection_by_gram_rows_equals_recomputing_the_residual():
    made = MatchingPursuit(PursuitConfig(d_in=64, d_sae=512, k=16), seed=1).requires_grad_(False)
    acts = torch.randn(256, 64, generator=torch.Generator().manual_seed(15))
    codes = made.pursue(acts).steps
    r, picks = acts.clone(), []
    for _ in range(16):
        a, j = (r @ made.W_dec.T).max(1)
        r = r - a[:, None] * made.W_dec[j]
        picks.append(j)
    same = (codes.indices == torch.stack(picks, 1)).all(1)
    assert float(same.double().mean()) > 0.98  # float32 may break a near tie either way
    torch.testing.assert_close((acts - made.decode(codes))[same], r[same], atol=1e-5, rtol=1e-5)


def test_the_kept_gram_matrix_changes_nothing_and_follows_the_atoms():
    made = MatchingPursuit(PursuitConfig(d_in=32, d_sae=256, k=6), seed=1)
    x = torch.randn(64, 32, generator=torch.Generator().manual_seed(2))
    first = made.pursue(x)  # records a gradient: nothing is kept
    with torch.no_grad():
        kept = [made.pursue(x) for _ in range(3)]
    assert made._memo.gram_of(made.W_dec.detach(), 64, 6) is not None
    for pursuit in kept:
        assert torch.equal(pursuit.order, first.order)
        torch.testing.assert_close(pursuit.energies, first.energies)
    with torch.no_grad():
        made.W_dec.copy_(made.W_dec.flip(0))
        flipped = made.pursue(x)
    torch.testing.assert_close(flipped.energies, first.energies.detach(), rtol=1e-4, atol=1e-4)
    assert torch.equal(flipped.order, torch.where(first.steps.active(), 255 - first.order, 0))

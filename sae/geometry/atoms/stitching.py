"""From a small dictionary to a large one, latent by latent: what the large one has that the small one lacks.

    z_j     = pi_j if pi_j > theta_j else 0,     pi = x E^T + b              row j of E: encoder j; b_j and theta_j travel with it
    x_hat   = z D + b_dec(s),                    b_dec(s) = (1 - s) b_dec(small) + s b_dec(large)
    novel            max_i cos(large_j, small_i) < tau;  otherwise a reconstruction latent
    swap groups      connected components of the bipartite graph cos(large_j, small_i) >= tau
    insertion        Delta MSE_j = mean_t (z_tj^2 |d_j|^2 - 2 z_tj d_j . r_t),     r = x - x_hat of the small dictionary: exact, all j at once

Leask et al. 2025 (2502.04878). Adding a novel latent to the small dictionary should lower its error; adding a reconstruction latent without
taking its match out should raise it; exchanging the two sides of a swap group turns the one dictionary into the other. s is the share of the
steps of the plan that are done, so that the ends are the two dictionaries themselves. Latents of the small one that nothing in the large one
resembles are taken out by steps of their own.

These are elementwise dictionaries (ReLU, JumpReLU, BatchTopK with its threshold): each latent answers by itself, so that every step of the way
is measured exactly at the cost of encoding both dictionaries once. TopK and pursuit choose among all latents at a time: see
sae.evaluation.stitching, which builds the dictionary between and encodes anew.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.errors import ConfigError
from sae.geometry.rows import BLOCK_ELEMENTS, require_points, row_blocks, unit_rows

Order = Literal["inserts first", "swaps first"]
"""Which steps come first; those that take an unmatched latent out always come last."""


@dataclass(frozen=True, eq=False)
class Latents:
    """The latents of an elementwise dictionary, in the form of the module's text."""

    encoders: Float[Tensor, "n d_in"]
    """E: row j is the encoder of latent j (a column of W_enc)."""
    biases: Float[Tensor, " n"]
    """b: what is added to x E^T; whatever is subtracted from x beforehand is already in it."""
    thresholds: Float[Tensor, " n"]
    """theta: pre-activations up to it give 0."""
    decoders: Float[Tensor, "n d_in"]
    """D: row j is atom j."""
    offset: Float[Tensor, " d_in"]
    """b_dec of the dictionary."""

    def codes(self, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows n"]:
        """z for every row of x, dense, float64."""
        pre_acts = x.double() @ self.encoders.double().T + self.biases.double()
        return pre_acts * (pre_acts > self.thresholds.double())

    def residual(self, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_in"]:
        """x - z D - b_dec, float64."""
        return x.double() - self.codes(x) @ self.decoders.double() - self.offset.double()


@dataclass(frozen=True, eq=False)
class LatentClasses:
    """Which latents of a large dictionary a small one has."""

    cosines: Float[Tensor, " n_large"]
    """Largest cosine of each large atom with a small one."""
    nearest: Int[Tensor, " n_large"]
    """The small atom that has it."""
    novel: Bool[Tensor, " n_large"]
    """Whether that cosine is below tau."""


@dataclass(frozen=True, eq=False)
class Swap:
    """One step from the small to the large dictionary: some latents out, others in."""

    out: Int[Tensor, " n_out"]
    """Latents of the small dictionary that are taken out, ascending; none for an insertion."""
    into: Int[Tensor, " n_into"]
    """Latents of the large dictionary that are put in, ascending; none for a removal."""


@dataclass(frozen=True, eq=False)
class StitchingCurve:
    """Error and sparsity along the way; point 0 is the small dictionary, the last one the large dictionary."""

    mse: Float[Tensor, " n_points"]
    """Mean over rows of |x - x_hat|^2, float64."""
    l0: Float[Tensor, " n_points"]
    """Mean number of active latents per row, float64."""
    n_latents: Int[Tensor, " n_points"]
    """Number of latents."""
    steps: Int[Tensor, " n_points"]
    """Steps of the plan that are done."""


def latents(
    W_enc: Float[Tensor, "d_in n"],
    b_enc: Float[Tensor, " n"],
    W_dec: Float[Tensor, "n d_in"],
    b_dec: Float[Tensor, " d_in"],
    threshold: Float[Tensor, " n"] | float = 0.0,
    *,
    subtracted: Float[Tensor, " d_in"] | None = None,
) -> Latents:
    """The latents of pi = (x - subtracted) W_enc + b_enc, z = pi H(pi - threshold), x_hat = z W_dec + b_dec; nothing is subtracted by default.

    A threshold below 0 counts as 0 (ReLU). Raises ConfigError for sizes that do not fit, and numbers that are not finite.
    """
    n, d_in = W_dec.shape
    if tuple(W_enc.shape) != (d_in, n) or len(b_enc) != n or len(b_dec) != d_in:
        shapes = [list(each.shape) for each in (W_enc, b_enc, W_dec, b_dec)]
        raise ConfigError(f"W_enc, b_enc, W_dec, b_dec must have shapes [d_in, n], [n], [n, d_in], [d_in], got {shapes} (latents)")
    for name, each in (("W_enc", W_enc.T), ("b_enc", b_enc[:, None]), ("W_dec", W_dec), ("b_dec", b_dec[:, None])):
        require_points(each.detach(), minimum=1, argument=name, where="latents")
    biases = b_enc.detach() if subtracted is None else b_enc.detach() - subtracted.detach() @ W_enc.detach()
    thresholds = torch.as_tensor(threshold, dtype=b_enc.dtype, device=b_enc.device).detach().expand(n).clamp(min=0)
    return Latents(W_enc.detach().T, biases, thresholds, W_dec.detach(), b_dec.detach())


def latent_classes(
    small: Float[Tensor, "n_small d_in"], large: Float[Tensor, "n_large d_in"], *, tau: float = 0.7, block_elements: int = BLOCK_ELEMENTS
) -> LatentClasses:
    """Novel and reconstruction latents of the large dictionary, from atoms alone. Raises ConfigError for tau outside (0, 1] and bad atoms."""
    from sae.geometry.similarity import nearest_atoms_to

    _check_tau(tau, "latent_classes")
    near = nearest_atoms_to(large, small, n_neighbours=1, n_bins=1, block_elements=block_elements)
    return LatentClasses(near.cosines[:, 0], near.atom_ids[:, 0], near.cosines[:, 0] < tau)


def swap_groups(
    small: Float[Tensor, "n_small d_in"], large: Float[Tensor, "n_large d_in"], *, tau: float = 0.7, block_elements: int = BLOCK_ELEMENTS
) -> list[Swap]:
    """The connected components of the graph cos >= tau between small and large atoms, in the order of their first latent.

    A component without small atoms is a novel latent, one without large atoms a latent that the large dictionary lost. O(n_small n_large d) in
    blocks. Raises ConfigError for tau outside (0, 1] and for an atom that is zero or not finite.
    """
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import connected_components

    _check_tau(tau, "swap_groups")
    a = unit_rows(small, minimum=1, argument="small", where="swap_groups")
    b = unit_rows(large, minimum=1, argument="large", where="swap_groups").to(a.dtype)
    edges = [
        (a[part] @ b.T >= tau).nonzero().cpu() + torch.tensor([part.start, len(a)])
        for part in row_blocks(len(a), len(b), block_elements, where="swap_groups")
    ]
    i, j = torch.cat(edges).T.numpy()
    n = len(a) + len(b)
    label = torch.from_numpy(connected_components(csr_matrix((torch.ones(len(i)).numpy(), (i, j)), shape=(n, n)), directed=False)[1]).long()
    members = label.argsort(stable=True).split(torch.bincount(label).tolist())
    return [Swap(each[each < len(a)], each[each >= len(a)] - len(a)) for each in members]


def stitching_plan(
    small: Float[Tensor, "n_small d_in"], large: Float[Tensor, "n_large d_in"], *, tau: float = 0.7, order: Order = "inserts first"
) -> list[Swap]:
    """Steps that turn the small dictionary into the large one: insertions of novel latents, swaps of groups, removals of what is left.

    Errors as `swap_groups`; ConfigError too for another order.
    """
    if order not in get_args(Order):
        raise ConfigError(f"order must be one of {list(get_args(Order))}, got {order!r} (stitching_plan)")
    groups = swap_groups(small, large, tau=tau)
    inserts = [each for each in groups if not len(each.out)]
    removals = [each for each in groups if not len(each.into)]
    swaps = [each for each in groups if len(each.out) and len(each.into)]
    return [*inserts, *swaps, *removals] if order == "inserts first" else [*swaps, *inserts, *removals]


def stitching_curve(
    small: Latents, large: Latents, batches: Iterable[Float[Tensor, "_ d_in"]], plan: Sequence[Swap], *, interpolate_offset: bool = True
) -> StitchingCurve:
    """Error and L0 after every step of the plan, exactly, from one encode of both dictionaries.

    With `interpolate_offset` b_dec moves from one dictionary's to the other's by 1 / n_steps a step; otherwise the small one's is kept, and
    the last point is the large dictionary with that offset. Raises ConfigError for no rows, rows that are not finite, and a plan that names
    a latent twice or one that does not exist.
    """
    _check_plan(plan, len(small.decoders), len(large.decoders))
    squares, active, n_rows = torch.zeros(len(plan) + 1, dtype=torch.float64), torch.zeros(len(plan) + 1, dtype=torch.float64), 0
    for x in batches:
        require_points(x, minimum=1, argument="x", where="stitching_curve")
        one, two = _walk(small, large, x, plan, interpolate_offset)
        squares, active, n_rows = squares + one, active + two, n_rows + len(x)
    if not n_rows:
        raise ConfigError("batches must hold at least one row, got none (stitching_curve)")
    change = torch.tensor([0] + [len(step.into) - len(step.out) for step in plan])
    n_latents = len(small.decoders) + change.cumsum(0)
    return StitchingCurve(squares / n_rows, active / n_rows, n_latents, torch.arange(len(plan) + 1))


def insertion_effects(small: Latents, large: Latents, batches: Iterable[Float[Tensor, "_ d_in"]]) -> Float[Tensor, " n_large"]:
    """Delta MSE of adding each latent of the large dictionary alone to the whole small one; negative where it helps; float64.

    Raises ConfigError for no rows and rows that are not finite.
    """
    norms, total, n_rows = large.decoders.double().square().sum(dim=1), torch.zeros(len(large.decoders), dtype=torch.float64), 0
    for x in batches:
        require_points(x, minimum=1, argument="x", where="insertion_effects")
        codes = large.codes(x)
        total = total + (codes.square() * norms - 2 * codes * (small.residual(x) @ large.decoders.double().T)).sum(dim=0).cpu()
        n_rows += len(x)
    if not n_rows:
        raise ConfigError("batches must hold at least one row, got none (insertion_effects)")
    return total / n_rows


def _walk(small: Latents, large: Latents, x: Tensor, plan: Sequence[Swap], interpolate: bool) -> tuple[Tensor, Tensor]:
    """Sums over the rows of x of |x - x_hat|^2 and of the number of active latents, at every point."""
    from_codes, to_codes = small.codes(x), large.codes(x)
    from_atoms, to_atoms = small.decoders.double(), large.decoders.double()
    residual = small.residual(x)
    counts = (from_codes != 0).sum(0), (to_codes != 0).sum(0)
    shift = (large.offset.double() - small.offset.double()) / max(len(plan), 1)
    squares, active = [residual.square().sum()], [counts[0].sum()]
    for step in plan:
        residual = residual + from_codes[:, step.out] @ from_atoms[step.out] - to_codes[:, step.into] @ to_atoms[step.into]
        if interpolate:
            residual = residual - shift
        squares.append(residual.square().sum())
        active.append(active[-1] - counts[0][step.out].sum() + counts[1][step.into].sum())
    return torch.stack(squares).cpu(), torch.stack(active).double().cpu()


def _check_plan(plan: Sequence[Swap], n_small: int, n_large: int) -> None:
    for name, size in (("out", n_small), ("into", n_large)):
        ids = torch.cat([getattr(step, name) for step in plan]) if plan else torch.zeros(0, dtype=torch.long)
        if len(ids.unique()) != len(ids) or (len(ids) and not (int(ids.min()) >= 0 and int(ids.max()) < size)):
            raise ConfigError(
                f"plan must name each latent of 0..{size - 1} at most once in {name}; make it with stitching_plan (stitching_curve)"
            )


def _check_tau(tau: float, where: str) -> None:
    if not 0 < tau <= 1:
        raise ConfigError(f"tau must be a cosine above 0 and at most 1, got {tau} ({where})")

"""MatchingPursuit: codes by greedy selection, one atom at a time.

    r_0 = x - b_dec;   for t = 1..k:   j_t = argmax_j d_j . r_{t-1},   a_t = d_{j_t} . r_{t-1},   r_t = r_{t-1} - a_t d_{j_t}
    x_hat = b_dec + sum_t a_t d_{j_t},        |r_t|^2 = |r_{t-1}|^2 - a_t^2        (unit atoms d_j, rows of W_dec)

Mallat & Zhang 1993; as a sparse autoencoder Costa et al. 2025 (2506.03093) algorithm 1, with unit atoms always and the encoder tied to the
decoder. With `orthogonal` the coefficients are refitted by least squares on the selected atoms after every selection (OMP, Pati et al.
1993).

Positive selection, the default, takes the largest d_j . r and stops when none is positive; signed selection takes the largest |d_j . r|.
Only signed pursuit converges to the projection on the atoms' span: for D = I and x = -e_1 positive selection keeps the zero code for ever.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sae.dictionaries import kernels
from sae.dictionaries.base import Dictionary, check_widths, random_atoms
from sae.dictionaries.codes import SparseCodes
from sae.dictionaries.explained import Ask, Explained
from sae.dictionaries.kernels.dispatch import gathered
from sae.dictionaries.kernels.memo import GramMemo
from sae.dictionaries.scaling import Normalisation, Scaling
from sae.dictionaries.stopping import pursue_until
from sae.errors import ConfigError

NORM_TOLERANCE = 1e-3
"""How far from 1 an atom's norm may be before pursuit refuses: the energy identity needs unit atoms, and norms above sqrt(2) diverge."""


@dataclass(frozen=True, kw_only=True)
class PursuitConfig:
    """Shape and selection rule of a MatchingPursuit."""

    d_in: int
    """Input width."""
    d_sae: int
    """Number of atoms."""
    k: int = 32
    """Selections per row in training and, unless another is asked for, in encoding."""
    selection: Literal["positive", "signed"] = "positive"
    """Whether an atom is chosen by its largest correlation or by its largest absolute correlation with the residual."""
    orthogonal: bool = False
    """Whether coefficients are refitted by least squares on the selected atoms (OMP); they may then be negative."""
    unit_norm: bool = True
    """Whether atoms are unit vectors. Without, coefficients are d_j . r all the same, undivided by |d_j|^2: some libraries train so."""
    tolerance: float = 0.0
    """A row ends after the step that leaves a residual of norm below this, in the space of x; 0 for never."""
    stop_on_repeat: bool = False
    """Whether a row ends after the first step that selects an atom again."""
    normalisation: Normalisation = "none"
    """What is done to every row before the scaling, and undone after decoding."""

    def __post_init__(self) -> None:
        check_widths(self.d_in, self.d_sae, "MatchingPursuit")
        if self.selection not in ("positive", "signed"):
            raise ConfigError(f"selection must be 'positive' or 'signed', got {self.selection!r} (MatchingPursuit)")
        if not (math.isfinite(self.tolerance) and self.tolerance >= 0):
            raise ConfigError(f"tolerance must be finite and at least 0, got {self.tolerance} (MatchingPursuit)")
        if self.orthogonal and (self.ends_early or not self.unit_norm):
            raise ConfigError("orthogonal pursuit must have unit atoms, no tolerance and no stop_on_repeat (MatchingPursuit)")
        check_n_steps(self.k, self)

    @property
    def ends_early(self) -> bool:
        """Whether a rule besides k ends rows."""
        return self.tolerance > 0 or self.stop_on_repeat


def check_n_steps(k: int, config: PursuitConfig) -> None:
    """Raises ConfigError unless 1 <= k <= d_sae and, for orthogonal pursuit, k <= d_in."""
    if not 1 <= k <= config.d_sae:
        raise ConfigError(f"k must be in 1..d_sae={config.d_sae}, got {k} (MatchingPursuit)")
    if config.orthogonal and k > config.d_in:
        raise ConfigError(f"k must be in 1..d_in={config.d_in} for orthogonal pursuit, got {k} (MatchingPursuit)")


class Pursuit(NamedTuple):
    """What one pursuit did, step by step. Codes and energies are in the space of x (scaled activations)."""

    steps: SparseCodes
    """Slot t is selection t: its atom and coefficient. A re-selected atom appears again; `counts` is the number of selections."""
    energies: Float[Tensor, "n k_steps"]
    """|r_t|^2 for t = 0..k; constant once a row has stopped."""

    @property
    def codes(self) -> SparseCodes:
        """The codes: every atom once per row, in order of first selection."""
        return self.steps.merged()

    @property
    def order(self) -> Int[Tensor, "n k_max"]:
        """Selected atoms in order, with repetitions; slots from `steps.counts` on hold 0."""
        return self.steps.indices


@final
class MatchingPursuit(Dictionary):
    """Matching pursuit over unit atoms W_dec, started at x - b_dec; see the module's text. A new one has random atoms drawn from `seed`."""

    config: PursuitConfig

    def __init__(
        self, config: PursuitConfig, scaling: Scaling | None = None, *, seed: int = 0, provenance: Mapping[str, Any] | None = None
    ):
        super().__init__(config, scaling, provenance)
        self.W_dec = nn.Parameter(random_atoms(config.d_sae, config.d_in, seed))
        self.b_dec = nn.Parameter(torch.zeros(config.d_in))
        self._memo = GramMemo()

    def encode(self, acts: Float[Tensor, "n d_in"], k: int | None = None, tol: float | None = None) -> SparseCodes:
        """Codes of activations, every atom once per row in order of first selection; `k` and `tol` as in `pursue`."""
        return self.pursue(acts, k, tol).codes

    @property
    def unit_atoms(self) -> bool:  # type: ignore[override]
        """Whether training keeps atoms on the unit sphere."""
        return self.config.unit_norm

    def pursue(self, acts: Float[Tensor, "n d_in"], k: int | None = None, tol: float | None = None) -> Pursuit:
        """The pursuit of activations step by step; differentiable with the selection held fixed.

        `k` is the largest number of selections (the configuration's by default). A row stops early once |r| <= tol |x - b_dec|, or when no
        correlation is left. One call with a large k gives the whole error-versus-k curve in `energies`. Raises ConfigError for k or tol out
        of range, and for atoms that do not have unit norm.
        """
        with gathered(self.W_dec):
            steps, energies = self._pursue(self.scaled(acts), k, tol)
        return Pursuit(self.of_rows(steps, acts), energies)

    def code(self, x: Float[Tensor, "n d_in"]) -> SparseCodes:
        """Codes of scaled activations, every atom once per row in order of first selection."""
        return self._pursue(x, None, None).codes

    def explain(self, x: Float[Tensor, "n d_in"], ask: Ask) -> Explained:
        """What training needs to know about scaled activations. Asked latents answer with their correlation d_j . e with what pursuit left, so
        a dead atom is drawn there. Raises ConfigError for a target or prefixes, which pursuit does not have.
        """
        if ask.target is not None or ask.prefixes:
            wrong = "target" if ask.target is not None else "prefixes"
            raise ConfigError(f"{wrong} must be absent: pursuit encodes with the atoms it decodes with (MatchingPursuit)")
        self._check_norms()
        k = self.config.k if ask.k is None else round(ask.k)
        check_n_steps(k, self.config)
        path = self._path(x - self.b_dec, k, None)
        zero = path.residual.new_zeros(())
        codes = SparseCodes(path.indices, path.values.detach(), path.counts, self.d_sae)
        return Explained(
            error=path.residual.square().sum(),
            residual=path.residual.detach(),
            codes=codes,
            l0=codes.mean_l0(),
            revival=zero if ask.latents is None else self._revived(path.residual, ask.latents, ask.k_aux),
            penalty=zero,
            gate_error=zero,
            prefix_errors=zero.expand(0),
        )

    def _revived(self, residual: Tensor, latents: Tensor, k_aux: int) -> Tensor:
        atoms = self.W_dec[latents]
        return kernels.revive(residual, residual, atoms, atoms.new_zeros(len(atoms)), atoms, k_aux)

    @torch.no_grad()
    def fold(self) -> "MatchingPursuit":
        """The same function with identity scaling: b_dec' = b_dec / scale + mean, tolerance / scale, atoms unchanged."""
        config = replace(self.config, tolerance=self.config.tolerance / self.scaling.scale)
        folded = MatchingPursuit(config, provenance=self.provenance).to(self.W_dec)
        folded.W_dec.copy_(self.W_dec)
        folded.b_dec.copy_(self.b_dec / self.scaling.scale + self.scaling.mean)
        return folded

    def _pursue(self, x: Tensor, k: int | None, tol: float | None) -> Pursuit:
        k = self.config.k if k is None else k
        check_n_steps(k, self.config)
        if tol is not None and not 0 <= tol < 1:
            raise ConfigError(f"tol must be in [0, 1), relative to the norm of x - b_dec, got {tol} (MatchingPursuit)")
        self._check_norms()
        path = self._path(x - self.b_dec, k, tol)
        return Pursuit(SparseCodes(path.indices, path.values, path.counts, self.d_sae), path.energies)

    def _path(self, x: Tensor, k: int, tol: float | None) -> kernels.Path:
        config, signed = self.config, self.config.selection == "signed"
        if config.orthogonal:
            return kernels.pursue_orthogonally(x, self.W_dec, k, tol, signed)
        if config.unit_norm and not config.ends_early:
            return kernels.pursue(x, self.W_dec, k, tol, signed, self._memo.gram_of(self.W_dec, len(x), k))
        least = (torch.linalg.vector_norm(x.detach(), dim=1) * (tol or 0.0)).clamp_min(config.tolerance)
        rules = {"stop_on_repeat": config.stop_on_repeat, "unit_norm": config.unit_norm}
        return pursue_until(x, self.W_dec, k, least=least, signed=signed, **rules)

    def _check_norms(self) -> None:
        if not self.config.unit_norm:
            return
        norms = torch.linalg.vector_norm(self.W_dec.detach(), dim=1)
        worst = int((norms - 1).abs().argmax())
        norm = float(norms[worst])
        if not abs(norm - 1) <= NORM_TOLERANCE:
            raise ConfigError(f"atoms must have unit norm, got {norm:.4g} for latent {worst}; call normalise_() (MatchingPursuit)")

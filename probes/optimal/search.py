"""The best k columns of all, with a proof: a search over every support by cutting planes.

    minimise c(s),   s in {0,1}^d, |s| = k,        master:   min t   over s,   t >= a_m + g_m . s   for every plane m met so far

c is convex in s and the planes lie below it (see `losses`), so the master's minimum is a lower bound for every support, and the objective of
any one support an upper bound. The first planes come from single supports and from the relaxation 0 <= s <= 1; then the master is a
mixed-integer program, solved again with each new plane until the two bounds meet or time is up.

Duran and Grossmann 1986, Math. Program. 36:307 (outer approximation); Bertsimas et al. 2021 (see `losses`); Gurnee et al. 2023, arXiv
2305.01610, appendix. Departures: the master is scipy's (HiGHS), which needs neither a licence nor another package, and is solved anew with
each plane; planes of the relaxation come first; columns are z-scored.
"""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import Bounds, LinearConstraint, milp

from probes.figures import colour, control_line, new_figure
from probes.optimal.losses import Loss, Plane
from probes.results import Result, Table
from probes.selection import top_k
from sae.errors import ConfigError, SaeError

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

RELAXED_ROUNDS, RELAXED_GAP = 100, 1e-3
"""Planes taken from the relaxation at most, and the gap at which it is good enough."""
STEP_INWARDS = 0.5
"""How far from the master's relaxed solution towards the best relaxed point planes are taken."""


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """How hard to search."""

    gamma: float | None = None
    """Weight of the loss against the ridge |v|^2 / (2 gamma) on z-scored columns; None for 1 / sqrt(n)."""
    filter_size: int | None = 50
    """Columns searched: those with the largest |mean difference| (a number: |correlation|); None for all."""
    time_limit: float = 60.0
    """Seconds after which the best support so far is returned with its gap."""
    tolerance: float = 1e-4
    """Relative gap between objective and lower bound at which a support counts as proven."""

    def __post_init__(self) -> None:
        if self.gamma is not None and not self.gamma > 0:
            raise ConfigError(f"gamma must be positive, or None for 1 / sqrt(n), got {self.gamma} (best subset)")
        if self.filter_size is not None and self.filter_size < 1:
            raise ConfigError(f"filter_size must be at least 1, or None for all columns, got {self.filter_size} (best subset)")
        if not self.time_limit > 0:
            raise ConfigError(f"time_limit must be a positive number of seconds, got {self.time_limit} (best subset)")
        if not 0 < self.tolerance < 1:
            raise ConfigError(f"tolerance must be in (0, 1), got {self.tolerance} (best subset)")


@dataclass(frozen=True, eq=False)
class BestSubset(Result):
    """A support, how good it is, and how good any support could be. Among the searched columns only: see `n_searched`."""

    support: Int[np.ndarray, " k"]
    """Columns, those with the largest coefficient first."""
    coef: Float[np.ndarray, " k"]
    """Coefficient of each, per standard deviation."""
    objective: float
    """c of this support: weighted loss and ridge."""
    lower_bound: float
    """No support of k of the searched columns has a smaller c."""
    proven: bool
    """Whether `gap` is within the tolerance."""
    n_cuts: int
    """Planes, one fit each."""
    n_searched: int
    """Columns that passed the filter."""
    seconds: float
    """Time of the search."""
    bounds: Float[np.ndarray, "steps 3"]
    """Seconds, objective and lower bound after every master problem."""

    @property
    def gap(self) -> float:
        """(objective - lower bound) / objective, at least 0."""
        return max(0.0, (self.objective - self.lower_bound) / self.objective) if self.objective > 0 else 0.0

    def table(self) -> Table:
        """A line per column of the support."""
        state = "proven best" if self.proven else f"not proven: gap {self.gap:.2%} at the time limit"
        return Table(
            title=f"Best {len(self.support)} of {self.n_searched} columns ({state})",
            columns=("column", "coefficient (per sd)"),
            rows=tuple((int(j), float(v)) for j, v in zip(self.support, self.coef, strict=True)),
            note=f"objective {self.objective:.6g}, lower bound {self.lower_bound:.6g}, {self.n_cuts} cuts, {self.seconds:.1f} s",
        )

    def figure(self) -> "Figure":
        """The two bounds as they close."""
        figure = new_figure("Best subset: objective and proof", "time (s)", "objective")
        seconds, upper, lower = self.bounds.T
        figure.add_scatter(x=seconds, y=upper, name="best support found", line={"color": colour(0), "shape": "hv"})
        figure.add_scatter(x=seconds, y=lower, name="lower bound for all supports", line=control_line(shape="hv"))
        return figure


class Search:
    """Planes met so far, the best support, and the bounds."""

    def __init__(self, loss: Loss, k: int, config: SearchConfig):
        self.loss, self.k, self.config = loss, k, config
        self.planes: list[Plane] = []
        self.upper, self.lower = np.inf, 0.0  # no loss is negative
        self.best: np.ndarray = np.empty(0, dtype=np.int64)
        self.coef = np.zeros(loss.d)
        self.tried: set[bytes] = set()
        self.history: list[tuple[float, float, float]] = []
        self.began = time.perf_counter()

    def left(self) -> float:
        """Seconds until the time limit."""
        return self.config.time_limit - (time.perf_counter() - self.began)

    def closed(self) -> bool:
        """Whether the bounds have met."""
        return self.lower >= self.upper - self.config.tolerance * abs(self.upper)

    def try_support(self, support: np.ndarray) -> bool:
        """Fit one support, keep its plane, and the support if it is the best. False if it was tried before."""
        support = np.sort(support)
        if support.tobytes() in self.tried:
            return False
        self.tried.add(support.tobytes())
        s = np.zeros(self.loss.d)
        s[support] = 1.0
        plane = self.loss.plane(s)
        self.planes.append(plane)
        if plane.primal < self.upper:
            self.upper, self.best, self.coef = plane.primal, support, plane.coef
        return True

    def descend(self) -> None:
        """Exchange one column at a time while that lowers the objective: out with the least useful, in with the steepest."""
        while self.left() > 0:
            before, slopes = self.upper, self.planes[-1].slopes
            inside = self.best[np.argsort(np.abs(self.coef[self.best]), kind="stable")[:3]]
            outside = np.setdiff1d(np.argsort(slopes, kind="stable")[: self.k + 3], self.best)[:3]
            for out, new in [(out, new) for out in inside for new in outside]:
                self.try_support(np.append(np.setdiff1d(self.best, out), new)) if out in self.best else None
            if not self.upper < before:
                return

    def master(self, *, whole: bool) -> np.ndarray:
        """The s that minimises the planes, whole numbers or relaxed; raises the lower bound to that minimum."""
        d, scale = self.loss.d, abs(self.upper) or 1.0
        slopes = np.array([plane.slopes for plane in self.planes]) / scale
        constants = np.array([plane.constant for plane in self.planes]) / scale
        above = LinearConstraint(np.hstack([-slopes, np.ones((len(slopes), 1))]), constants, np.inf)
        size = LinearConstraint(np.append(np.ones(d), 0.0)[None], self.k, self.k)
        found = milp(
            np.append(np.zeros(d), 1.0),
            constraints=[above, size],
            bounds=Bounds(np.append(np.zeros(d), -np.inf), np.append(np.ones(d), np.inf)),
            integrality=np.append(np.full(d, int(whole)), 0),
            # Undoing a presolve, HiGHS writes to the terminal now and then; problems of this size gain nothing by it.
            options={"time_limit": max(self.left(), 0.1), "mip_rel_gap": self.config.tolerance / 4, "presolve": False},
        )
        bound = found.mip_dual_bound if whole else (found.fun if found.status == 0 else None)
        if bound is not None and np.isfinite(bound):
            self.lower = max(self.lower, min(float(bound) * scale, self.upper))
        self.history.append((time.perf_counter() - self.began, self.upper, self.lower))
        if found.x is None:
            if found.status == 1:
                return np.empty(0)  # out of time
            raise SaeError(f"the master problem could not be solved: {found.message} ({len(self.planes)} cuts, {d} columns)")
        return np.clip(found.x[:d], 0.0, 1.0)

    def relax(self) -> None:
        """Planes from the relaxation, taken between its best point and the master's solution, which keeps the latter from jumping."""
        inner = np.full(self.loss.d, self.k / self.loss.d)
        best = np.inf
        for _ in range(RELAXED_ROUNDS):
            if self.left() <= 0 or self.closed():
                return
            outer = self.master(whole=False)
            if not len(outer):
                return
            point = STEP_INWARDS * inner + (1 - STEP_INWARDS) * outer
            plane = self.loss.plane(point)
            self.planes.append(plane)
            value = plane.constant + float(plane.slopes @ point)
            if value < best:
                inner, best = point, value
            if self.lower >= best - RELAXED_GAP * abs(best):
                return
            self.try_support(top_k(point, self.k))

    def run(self, starts: list[np.ndarray]) -> None:
        """Until the bounds meet, or time is up, or nothing new is found."""
        for start in starts:
            self.try_support(start)
        if self.k == self.loss.d:
            self.lower = self.upper
            return
        self.descend()
        self.relax()
        while not self.closed() and self.left() > 0:
            s = self.master(whole=True)
            if not len(s) or self.closed() or not self.try_support(top_k(s, self.k)):
                return

    def result(self, columns: np.ndarray) -> BestSubset:
        """What was found, in the numbers of the columns given."""
        order = self.best[np.lexsort((self.best, -np.abs(self.coef[self.best])))]
        seconds = time.perf_counter() - self.began
        return BestSubset(
            support=columns[order],
            coef=self.coef[order],
            objective=self.upper,
            lower_bound=min(self.lower, self.upper),
            proven=bool(self.closed()),
            n_cuts=len(self.planes),
            n_searched=len(columns),
            seconds=seconds,
            bounds=np.array([*self.history, (seconds, self.upper, min(self.lower, self.upper))]),
        )

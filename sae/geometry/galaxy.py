"""The largest scale of a dictionary: the shape of the cloud of its atoms.

    slope       -d log10 l_r / d log10 r      by least squares over the ranks r = 11..150 of the eigenvalues l of the atoms' covariance
    volume      sum_r ln l_r                  over the same ranks
    negentropy  J = H_Gauss - H               H_Gauss = d/2 (1 + ln 2 pi) + 1/2 sum ln l,   the entropy of a Gaussian of the same covariance
    H           psi(N) - psi(k) + ln V_d + d/N sum_i ln r_k(i),   V_d = pi^{d/2} / Gamma(d/2 + 1)       Kozachenko & Leonenko 1987

Li et al. 2024, "The Geometry of Concepts" (arXiv 2410.19750): a power law of the eigenvalues, steepest in the middle layers, and a "clustering
entropy". Three departures, each because the published number measures something else too:

* Isotropic atoms have a slope as well, larger for fewer atoms (.108 for 8,192 atoms of width 512), so the slope stands beside that of a Wishart
  matrix of the same size. Its interval comes from resampling atoms: neighbouring ranks are not independent observations.
* The slope depends on how many latents are active. `galaxy` carries that number (L0) with its results: compare layers of equal L0.
* Distances are those of the atoms themselves, not of a sample with replacement: there 63% of the points have a copy, at distance 0, and
  random directions reach 350 nats. They are taken after a projection to at most 20 dimensions, where neighbours still mean something, and J stands
  beside that of Gaussian clouds of exactly the same covariance, because the estimator is biased.
"""

from dataclasses import dataclass
from math import lgamma, log, pi

import torch
from jaxtyping import Float
from torch import Tensor

from sae.errors import ConfigError
from sae.geometry.layerwise import MatchedGaussian
from sae.geometry.nulls import NullStatistic, compare
from sae.geometry.rows import require_points, unit_rows
from sae.geometry.spectrum import compare_with_isotropic, covariance_eigenvalues

MOST_GROUPS, FEWEST_GROUPS, GROUP_ELEMENTS = 64, 16, 2**26
"""Groups of atoms that are resampled, and how many values (512 MiB) their second moments may take."""
HIGHEST_DIMENSION = 20
"""Most dimensions in which nearest neighbours are looked for."""


def eigenvalue_slope(eigenvalues: Float[Tensor, " d"], *, first: int = 11, last: int = 150) -> float:
    """a of l_r ~ r^-a: minus the least-squares slope of ln l_r on ln r over the ranks first..last, counted from 1, both included.

    Raises ConfigError unless 1 <= first < last and at least `last` eigenvalues are positive.
    """
    values = _ranks(eigenvalues, first, last, where="eigenvalue_slope").log()
    ranks = torch.arange(first, last + 1, dtype=torch.float64, device=values.device).log()
    ranks = ranks - ranks.mean()
    return -((ranks * values).sum() / ranks.square().sum()).item()


def log_volume(eigenvalues: Float[Tensor, " d"], *, first: int = 11, last: int = 150) -> float:
    """sum ln l_r over the ranks first..last, nats: twice the logarithm of the volume of the cloud in these directions, up to a constant.

    Grows by ln c per rank when the l grow by a factor c. Errors as `eigenvalue_slope`.
    """
    return _ranks(eigenvalues, first, last, where="log_volume").log().sum().item()


def _ranks(eigenvalues: Tensor, first: int, last: int, *, where: str) -> Tensor:
    if not 1 <= first < last:
        raise ConfigError(f"first and last must be ranks with 1 <= first < last, got {first} and {last} ({where})")
    values = eigenvalues.detach().double().sort(descending=True).values
    if not values.isfinite().all() or int((values > 0).sum()) < last:
        got = f"got {int((values > 0).sum())} positive of {len(values)}"
        raise ConfigError(f"eigenvalues must be finite, at least last={last} of them positive; lower last, {got} ({where})")
    return values[first - 1 : last]


def gaussian_entropy(eigenvalues: Float[Tensor, " d"]) -> float:
    """Entropy of a Gaussian with these covariance eigenvalues, nats. Raises ConfigError unless all are positive."""
    values = eigenvalues.detach().double()
    if len(values) == 0 or not (values > 0).all() or not values.isfinite().all():
        raise ConfigError(f"eigenvalues must all be positive, got {values.tolist()[:8]} (gaussian_entropy)")
    return 0.5 * (len(values) * (1 + log(2 * pi)) + values.log().sum().item())


def nearest_neighbour_entropy(points: Float[Tensor, "n d"], *, k: int = 3) -> float:
    """Differential entropy of the distribution of the rows, nats, from the distance of each row to its k-th nearest (Kozachenko & Leonenko 1987).

    Equal rows are taken once, since their distance is 0. The bias grows with the dimension: at most 20 are allowed; project first.
    Time about n ln n in few dimensions, n^2 at worst.
    Raises ConfigError for more than 20 dimensions, NaN or Inf, k < 1, and fewer than k + 2 different rows.
    """
    where = "nearest_neighbour_entropy"
    distances = _kth_distances(points, k, where=where)
    n, d = len(distances), points.shape[1]
    # psi(N) - psi(k) = 1/k + ... + 1/(N - 1)
    harmonic = (1 / torch.arange(k, n, dtype=torch.float64)).sum().item()
    ball = d / 2 * log(pi) - lgamma(d / 2 + 1)
    return harmonic + ball + d * distances.log().mean().item()


def _kth_distances(points: Tensor, k: int, *, where: str) -> Float[Tensor, " n"]:
    require_points(points, minimum=1, argument="points", where=where)
    if points.shape[1] > HIGHEST_DIMENSION:
        raise ConfigError(f"points must have at most {HIGHEST_DIMENSION} columns; project them first, got {points.shape[1]} ({where})")
    from scipy.spatial import KDTree

    distinct = torch.unique(points.detach().double().cpu(), dim=0)
    if not 1 <= k <= len(distinct) - 2:
        raise ConfigError(f"k must be in 1..{len(distinct) - 2}, the number of different rows less 2, got {k} ({where})")
    centred = (distinct - distinct.mean(dim=0)).numpy()
    found = torch.from_numpy(KDTree(centred).query(centred, k=[k + 1])[0][:, 0].copy())
    if (found == 0).any():
        raise ConfigError(f"points must be further apart than float64 resolves, got different rows at distance 0 ({where})")
    return found


def principal_coordinates(points: Float[Tensor, "n d"], *, n_components: int) -> Float[Tensor, "n c"]:
    """The rows in the basis of the `n_components` largest principal axes, centred, float64; fewer columns where the points have fewer dimensions.

    Raises ConfigError for fewer than 2 rows, NaN or Inf, points that do not vary, and n_components < 1.
    """
    require_points(points, minimum=2, argument="points", where="principal_coordinates")
    if n_components < 1:
        raise ConfigError(f"n_components must be at least 1, got {n_components} (principal_coordinates)")
    rank = int((covariance_eigenvalues(points) > 0).sum())
    wide = points.detach().double()
    wide = wide - wide.mean(dim=0)
    n, d = wide.shape
    kept = min(n_components, rank)
    if n < d:
        values, vectors = torch.linalg.eigh(wide @ wide.T)
        return (vectors[:, -kept:] * values[-kept:].clamp(min=0).sqrt()).flip(1)
    return wide @ torch.linalg.eigh(wide.T @ wide).eigenvectors[:, -kept:].flip(1)


def negentropy(points: Float[Tensor, "n d"], *, n_components: int = HIGHEST_DIMENSION, k: int = 3) -> float:
    """J of the rows in their largest principal coordinates: 0 for a Gaussian up to the bias of the estimator, positive for clusters; nats.

    J = -.01 (d = 2), -.03 (d = 10) for 2,000 Gaussian points: read it beside `compare_negentropy`. Does not depend on the scale.
    Raises ConfigError for n_components outside 1..20, and as `principal_coordinates` and `nearest_neighbour_entropy` do.
    """
    if not 1 <= n_components <= HIGHEST_DIMENSION:
        raise ConfigError(f"n_components must be in 1..{HIGHEST_DIMENSION}, got {n_components} (negentropy)")
    coordinates = principal_coordinates(points, n_components=n_components)
    coordinates = coordinates / coordinates.abs().max()
    return gaussian_entropy(covariance_eigenvalues(coordinates)) - nearest_neighbour_entropy(coordinates, k=k)


def compare_negentropy(
    points: Float[Tensor, "n d"],
    *,
    n_components: int = HIGHEST_DIMENSION,
    k: int = 3,
    n_null: int,
    generator: torch.Generator,
) -> NullStatistic:
    """`negentropy` against Gaussian clouds with exactly the mean and covariance of the principal coordinates; value - null_mean is the excess.

    Errors as `negentropy`, and n_null < 2.
    """
    value = negentropy(points, n_components=n_components, k=k)
    distinct = torch.unique(principal_coordinates(points, n_components=n_components), dim=0)
    gaussian = MatchedGaussian.of(distinct)
    draws = [negentropy(gaussian.draw(generator), n_components=n_components, k=k) for _ in range(n_null)]
    return compare(value, torch.tensor(draws, dtype=torch.float64))


@dataclass(frozen=True, kw_only=True)
class GalaxyConfig:
    """Which ranks, which neighbours, and how many draws."""

    first: int = 11
    """First rank of the eigenvalues, counted from 1."""
    last: int = 150
    """Last rank, included."""
    n_components: int = HIGHEST_DIMENSION
    """Principal coordinates of the negentropy, at most 20."""
    k: int = 3
    """Nearest neighbour of the negentropy."""
    n_entropy_atoms: int = 5000
    """Most atoms of the negentropy, drawn without replacement."""
    n_null: int = 99
    """Draws of the nulls of slope and volume."""
    n_entropy_null: int = 19
    """Draws of the null of the negentropy."""
    n_resamples: int = 50
    """Resamples of the atoms behind the interval."""
    level: float = 0.95
    """Coverage of the interval."""


@dataclass(frozen=True, eq=False)
class Galaxy:
    """The shape of one dictionary's cloud of atoms."""

    slope: NullStatistic
    """Eigenvalue slope, and that of isotropic points as many and as wide."""
    slope_low: float
    """Lower end of its interval over resampled atoms; the spread only, no allowance for the bias of a finite number of atoms."""
    slope_high: float
    """Upper end."""
    volume: NullStatistic
    """Logarithm of the volume, nats, and that of isotropic points with the same total variance."""
    clustering: NullStatistic
    """Negentropy, nats, and that of Gaussian clouds of the same covariance."""
    l0: float | None
    """Mean number of active latents of the dictionary; None where it was not given. The slope depends on it."""
    n_atoms: int
    """Number of atoms."""
    width: int
    """Their dimension."""


def galaxy(
    atoms: Float[Tensor, "n_atoms d"], config: GalaxyConfig | None = None, *, l0: float | None = None, generator: torch.Generator
) -> Galaxy:
    """Slope, volume and clustering of the unit atoms, each beside its null. `l0` is carried along.

    The interval is value +- the quantiles of the centred slopes of resamples, in which up to 64 random groups of atoms are drawn with
    replacement (copies are harmless for a covariance). Time 2 F d^2 + (n_null + n_resamples) d^3.
    Raises ConfigError for zero or non-finite atoms, `l0` that is not positive, fewer than `last` dimensions of variance, and settings out of
    range.
    """
    config = config or GalaxyConfig()
    if l0 is not None and not 0 < l0 < torch.inf:
        raise ConfigError(f"l0 must be a positive number or None, got {l0} (galaxy)")
    if not 0 < config.level < 1 or config.n_resamples < 2 or config.n_entropy_atoms < 2:
        got = f"got {config.level}, {config.n_resamples} and {config.n_entropy_atoms}"
        raise ConfigError(f"level must be inside (0, 1), n_resamples and n_entropy_atoms at least 2, {got} (galaxy)")
    rows = unit_rows(atoms, minimum=2, argument="atoms", where="galaxy")
    ranks = {"first": config.first, "last": config.last}
    eigenvalues = covariance_eigenvalues(rows)
    null = {"n": len(rows), "n_null": config.n_null, "generator": generator}
    slope = compare_with_isotropic(eigenvalues, lambda values: eigenvalue_slope(values, **ranks), **null)
    volume = compare_with_isotropic(eigenvalues, lambda values: log_volume(values, **ranks), **null)
    low, high = _interval(rows, slope.value, config, generator)
    chosen = torch.randperm(len(rows), generator=generator, device=generator.device)[: config.n_entropy_atoms].to(rows.device)
    settings = {"n_components": config.n_components, "k": config.k, "n_null": config.n_entropy_null}
    return Galaxy(
        slope=slope,
        slope_low=low,
        slope_high=high,
        volume=volume,
        clustering=compare_negentropy(rows[chosen], **settings, generator=generator),
        l0=l0,
        n_atoms=len(rows),
        width=rows.shape[1],
    )


def _interval(rows: Tensor, slope: float, config: GalaxyConfig, generator: torch.Generator) -> tuple[float, float]:
    """slope - quantiles of the centred slopes of resampled groups, wider by sqrt(g / (g - 1)) for the g groups that stand for all atoms."""
    moments, sums, sizes = _group_moments(rows, generator)
    n_groups, d = sums.shape
    resampled = []
    for _ in range(config.n_resamples):
        drawn = torch.randint(n_groups, (n_groups,), generator=generator, device=generator.device).to(rows.device)
        weights = torch.bincount(drawn, minlength=n_groups).double()
        n = weights @ sizes
        mean = weights @ sums / n
        product = torch.tensordot(weights, moments, dims=1) / n - mean[:, None] * mean
        values = torch.linalg.eigvalsh(product)
        values = values.where(values > max(len(rows), d) * torch.finfo(torch.float64).eps * values[-1], 0)
        resampled.append(eigenvalue_slope(values, first=config.first, last=config.last))
    deviations = torch.tensor(resampled, dtype=torch.float64)
    tails = torch.tensor([(1 + config.level) / 2, (1 - config.level) / 2], dtype=torch.float64)
    spread = (deviations - deviations.mean()) * (n_groups / (n_groups - 1)) ** 0.5
    low, high = (slope - spread.quantile(tails)).tolist()
    return low, high


def _group_moments(
    rows: Float[Tensor, "n d"], generator: torch.Generator
) -> tuple[Float[Tensor, "groups d d"], Float[Tensor, "groups d"], Float[Tensor, " groups"]]:
    """Second moments, sums and sizes of the atoms dealt at random to groups: a resample of groups costs no product over atoms."""
    n, d = rows.shape
    n_groups = min(n, MOST_GROUPS, max(FEWEST_GROUPS, GROUP_ELEMENTS // d**2))
    order = torch.randperm(n, generator=generator, device=generator.device).to(rows.device)
    parts = [rows[chosen].double() for chosen in order.tensor_split(n_groups)]
    moments = torch.stack([part.T @ part for part in parts])
    return moments, torch.stack([part.sum(dim=0) for part in parts]), moments.new_tensor([len(part) for part in parts])

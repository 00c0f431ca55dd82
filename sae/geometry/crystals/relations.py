"""Crystals among task vectors: do pairs of words with one relation differ by one vector?

    D_i = target_i - source_i,    raw: silhouette of D by relation
    LDA    S_b v = rho (S_t + lambda I) v on the D of the training folds;  coordinates v.D / sqrt(1 - rho) of the fold held out

after Li, Michaud, Baek, Engels, Sun & Tegmark 2024 (arXiv 2410.19750, section 3), who fit LDA and score the silhouette on the same pairs. In
sample LDA separates shuffled labels too (+.4 at 100 pairs in 64 dimensions), so every score here is of pairs that the directions were not fitted to,
and its null refits the directions to shuffled relations. lambda is Ledoit & Wolf's (2004) shrinkage of the training differences. The
generalised eigenvectors of (S_b, S_w + lambda I) are those of (S_b, S_t + lambda I) because S_t = S_w + S_b, and S_t does not depend on the labels:
one decomposition per fold serves all shuffles.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.errors import ConfigError
from sae.geometry.crystals.silhouettes import silhouettes
from sae.geometry.nulls import NullStatistic, compare
from sae.geometry.rows import require_points


@dataclass(frozen=True, eq=False)
class RelationCrystals:
    """How well differences group by relation, each score beside that of shuffled relations."""

    raw_silhouette: NullStatistic
    """Mean silhouette of the differences as they are, in [-1, 1]."""
    held_out_silhouette: NullStatistic
    """Mean silhouette of held-out pairs in the directions fitted to the others."""
    accuracy: NullStatistic
    """Share of held-out pairs nearest to their own relation's training mean, averaged over relations (balanced), in [0, 1]."""
    in_sample_silhouette: NullStatistic
    """Mean silhouette of pairs in directions fitted to these very pairs. Far above 0 for any labels: see its null mean. Not evidence."""
    raw_residual: float
    """Mean over relations of mean |D - mean D| / |mean D|: 0 for a perfect crystal, about the square root of the group size for noise."""
    held_out_residual: float
    """The same of held-out differences after projection on the directions; means from the training folds."""
    n_pairs: int
    """Pairs used."""
    n_relations: int
    """Relations."""
    n_directions: int
    """Directions of LDA."""
    n_folds: int
    """Folds; every pair is held out once."""


@dataclass(frozen=True, eq=False)
class _Fold:
    """One fold, decomposed once for any labels."""

    train: Tensor
    test: Tensor
    whitening: Tensor
    whitened: Tensor
    held: Tensor


def ledoit_wolf_shrinkage(points: Float[Tensor, "n d"]) -> float:
    """Weight gamma in [0, 1] of the multiple of the identity in (1 - gamma) S + gamma (tr S / d) I (Ledoit & Wolf 2004, J. Multivariate Anal. 88).

    gamma = min(b^2, a^2) / a^2 with a^2 = |S - m I|^2, b^2 = (mean |x|^4 - |S|^2) / n, m = tr S / d and S the covariance over n. 1 for points
    whose S is a multiple of the identity. Raises ConfigError for fewer than 2 points, NaN or Inf, and for points that do not vary.
    """
    require_points(points, minimum=2, argument="points", where="ledoit_wolf_shrinkage")
    x = points.detach().double()
    x = x - x.mean(dim=0)
    n, d = x.shape
    lengths = x.square().sum(dim=1)
    if lengths.max() == 0:
        raise ConfigError(f"points must vary, got {n} equal rows (ledoit_wolf_shrinkage)")
    product = x @ x.T if n < d else x.T @ x
    total, squared = lengths.sum() / n, product.square().sum() / n**2
    distance = squared - total.square() / d
    noise = (lengths.square().mean() - squared) / n
    return 1.0 if distance <= 1e-14 * squared else min(1.0, max(0.0, (noise / distance).item()))


def project_out(vectors: Float[Tensor, "n d"], directions: Float[Tensor, "m d"]) -> Float[Tensor, "n d"]:
    """`vectors` without their components in the span of `directions`. Raises ConfigError for NaN, Inf and for directions that are all zero."""
    require_points(vectors, minimum=1, argument="vectors", where="project_out")
    require_points(directions, minimum=1, argument="directions", where="project_out")
    _, s, right = torch.linalg.svd(directions.detach().double(), full_matrices=False)
    if s[0] == 0:
        raise ConfigError("directions must not all be zero, got none to project out (project_out)")
    basis = right[s > 1e-10 * s[0]]
    wide = vectors.detach().double()
    return (wide - (wide @ basis.T) @ basis).to(torch.promote_types(vectors.dtype, torch.float32))


def nuisance_directions(differences: Float[Tensor, "n d"], nuisance: Float[Tensor, "n m"]) -> Float[Tensor, "m d"]:
    """How the differences depend on known properties of their pairs (difference in length, in frequency): least-squares slopes, one row each.

    Give them to `project_out`. A property that goes with the relation takes part of the relation away with it. Raises ConfigError for NaN or
    Inf, fewer than m + 2 pairs, and properties that are constant or linear in one another.
    """
    m = nuisance.shape[1]
    require_points(differences, minimum=m + 2, argument="differences", where="nuisance_directions")
    require_points(nuisance, minimum=m + 2, argument="nuisance", where="nuisance_directions")
    y, x = (each.detach().double() - each.detach().double().mean(dim=0) for each in (differences, nuisance))
    s = torch.linalg.svdvals(x / x.abs().amax(dim=0).clamp(min=1e-300))
    if s[-1] <= 1e-10 * s[0]:
        raise ConfigError(
            f"nuisance must hold {m} independent columns that vary, got rank {int((s > 1e-10 * s[0]).sum())} (nuisance_directions)"
        )
    return torch.linalg.lstsq(x, y).solution.to(torch.promote_types(differences.dtype, torch.float32))


def compare_relations(
    sources: Float[Tensor, "n d"],
    targets: Float[Tensor, "n d"],
    relations: Int[Tensor, " n"],
    *,
    generator: torch.Generator,
    groups: Int[Tensor, " n"] | None = None,
    n_directions: int | None = None,
    n_folds: int = 5,
    n_null: int = 199,
) -> RelationCrystals:
    """Do target - source differences group by relation, on pairs that nothing was fitted to, and better than shuffled relations do?

    `relations` are labels; pairs with one number in `groups` (pairs that share a word, say) are never on both sides of a fold. `n_directions` is
    the number of relations - 1 unless given. Folds are stratified as far as the groups allow. The null permutes relations over pairs and refits.
    Raises ConfigError for NaN or Inf, shapes that differ, fewer than 2 relations, a relation with fewer than 2 `n_folds` pairs, n_folds < 2,
    n_null < 2, `n_directions` outside 1..relations - 1.
    """
    where = "compare_relations"
    for name, each in (("sources", sources), ("targets", targets)):
        require_points(each, minimum=4, argument=name, where=where)
    names, labels, sizes = torch.unique(relations, return_inverse=True, return_counts=True)
    k = len(names) - 1 if n_directions is None else n_directions
    _require(sources, targets, labels, sizes, k, n_folds, n_null)
    differences = targets.detach().double() - sources.detach().double()
    folds = [_fold(differences, train) for train in _training_sets(labels, groups, n_folds, generator)]
    whole = _fold(differences, torch.ones(len(labels), dtype=torch.bool))
    shuffles = [labels[torch.randperm(len(labels), generator=generator, device=generator.device).to(labels.device)] for _ in range(n_null)]
    scores = [_scores(differences, folds, whole, each, len(names), k) for each in (labels, *shuffles)]
    raw, held_out, accuracy, in_sample = (compare(column[0].item(), column[1:]) for column in torch.tensor(scores, dtype=torch.float64).T)
    return RelationCrystals(
        raw_silhouette=raw,
        held_out_silhouette=held_out,
        accuracy=accuracy,
        in_sample_silhouette=in_sample,
        raw_residual=_residual(differences, labels, differences, labels, len(names)),
        held_out_residual=sum(_projected_residual(fold, differences, labels, len(names), k) for fold in folds) / n_folds,
        n_pairs=len(labels),
        n_relations=len(names),
        n_directions=k,
        n_folds=n_folds,
    )


def _require(sources: Tensor, targets: Tensor, labels: Tensor, sizes: Tensor, k: int, n_folds: int, n_null: int) -> None:
    if sources.shape != targets.shape or len(labels) != len(sources):
        raise ConfigError(
            f"sources, targets and relations must match, got {tuple(sources.shape)}, {tuple(targets.shape)} and {len(labels)} (compare_relations)"
        )
    if n_folds < 2 or n_null < 2 or len(sizes) < 2 or sizes.min() < 2 * n_folds or not 1 <= k <= len(sizes) - 1:
        raise ConfigError(
            "at least 2 relations of 2 n_folds pairs each, n_folds and n_null of at least 2 and n_directions in 1..relations - 1 are needed, got "
            f"{len(sizes)} relations, the smallest of {int(sizes.min())} pairs, n_folds={n_folds}, n_null={n_null}, n_directions={k}; "
            "drop small relations or take fewer folds (compare_relations)"
        )


def _training_sets(labels: Tensor, groups: Tensor | None, n_folds: int, generator: torch.Generator) -> Sequence[Tensor]:
    """Masks of the pairs outside each fold. Groups go, in random order, to the fold that has fewest pairs of their commonest relation."""
    groups = torch.arange(len(labels)) if groups is None else torch.unique(groups, return_inverse=True)[1]
    n_groups, n_relations = int(groups.max()) + 1, int(labels.max()) + 1
    members = torch.zeros(n_groups, n_relations, dtype=torch.int64).index_put_(
        (groups.cpu(), labels.cpu()), torch.ones(()).long(), accumulate=True
    )
    filled, fold_of = torch.zeros(n_folds, n_relations), torch.empty(n_groups, dtype=torch.int64)
    for g in torch.randperm(n_groups, generator=generator, device=generator.device).tolist():
        commonest = int(members[g].argmax())
        fold_of[g] = int((filled[:, commonest] + 1e-3 * filled.sum(dim=1) / n_relations).argmin())
        filled[fold_of[g]] += members[g]
    if (filled < 2).any():
        raise ConfigError(
            f"groups must leave every fold 2 pairs of every relation, got as few as {int(filled.min())}; take fewer folds (compare_relations)"
        )
    return [(fold_of[groups.cpu()] != fold).to(labels.device) for fold in range(n_folds)]


def _fold(differences: Float[Tensor, "n d"], train: Tensor) -> _Fold:
    """Training and held-out differences in coordinates whose (shrunk) total covariance is the identity."""
    x = differences[train]
    mean = x.mean(dim=0)
    x = x - mean
    gamma = ledoit_wolf_shrinkage(x)
    _, s, right = torch.linalg.svd(x, full_matrices=False)
    variances = (1 - gamma) * s.square() / len(x) + gamma * s.square().sum() / len(x) / x.shape[1]
    kept = s > 1e-10 * s[0]
    whitening = right[kept].T / variances[kept].sqrt()
    return _Fold(train=train, test=~train, whitening=whitening, whitened=x @ whitening, held=(differences[~train] - mean) @ whitening)


def _directions(fold: _Fold, labels: Tensor, n_relations: int, k: int) -> Float[Tensor, "r k"]:
    """The k most discriminative directions of whitened space, scaled so that the (shrunk) covariance within relations is the identity."""
    own = torch.nn.functional.one_hot(labels[fold.train], n_relations).double()
    sizes = own.sum(dim=0).clamp(min=1)
    between = (own.T @ fold.whitened) / sizes.sqrt()[:, None] / len(own) ** 0.5
    _, s, right = torch.linalg.svd(between, full_matrices=False)
    k = min(k, len(s))
    return right[:k].T / (1 - s[:k].square()).clamp(min=1e-6).sqrt()


def _scores(
    differences: Tensor, folds: Sequence[_Fold], whole: _Fold, labels: Tensor, n_relations: int, k: int
) -> tuple[float, float, float, float]:
    """Raw silhouette, held-out silhouette, balanced held-out accuracy, in-sample silhouette."""
    held_out, right, seen = [], torch.zeros(n_relations), torch.zeros(n_relations)
    for fold in folds:
        directions = _directions(fold, labels, n_relations, k)
        train, test = fold.whitened @ directions, fold.held @ directions
        own = labels[fold.test]
        held_out.append(silhouettes(test, own))
        means = _means(train, labels[fold.train], n_relations)
        nearest = torch.cdist(test, means).argmin(dim=1)
        right.index_add_(0, own.cpu(), (nearest == own).float().cpu())
        seen.index_add_(0, own.cpu(), torch.ones(len(own)))
    inside = silhouettes(whole.whitened @ _directions(whole, labels, n_relations, k), labels)
    accuracy = (right / seen).mean().item()
    return silhouettes(differences, labels).mean().item(), torch.cat(held_out).mean().item(), accuracy, inside.mean().item()


def _means(points: Tensor, labels: Tensor, n_relations: int) -> Tensor:
    own = torch.nn.functional.one_hot(labels, n_relations).to(points)
    means = own.T @ points / own.sum(dim=0).clamp(min=1)[:, None]
    return means.masked_fill(own.sum(dim=0)[:, None] == 0, torch.inf)


def _residual(points: Tensor, labels: Tensor, reference: Tensor, reference_labels: Tensor, n_relations: int) -> float:
    means = _means(reference, reference_labels, n_relations)
    ratios = (points - means[labels]).norm(dim=1) / means[labels].norm(dim=1).clamp(min=1e-300)
    return torch.stack([ratios[labels == r].mean() for r in range(n_relations)]).mean().item()


def _projected_residual(fold: _Fold, differences: Tensor, labels: Tensor, n_relations: int, k: int) -> float:
    """Relative residual of the held-out differences within the span of the directions, in the units of the differences."""
    basis = torch.linalg.qr(fold.whitening @ _directions(fold, labels, n_relations, k)).Q
    train, test = differences[fold.train] @ basis, differences[fold.test] @ basis
    return _residual(test, labels[fold.test], train, labels[fold.train], n_relations)

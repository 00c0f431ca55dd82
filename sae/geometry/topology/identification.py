"""Can a layer be told from the others by its RDM alone, in a model that was not seen?

Leave one subject out: its RDM of every region is given to the region whose mean RDM over the other subjects is most like it; the accuracy is
the share given to the right region, by chance 1 / n_regions (Lin & Kriegeskorte 2023, arXiv 2309.11028). Subjects may be people, seeds or
models, regions brain areas or layers. The interval is a two-factor bootstrap: subjects and stimuli are both drawn with replacement, so that it
speaks for new subjects and new stimuli. A stimulus drawn twice is at distance 0 from itself, which is no dissimilarity: such pairs are left
out. All copies of a subject are left out together.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sae.errors import ConfigError
from sae.geometry.nulls import NullStatistic, compare
from sae.geometry.representations.rsa import square_form, upper_triangle
from sae.geometry.topology.transforms import RdmSummaryConfig, geotopological_transform


@dataclass(frozen=True)
class Identification:
    """How often a region is recognised, with a bootstrap interval."""

    accuracy: float
    """Share of (subject, region) given to the right region."""
    chance: float
    """1 / n_regions."""
    low: float
    """2.5 % quantile of the bootstrap."""
    high: float
    """97.5 % quantile of the bootstrap."""
    n_bootstrap: int
    """Number of resamples."""


def summarised(rdms: Float[Tensor, "subjects regions pairs"], summary: RdmSummaryConfig) -> Float[Tensor, "subjects regions pairs"]:
    """The geo-topological transform of each RDM by itself. Errors as `geotopological_transform`."""
    flat = rdms.flatten(0, 1)
    found = [geotopological_transform(each, lower=summary.lower, upper=summary.upper) for each in flat]
    return torch.stack(found).reshape(rdms.shape)


def identification_accuracy(rdms: Float[Tensor, "subjects regions pairs"]) -> float:
    """Leave-one-subject-out nearest-centroid accuracy, nearest by Pearson correlation; ties count as wrong unless the right one is first.

    Raises ConfigError for fewer than 2 subjects, 2 regions or 3 pairs, NaN or Inf, and an RDM without variation.
    """
    _require_rdms(rdms)
    return _accuracy(rdms.double(), torch.arange(len(rdms), device=rdms.device))


def compare_identification(rdms: Float[Tensor, "subjects regions pairs"], *, n_null: int, generator: torch.Generator) -> NullStatistic:
    """The accuracy with what it is when the regions of each subject are shuffled among themselves."""
    _require_rdms(rdms)
    values, subjects, n_regions = rdms.double(), torch.arange(len(rdms), device=rdms.device), rdms.shape[1]
    draws = []
    for _ in range(n_null):
        orders = [torch.randperm(n_regions, generator=generator, device=generator.device).to(rdms.device) for _ in subjects]
        draws.append(_accuracy(torch.stack([each[order] for each, order in zip(values, orders, strict=True)]), subjects))
    return compare(_accuracy(values, subjects), torch.tensor(draws, dtype=torch.float64))


def bootstrap_identification(
    rdms: Float[Tensor, "subjects regions pairs"],
    *,
    summary: RdmSummaryConfig | None = None,
    n_bootstrap: int = 1000,
    generator: torch.Generator,
) -> Identification:
    """Accuracy of the (transformed) RDMs and its 95 % interval over new subjects and new stimuli.

    The transform is redone on the pairs of each resample. Resamples with fewer than 2 different subjects or 3 different stimuli are drawn again.
    Raises ConfigError as `identification_accuracy`, and for n_bootstrap < 2.
    """
    _require_rdms(rdms)
    if n_bootstrap < 2:
        raise ConfigError(f"n_bootstrap must be at least 2, got {n_bootstrap} (bootstrap_identification)")
    values = rdms.double()
    n_subjects, n_regions, _ = values.shape
    index = square_form(torch.arange(values.shape[2], device=values.device))
    n_stimuli, draws = len(index), []
    while len(draws) < n_bootstrap:
        subjects, stimuli = (torch.randint(n, (n,), generator=generator, device=generator.device) for n in (n_subjects, n_stimuli))
        if len(subjects.unique()) < 2 or len(stimuli.unique()) < 3:
            continue
        subjects, stimuli = subjects.to(values.device), stimuli.to(values.device)
        pairs = upper_triangle(index[stimuli][:, stimuli])
        pairs = pairs[upper_triangle(stimuli[:, None] != stimuli)]
        drawn = values[:, :, pairs]
        drawn = drawn if summary is None else summarised(drawn, summary)
        draws.append(_accuracy(drawn[subjects], subjects))
    whole = values if summary is None else summarised(values, summary)
    low, high = torch.tensor(draws, dtype=torch.float64).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Identification(
        accuracy=_accuracy(whole, torch.arange(n_subjects, device=values.device)),
        chance=1 / n_regions,
        low=low,
        high=high,
        n_bootstrap=n_bootstrap,
    )


def _require_rdms(rdms: Tensor) -> None:
    where = "identification"
    n_subjects, n_regions, n_pairs = rdms.shape
    if n_subjects < 2 or n_regions < 2 or n_pairs < 3:
        raise ConfigError(f"rdms must hold at least 2 subjects, 2 regions and 3 pairs, got shape {tuple(rdms.shape)} ({where})")
    if not rdms.isfinite().all():
        raise ConfigError(f"rdms must be finite, got NaN or Inf ({where})")
    if (rdms.amax(dim=2) == rdms.amin(dim=2)).any():
        raise ConfigError(f"each RDM must vary over its pairs, got one with equal entries ({where})")


def _accuracy(rdms: Tensor, subjects: Tensor) -> float:
    """`subjects` names the rows: rows of the same subject are left out together."""
    centred = rdms - rdms.mean(dim=2, keepdim=True)
    same = (subjects[:, None] == subjects).to(rdms)
    others = len(subjects) - same.sum(dim=1)
    centroids = (centred.sum(dim=0) - torch.einsum("st,trp->srp", same, centred)) / others[:, None, None]
    centroids = centroids / centroids.norm(dim=2, keepdim=True).clamp(min=torch.finfo(rdms.dtype).tiny)
    found = torch.einsum("srp,sqp->srq", centred, centroids).argmax(dim=2)
    return float((found == torch.arange(rdms.shape[1], device=found.device)).double().mean())

"""Can the lobe of a latent be read from its atom: a linear classifier on held-out latents, against shuffled lobes and structureless atoms.

    balanced accuracy = mean over lobes of (held-out latents of the lobe that are put there) / (held-out latents of the lobe)

Li et al. 2024 (arXiv 2410.19750) train a logistic regression from decoder rows to lobes and test it on the last fifth of the latents, in the
order they have; here the split is drawn, in the same proportions from every lobe, since the order of latents may mean something.
"""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.errors import ConfigError
from sae.geometry.coherence import null_directions
from sae.geometry.nulls import NullStatistic, compare
from sae.geometry.rows import unit_rows

TEST_SHARE = 0.2
"""Share of the latents that the classifier does not see."""


def compare_predictability(
    atoms: Float[Tensor, "n_latents d_in"],
    lobes: Int[Tensor, " n_labels"],
    *,
    null: Literal["labels", "directions", "covariance"],
    n_null: int,
    generator: torch.Generator,
    max_iter: int = 1000,
) -> NullStatistic:
    """Held-out balanced accuracy of a logistic regression from unit atoms to lobes, against the same fit to shuffled lobes ("labels") or to
    atoms without structure ("directions", "covariance": see `null_directions`). Latents with a negative label are left out.

    One split for the value and all draws; n_null + 1 fits. Raises ConfigError for another `null`, labels not one an atom, fewer than two
    lobes, a lobe of fewer than 2 latents, zero or non-finite atoms, and n_null < 2.
    """
    if null not in ("labels", "directions", "covariance"):
        raise ConfigError(f"null must be 'labels', 'directions' or 'covariance', got {null!r} (compare_predictability)")
    if len(lobes) != len(atoms):
        raise ConfigError(f"lobes must have one label for each of the {len(atoms)} atoms, got {len(lobes)} (compare_predictability)")
    kept = lobes >= 0
    rows = unit_rows(atoms[kept.to(atoms.device)], minimum=2, argument="atoms", where="compare_predictability")
    y = np.unique(lobes[kept].cpu().numpy(), return_inverse=True)[1]
    sizes = np.bincount(y)
    if len(sizes) < 2 or sizes.min() < 2:
        raise ConfigError(f"lobes must be at least 2, of at least 2 latents each, got sizes {sizes.tolist()[:8]} (compare_predictability)")
    test = _held_out(y, generator)
    value = _balanced_accuracy(rows, y, test, max_iter)
    draws = []
    for _ in range(n_null):
        if null == "labels":
            shuffled = y[torch.randperm(len(y), generator=generator, device=generator.device).cpu().numpy()]
            draws.append(_balanced_accuracy(rows, shuffled, test, max_iter))
        else:
            draws.append(_balanced_accuracy(null_directions(rows, null=null, generator=generator), y, test, max_iter))
    return compare(value, torch.tensor(draws, dtype=torch.float64))


def _held_out(y: np.ndarray, generator: torch.Generator) -> np.ndarray:
    """Which latents are held out: TEST_SHARE of every lobe, at least one, and never all."""
    order = torch.randperm(len(y), generator=generator, device=generator.device).cpu().numpy()
    test = np.zeros(len(y), bool)
    for lobe in range(int(y.max()) + 1):
        members = order[y[order] == lobe]
        test[members[: max(1, round(TEST_SHARE * len(members)))]] = True
    return test


def _balanced_accuracy(rows: Float[Tensor, "n d"], y: np.ndarray, test: np.ndarray, max_iter: int) -> float:
    from sklearn.linear_model import LogisticRegression

    x = rows.cpu().double().numpy() * rows.shape[1] ** 0.5  # coordinates of order one, whatever the width
    if len(np.unique(y[~test])) < 2:  # shuffled labels of tiny lobes
        return 1 / len(np.unique(y))
    found = LogisticRegression(max_iter=max_iter, class_weight="balanced").fit(x[~test], y[~test]).predict(x[test])
    return float(np.mean([(found[y[test] == lobe] == lobe).mean() for lobe in np.unique(y[test])]))

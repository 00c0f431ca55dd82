"""Whether a dictionary found the features that its data were made of. Needs planted data: true features f_i and true codes s.

    cosine_ij   = f_i . d_j / (|f_i| |d_j|)                                          feature i, latent j
    overlap_ij  = sum_n (s_ni / max_m |s_mi|) (z_nj / max_m |z_mj|)                  over n samples
    matching    = one latent for every feature, no latent twice, with the largest sum of similarities (Hungarian method)
    best cosine = max_j cosine_ij
    MCC         = mean_i |cosine_{i, m(i)}|                                          m: matching on |cosine|
    firing F1_i = 2 #{n: s_ni != 0, z_n,o(i) != 0} / (#{n: s_ni != 0} + #{n: z_n,o(i) != 0})      o: matching on the overlap
    Gram error  = mean over pairs i < j of (d_o(i) . d_o(j) - f_i . f_j)^2, unit vectors;
                  flat: pairs of one level; hierarchical: pairs across levels

The matching on the overlap and the two Gram errors are those of Costa et al. 2025 (2506.03093), appendix B, which does not state the
normalisation of the errors: here each is the mean squared difference over its pairs. A good reconstruction is not recovery, so every
score comes with what chance gives, each draw scored and matched anew: random unit atoms for those of atoms (best cosine, MCC, Gram
error), the samples' codes in random order for those of codes (F1).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from sae.dictionaries.codes import SparseCodes
from sae.errors import ConfigError
from sae.geometry.nulls import NullStatistic, compare, random_directions
from sae.geometry.rows import unit_rows
from sae.geometry.similarity import nearest_atoms_to


@dataclass(frozen=True, eq=False)
class Match:
    """One latent for every true feature."""

    latents: Int[Tensor, " n_features"]
    """The latent matched to each feature; -1 for none, which happens only with fewer latents than features."""
    similarities: Float[Tensor, " n_features"]
    """Similarity of each matched pair, float64; 0 for none."""


@dataclass(frozen=True, eq=False)
class Recovery:
    """How well features were recovered, and what chance gives; the formulas are in the module's text."""

    best_cosines: Float[Tensor, " n_features"]
    """Largest cosine of each feature with an atom."""
    best_cosine: NullStatistic
    """Their mean."""
    mcc: NullStatistic
    """Mean |cosine| of the pairs matched on |cosine|."""
    match: Match
    """The matching on the overlap of activations."""
    firing_f1s: Float[Tensor, " n_features"]
    """Firing F1 of each feature with its matched latent."""
    firing_f1: NullStatistic
    """Their mean."""


@dataclass(frozen=True)
class GramError:
    """Mean squared difference between the learned and the true cosines; nan where there is no such pair."""

    flat: float
    """Over pairs of features of the same level."""
    hierarchical: float
    """Over pairs of features of different levels."""


def cosines(features: Float[Tensor, "n_features d_in"], atoms: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, "n_features d_sae"]:
    """Cosine of every feature with every atom, float64. Raises ConfigError for a row that is zero or not finite."""
    left = unit_rows(features.double(), minimum=1, argument="features", where="cosines")
    return left @ unit_rows(atoms.double(), minimum=1, argument="atoms", where="cosines").T


def best_cosines(features: Float[Tensor, "n_features d_in"], atoms: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, " n_features"]:
    """For every feature the largest cosine with an atom. Raises ConfigError for a row that is zero or not finite."""
    return nearest_atoms_to(features, atoms, n_neighbours=1).cosines[:, 0]


def activation_overlap(truth: Float[Tensor, "n n_features"], codes: SparseCodes) -> Float[Tensor, "n_features d_sae"]:
    """overlap_ij of the module's text, float64; a latent or feature that is never active overlaps with nothing.

    Raises ConfigError if the codes have another number of rows.
    """
    check_rows(truth, codes, "activation_overlap")
    z = codes.csr().astype(np.float64)
    s = truth.double().cpu().numpy()
    left = s / _positive(np.abs(s).max(axis=0, initial=0.0))
    largest = _positive(abs(z).max(axis=0).toarray().ravel()) if len(codes) else 1.0
    return torch.from_numpy((z.T @ left).T / largest)


def match(similarity: Float[Tensor, "n_features d_sae"]) -> Match:
    """The matching with the largest sum of similarities; ties are broken arbitrarily but always in the same way.

    Raises ConfigError for NaN or Inf.
    """
    if not bool(torch.isfinite(similarity).all()):
        raise ConfigError("similarity must be finite (match)")
    values = similarity.detach().double().cpu()
    rows, columns = linear_sum_assignment(values.numpy(), maximize=True)
    latents = torch.full((len(values),), -1, dtype=torch.int64)
    latents[torch.from_numpy(rows)] = torch.from_numpy(columns)
    found = latents >= 0
    similarities = torch.where(found, values[torch.arange(len(values)), latents.clamp(min=0)], 0.0)
    return Match(latents, similarities)


def firing_f1s(
    truth: Float[Tensor, "n n_features"], codes: SparseCodes, latents: Int[Tensor, " n_features"]
) -> Float[Tensor, " n_features"]:
    """F1 of "latent m(i) is active" as a predictor of "feature i is active", for every feature, float64; 0 without a latent.

    Raises ConfigError if the codes have another number of rows, or a feature is active in no sample.
    """
    check_rows(truth, codes, "firing_f1s")
    active = (truth != 0).double().cpu()
    counts = active.sum(0)
    if not bool((counts > 0).all()):
        raise ConfigError(f"truth must have every feature active in some sample, feature {int(counts.argmin())} never is (firing_f1s)")
    fired = (codes.csr() != 0).astype(np.float64)
    found = latents.cpu() >= 0
    chosen = fired[:, latents.cpu().clamp(min=0).numpy()].toarray() * found.numpy()
    both = (active.numpy() * chosen).sum(axis=0)
    return torch.from_numpy(2 * both / (counts.numpy() + chosen.sum(axis=0)))


def recovery(
    features: Float[Tensor, "n_features d_in"],
    atoms: Float[Tensor, "d_sae d_in"],
    truth: Float[Tensor, "n n_features"],
    codes: SparseCodes,
    *,
    generator: torch.Generator,
    n_null: int = 99,
) -> Recovery:
    """All recovery scores of a dictionary with these atoms that gave these codes to the samples whose true codes are `truth`.

    Codes at inference, not in training. Raises ConfigError for sizes that do not fit, and as the functions above.

        made = recovery(features, dictionary.W_dec, truth, dictionary.encode(truth @ features), generator=torch.Generator().manual_seed(0))
        made.best_cosine.value, made.best_cosine.null_mean
    """
    if codes.d_sae != len(atoms) or truth.shape[1] != len(features):
        raise ConfigError(
            f"codes and truth must be over d_sae={len(atoms)} latents and {len(features)} features, got {codes.d_sae} and {truth.shape[1]} "
            "(recovery)"
        )
    atoms, codes = atoms.detach(), codes.detach()
    overlap = match(activation_overlap(truth, codes))
    best, f1s = best_cosines(features, atoms), firing_f1s(truth, codes, overlap.latents)
    null_best, null_mcc, null_f1 = [], [], []
    for _ in range(n_null):
        other = random_directions(len(atoms), features, generator=generator)
        null_best.append(float(best_cosines(features, other).mean()))
        null_mcc.append(mean_correlation(features, other))
        shuffled = codes[torch.randperm(len(codes), generator=generator).to(codes.indices.device)]
        null_f1.append(float(firing_f1s(truth, shuffled, match(activation_overlap(truth, shuffled)).latents).mean()))
    return Recovery(
        best_cosines=best,
        best_cosine=compare(float(best.mean()), null_best),
        mcc=compare(mean_correlation(features, atoms), null_mcc),
        match=overlap,
        firing_f1s=f1s,
        firing_f1=compare(float(f1s.mean()), null_f1),
    )


def mean_correlation(features: Float[Tensor, "n_features d_in"], atoms: Float[Tensor, "d_sae d_in"]) -> float:
    """MCC: mean over features of |cosine| with the atom matched on |cosine|; a feature without an atom counts 0."""
    return float(match(cosines(features, atoms).abs()).similarities.mean())


def gram_error(features: Float[Tensor, "n_features d_in"], atoms: Float[Tensor, "n_features d_in"], levels: Sequence[int]) -> GramError:
    """Flat and hierarchical Gram error of atoms in the order of the features that they are matched to, `W_dec[match.latents]`.

    `levels` gives the depth of every feature. Raises ConfigError unless there is one atom and one level for every feature.
    """
    if not len(features) == len(atoms) == len(levels):
        raise ConfigError(f"atoms and levels must be one per feature, {len(features)}, got {len(atoms)} and {len(levels)} (gram_error)")
    difference = (cosines(atoms, atoms) - cosines(features, features)).square()
    level = torch.tensor(levels, device=difference.device)
    same = level[:, None] == level
    pair = torch.ones_like(same).triu(diagonal=1)
    return GramError(flat=float(difference[pair & same].mean()), hierarchical=float(difference[pair & ~same].mean()))


def compare_gram_error(
    features: Float[Tensor, "n_features d_in"],
    atoms: Float[Tensor, "n_features d_in"],
    levels: Sequence[int],
    *,
    generator: torch.Generator,
    n_null: int = 99,
) -> tuple[NullStatistic, NullStatistic]:
    """(flat, hierarchical) Gram error beside those of independent random atoms, for which about 1 / d_in adds to the true cosine squared.

    Raises ConfigError as `gram_error`, and where there is no pair of either kind.
    """
    value = gram_error(features, atoms, levels)
    null = [gram_error(features, random_directions(len(atoms), features, generator=generator), levels) for _ in range(n_null)]
    return (
        compare(value.flat, [draw.flat for draw in null]),
        compare(value.hierarchical, [draw.hierarchical for draw in null]),
    )


def check_rows(truth: Float[Tensor, "n n_features"], codes: SparseCodes, where: str) -> None:
    """Raises ConfigError unless codes and truth have the same number of rows."""
    if len(truth) != len(codes):
        raise ConfigError(f"codes must have one row per row of truth, {len(truth)}, got {len(codes)} ({where})")


def _positive(largest: np.ndarray) -> np.ndarray:
    """`largest` with 1 in place of 0, for division."""
    return np.where(largest > 0, largest, 1.0)

"""Which latents stand for a letter: k-sparse probes on codes, k = 1, 2, ..., and how far the score grows.

    v        = argmin  mean_i w_i log(1 + exp(-s_i (v . z_i + b))) + 0.01 |v|_1             all latents, z-scored; w: both classes weigh the same
    S_k      = the k latents with the largest v_j > 0
    F1(k)    = of a balanced logistic regression on S_k, on the test words
    own latents of the letter = S_k for the largest k that is reached while F1(k) > F1(k - 1) + 0.03        (sae.evaluation.absorption.n_split)

More than one latent of its own means that the letter is split over several (feature splitting). Chanin et al. 2024, arXiv 2409.14507, section 4;
SAEBench's first-letter task. Departures: the L1 fit is one for each letter and run to its optimum, on latents in units of their standard deviation,
so that it does not depend on the scale of a dictionary.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import sparse

from probes.base import dense_columns
from probes.evaluation.codes import lengths
from probes.evaluation.words import LETTERS, Words, f1_score
from probes.newton import fit_nested
from probes.problem import Features
from probes.selection import z_scores
from probes.selection.columns import class_weights
from probes.selection.penalised import Rows, elastic_net_logistic, origin
from sae.dictionaries.codes import SparseCodes
from sae.evaluation.absorption import n_split
from sae.evaluation.batteries import Inputs
from sae.evaluation.batteries.inputs import verified
from sae.fingerprint import from_json, to_json
from sae.models.sites import Site
from sae.storage import Key, read_json, write_json

L1 = 0.01
"""Weight of the L1 penalty beside the mean loss."""
N_PENALTIES = 6
"""Fits from the first penalty down to that one."""


@dataclass(frozen=True)
class LetterLatents:
    """The latents that say most about a letter."""

    letter: int
    """0 for a, ..., 25 for z."""
    latents: tuple[int, ...]
    """Latents with a positive weight in the L1 fit, the largest first; at most k_max."""
    f1: tuple[float, ...]
    """F1 on the test words of a probe on the first 1, 2, ... of them."""

    @property
    def n_own(self) -> int:
        """How many of them stand for the letter."""
        return n_split(self.f1)

    @property
    def own(self) -> tuple[int, ...]:
        """The latents that stand for the letter."""
        return self.latents[: self.n_own]


@dataclass(frozen=True)
class Splits:
    """The latents of every letter."""

    letters: tuple[LetterLatents, ...]
    """In the order of the alphabet."""


def letter_latents(
    codes: Features, letter: Int[np.ndarray, " n"], is_train: Bool[np.ndarray, " n"], *, asked: list[int], k_max: int = 10
) -> Splits:
    """The latents of each of the letters `asked`; codes are CSR [n, d_sae]."""
    train = sparse.csr_matrix(codes[np.flatnonzero(is_train)])
    z = z_scores(train, np.ones(train.shape[0])).z.tocsc()
    found = []
    for number in asked:
        y = letter == number
        latents = _positive_weights(z, y[is_train], k_max)
        found.append(LetterLatents(number, tuple(latents.tolist()), _scores(codes, latents, y, is_train)))
    return Splits(tuple(found))


def _positive_weights(z: sparse.csc_matrix, y: Bool[np.ndarray, " n"], k_max: int) -> Int[np.ndarray, " k"]:
    """The latents with the largest positive weights, found along a path of penalties."""
    labels = y.astype(np.int64)
    rows = Rows(z, labels.astype(np.float64), class_weights(labels, np.ones(len(labels))))
    fit, last = origin(rows), L1 * len(labels)
    largest = float(np.abs(fit.gradient).max(initial=0.0))
    if largest <= last:
        return np.zeros(0, dtype=np.int64)
    for l1 in np.geomspace(largest, last, N_PENALTIES)[1:]:
        fit = elastic_net_logistic(rows, l1=float(l1), l2=0.0, start=fit)
    order = np.lexsort((np.arange(len(fit.coef)), -fit.coef))[:k_max]
    return order[fit.coef[order] > 0]


def _scores(
    codes: Features, latents: Int[np.ndarray, " k"], y: Bool[np.ndarray, " n"], is_train: Bool[np.ndarray, " n"]
) -> tuple[float, ...]:
    """F1 on the test words with the first 1, 2, ... of the latents."""
    if not len(latents):
        return ()
    columns = np.ascontiguousarray(dense_columns(codes, latents).T, dtype=np.float64)
    fits = fit_nested(np.ascontiguousarray(columns[:, is_train]), y[is_train], ks=range(1, len(latents) + 1), C=1.0)
    test = columns[:, ~is_train]
    return tuple(f1_score(fit.coef @ test[: len(fit.coef)] + fit.intercept > 0, y[~is_train]) for fit in fits)


def read_splits(inputs: Inputs, site: Site, words: Words, settings: object, *, k_max: int) -> tuple[SparseCodes, Splits]:
    """Codes of the words, as lengths, and the latents of every letter; these from the result cache, or computed: once for a dictionary."""
    dictionary = inputs.chosen("dictionary")
    codes = lengths(dictionary, words.acts)

    def fill(folder: Path) -> None:
        made = letter_latents(codes.csr(), words.letter, words.is_train, asked=words.letters, k_max=k_max)
        write_json(folder / "splits.json", to_json(made))

    options = {
        "words": to_json(settings),
        "k_max": k_max,
        "site": site.name,
        "seed": inputs.seed,
        "dtype": str(inputs.language_model.dtype),
    }
    digests = {"dictionary": dictionary.digest, "model": inputs.language_model.digest}
    path = verified(inputs.cache, Key("evaluation.letter_latents", 1, options, digests), fill)
    return codes, from_json(Splits, read_json(path / "splits.json"), where=str(path))


def named(found: LetterLatents) -> str:
    """The own latents of a letter and the scores with them, in words."""
    own = ", ".join(str(latent) for latent in found.own) or "none"
    scores = ", ".join(f"{value:.2f}" for value in found.f1[: max(found.n_own, 1) + 1])
    return f"latents of {LETTERS[found.letter]}: {own}; F1 with 1, 2, ... latents: {scores or 'none'}"


def own_f1(found: LetterLatents) -> Float[np.ndarray, "2"]:
    """F1 with the first latent alone, and with all own latents; 0 where there is none."""
    return np.array([found.f1[0] if found.f1 else 0.0, found.f1[found.n_own - 1] if found.n_own else 0.0])

"""What the quickstart measures, as plain JSON: reconstruction and its baselines, the language model with the reconstruction spliced in, geometry."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from sae.activations.store import ActivationStore
from sae.dictionaries.base import Dictionary
from sae.evaluation.downstream import downstream
from sae.evaluation.reconstruction import error_versus_k, pca_fvu, reconstruction
from sae.fingerprint import to_json
from sae.geometry.coherence import compare_babel, compare_coactivated_babel, compare_coherence, welch_bound
from sae.geometry.dimension import two_nn
from sae.geometry.similarity import max_cosine_null, nearest_atoms
from sae.geometry.spectrum import covariance_eigenvalues, effective_rank, participation_ratio
from sae.models.language_model import LanguageModel

CURVE = (1, 2, 4, 8, 16, 24, 32, 48, 64)
BABEL_ORDERS = 64
COSINE_BINS = 60


def held_out(store: ActivationStore, site: str) -> Iterator[Tensor]:
    """The usable held-out activations in batches of 2048, float32; the order does not matter to any measure."""
    return store.batches(site, batch_size=2048, seed=0, split="held_out")


def reconstruction_scores(
    store: ActivationStore, site: str, dictionaries: Mapping[str, Dictionary], untrained: Mapping[str, Dictionary]
) -> dict[str, Any]:
    """Scores of the trained and the untrained dictionaries on held-out documents, error curves, and the PCA baseline."""
    scores = {name: to_json(reconstruction(dictionary, held_out(store, site)).scores) for name, dictionary in dictionaries.items()}
    chance = {name: to_json(reconstruction(dictionary, held_out(store, site)).scores) for name, dictionary in untrained.items()}
    ks = [k for k in CURVE if k <= min(d.d_sae for d in dictionaries.values())]
    curves = {name: error_versus_k(dictionary, held_out(store, site), ks)._asdict() for name, dictionary in dictionaries.items()}
    fit = (store.gather(site, tokens).float() for tokens in store.usable_tokens(site).split(8192))
    pca = pca_fvu(fit, held_out(store, site), ks)._asdict()
    return {"scores": scores, "untrained": chance, "curves": curves, "pca": pca}


def downstream_scores(
    model: LanguageModel,
    store: ActivationStore,
    site: str,
    dictionaries: Mapping[str, Dictionary],
    n_rows: int,
    done: Callable[[int], None],
) -> dict[str, Any]:
    """Cross-entropies with each reconstruction spliced in, on up to `n_rows` rows made of held-out documents only."""
    keep = torch.zeros(store.n_tokens, dtype=torch.bool)
    keep[store.split().held_out] = True
    mask = (store.mask(site) & keep).reshape(-1, store.context)
    order = mask.sum(1).argsort(descending=True, stable=True)[:n_rows].sort().values
    scores: dict[str, Any] = {}
    steps = downstream(model, dictionaries, model.site(site), store.tokens()[order], mask[order], store.statistics(site).mean.float())
    for rows, values in steps:
        scores = {name: to_json(value) for name, value in values.items()}
        done(rows)
    return scores


def geometry_of_atoms(store: ActivationStore, site: str, dictionary: Dictionary) -> dict[str, Any]:
    """Coherence, Babel functions, nearest-atom cosines and spectra of one dictionary's atoms, each beside random directions."""
    generator = torch.Generator().manual_seed(0)
    atoms = dictionary.W_dec.detach()
    n_atoms, d_in = atoms.shape
    coherence = compare_coherence(atoms, n_null=5, generator=generator)
    curve = compare_babel(atoms, max_order=BABEL_ORDERS, n_null=5, generator=generator)
    sample = store.usable_tokens(site, split="held_out")[:2000]
    codes = dictionary.encode(store.gather(site, sample).float()).merged().detach()
    order = max(1, int(codes.counts.min()) - 1)  # every token counts at every order
    together = compare_coactivated_babel(
        atoms, codes.indices, codes.counts, max_order=order, null="permutation", n_null=5, generator=generator
    )
    near = nearest_atoms(atoms, n_neighbours=1)
    best = near.cosines[:, 0].float()
    edges = torch.linspace(0, 1, COSINE_BINS + 1)
    null = torch.cat([max_cosine_null(n_atoms - 1, d_in, n_null=n_atoms, generator=generator).float()])
    eigenvalues = covariance_eigenvalues(atoms, centred=False)
    return {
        "coherence": to_json(coherence),
        "welch": welch_bound(n_atoms, d_in),
        "babel": _curve(curve),
        "babel_coactivated": _curve(together),
        "nearest": {"edges": edges.tolist(), "atoms": _histogram(best, edges), "null": _histogram(null, edges), "median": float(best.median()),
                    "null_median": float(null.median())},
        "effective_rank": effective_rank(eigenvalues, of="eigenvalues"),
        "participation_ratio": participation_ratio(eigenvalues),
    }  # fmt: skip


def geometry_of_activations(store: ActivationStore, site: str) -> dict[str, Any]:
    """Spectrum and intrinsic dimension of held-out activations."""
    sample = store.usable_tokens(site, split="held_out")
    chosen = sample[torch.randperm(len(sample), generator=torch.Generator().manual_seed(0))[:4000]]
    acts = store.gather(site, chosen).float()
    eigenvalues = covariance_eigenvalues(acts, centred=True)
    dimension = two_nn(acts, generator=torch.Generator().manual_seed(1))
    gaussian = torch.randn(len(acts), acts.shape[1], generator=torch.Generator().manual_seed(2)) * eigenvalues.clamp_min(0).sqrt().float()
    null = two_nn(gaussian, generator=torch.Generator().manual_seed(3))
    return {
        "eigenvalue_shares": (eigenvalues / eigenvalues.sum()).tolist(),
        "effective_rank": effective_rank(eigenvalues, of="eigenvalues"),
        "participation_ratio": participation_ratio(eigenvalues),
        "two_nn": {"value": dimension.fit.value, "low": dimension.fit.low, "high": dimension.fit.high, "n_points": dimension.n_points},
        "two_nn_gaussian": {"value": null.fit.value, "low": null.fit.low, "high": null.fit.high, "n_points": null.n_points},
    }


def _curve(curve: Any) -> dict[str, Any]:
    return {
        "values": curve.values.tolist(),
        "null_mean": curve.null_mean.tolist(),
        "null_sd": curve.null_sd.tolist(),
        "n_null": curve.n_null,
    }


def _histogram(values: Tensor, edges: Tensor) -> list[int]:
    return torch.histogram(values.cpu(), edges)[0].long().tolist()

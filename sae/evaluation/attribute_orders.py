"""In which order latents stand for an attribute: by what their exchange does to the answers, by a trained mask, or by their values alone.

    margin          logit of the source's answer - logit of the base's, at x + sum_i m_i (what exchanging latent i adds);    m: a mask in [0, 1]
    effect_q,i      mean over pairs asked q of d margin / d m_i at m = 1/2,   relative to its sum over latents
    by effect       effect_a,i - mean of effect_q,i over the other attributes q
    by mask         l_i of the mask m = sigmoid(l) that has the least  mean over pairs asked a of -log sigmoid(margin)
                                                                     + mean over the other pairs of -log sigmoid(-margin)
    by separation   F_a,i / max_q F_q,i,     F = (between groups / (g - 1)) / (within groups / (n - g)) of the latent's values, grouped by the answer

A trained mask is what RAVEL does (MDBM, Huang et al. 2024, arXiv 2402.17700), with the cross-entropy of the answer where here the two answers that
matter are weighed against each other, and a temperature that falls where here only the order is used. The order by effect is the first step of such
a training, at a thirtieth of the cost of forty steps. The order by separation asks the model nothing.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.errors import ConfigError
from sae.evaluation.disentanglement import Exchange, Questions, Reader, first_pairs

FLOOR = 1e-6
"""Part of a unit's whole variance that is added to its variance within groups, so that one without any has a finite F."""
RATE = 0.3
"""Learning rate of a mask's l."""
PER_STEP = 16
"""Pairs asked about each attribute in a step of a mask's training."""


def separation(coordinates: Float[Tensor, "n n_units"], groups: Int[Tensor, " n"]) -> Float[Tensor, " n_units"]:
    """F of every unit between the groups, float64; see the module's text. 0 for a unit that does not vary.

    Raises ConfigError unless there are two groups or more, and more rows than groups.
    """
    labels, place = torch.unique(groups, return_inverse=True)
    n, g = len(groups), len(labels)
    if g < 2 or n <= g:
        raise ConfigError(f"groups must be two or more, and fewer than the {n} rows, got {g} (separation)")
    z = coordinates.double()
    z = z - z.mean(dim=0)
    sizes = torch.bincount(place, minlength=g).double()
    means = torch.zeros(g, z.shape[1], dtype=torch.float64).index_add_(0, place, z) / sizes[:, None]
    whole = z.square().sum(dim=0)
    between = (sizes[:, None] * means.square()).sum(dim=0)
    within = (whole - between).clamp(min=0) / (n - g) + FLOOR * whole / (n - 1)
    return torch.where(whole > 0, between / (g - 1) / within.clamp_min(torch.finfo(torch.float64).tiny), 0.0)


def order_by_separation(
    questions: Questions, coordinates: Float[Tensor, "n n_units"], rows: Bool[Tensor, " n"]
) -> Int[Tensor, "n_attributes n_units"]:
    """For every attribute the units by F_a / max_q F_q, best first, from the chosen questions.

    Raises ConfigError as `separation`, and for a single attribute.
    """
    _check_several(questions)
    groups = questions.values[questions.entity[rows]]
    f = torch.stack([separation(coordinates.cpu()[rows], groups[:, a]) for a in range(groups.shape[1])])
    others = torch.stack([torch.cat([f[:a], f[a + 1 :]]).amax(dim=0) for a in range(len(f))])
    ratio = torch.where(f > 0, f / others.clamp_min(torch.finfo(torch.float64).tiny), -1.0)
    return ratio.argsort(dim=1, descending=True, stable=True)


def order_by_effect(
    reader: Reader, questions: Questions, pairs: Int[Tensor, "n_pairs 2"], exchange: Exchange
) -> Int[Tensor, "n_attributes n_units"]:
    """For every attribute the units by their effect on its answers beyond that on the others', best first, from training pairs.

    Raises ConfigError for a single attribute, and for one without a pair.
    """
    effect = torch.stack(_effects_by_attribute(reader, questions, pairs, exchange))
    effect = effect / effect.sum(dim=1, keepdim=True).abs().clamp_min(torch.finfo(torch.float64).tiny)
    beyond = effect - (effect.sum(dim=0) - effect) / (len(effect) - 1)
    return beyond.argsort(dim=1, descending=True, stable=True)


def _effects_by_attribute(reader: Reader, questions: Questions, pairs: Tensor, exchange: Exchange) -> list[Tensor]:
    _check_asked(questions, pairs)
    base, source = pairs.unbind(dim=1)
    x = exchange.blended(base, source, torch.full((exchange.coordinates.shape[1],), 0.5))
    slopes = reader.margins(x.cpu(), base, questions.said[source], questions.said[base]).slopes
    gains, asked = exchange.along(base, source, slopes).double(), questions.attribute[base]
    return [gains[asked == attribute].mean(dim=0) for attribute in range(len(questions.attributes))]


def order_by_mask(
    reader: Reader, questions: Questions, pairs: Int[Tensor, "n_pairs 2"], exchange: Exchange, *, n_steps: int, generator: torch.Generator
) -> Int[Tensor, "n_attributes n_units"]:
    """For every attribute the units by the mask that is trained on training pairs, those it exchanges most first; ties by effect.

    Adam on l from 0, with 16 pairs of every attribute a step, drawn anew: 3 * n_attributes^2 * 16 * n_steps passes or so. Errors as
    `order_by_effect`, and for n_steps < 1.
    """
    if n_steps < 1:
        raise ConfigError(f"n_steps must be at least 1, got {n_steps} (order_by_mask)")
    by_effect = order_by_effect(reader, questions, pairs, exchange)
    masks = []
    for attribute in range(len(by_effect)):
        mask = torch.zeros(by_effect.shape[1])
        optimiser = torch.optim.Adam([mask], lr=RATE)
        for _ in range(n_steps):
            drawn = first_pairs(questions, pairs[torch.randperm(len(pairs), generator=generator)], PER_STEP)
            mask.grad = _mask_gradient(reader, questions, drawn, exchange, mask, attribute)
            optimiser.step()
        ranked = by_effect[attribute]
        masks.append(ranked[mask[ranked].argsort(descending=True, stable=True)])
    return torch.stack(masks)


def _mask_gradient(
    reader: Reader, questions: Questions, pairs: Tensor, exchange: Exchange, mask: Float[Tensor, " n_units"], attribute: int
) -> Float[Tensor, " n_units"]:
    """Gradient of the loss of the module's text in l."""
    base, source = pairs.unbind(dim=1)
    shares = mask.sigmoid()
    found = reader.margins(exchange.blended(base, source, shares).cpu(), base, questions.said[source], questions.said[base])
    asked = questions.attribute[base] == attribute
    pull = torch.where(asked, -(-found.values).sigmoid() / asked.sum(), found.values.sigmoid() / (~asked).sum())
    return (exchange.along(base, source, found.slopes) * pull[:, None]).sum(dim=0) * shares * (1 - shares)


def _check_several(questions: Questions) -> None:
    if len(questions.attributes) < 2:
        raise ConfigError(f"attributes must be two or more, got {list(questions.attributes)}: nothing to hold one against")


def _check_asked(questions: Questions, pairs: Int[Tensor, "n_pairs 2"]) -> None:
    _check_several(questions)
    counts = torch.bincount(questions.attribute[pairs[:, 0]], minlength=len(questions.attributes))
    if not bool((counts > 0).all()):
        raise ConfigError(f"pairs must ask about every attribute, got {counts.tolist()} of {list(questions.attributes)}")

"""Whether an attribute of an entity can be exchanged by itself: interchange interventions, after RAVEL (Huang et al. 2024, arXiv 2402.17700).

    z, z'           codes at the base's and at the source's entity token, in the same sentence; S a set of latents
    mixed           z' on S, z elsewhere
    x'              x + decode(mixed) - decode(z)        the dictionary's error stays;     or x' = decode(mixed), without it
    cause_a         share of the pairs asked about attribute a whose answer after the exchange of S_a is the source's
    isolation_a     mean over attributes q other than a of the share of the pairs asked about q whose answer is still the base's
    score_a         (cause_a + isolation_a) / 2;         the score is their mean over attributes

Exchanging nothing gives cause 0 and isolation 1, exchanging everything 1 and 0: both score 1/2, and so does whatever moves all attributes at once.
Base and source differ in the answer to every attribute, and the model answers both rightly, or a kept answer would say nothing.

S_a is the first n of the latents in an order of `sae.evaluation.attribute_orders`, made on training entities; n is the size with the best score on
training pairs. Scores are of pairs of other entities. SAEBench (Karvonen et al. 2025, arXiv 2503.09532), whose score this is, leaves the error out.

Nothing here knows a language model: answers come from a function of activations.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.dictionaries.base import Dictionary
from sae.dictionaries.codes import SparseCodes
from sae.errors import ConfigError


@dataclass(frozen=True, eq=False)
class Questions:
    """Sentences about entities, each asking for one attribute, with the activation at the entity's last token."""

    attributes: tuple[str, ...]
    """Names of the attributes."""
    entity: Int[Tensor, " n"]
    """The entity of each question."""
    attribute: Int[Tensor, " n"]
    """The attribute that it asks for."""
    template: Int[Tensor, " n"]
    """Its sentence; questions of the same sentence differ in the entity alone."""
    said: Int[Tensor, " n"]
    """The answer given when nothing is exchanged."""
    values: Int[Tensor, "n_entities n_attributes"]
    """The right answer to every attribute of every entity; answers that begin alike are the same answer."""
    acts: Float[Tensor, "n d_in"]
    """Activations."""

    def __len__(self) -> int:
        return len(self.entity)

    @property
    def right(self) -> Int[Tensor, " n"]:
        """The right answer to each question."""
        return self.values[self.entity, self.attribute]

    @property
    def known(self) -> Bool[Tensor, " n"]:
        """Which are answered rightly."""
        return self.said == self.right

    def accuracy(self, attribute: int) -> float:
        """Share of the questions about an attribute that are answered rightly; nan for none."""
        return float(self.known[self.attribute == attribute].double().mean())


class Margins(NamedTuple):
    """How much more one answer is preferred to another, in logits."""

    values: Float[Tensor, " n"]
    """The difference."""
    slopes: Float[Tensor, "n d_in"]
    """Its gradient in the activation."""


@runtime_checkable
class Reader(Protocol):
    """What answers questions from activations."""

    def answers(self, x: Float[Tensor, "n d_in"], questions: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """The answers to the questions of those numbers with `x` in place of the entity's activation."""
        ...

    def margins(
        self, x: Float[Tensor, "n d_in"], questions: Int[Tensor, " n"], towards: Int[Tensor, " n"], away: Int[Tensor, " n"]
    ) -> Margins:
        """How much more the answer `towards` is preferred to `away` at `x`."""
        ...


@runtime_checkable
class Exchange(Protocol):
    """A way to cut activations into units that can be exchanged one by one: latents, neurons, principal components."""

    @property
    def coordinates(self) -> Float[Tensor, "n n_units"]:
        """How strongly each unit is in each question's activation."""
        ...

    def exchanged(self, base: Int[Tensor, " m"], source: Int[Tensor, " m"], chosen: Bool[Tensor, " n_units"]) -> Float[Tensor, "m d_in"]:
        """The base questions' activations with the chosen units as in the source questions."""
        ...

    def blended(self, base: Int[Tensor, " m"], source: Int[Tensor, " m"], shares: Float[Tensor, " n_units"]) -> Float[Tensor, "m d_in"]:
        """The base questions' activations with every unit that share of the way to the source's."""
        ...

    def along(self, base: Int[Tensor, " m"], source: Int[Tensor, " m"], slope: Float[Tensor, "m d_in"]) -> Float[Tensor, "m n_units"]:
        """What a function with that slope gains, to first order, by exchanging each unit."""
        ...


class LatentExchange:
    """The latents of a dictionary that are active on some question. Raises ConfigError for one that writes to another space than it reads."""

    def __init__(self, dictionary: Dictionary, acts: Float[Tensor, "n d_in"], *, keep_error: bool = True) -> None:
        if dictionary.W_dec.shape[1] != dictionary.d_in:
            raise ConfigError(
                f"dictionary must write where it reads, got d_in={dictionary.d_in} and atoms of width {dictionary.W_dec.shape[1]}: what a "
                "transcoder reads cannot be put back (LatentExchange)"
            )
        self._dictionary, self._keep_error = dictionary, keep_error
        self._acts = acts.float()
        with torch.no_grad():
            self._codes = dictionary.encode(self._acts.to(dictionary.W_dec.device)).merged()
        latents, place = torch.unique(self._codes.indices[self._codes.active()], return_inverse=True)
        self.latents: Int[Tensor, " n_units"] = latents
        """Number of the latent that each unit is."""
        rows = torch.arange(len(acts), device=place.device).repeat_interleave(self._codes.counts.long())
        dense = torch.zeros(len(acts), len(latents), device=place.device)
        dense[rows, place] = self._codes.values[self._codes.active()].float()
        self._dense = dense

    @property
    def coordinates(self) -> Float[Tensor, "n n_units"]:
        """Codes of every question, over the latents that are active on some."""
        return self._dense

    def exchanged(self, base: Int[Tensor, " m"], source: Int[Tensor, " m"], chosen: Bool[Tensor, " n_units"]) -> Float[Tensor, "m d_in"]:
        """x' of the module's text."""
        return self._written(torch.where(chosen.to(self._dense.device), self._dense[source], self._dense[base]), base)

    def blended(self, base: Int[Tensor, " m"], source: Int[Tensor, " m"], shares: Float[Tensor, " n_units"]) -> Float[Tensor, "m d_in"]:
        """x' with every latent at (1 - share) z_base + share z_source."""
        return self._written(torch.lerp(self._dense[base], self._dense[source], shares.to(self._dense)), base)

    def along(self, base: Int[Tensor, " m"], source: Int[Tensor, " m"], slope: Float[Tensor, "m d_in"]) -> Float[Tensor, "m n_units"]:
        """(z_source - z_base) times the slope along each latent's atom."""
        values = ((self._dense[base] + self._dense[source]) / 2).requires_grad_()
        written = self._decoded(values, base)
        (weights,) = torch.autograd.grad(written, values, slope.to(written))
        return ((self._dense[source] - self._dense[base]) * weights).cpu()

    def _written(self, values: Float[Tensor, "m n_units"], base: Int[Tensor, " m"]) -> Float[Tensor, "m d_in"]:
        """The base's activations with these codes in place of their own."""
        with torch.no_grad():
            written = self._decoded(values, base)
            if self._keep_error:
                written = self._acts[base].to(written) + written - self._decoded(self._dense[base], base)
        return written.to(self._acts)

    def _decoded(self, values: Float[Tensor, "m n_units"], base: Int[Tensor, " m"]) -> Float[Tensor, "m d_in"]:
        slots = SparseCodes.of_slots(self.latents.expand(len(values), -1), values, self._dictionary.d_sae)
        width = max(int(slots.counts.max()), 1) if slots.k_max else 0
        parts = {"indices": slots.indices[:, :width], "values": slots.values[:, :width], "counts": slots.counts}
        return self._dictionary.decode(replace(self._codes[base], **parts))


class DirectionExchange:
    """Orthonormal directions, one a row: x' = x + sum over the chosen of ((x_source - x) . q) q. The identity exchanges neurons."""

    def __init__(self, directions: Float[Tensor, "n_units d_in"], acts: Float[Tensor, "n d_in"]) -> None:
        self._directions, self._acts = directions.float(), acts.float()

    @property
    def coordinates(self) -> Float[Tensor, "n n_units"]:
        """Coordinates of every question along the directions."""
        return self._acts @ self._directions.T

    def exchanged(self, base: Int[Tensor, " m"], source: Int[Tensor, " m"], chosen: Bool[Tensor, " n_units"]) -> Float[Tensor, "m d_in"]:
        """The base's activations with the source's coordinates along the chosen directions."""
        kept = self._directions[chosen]
        return self._acts[base] + (self._acts[source] - self._acts[base]) @ kept.T @ kept

    def blended(self, base: Int[Tensor, " m"], source: Int[Tensor, " m"], shares: Float[Tensor, " n_units"]) -> Float[Tensor, "m d_in"]:
        """That share of the way along every direction."""
        way = (self._acts[source] - self._acts[base]) @ self._directions.T
        return self._acts[base] + (way * shares) @ self._directions

    def along(self, base: Int[Tensor, " m"], source: Int[Tensor, " m"], slope: Float[Tensor, "m d_in"]) -> Float[Tensor, "m n_units"]:
        """((x_source - x_base) . q) (slope . q)."""
        return ((self._acts[source] - self._acts[base]) @ self._directions.T) * (slope @ self._directions.T)


def principal_directions(acts: Float[Tensor, "n d_in"]) -> Float[Tensor, "n_units d_in"]:
    """Principal components of the centred rows, largest variance first, as unit rows; those without variance are left out."""
    centred = acts.double() - acts.double().mean(dim=0)
    _, sizes, rows = torch.linalg.svd(centred, full_matrices=False)
    return rows[sizes > sizes[:1] * max(centred.shape) * torch.finfo(torch.float64).eps].float()


def draw_pairs(questions: Questions, entities: Bool[Tensor, " n_entities"], n: int, *, generator: torch.Generator) -> Int[Tensor, "m 2"]:
    """Up to `n` pairs (base question, source question) for every attribute asked, without replacement.

    Both ask the same in the same sentence about two of the chosen entities, are answered rightly, and the entities differ in every attribute.
    """
    usable = questions.known & entities[questions.entity]
    found = []
    for attribute in range(len(questions.attributes)):
        ids = (usable & (questions.attribute == attribute)).nonzero().flatten()
        values = questions.values[questions.entity[ids]]
        fits = (values[:, None] != values[None]).all(dim=2) & (questions.template[ids][:, None] == questions.template[ids][None])
        pairs = fits.nonzero()
        chosen = pairs[torch.randperm(len(pairs), generator=generator)[:n]]
        found.append(ids[chosen])
    return torch.cat(found)


def first_pairs(questions: Questions, pairs: Int[Tensor, "n_pairs 2"], n: int) -> Int[Tensor, "m 2"]:
    """The first `n` pairs asked about each attribute."""
    asked = questions.attribute[pairs[:, 0]]
    return torch.cat([pairs[asked == attribute][:n] for attribute in range(len(questions.attributes))])


@dataclass(frozen=True, eq=False)
class Effects:
    """What the exchange of each attribute's units did to each pair."""

    asked: Int[Tensor, " n_pairs"]
    """The attribute that each pair is asked about."""
    entity: Int[Tensor, " n_pairs"]
    """The base's entity."""
    good: Bool[Tensor, "n_attributes n_pairs"]
    """Whether the answer is what it should be: the source's where the exchanged attribute is asked about, else still the base's."""

    def sums(self) -> Float[Tensor, "n_units n_terms"]:
        """For every base entity the good answers of each (exchanged, asked) and then the number of pairs of each, to be summed."""
        n = len(self.good)
        _, unit = torch.unique(self.entity, return_inverse=True)
        counts = torch.zeros(int(unit.max()) + 1 if len(unit) else 0, n, n, dtype=torch.float64)
        hits = torch.zeros_like(counts)
        for a in range(n):
            hits[:, a].index_put_((unit, self.asked), self.good[a].double(), accumulate=True)
            counts[:, a].index_put_((unit, self.asked), torch.ones(len(unit), dtype=torch.float64), accumulate=True)
        return torch.cat([hits.flatten(1), counts.flatten(1)], dim=1)

    def table(self) -> Float[Tensor, "n_attributes 3"]:
        """Cause, isolation and score of every attribute; nan where no pair says."""
        return scores(self.sums().sum(dim=0)[None])[0]


def scores(totals: Float[Tensor, "draws n_terms"]) -> Float[Tensor, "draws n_attributes 3"]:
    """Cause, isolation and score of every attribute from totals of `Effects.sums`; attributes that no pair asks about count in no isolation."""
    n = round((totals.shape[1] / 2) ** 0.5)
    hits, counts = (part.view(-1, n, n) for part in totals.chunk(2, dim=1))
    shares = hits / counts
    cause = shares.diagonal(dim1=1, dim2=2)
    others = torch.where(torch.eye(n, dtype=torch.bool), torch.nan, shares)
    isolation = others.nanmean(dim=2)
    return torch.stack([cause, isolation, (cause + isolation) / 2], dim=2)


def effects(
    reader: Reader, questions: Questions, pairs: Int[Tensor, "n_pairs 2"], exchange: Exchange, chosen: Bool[Tensor, "n_attributes n_units"]
) -> Effects:
    """Ask every pair after exchanging each attribute's chosen units: n_attributes * n_pairs questions."""
    base, source = pairs.unbind(dim=1)
    asked = questions.attribute[base]
    x = torch.cat([exchange.exchanged(base, source, units).cpu() for units in chosen])
    said = reader.answers(x, base.repeat(len(chosen))).cpu().view(len(chosen), len(base))
    aim = asked[None] == torch.arange(len(chosen))[:, None]
    good = said == torch.where(aim, questions.said[source], questions.said[base])
    return Effects(asked, questions.entity[base], good)


@dataclass(frozen=True, eq=False)
class Choice:
    """The units that stand for each attribute."""

    chosen: Bool[Tensor, "n_attributes n_units"]
    """Which ones."""
    sizes: tuple[int, ...]
    """How many, by attribute."""
    training: tuple[float, ...]
    """The score on the training pairs, by attribute."""


def choose(
    reader: Reader,
    questions: Questions,
    pairs: Int[Tensor, "n_pairs 2"],
    exchange: Exchange,
    order: Int[Tensor, "n_attributes n_units"],
    sizes: Sequence[int],
) -> Choice:
    """For every attribute the first n of its ranked units, n the size with the best score on the pairs, the smallest where several have it.

    Sizes beyond the number of units count as all of them. Raises ConfigError for no size or one below 1, and without units or pairs.
    """
    if not len(sizes) or min(sizes) < 1:
        raise ConfigError(f"sizes must be one or more, each at least 1, got {list(sizes)} (choose)")
    if not order.shape[1] or not len(pairs):
        raise ConfigError(f"there must be units and training pairs, got {order.shape[1]} and {len(pairs)} (choose)")
    allowed = sorted({min(size, order.shape[1]) for size in sizes})
    masks = torch.stack([first_units(order, [size] * len(order)) for size in allowed])
    found = torch.stack([effects(reader, questions, pairs, exchange, mask).table()[:, 2] for mask in masks])
    if not bool(torch.isfinite(found).all()):
        raise ConfigError("every attribute must have training pairs, and another to be held against (choose)")
    best = found.argmax(dim=0)
    which = torch.arange(len(order))
    return Choice(masks[best, which], tuple(allowed[i] for i in best.tolist()), tuple(found[best, which].tolist()))


def first_units(order: Int[Tensor, "n_attributes n_units"], sizes: Sequence[int]) -> Bool[Tensor, "n_attributes n_units"]:
    """The first of each attribute's ranked units, as masks."""
    chosen = torch.zeros(order.shape, dtype=torch.bool)
    for mask, ranked, size in zip(chosen, order, sizes, strict=True):
        mask[ranked[:size]] = True
    return chosen


def random_units(n_units: int, sizes: Sequence[int], *, generator: torch.Generator) -> Bool[Tensor, "n_attributes n_units"]:
    """As many units for each attribute, drawn at random."""
    return first_units(torch.stack([torch.randperm(n_units, generator=generator) for _ in sizes]), sizes)


def split_entities(n_entities: int, share: float, *, generator: torch.Generator) -> Bool[Tensor, " n_entities"]:
    """Which entities are for training: `share` of them, drawn at random."""
    training = torch.zeros(n_entities, dtype=torch.bool)
    training[torch.randperm(n_entities, generator=generator)[: round(share * n_entities)]] = True
    return training

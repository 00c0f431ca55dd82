"""Entities with attributes that a language model is asked about, and its answers when the entity's activation is another.

    sentence     separator, "The city of" Paris "lies on the continent of"      the entity's last token is where activations are taken and exchanged
    answer       the most likely next token; the right one is the first token of " Europe"
    answers(x)   the pass resumed from the site with x in place of the entity's activation, all other tokens' activations as they were

The table and the sentences are plain facts and plain English of this package: 128 cities with country, continent and main language.
"""

import importlib.resources
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.errors import ConfigError, FormatError
from sae.evaluation.disentanglement import Margins, Questions
from sae.fingerprint import digest
from sae.models.language_model import Edit, LanguageModel
from sae.models.sites import Site

BATCH = 48
"""Sentences of a pass."""
CITY_SENTENCES = {
    "country": ("The city of {} is located in the country of", "The city of {} belongs to the country of"),
    "continent": ("The city of {} lies on the continent of", "The city of {} is a part of the continent of"),
    "language": ("In the city of {} the main language is", "The official language in {} is"),
}
"""The sentences of each attribute; the attribute is what comes next."""


@dataclass(frozen=True)
class EntityTable:
    """Entities, their attributes, and sentences that ask for them."""

    names: tuple[str, ...]
    """The entities."""
    attributes: tuple[str, ...]
    """The attributes."""
    answers: tuple[tuple[str, ...], ...]
    """For every entity the answer to every attribute."""
    sentences: tuple[tuple[str, ...], ...]
    """For every attribute the sentences that end where the answer begins, with {} for the entity."""

    def __post_init__(self) -> None:
        if len(self.attributes) != len(self.sentences) or any(len(row) != len(self.attributes) for row in self.answers):
            raise ConfigError(f"answers and sentences must be of the attributes {list(self.attributes)} (EntityTable)")
        if len(self.names) != len(self.answers) or len(set(self.names)) < len(self.names):
            raise ConfigError(f"names must be different, one for each of {len(self.answers)} rows, got {len(self.names)} (EntityTable)")
        for sentence in (sentence for several in self.sentences for sentence in several):
            if sentence.count("{}") != 1:
                raise ConfigError(f"every sentence must have one {{}} for the entity, got {sentence!r} (EntityTable)")

    @property
    def digest(self) -> str:
        """SHA-256 of all of it."""
        return digest(self)


def cities() -> EntityTable:
    """Cities with country, continent and main language, several of every country, and two sentences for each attribute."""
    resource = importlib.resources.files("sae").joinpath("corpora", "cities.tsv")
    if not resource.is_file():
        raise FormatError(f"{resource} does not exist: this installation lacks its package data")
    head, *rows = (line.split("\t") for line in resource.read_text(encoding="utf-8").splitlines())
    attributes = tuple(CITY_SENTENCES)
    if head != ["city", *attributes] or any(len(row) != len(head) for row in rows):
        raise FormatError(f"{resource} must have the columns {['country', *attributes]}, got {head}")
    return EntityTable(tuple(row[0] for row in rows), attributes, tuple(tuple(row[1:]) for row in rows), tuple(CITY_SENTENCES.values()))


@dataclass(frozen=True, eq=False)
class Asked:
    """Every sentence about every entity, in tokens, with what the model makes of it up to a site."""

    questions: Questions
    """The questions; activations are those of the entity's last token."""
    tokens: Int[Tensor, "n context"]
    """Tokens of the sentences, padded on the right with the separator."""
    lengths: Int[Tensor, " n"]
    """Number of tokens of each."""
    places: Int[Tensor, " n"]
    """Position of the entity's last token."""
    acts: Float[Tensor, "n context width"]
    """Activations at the site, in the model's dtype."""

    def about(self, attributes: Sequence[int]) -> "Asked":
        """The questions about some of the attributes alone, in their order."""
        kept = torch.isin(self.questions.attribute, torch.tensor(attributes))
        number = torch.full((len(self.questions.attributes),), -1)
        number[list(attributes)] = torch.arange(len(attributes))
        q = self.questions
        fewer = Questions(
            tuple(q.attributes[a] for a in attributes),
            q.entity[kept],
            number[q.attribute[kept]],
            q.template[kept],
            q.said[kept],
            q.values[:, list(attributes)],
            q.acts[kept],
        )
        return Asked(fewer, self.tokens[kept], self.lengths[kept], self.places[kept], self.acts[kept])


class LanguageReader:
    """Answers of a language model; see the module's text."""

    def __init__(self, model: LanguageModel, site: Site, asked: Asked) -> None:
        self._model, self._site, self._asked = model, site, asked

    def answers(self, x: Float[Tensor, "n d_in"], questions: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """The most likely next token of each sentence with `x` at the entity's last token."""
        asked, said = self._asked, torch.zeros(len(questions), dtype=torch.int64)
        for rows, context in batches(asked.lengths[questions]):
            ids = questions[rows]
            acts = asked.acts[ids, :context].clone()
            acts[torch.arange(len(ids)), asked.places[ids]] = x[rows].to(acts)
            said[rows] = last_tokens(logits(self._model, self._site, asked.tokens[ids, :context], acts), asked.lengths[ids])
        return said

    def margins(
        self, x: Float[Tensor, "n d_in"], questions: Int[Tensor, " n"], towards: Int[Tensor, " n"], away: Int[Tensor, " n"]
    ) -> Margins:
        """How much likelier the token `towards` is than `away`, in logits, and its gradient at `x`."""
        asked = self._asked
        values, slopes = torch.zeros(len(x)), torch.zeros(x.shape)
        for rows, context in batches(asked.lengths[questions]):
            ids, each = questions[rows], torch.arange(len(rows))
            at = x[rows].detach().float().requires_grad_()
            place = torch.zeros(len(ids), context, 1).index_put_((each, asked.places[ids]), torch.ones(1))
            acts = torch.where(place > 0, at[:, None].to(asked.acts.dtype), asked.acts[ids, :context])
            scores = logits(self._model, self._site, asked.tokens[ids, :context], acts)[each, asked.lengths[ids] - 1]
            margin = scores[each, towards[rows]] - scores[each, away[rows]]
            slopes[rows] = torch.autograd.grad(margin.sum(), at)[0].cpu()
            values[rows] = margin.detach().cpu()
        return Margins(values, slopes)


def ask(model: LanguageModel, site: Site, table: EntityTable) -> Asked:
    """Every sentence of the table through the model. Raises ConfigError where a sentence cuts the entity's last token."""
    tokens, places, values = _tokenised(model, table)
    n_attributes = len(table.attributes)
    ids = [(e, a, t) for a in range(n_attributes) for t in range(len(table.sentences[a])) for e in range(len(table.names))]
    entity, attribute, template = torch.tensor(ids).unbind(dim=1)
    lengths = torch.tensor([len(row) for row in tokens])
    context = int(lengths.max())
    padded = torch.tensor([[*row, *[model.separator_id] * (context - len(row))] for row in tokens])
    acts, said = torch.zeros(len(padded), context, site.width, dtype=model.dtype), torch.zeros(len(padded), dtype=torch.int64)
    with torch.no_grad():
        for rows, longest in batches(lengths):
            part = padded[rows, :longest]
            captured = model.capture(part, [site])[site]
            said[rows] = last_tokens(logits(model, site, part, captured), lengths[rows])
            acts[rows, :longest] = captured.cpu()
    at_entity = acts[torch.arange(len(acts)), torch.tensor(places)].float()
    template = template + attribute * max(len(several) for several in table.sentences)
    questions = Questions(table.attributes, entity, attribute, template, said, values, at_entity)
    return Asked(questions, padded, lengths, torch.tensor(places), acts)


def _tokenised(model: LanguageModel, table: EntityTable) -> tuple[list[list[int]], list[int], Int[Tensor, "n_entities n_attributes"]]:
    """Tokens of all sentences, the place of the entity's last token in each, and the first token of every answer."""
    rows, places = [], []
    values = torch.zeros(len(table.names), len(table.attributes), dtype=torch.int64)
    for a, sentences in enumerate(table.sentences):
        for t, sentence in enumerate(sentences):
            before = sentence[: sentence.index("{}")]
            whole = [sentence.replace("{}", name) for name in table.names]
            tokens, heads = model.tokenize(whole), model.tokenize([before + name for name in table.names])
            answered = model.tokenize([f"{text} {answer[a]}" for text, answer in zip(whole, table.answers, strict=True)])
            for e, (row, head, full) in enumerate(zip(tokens, heads, answered, strict=True)):
                if row[: len(head)] != head or full[: len(row)] != row or len(full) == len(row):
                    raise ConfigError(f"{whole[e]!r} must end its entity and itself with a token of {model.name}, and does not")
                rows.append([model.separator_id, *row])
                places.append(len(head))
                if t == 0:
                    values[e, a] = full[len(row)]
    return rows, places, values


def logits(
    model: LanguageModel, site: Site, tokens: Int[Tensor, "n context"], acts: Float[Tensor, "n context width"]
) -> Float[Tensor, "n context d_vocab"]:
    """Logits with `acts` at the site: resumed from there where the residual stream is whole, else put in place in a full pass."""
    if site.kind in ("resid_pre", "resid_post"):
        return model.resume(acts, site)
    return model.run(tokens, [Edit.replace(site, acts)])


def last_tokens(scores: Float[Tensor, "n context d_vocab"], lengths: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """The most likely token after the last one of each row."""
    return scores[torch.arange(len(scores)), lengths.to(scores.device) - 1].argmax(dim=-1).cpu()


def batches(lengths: Int[Tensor, " n"]) -> Iterator[tuple[Int[Tensor, " rows"], int]]:
    """Rows that run together, those of like length, with the largest length."""
    for rows in lengths.argsort(stable=True).split(BATCH):
        yield rows, int(lengths[rows].max())

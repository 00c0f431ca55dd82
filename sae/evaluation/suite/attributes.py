"""Disentanglement: whether the latents that carry one attribute of an entity can be exchanged without the others, in a language model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.errors import ConfigError
from sae.evaluation.attribute_orders import order_by_effect, order_by_mask, order_by_separation
from sae.evaluation.batteries.findings import Number, Quantity, of_null
from sae.evaluation.batteries.inputs import Inputs, verified
from sae.evaluation.batteries.measure import Measure, Outcome
from sae.evaluation.bootstrap import of_draws, resampled
from sae.evaluation.disentanglement import (
    Choice,
    DirectionExchange,
    Effects,
    Exchange,
    LatentExchange,
    Questions,
    choose,
    draw_pairs,
    effects,
    first_pairs,
    principal_directions,
    random_units,
    scores,
    split_entities,
)
from sae.evaluation.entities import Asked, EntityTable, LanguageReader, ask, cities
from sae.evaluation.figures import Axis, HeatMap
from sae.fingerprint import to_json
from sae.geometry.nulls import compare
from sae.models.sites import Site
from sae.storage import Key, load_tensors, read_json, save_tensors, write_json

LEAST_PAIRS = 10
"""Pairs of an attribute below which nothing is measured."""


@dataclass(frozen=True, kw_only=True)
class DisentanglementConfig:
    """Settings of `disentanglement`."""

    n_pairs: int = 48
    """Held-out pairs asked about each attribute."""
    n_training_pairs: int = 24
    """Pairs of training entities asked about each attribute, for the choice of sizes."""
    n_ranking_pairs: int = 64
    """Pairs of training entities asked about each attribute, for the order by effect; those of the sizes are among them."""
    sizes: tuple[int, ...] = (8, 32, 128, 512)
    """Numbers of latents among which the best is chosen for each attribute."""
    order: Literal["effect", "mask", "separation"] = "effect"
    """How latents are ranked for an attribute: by one gradient through the model, by a mask trained by many, or by F statistics of their values."""
    mask_steps: int = 40
    """Steps of the training of a mask, for that order."""
    training_share: float = 0.5
    """Share of the entities on which latents are ranked and sizes chosen."""
    n_random: int = 2
    """Draws of as many random latents."""
    keep_error: bool = True
    """Whether what the dictionary does not reconstruct stays in the activation."""
    least_accuracy: float = 0.3
    """Share of right answers below which an attribute is left out: the model does not know it."""


@dataclass(frozen=True, eq=False)
class Setting:
    """What is the same for every dictionary at a site: questions, pairs, and what reads the answers."""

    questions: Questions
    """The questions about attributes that the model knows."""
    reader: LanguageReader
    """The model from the site on."""
    training: Bool[Tensor, " n_entities"]
    """Which entities are for training."""
    ranking_pairs: Int[Tensor, "n_ranking 2"]
    """Pairs of training entities for the order by effect."""
    training_pairs: Int[Tensor, "n_training 2"]
    """Those of them for the choice of sizes."""
    pairs: Int[Tensor, "n_pairs 2"]
    """Held-out pairs."""
    accuracies: dict[str, float]
    """Share of right answers, by attribute; of all attributes."""


def disentanglement(inputs: Inputs, config: DisentanglementConfig) -> Outcome:
    """Scores of the dictionary's latents, of random ones, and of what needs no dictionary."""
    site, table = _site(inputs), cities()
    setting = _setting(inputs, config, site, table, _asked(inputs, site, table))
    exchange = LatentExchange(inputs.chosen("dictionary"), setting.questions.acts, keep_error=config.keep_error)
    if not exchange.coordinates.shape[1]:
        raise ConfigError("dictionary must have latents that fire on an entity's token, got none")
    choice, found = _measured(setting, exchange, config)
    generator = inputs.generator("random latents")
    draws = [
        effects(
            setting.reader,
            setting.questions,
            setting.pairs,
            exchange,
            random_units(exchange.coordinates.shape[1], choice.sizes, generator=generator),
        ).table()[:, 2]
        for _ in range(config.n_random)
    ]
    names = setting.questions.attributes
    counts = torch.bincount(found.asked, minlength=len(names)).tolist()
    notes = [
        f"{name}: {counts[i]} pairs, {choice.sizes[i]} of {exchange.coordinates.shape[1]} active latents, {choice.training[i]:.3g} in training"
        for i, name in enumerate(names)
    ]
    numbers = _numbers(found, torch.stack(draws) if draws else None, names, notes, inputs.seed)
    numbers += [Number(ACCURACY.name, value, name) for name, value in setting.accuracies.items()]
    numbers += _baselines(inputs, config, site, table, setting)
    return Outcome(tuple(numbers), (_figure(found, names),), _notes(setting, config))


def _site(inputs: Inputs) -> Site:
    if not inputs.site:
        raise ConfigError("site must be given: the dictionary does not say where in the model it belongs")
    site = inputs.language_model.site(inputs.site)
    if site.width != inputs.chosen("dictionary").d_in:
        raise ConfigError(
            f"dictionary must take activations of width {site.width} like {site.name}, got d_in={inputs.chosen('dictionary').d_in}"
        )
    return site


def _asked(inputs: Inputs, site: Site, table: EntityTable) -> Asked:
    """All sentences up to the site, once for a model and site."""
    model = inputs.language_model
    key = Key("evaluation.entities", 1, _settings(inputs, site, table), {"model": model.digest})

    def fill(folder: Path) -> None:
        made = ask(model, site, table)
        q = made.questions
        parts = {
            "entity": q.entity,
            "attribute": q.attribute,
            "template": q.template,
            "said": q.said,
            "values": q.values,
            "tokens": made.tokens,
        }
        save_tensors(folder / "asked.safetensors", {**parts, "lengths": made.lengths, "places": made.places, "acts": made.acts})

    kept = load_tensors(verified(inputs.cache, key, fill) / "asked.safetensors")
    at_entity = kept["acts"][torch.arange(len(kept["acts"])), kept["places"]].float()
    five = [kept[name] for name in ("entity", "attribute", "template", "said", "values")]
    return Asked(Questions(table.attributes, *five, at_entity), *(kept[name] for name in ("tokens", "lengths", "places", "acts")))


def _settings(inputs: Inputs, site: Site, table: EntityTable) -> dict[str, Any]:
    return {"site": site.name, "table": table.digest, "dtype": str(inputs.language_model.dtype)}


def _setting(inputs: Inputs, config: DisentanglementConfig, site: Site, table: EntityTable, asked: Asked) -> Setting:
    """Training and held-out pairs of the attributes that the model knows. Raises ConfigError where these are fewer than two."""
    accuracies = {name: asked.questions.accuracy(a) for a, name in enumerate(table.attributes)}
    known = [a for a, name in enumerate(table.attributes) if accuracies[name] >= config.least_accuracy]
    generator = inputs.generator("entities")
    training = split_entities(len(table.names), config.training_share, generator=generator)
    said = f"{inputs.language_model.name} knows {', '.join(f'{name} {value:.0%}' for name, value in accuracies.items())}"
    if len(known) < 2:
        raise ConfigError(f"the model must answer two attributes rightly in at least {config.least_accuracy:.0%} of the sentences; {said}")
    fewer = asked.about(known)
    ranked = draw_pairs(fewer.questions, training, max(config.n_ranking_pairs, config.n_training_pairs), generator=generator)
    first = first_pairs(fewer.questions, ranked, config.n_training_pairs)
    second = draw_pairs(fewer.questions, ~training, config.n_pairs, generator=generator)
    counts = torch.stack([torch.bincount(fewer.questions.attribute[each[:, 0]], minlength=len(known)) for each in (first, second)])
    if int(counts.min()) < min(LEAST_PAIRS, config.n_pairs, config.n_training_pairs):
        raise ConfigError(f"there must be {LEAST_PAIRS} pairs of right answers about every attribute, got {counts.tolist()}; {said}")
    return Setting(fewer.questions, LanguageReader(inputs.language_model, site, fewer), training, ranked, first, second, accuracies)


def _measured(setting: Setting, exchange: Exchange, config: DisentanglementConfig) -> tuple[Choice, Effects]:
    """Units ranked and chosen on training entities, and what their exchange does to the held-out pairs."""
    questions = setting.questions
    if config.order == "effect":
        order = order_by_effect(setting.reader, questions, setting.ranking_pairs, exchange)
    elif config.order == "mask":
        generator = torch.Generator().manual_seed(0)
        order = order_by_mask(setting.reader, questions, setting.ranking_pairs, exchange, n_steps=config.mask_steps, generator=generator)
    else:
        order = order_by_separation(questions, exchange.coordinates, setting.training[questions.entity])
    choice = choose(setting.reader, questions, setting.training_pairs, exchange, order, config.sizes)
    return choice, effects(setting.reader, questions, setting.pairs, exchange, choice.chosen)


def _baselines(inputs: Inputs, config: DisentanglementConfig, site: Site, table: EntityTable, setting: Setting) -> list[Number]:
    """What needs no dictionary, once for a model, a site and a seed."""
    settings = {**_settings(inputs, site, table), "settings": to_json(config), "seed": inputs.seed}
    key = Key("evaluation.entity_baselines", 1, settings, {"model": inputs.language_model.digest})

    def fill(folder: Path) -> None:
        acts, training = setting.questions.acts, setting.training[setting.questions.entity]
        width = acts.shape[1]
        whole = DirectionExchange(torch.eye(width), acts)
        everything = torch.ones(len(setting.questions.attributes), width, dtype=torch.bool)
        moved = effects(setting.reader, setting.questions, setting.pairs, whole, everything)
        made = {"whole": moved.table().tolist()}
        choice, found = _measured(setting, DirectionExchange(principal_directions(acts[training]), acts), config)
        made |= {"principal": found.table().tolist(), "sizes": list(choice.sizes)}
        write_json(folder / "baselines.json", made)

    kept = read_json(verified(inputs.cache, key, fill) / "baselines.json")
    numbers = []
    for i, name in enumerate(setting.questions.attributes):
        numbers.append(Number(WHOLE.name, kept["whole"][i][0], name, note=f"isolation {kept['whole'][i][1]:.3g}"))
    rows = torch.tensor(kept["principal"])
    numbers.append(Number(PRINCIPAL.name, float(rows[:, 2].mean()), note=f"sizes {', '.join(map(str, kept['sizes']))}"))
    for name, (cause, isolation, score) in zip(setting.questions.attributes, kept["principal"], strict=True):
        numbers.append(Number(PRINCIPAL.name, score, name, note=f"cause {cause:.3g}, isolation {isolation:.3g}"))
    return numbers


def _numbers(
    found: Effects, draws: Float[Tensor, "n_draws n_attributes"] | None, names: tuple[str, ...], notes: list[str], seed: int
) -> list[Number]:
    """Score, cause and isolation, with intervals over the base's entities."""
    table, sums = found.table(), found.sums()
    again = scores(resampled(sums, seed=seed))
    numbers = []
    columns = [(SCORE, 2), (CAUSE, 0), (ISOLATION, 1)]
    for quantity, column in columns:
        whole = draws is not None and len(draws) > 1 and column == 2
        cells = [("", table[:, column].mean(), again[:, :, column].mean(dim=1), draws.mean(dim=1) if whole else None, "")]
        for i, name in enumerate(names):
            cells.append((name, table[i, column], again[:, i, column], draws[:, i] if whole else None, notes[i]))
        for subject, value, resamples, null, note in cells:
            number = Number(quantity.name, float(value), subject, note=note)
            if null is not None:
                number = of_null(quantity, compare(float(value), null), subject=subject, note=note)
            around = of_draws(resamples, len(sums))
            numbers.append(number if around is None else Number(**{**vars(number), "low": around.low, "high": around.high}))
    return numbers


def _figure(found: Effects, names: tuple[str, ...]) -> HeatMap:
    hits, counts = (part.view(len(names), len(names)) for part in found.sums().sum(dim=0).chunk(2))
    shares = hits / counts
    changed = torch.where(torch.eye(len(names), dtype=torch.bool), shares, 1 - shares)
    return HeatMap(
        "What an exchange changes",
        Axis("attribute asked for", names=names),
        Axis("attribute whose latents are exchanged", names=names),
        tuple(tuple(row) for row in changed.tolist()),
        "share of answers",
        0.0,
        1.0,
        "On the diagonal: answers that became the source's. Beside it: answers to other attributes that are no longer the base's, which should be none.",
    )


def _notes(setting: Setting, config: DisentanglementConfig) -> tuple[str, ...]:
    notes = [
        f"{int(setting.training.sum())} entities to choose latents on, {int((~setting.training).sum())} held out; "
        + ("what the dictionary does not reconstruct stays." if config.keep_error else "what the dictionary does not reconstruct is lost."),
        f"Latents are ranked by {config.order}; published scores train a mask at length and let the error go, so they are not comparable.",
    ]
    left_out = [name for name in setting.accuracies if name not in setting.questions.attributes]
    if left_out:
        notes.append(f"Left out, as the model does not know them: {', '.join(left_out)}.")
    return tuple(notes)


RAVEL = "Huang et al. 2024, arXiv 2402.17700 (RAVEL); Karvonen et al. 2025, arXiv 2503.09532"
SCORE = Quantity(
    "disentanglement",
    "Whether an attribute's latents change it and nothing else: 1 where they do; 0.5 for exchanging nothing, everything, or what moves all "
    "attributes together. Without a subject: the mean over attributes.",
    RAVEL,
    alternative="greater",
    null="as many random ones of the latents that are active on entities",
    formula="(cause + isolation) / 2",
)
CAUSE = Quantity(
    "cause",
    "Share of the pairs in which the answer becomes the source's when the attribute's latents are exchanged.",
    RAVEL,
    formula="P(answer_a(x') = answer_a(source)), S_a exchanged",
)
ISOLATION = Quantity(
    "isolation",
    "Share of the answers to the other attributes that stay as they were when the attribute's latents are exchanged.",
    RAVEL,
    formula="mean_q P(answer_q(x') = answer_q(base)), S_a exchanged, q other than a",
)
ACCURACY = Quantity(
    "right answers",
    "Share of the sentences that the model completes rightly: what it knows of the attribute. Only pairs of right answers are used.",
    "the model, nothing exchanged",
)
WHOLE = Quantity(
    "cause of the whole activation",
    "The most that any dictionary can change here: the entity's whole activation is exchanged. Low where the attribute has left the entity's token "
    "below this site, or is not there yet; then the scores say little.",
    "interchange intervention, Geiger et al. 2021, arXiv 2106.02997",
)
PRINCIPAL = Quantity(
    "disentanglement of principal components",
    "The same score for the principal components of the training entities' activations, ranked and chosen in the same way.",
    RAVEL,
    formula="(cause + isolation) / 2",
)
DISENTANGLEMENT = Measure(
    name="disentanglement",
    title="Disentanglement of attributes",
    text=(
        "Two cities in the same sentence: the latents that carry one attribute are set, at the city's last token, to what they are for the other "
        "city. Its answer should become the other's, and the answers to the other attributes should stay."
    ),
    needs=("dictionary", "model"),
    quantities=(SCORE, CAUSE, ISOLATION, ACCURACY, WHOLE, PRINCIPAL),
    compute=disentanglement,
    config=DisentanglementConfig(),
    quick=DisentanglementConfig(n_pairs=24, n_training_pairs=12, n_ranking_pairs=24, sizes=(32, 128, 512), n_random=2),
)

"""What a reconstruction does to the language model, from the activations of a store: the model runs from the site on."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.errors import ConfigError
from sae.evaluation.batteries.findings import Number, Quantity
from sae.evaluation.batteries.inputs import Inputs, verified
from sae.evaluation.batteries.measure import Measure, Outcome
from sae.evaluation.bootstrap import DocumentSums
from sae.evaluation.downstream import Rows, Splice, prediction_terms, share_recovered
from sae.evaluation.suite.sample import Sample, sample
from sae.evaluation.suite.scores import Scorer
from sae.storage import Key, load_tensors, save_tensors

ABLATIONS = ("zero", "mean", "resample")
TOKENS_PER_BATCH = 2048
FILE = "ablations.safetensors"


@dataclass(frozen=True, kw_only=True)
class DownstreamConfig:
    """Settings of `downstream`."""

    n_tokens: int = 32_768
    """Tokens, whole rows of the store drawn at random; what so few cost is seen in the intervals."""


def downstream_scores(inputs: Inputs, config: DownstreamConfig) -> Outcome:
    """Cross-entropy and KL with the reconstruction in the place of the activation, beside three ablations."""
    chosen = sample(inputs, config.n_tokens)
    passage = Passage(inputs, chosen)
    shared, clean = _ablations(inputs, passage, config)
    dictionary = inputs.chosen("dictionary")
    own = DocumentSums(chosen.n_units, 2)
    done = 0
    for rows, unit, index in passage.batches():
        acts = inputs.stored.gather(chosen.site, index, dtype=torch.float32)
        with torch.no_grad():
            final = passage.splice.final(rows, dictionary(acts.to(dictionary.W_dec.device)).cpu())
        terms = prediction_terms(passage.splice, clean[done : done + len(unit)].to(final.device), [final], rows.next_tokens)
        own.add_(unit, terms[1])
        done += len(unit)
    table = torch.cat([shared, own.sums], dim=1)
    return Outcome(
        tuple(_numbers(Scorer(table, seed=inputs.seed), f"{done:,} predictions; {chosen.note}")), (), _notes(inputs, chosen, done)
    )


COLUMNS = ("tokens", "clean", *ABLATIONS, *(f"KL {name}" for name in ABLATIONS), "spliced", "KL spliced")


def _column(table: Float[Tensor, "draws n_terms"], name: str) -> Float[Tensor, " draws"]:
    return table[:, COLUMNS.index(name)]


def _per_token(name: str):
    return lambda table: _column(table, name) / _column(table, "tokens")


def _numbers(scorer: Scorer, note: str) -> Iterator[Number]:
    def increase(table: Float[Tensor, "draws n_terms"]) -> Float[Tensor, " draws"]:
        return (_column(table, "spliced") - _column(table, "clean")) / _column(table, "tokens")

    yield scorer.number("CE clean", _per_token("clean"), note=note)
    yield scorer.number("CE spliced", _per_token("spliced"))
    yield scorer.number("CE increase", increase)
    for name in ABLATIONS:
        yield scorer.number("CE ablated", _per_token(name), subject=name)
    for name in ABLATIONS:

        def recovered(table: Float[Tensor, "draws n_terms"], name: str = name) -> Float[Tensor, " draws"]:
            return share_recovered(_column(table, name), _column(table, "spliced"), _column(table, "clean"))

        found = scorer.number("CE recovered", recovered, subject=name)
        yield found if found.value is not None else Number("CE recovered", None, name, note="the ablation does no damage here")
    yield scorer.number("KL", _per_token("KL spliced"))
    for name in ABLATIONS:

        def avoided(table: Float[Tensor, "draws n_terms"], name: str = name) -> Float[Tensor, " draws"]:
            ablated = _column(table, f"KL {name}")
            return share_recovered(ablated, _column(table, "KL spliced"), torch.zeros_like(ablated))

        yield scorer.number("KL recovered", avoided, subject=name)


def _notes(inputs: Inputs, chosen: Sample, n: int) -> tuple[str, ...]:
    store = inputs.stored
    computed = str(inputs.language_model.dtype).removeprefix("torch.")
    notes = [
        f"{n:,} predictions at {chosen.note}; masked tokens keep their activations; 95 % intervals by resampling documents",
        f"activations are those of the store ({store.manifest.capture.dtype}); the model computes in {computed}",
    ]
    if chosen.target != chosen.site:
        notes.append(f"a transcoder: it reads {chosen.site}, and its output takes the place of {chosen.target}")
    return tuple(notes)


class Passage:
    """The rows of a sample, with what is replaced where."""

    def __init__(self, inputs: Inputs, chosen: Sample):
        store, model = inputs.stored, inputs.language_model
        record = store.manifest.model
        if record is None or record.digest != model.digest:
            name = "a model that is not known" if record is None else record.name
            raise ConfigError(f"model must be the one that the store was captured from, {name}, got {model.name} ({store.path})")
        self._inputs, self.chosen = inputs, chosen
        self.splice = Splice(model, store.site(chosen.target))
        self._row_ids = (chosen.index // store.context).unique()

    @cached_property
    def tokens(self) -> Int[Tensor, "n_rows context"]:
        """Token ids of the rows."""
        return self._inputs.stored.tokens()[self._row_ids].long()

    @cached_property
    def _grids(self) -> tuple[Bool[Tensor, "n_rows context"], Int[Tensor, "n_rows context"]]:
        """Which positions are used, and the unit of each used one."""
        store = self._inputs.stored
        place = torch.searchsorted(self._row_ids, self.chosen.index // store.context), self.chosen.index % store.context
        use, unit = torch.zeros(self.tokens.shape, dtype=torch.bool), torch.zeros(self.tokens.shape, dtype=torch.long)
        use[place], unit[place] = True, self.chosen.unit
        if not bool(use[:, :-1].any()):
            raise ConfigError(f"rows must have a used token before their last, got none ({store.path})")
        return use, unit

    def batches(self) -> Iterator[tuple[Rows, Int[Tensor, " n_counted"], Int[Tensor, " n_used"]]]:
        """(rows, unit of each counted prediction, number in the store of each used token), some rows at a time."""
        store, context = self._inputs.stored, self._inputs.stored.context
        use, unit = self._grids
        documents = store.document_ids()[self._row_ids] if store.manifest.capture.isolated else None
        for some in torch.arange(len(self._row_ids)).split(max(1, TOKENS_PER_BATCH // context)):
            flat = (self._row_ids[some, None] * context + torch.arange(context)).flatten()
            acts = store.gather(self.chosen.target, flat, dtype=torch.float32).view(len(some), context, -1)
            rows = Rows(self.tokens[some], acts, use[some], None if documents is None else documents[some])
            yield rows, unit[some][:, :-1][rows.counted], flat[use[some].flatten()]


def _ablations(inputs: Inputs, passage: Passage, config: DownstreamConfig) -> tuple[Float[Tensor, "n_units n_shared"], Tensor]:
    """Sums of the clean model and of its ablations, and its last residual streams: the same for every dictionary of the site."""
    chosen = passage.chosen
    settings = {"site": chosen.site, "target": chosen.target, "seed": inputs.seed, "n_tokens": config.n_tokens}
    digests = {"store": inputs.stored.digest, "model": inputs.language_model.digest}
    key = Key("evaluation.ablations", 1, settings | {"dtype": str(inputs.language_model.dtype)}, digests)

    def fill(folder: Path) -> None:
        save_tensors(folder / FILE, _ablated(inputs, passage))

    path = verified(inputs.cache, key, fill)
    found = load_tensors(path / FILE)
    return found["sums"], found["clean"]


def _ablated(inputs: Inputs, passage: Passage) -> dict[str, Tensor]:
    store, chosen = inputs.stored, passage.chosen
    mean = store.statistics(chosen.target).mean.float()
    usable = store.mask(chosen.target).nonzero().squeeze(1)
    if len(usable) < 2:
        raise ConfigError(
            f"{chosen.target} must have two usable tokens to put one in the place of another, got {len(usable)} ({store.path})"
        )
    generator = inputs.generator("resample")
    sums, kept = DocumentSums(chosen.n_units, 2 + 2 * len(ABLATIONS)), []
    for rows, unit, index in passage.batches():
        other = store.gather(chosen.target, others(index, usable, generator), dtype=torch.float32)
        replacements = (torch.zeros_like(other), mean.expand_as(other), other)
        clean = passage.splice.final(rows)
        finals = [passage.splice.final(rows, replacement) for replacement in replacements]
        terms = prediction_terms(passage.splice, clean, finals, rows.next_tokens)
        sums.add_(unit, torch.cat([torch.ones(len(unit), 1), terms[:, :, 0].T, terms[1:, :, 1].T], dim=1))
        kept.append(clean.cpu())
    return {"sums": sums.sums, "clean": torch.cat(kept)}


def others(index: Int[Tensor, " n"], usable: Int[Tensor, " m"], generator: torch.Generator) -> Int[Tensor, " n"]:
    """For every token another one, drawn from all usable ones (ascending, the tokens among them); never itself."""
    drawn = torch.randint(len(usable) - 1, (len(index),), generator=generator)
    return usable[drawn + (drawn >= torch.searchsorted(usable, index))]


NATS = "nats per token"
SPLICED = "SAEBench core metrics; Gao et al. 2024, arXiv 2406.04093, section 5.1"
DOWNSTREAM = Measure(
    name="downstream",
    title="Effect on the language model",
    text=(
        "What the language model loses when the reconstruction takes the place of the activation. Cross-entropy recovered depends on the ablation "
        "that it is held against: against zero nearly everything recovers nearly all, so three are given."
    ),
    needs=("dictionary", "store", "model"),
    quantities=(
        Quantity("CE clean", "Cross-entropy of the untouched model.", SPLICED, NATS, formula="CE = mean_t -log p(next token)"),
        Quantity(
            "CE spliced",
            "The same with the reconstruction at every used token of the site.",
            SPLICED,
            NATS,
            formula="mean_t -log p_spliced(next token)",
        ),
        Quantity("CE increase", "What the reconstruction costs: 0 for a perfect one.", SPLICED, NATS, formula="CE spliced - CE clean"),
        Quantity(
            "CE ablated",
            "Cross-entropy with zeros, with the store's mean, or with the activation of a token drawn at random.",
            SPLICED,
            NATS,
            formula="mean_t -log p_ablated(next token)",
        ),
        Quantity(
            "CE recovered",
            "Share of that ablation's damage that the reconstruction avoids: 1 for a perfect one, 0 for the ablation itself.",
            SPLICED,
            formula="(CE ablated - CE spliced) / (CE ablated - CE clean)",
        ),
        Quantity(
            "KL",
            "How far the predictions move from those of the untouched model: 0 for a perfect reconstruction.",
            SPLICED,
            NATS,
            formula="mean_t sum_v p_clean(v) log(p_clean(v) / p_spliced(v))",
        ),
        Quantity(
            "KL recovered",
            "Share of the ablation's KL that the reconstruction avoids.",
            "SAEBench core metrics",
            formula="(KL ablated - KL) / KL ablated",
        ),
    ),
    compute=downstream_scores,
    config=DownstreamConfig(),
    quick=DownstreamConfig(n_tokens=2048),
)

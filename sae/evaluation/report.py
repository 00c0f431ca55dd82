"""EvalReport: everything that is measured of one dictionary, as one value; and `evaluate`, which measures it.

    report = evaluate(dictionary, store, model=model)
    report                                            a table in a notebook
    report.value("reconstruction", "FVU")             one number
    pandas.DataFrame(report.table)                    all of them, each with its definition, its interval and its null
    report.save("evaluation")                         evaluation.json, which `EvalReport.load` reads

Every measure goes through the result cache: the same call again reads what is there, and after an interruption only the rest is computed.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sae.activations.store import ActivationStore
from sae.dictionaries.base import Dictionary
from sae.errors import ConfigError, FormatError
from sae.evaluation.batteries import Battery, Done, Finding, Inputs, Results, Task, Truth, gather, perform, plan, suited
from sae.evaluation.batteries.facts import facts_of, kind_of
from sae.evaluation.batteries.inputs import verified
from sae.evaluation.batteries.sites import site_of
from sae.evaluation.headlines import Line, summary_lines
from sae.evaluation.report_html import report_html
from sae.evaluation.suite.registry import evaluations
from sae.fingerprint import from_json, to_json
from sae.models.language_model import LanguageModel
from sae.storage import Key, ResultCache, read_json, user_cache_dir, write_json

EVALUATION = "evaluation.json"
OF_STORE = ("fidelity", "lengths")
OF_MODEL = ("effects", "absorption", "probing", "ablation", "attributes")
"""Batteries that are run when none is named: with a store, and with a language model besides."""
NEEDED = {
    "dictionary": "a dictionary",
    "other": "another dictionary (other, --other)",
    "store": "a store (store, --store)",
    "sites": "a store of several sites",
    "model": "a language model (model, --model)",
    "truth": "planted features (truth)",
}


@dataclass(frozen=True)
class EvalReport:
    """What was measured of one dictionary; a notebook shows its table."""

    name: str
    """What the dictionary is called."""
    kind: str
    """What it is: its class, with its activation where it has one."""
    d_sae: int
    """Its number of latents."""
    facts: Mapping[str, str]
    """What was measured, on what: names and values."""
    results: Results
    """Every number with its definition, its interval and its null."""
    caveats: tuple[str, ...] = ()
    """What a reader should know before the numbers."""
    unmeasured: tuple[tuple[str, str], ...] = ()
    """(What was not measured, why)."""
    dense: tuple[tuple[int, float], ...] = ()
    """(k, FVU of the first k principal components of the store's activations), ascending: what k real coefficients a token can do."""
    quick: bool = False
    """Whether the settings were those of a quick look."""

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All numbers, in order."""
        return self.results.findings

    @property
    def lines(self) -> list[Line]:
        """The headlines."""
        return summary_lines(self.findings)

    @property
    def table(self) -> list[dict[str, Any]]:
        """A row for every number: what it is, its value and interval, its null, its definition; ready for `pandas.DataFrame`."""
        batteries = {group.measure: group.battery for group in self.results.groups}
        return [
            {
                "battery": batteries[found.measure],
                "measure": found.measure,
                "quantity": found.name,
                "subject": found.subject,
                "value": found.value,
                "low": found.low,
                "high": found.high,
                "unit": found.unit,
                "null": found.null_mean,
                "null_sd": found.null_sd,
                "p": found.p,
                "formula": found.formula,
                "meaning": found.meaning,
                "note": found.note,
            }
            for found in self.findings
        ]

    def finding(self, measure: str, quantity: str, subject: str = "") -> Finding:
        """A number with everything about it. Raises ConfigError saying what there is."""
        of_measure = [found for found in self.findings if found.measure == measure]
        of_quantity = [found for found in of_measure if found.name == quantity]
        for found in of_quantity:
            if found.subject == subject:
                return found
        if not of_measure:
            return _missing("measure", measure, [group.measure for group in self.results.groups])
        if not of_quantity:
            return _missing("quantity", quantity, [found.name for found in of_measure])
        return _missing("subject", subject, [found.subject for found in of_quantity])

    def value(self, measure: str, quantity: str, subject: str = "") -> float | None:
        """A number; None where it is not defined. Raises ConfigError saying what there is."""
        return self.finding(measure, quantity, subject).value

    def to_json(self) -> dict[str, Any]:
        """All of it, for `from_json`."""
        return to_json(self)

    def save(self, folder: str | Path) -> Path:
        """Write `evaluation.json` into a folder, atomically; returns its path."""
        path = Path(folder) / EVALUATION
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, self.to_json())
        return path

    @staticmethod
    def load(folder: str | Path) -> "EvalReport":
        """The report in a folder, or of a file. Raises FormatError naming what is wrong with it."""
        path = Path(folder)
        path = path if path.suffix == ".json" else path / EVALUATION
        try:
            return from_json(EvalReport, read_json(path), where=str(path))
        except ConfigError as error:
            raise FormatError(f"{path} is not an evaluation: {error}") from error

    def _repr_html_(self) -> str:
        missing = (*self.results.left_out, *self.unmeasured)
        return report_html(f"Evaluation of {self.name}", self.facts, self.caveats, self.lines, self.results.groups, missing)

    def __repr__(self) -> str:
        shown = ", ".join(f"{line.label} {line.found.value:.4g}" for line in self.lines[:6] if line.found.value is not None)
        return f"EvalReport({self.name}: {shown or f'{len(self.findings)} numbers'})"


def _missing(what: str, got: str, there: Iterable[str]) -> Finding:
    raise ConfigError(f"{what} must be one of {', '.join(map(repr, dict.fromkeys(there)))}, got {got!r} (EvalReport)")


def evaluate(
    dictionary: Dictionary,
    store: ActivationStore | None = None,
    *,
    model: LanguageModel | None = None,
    other: Dictionary | None = None,
    truth: Truth | None = None,
    site: str | None = None,
    batteries: Sequence[str] | None = None,
    cache: ResultCache | str | Path | None = None,
    quick: bool = False,
    seed: int = 0,
    names: Mapping[str, str] | None = None,
) -> EvalReport:
    """Measure a dictionary of any kind, on what there is: a store, a language model, another dictionary, planted features.

    `batteries` None runs what suits, see `chosen_batteries`. `names` says what to call the inputs (`dictionary`, `other`, `store`, `model`).
    Results are kept in `cache` (None: results/ in the user cache folder). Raises ConfigError when nothing can be measured, for a battery that
    is not known or lacks an input, for a site that is not in the store or does not fit the dictionary.
    """
    inputs = evaluation_inputs(dictionary, store, model=model, other=other, truth=truth, site=site, cache=cache, seed=seed, names=names)
    tasks = evaluation_tasks(inputs, batteries, quick=quick)
    return evaluation_report([perform(task, inputs) for task in tasks], inputs, quick=quick)


def evaluation_inputs(
    dictionary: Dictionary,
    store: ActivationStore | None,
    *,
    model: LanguageModel | None = None,
    other: Dictionary | None = None,
    truth: Truth | None = None,
    site: str | None = None,
    cache: ResultCache | str | Path | None = None,
    seed: int = 0,
    names: Mapping[str, str] | None = None,
) -> Inputs:
    """What `evaluate` is run on, checked. Raises ConfigError as `evaluate` does."""
    if site and store is None and model is None:
        raise ConfigError(f"site goes with a store or a language model, got {site!r} and none of them (evaluate)")
    both = [dictionary] if other is None else [dictionary, other]
    if store is not None:
        chosen = site_of(both, store, [site] if site else [])
    else:
        chosen = site or str(dictionary.provenance.get("site") or "") if model is not None else ""
    kept = cache if isinstance(cache, ResultCache) else ResultCache(cache or user_cache_dir() / "results")
    called = {"dictionary": "dictionary"} | ({"store": store.path.name} if store is not None else {}) | dict(names or {})
    if model is not None:
        called.setdefault("model", model.name)
    return Inputs(kept, seed, dictionary, other, store, (chosen,) if chosen else (), chosen, model=model, names=called, truth=truth)


def chosen_batteries(inputs: Inputs, known: Mapping[str, Battery]) -> list[str]:
    """The batteries that are run when none is named: `fidelity` and `lengths` on a store, those of a language model where there is one, `seeds`
    beside another dictionary, `planted` beside planted features. Raises ConfigError when nothing can be measured.
    """
    of = {"store": OF_STORE, "model": OF_MODEL, "other": ("seeds",), "truth": ("planted",)}
    able = suited(inputs, known)
    chosen = [name for need, names in of.items() if need in inputs.there for name in names if name in able]
    if not chosen:
        wants = ", ".join(text for need, text in NEEDED.items() if need in ("store", "model", "other", "truth"))
        raise ConfigError(f"nothing can be measured of a dictionary alone: give {wants}")
    return chosen


def evaluation_tasks(inputs: Inputs, batteries: Sequence[str] | None, *, quick: bool) -> list[Task]:
    """What is to be run. Raises ConfigError as `evaluate` does."""
    known = evaluations()
    return plan(chosen_batteries(inputs, known) if batteries is None else batteries, inputs, quick=quick, known=known)


def evaluation_report(done: Sequence[Done], inputs: Inputs, *, quick: bool) -> EvalReport:
    """The report of tasks that were performed."""
    facts = facts_of(inputs) | {"Settings": ("quick look" if quick else "default") + f", seed {inputs.seed}"}
    return EvalReport(
        name=inputs.name("dictionary"),
        kind=kind_of(inputs.chosen("dictionary")),
        d_sae=inputs.chosen("dictionary").d_sae,
        facts=facts,
        results=gather(done, seed=inputs.seed),
        caveats=tuple(_caveats(inputs, quick)),
        unmeasured=tuple(_unmeasured(done, inputs)),
        dense=principal_curve(inputs) if inputs.store is not None else (),
        quick=quick,
    )


def _caveats(inputs: Inputs, quick: bool) -> Iterable[str]:
    """What does not fit together, or could not be checked, in sentences."""
    provenance = inputs.chosen("dictionary").provenance
    foreign = provenance.get("foreign") or {}
    if foreign:
        yield f"The dictionary is from another library ({foreign.get('format', 'unknown format')})."
        yield from (_sentence(str(note)) for note in foreign.get("notes", ()))
    stored = inputs.store.manifest.model if inputs.store is not None else None
    trained, site = provenance.get("model_digest"), provenance.get("site")
    if inputs.store is not None and inputs.site and site and site != inputs.site:
        yield f"The dictionary says that it belongs to {site}, and was measured at {inputs.site}."
    if stored is not None and trained and trained != stored.digest:
        yield (
            f"The dictionary was trained on a model with digest {trained[:12]}, the store is of {stored.name} with digest {stored.digest[:12]}: "
            "their weights differ, and the numbers say how the dictionary does on a model that it was not made for."
        )
    elif stored is not None and not trained:
        called = f" It names {provenance['model']}." if provenance.get("model") else ""
        yield f"The dictionary does not say which weights it was trained on; whether they are those of {stored.name} could not be checked.{called}"
    if stored is not None and inputs.model is not None and inputs.model.digest != stored.digest:
        yield (
            f"The language model given (digest {inputs.model.digest[:12]}) is not the one that the store was captured from "
            f"({stored.name}, digest {stored.digest[:12]})."
        )
    if quick:
        yield "This is a quick look: samples are small, and intervals wide."


def _sentence(text: str) -> str:
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _unmeasured(done: Sequence[Done], inputs: Inputs) -> Iterable[tuple[str, str]]:
    """What the known batteries would measure beside what was done, and what it takes."""
    run = {each.task.measure.name for each in done}
    for battery in evaluations().values():
        lacking: dict[str, list[str]] = {}
        for measure in battery.measures:
            if measure.name not in run:
                needs = [NEEDED[need] for need in measure.needs if need not in inputs.there]
                reason = f"needs {' and '.join(needs)}" if needs else f"was not asked for; its battery is {battery.name}"
                lacking.setdefault(reason, []).append(measure.title)
        yield from ((", ".join(titles), reason) for reason, titles in lacking.items())


def principal_curve(inputs: Inputs) -> tuple[tuple[int, float], ...]:
    """(k, FVU of the first k principal components) for powers of two of k and the full width, from the covariance that the store keeps.

    FVU_k = sum_{j > k} lambda_j / sum_j lambda_j; the components are fitted to the tokens that they are scored on, which favours them.
    """

    def fill(folder: Path) -> None:
        values = torch.linalg.eigvalsh(inputs.stored.covariance(inputs.site)).flip(0).clamp_min(0)
        left = 1 - values.cumsum(0) / values.sum()
        ks = sorted({min(1 << i, len(values)) for i in range(len(values).bit_length() + 1)})
        write_json(folder / "curve.json", [[k, max(float(left[k - 1]), 0.0)] for k in ks])

    key = Key("evaluation.principal_curve", 1, {"site": inputs.site}, {"store": inputs.stored.digest})
    return tuple((int(k), float(fvu)) for k, fvu in read_json(verified(inputs.cache, key, fill) / "curve.json"))

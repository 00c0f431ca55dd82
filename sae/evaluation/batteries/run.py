"""Running batteries: one task after the other, each through the result cache.

    tasks = plan(["atoms", "codes"], inputs, quick=True)
    results = gather([perform(task, inputs) for task in tasks])

A result is kept under the measure's name and version, its settings, the seed, the site, and the digests of what it needs: a second run reads it,
and a changed setting recomputes what depends on it.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae.errors import CacheError, ConfigError, FormatError
from sae.evaluation.batteries.findings import RATE, Finding, Number, finding, judged
from sae.evaluation.batteries.inputs import Inputs, verified
from sae.evaluation.batteries.measure import Battery, Measure, Outcome
from sae.evaluation.batteries.registry import BATTERIES
from sae.evaluation.batteries.sites import short_sites
from sae.evaluation.figures import AnyFigure, Axis, Figure, Series
from sae.fingerprint import from_json, to_json
from sae.storage import Key, read_json, write_json

FILE = "outcome.json"


@dataclass(frozen=True, eq=False)
class Task:
    """A measure to be run with its settings, on one site where it goes by sites."""

    battery: Battery
    """The battery it belongs to."""
    measure: Measure
    """The measure."""
    config: Any
    """Its settings."""
    site: str = ""
    """The site, or empty."""

    @property
    def label(self) -> str:
        """What to call it while it runs."""
        return f"{self.measure.name} {self.site}".strip()

    def key(self, inputs: Inputs) -> Key:
        """What the result depends on."""
        needs = self.measure.needs
        of_site = "store" in needs or {"dictionary", "model"} <= set(needs)
        sites = [self.site] if self.site else list(inputs.sites) if "sites" in needs else [inputs.site] if of_site else []
        settings = {"settings": to_json(self.config), "seed": inputs.seed, "sites": sites}
        return Key(f"{self.battery.family}.{self.measure.name}", self.measure.version, settings, inputs.digests(needs))


@dataclass(frozen=True, eq=False)
class Done:
    """What came of a task."""

    task: Task
    """The task."""
    outcome: Outcome | None
    """Its result; None where it could not be done."""
    reason: str = ""
    """Why it could not."""
    seconds: float = 0.0
    """How long it took."""
    cached: bool = False
    """Whether the result was there already."""


@dataclass(frozen=True)
class Group:
    """What one measure found, over all its sites."""

    measure: str
    """Name of the measure."""
    battery: str
    """Name of its battery."""
    title: str
    """Heading."""
    text: str
    """What is asked and how."""
    findings: tuple[Finding, ...]
    """Numbers, judged."""
    figures: tuple[AnyFigure, ...]
    """Figures."""
    notes: tuple[str, ...]
    """Remarks."""
    settings: Mapping[str, Any]
    """The measure's settings."""
    seconds: float
    """How long it took, in seconds; of results read from the cache, the reading."""
    n_cached: int
    """Tasks whose result was there already."""
    n_tasks: int
    """Tasks."""


@dataclass(frozen=True)
class Results:
    """All that was found, each finding judged among all of them."""

    groups: tuple[Group, ...]
    """By measure."""
    left_out: tuple[tuple[str, str], ...]
    """(Measure, why it could not be done)."""
    rate: float
    """Expected share of chance among what stands out."""
    seed: int
    """Seed of the samples and nulls."""

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All of them, in order."""
        return tuple(found for group in self.groups for found in group.findings)


def suited(inputs: Inputs, known: Mapping[str, Battery] = BATTERIES) -> list[str]:
    """The batteries among the `known` that have a measure for what is there."""
    return [name for name, battery in known.items() if any(set(m.needs) <= inputs.there for m in battery.measures)]


def plan(
    batteries: Iterable[str] | None,
    inputs: Inputs,
    *,
    quick: bool = False,
    configs: Mapping[str, Any] | None = None,
    known: Mapping[str, Battery] = BATTERIES,
) -> list[Task]:
    """The tasks of the named batteries (None: of all that suit) for which the inputs are there. `configs` are settings by measure, `known` the
    batteries that there are.

    Raises ConfigError for a battery that is not known, and for one that nothing can be measured of, saying what it needs.
    """
    tasks = []
    for name in suited(inputs, known) if batteries is None else list(batteries):
        if name not in known:
            raise ConfigError(f"battery must be one of {', '.join(known)}, got {name!r}")
        battery = known[name]
        able = [m for m in battery.measures if set(m.needs) <= inputs.there]
        if not able:
            needs = sorted({" and ".join(m.needs) for m in battery.measures})
            raise ConfigError(f"battery {name!r} needs {' or '.join(needs)}, got {', '.join(sorted(inputs.there)) or 'nothing'}")
        for measure in able:
            config = (configs or {}).get(measure.name) or (measure.quick if quick else measure.config)
            tasks += [Task(battery, measure, config, site) for site in (inputs.sites if measure.each_site else ("",))]
    if not tasks:
        raise ConfigError(f"inputs must be a dictionary, a store or a model, got {', '.join(sorted(inputs.there)) or 'nothing'} (plan)")
    return tasks


def perform(task: Task, inputs: Inputs) -> Done:
    """Run a task, or read what it gave before. Where the measure refuses the inputs (ConfigError) the reason is kept, and nothing cached.

    Raises CacheError naming the entry when the stored result is damaged.
    """
    started = time.perf_counter()
    key = task.key(inputs)
    cached = inputs.cache.has(key)
    own = inputs.at(task.site) if task.site else inputs

    def fill(folder: Path) -> None:
        write_json(folder / FILE, to_json(_checked(task.measure, task.measure.compute(own, task.config))))

    try:
        path = verified(inputs.cache, key, fill)
    except ConfigError as error:
        return Done(task, None, str(error), time.perf_counter() - started)
    try:
        outcome = from_json(Outcome, read_json(path / FILE), where=str(path))
    except (ConfigError, FormatError) as error:
        raise CacheError(f"the cached result {path} is damaged ({error}); remove it with `sae cache prune` and run again") from error
    return Done(task, _at_site(outcome, task.site), "", time.perf_counter() - started, cached)


def _checked(measure: Measure, outcome: Outcome) -> Outcome:
    for number in outcome.numbers:
        measure.quantity(number.quantity)
    return outcome


def _at_site(outcome: Outcome, site: str) -> Outcome:
    if not site:
        return outcome
    numbers = tuple(
        Number(**{**vars(number), "subject": f"{site} · {number.subject}" if number.subject else site}) for number in outcome.numbers
    )
    return Outcome(numbers, outcome.figures, outcome.notes)


def gather(done: Sequence[Done], *, seed: int, rate: float = RATE) -> Results:
    """The results of all tasks: findings judged together, figures over the sites added."""
    groups: dict[str, list[Done]] = {}
    for each in done:
        groups.setdefault(each.task.measure.name, []).append(each)
    raw = [
        finding(each.task.measure.quantity(number.quantity), number, measure=each.task.measure.name)
        for several in groups.values()
        for each in several
        if each.outcome is not None
        for number in each.outcome.numbers
    ]
    verdicts: dict[str, list[Finding]] = {name: [] for name in groups}
    for found in judged(raw, rate=rate):
        verdicts[found.measure].append(found)
    made = tuple(_group(several, verdicts[name]) for name, several in groups.items() if any(each.outcome for each in several))
    left_out = tuple((each.task.label, each.reason) for each in done if each.outcome is None)
    return Results(made, left_out, rate, seed)


def _group(several: Sequence[Done], findings: Sequence[Finding]) -> Group:
    task = several[0].task
    outcomes = [each.outcome for each in several if each.outcome is not None]
    over_sites = [figure for name in task.measure.curves if (figure := _curve(name, findings)) is not None]
    own = [figure for outcome in outcomes for figure in outcome.figures]
    return Group(
        measure=task.measure.name,
        battery=task.battery.name,
        title=task.measure.title,
        text=task.measure.text,
        findings=tuple(findings),
        figures=(*over_sites, *(own if len(outcomes) <= MOST_SITES else ())),
        notes=tuple(dict.fromkeys(note for outcome in outcomes for note in outcome.notes)),
        settings=to_json(task.config),
        seconds=sum(each.seconds for each in several),
        n_cached=sum(each.cached for each in several),
        n_tasks=len(several),
    )


MOST_SITES = 4
"""Sites up to which every one has its own figures; beyond, only the curves over them are shown."""


def _curve(name: str, findings: Sequence[Finding]) -> Figure | None:
    """The quantity over the sites with its null."""
    chosen = [found for found in findings if found.name == name and found.value is not None and " · " not in found.subject]
    if len(chosen) < 2:
        return None
    places = tuple(range(len(chosen)))
    series = [Series(name, places, tuple(float(found.value) for found in chosen if found.value is not None))]
    if all(found.null_mean is not None and found.null_sd is not None for found in chosen):
        means = [float(found.null_mean or 0.0) for found in chosen]
        spread = [2 * float(found.null_sd or 0.0) for found in chosen]
        low, high = tuple(m - s for m, s in zip(means, spread, strict=True)), tuple(m + s for m, s in zip(means, spread, strict=True))
        series.insert(0, Series("null ± 2 sd", places, tuple(means), low, high, role="null"))
    axis = Axis("site", names=tuple(short_sites([found.subject for found in chosen])))
    return Figure(f"{name}, by site", axis, Axis(name, chosen[0].unit), tuple(series), caption=chosen[0].meaning)

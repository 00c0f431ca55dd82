"""The batteries of evaluation: those of this package, and those that other packages offer.

A package offers batteries by an entry point of the group `sae.evaluations` whose value is a tuple of `Battery`:

    [project.entry-points."sae.evaluations"]
    probes = "probes.evaluation:BATTERIES"
"""

from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points

from sae.errors import ConfigError
from sae.evaluation.batteries import Battery
from sae.evaluation.suite.attributes import DISENTANGLEMENT
from sae.evaluation.suite.effects import DOWNSTREAM
from sae.evaluation.suite.fidelity import DENSITIES, RECONSTRUCTION
from sae.evaluation.suite.lengths import DESCRIPTION
from sae.evaluation.suite.planted import RECOVERY
from sae.evaluation.suite.seeds import FIRING_STABILITY, STABILITY

GROUP = "sae.evaluations"
"""The group of entry points."""
FAMILY = "evaluation"

OWN = (
    Battery("fidelity", "Fidelity", "what a reconstruction misses, and how sparsely", (RECONSTRUCTION, DENSITIES), family=FAMILY),
    Battery("effects", "Effects", "what a reconstruction does to the language model", (DOWNSTREAM,), family=FAMILY),
    Battery("lengths", "Description length", "how many bits a token costs through the dictionary", (DESCRIPTION,), family=FAMILY),
    Battery("attributes", "Attributes", "whether latents keep attributes of one thing apart", (DISENTANGLEMENT,), family=FAMILY),
    Battery("seeds", "Seeds", "how much of a dictionary is in one of another seed", (STABILITY, FIRING_STABILITY), family=FAMILY),
    Battery("planted", "Planted features", "how much of what was planted is found", (RECOVERY,), family=FAMILY),
)
EVALUATIONS: dict[str, Battery] = {battery.name: battery for battery in OWN}
"""The batteries of this package, by name."""


def evaluations() -> dict[str, Battery]:
    """All batteries by name: those of this package, then those that installed packages offer, which are imported now.

    Raises ConfigError naming an entry point that cannot be read, or that offers what is no battery of evaluation, or a name that is taken.
    """
    known = dict(EVALUATIONS)
    for point in sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value)):
        for battery in _offered(point):
            _check(battery, known.values(), point)
            known[battery.name] = battery
    return known


def _offered(point: EntryPoint) -> tuple[Battery, ...]:
    try:
        found = point.load()
    except (ImportError, AttributeError, NameError, SyntaxError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise ConfigError(f"the entry point {_name(point)} cannot be imported ({reason}); mend or uninstall the package") from error
    if not isinstance(found, tuple) or not all(isinstance(each, Battery) for each in found):
        raise ConfigError(f"the entry point {_name(point)} must be a tuple of Battery, got {type(found).__name__}")
    return found


def _check(battery: Battery, known: Iterable[Battery], point: EntryPoint) -> None:
    if battery.family != FAMILY:
        raise ConfigError(
            f"the entry point {_name(point)} must offer batteries of the family {FAMILY!r}, {battery.name!r} is of {battery.family!r}"
        )
    for other in known:
        shared = {measure.name for measure in other.measures} & {measure.name for measure in battery.measures}
        if battery.name == other.name or shared:
            what = f"the measure {min(shared)!r}" if shared else f"the battery {battery.name!r}"
            raise ConfigError(f"the entry point {_name(point)} offers {what}, a name that the battery {other.name!r} has already")


def _name(point: EntryPoint) -> str:
    package = f" of {point.dist.name}" if point.dist is not None else ""
    return f"{GROUP}: {point.name} = {point.value!r}{package}"

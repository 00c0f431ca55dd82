"""The named batteries."""

from sae.evaluation.batteries.measure import Battery, Measure
from sae.evaluation.batteries.measures.cosines import COHERENCE, NEAREST
from sae.evaluation.batteries.measures.frame import FRAME

ALL = (Battery("atoms", "Atoms", "a dictionary's atoms", (COHERENCE, NEAREST, FRAME)),)
BATTERIES: dict[str, Battery] = {battery.name: battery for battery in ALL}
MEASURES: dict[str, Measure] = {measure.name: measure for battery in ALL for measure in battery.measures}

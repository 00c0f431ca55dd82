"""The named batteries."""

from sae.evaluation.batteries.measure import Battery, Measure
from sae.evaluation.batteries.measures.clouds import ISOTROPY_MEASURE, SPECTRUM
from sae.evaluation.batteries.measures.cosines import COHERENCE, NEAREST
from sae.evaluation.batteries.measures.frame import FRAME
from sae.evaluation.batteries.measures.layers import LAYERS
from sae.evaluation.batteries.measures.pair_codes import ACTIVATION_MATCHING, UNIVERSALITY
from sae.evaluation.batteries.measures.pairs import MATCHING, SPLITTING

ALL = (
    Battery("atoms", "Atoms", "a dictionary's atoms", (COHERENCE, NEAREST, FRAME)),
    Battery("activations", "Activations", "activations, site by site", (SPECTRUM, ISOTROPY_MEASURE)),
    Battery("layers", "Layers", "the sites of a store beside each other", (LAYERS,)),
    Battery(
        "pair",
        "Two dictionaries",
        "two dictionaries, by their atoms and by their codes",
        (MATCHING, SPLITTING, ACTIVATION_MATCHING, UNIVERSALITY),
    ),
)
BATTERIES: dict[str, Battery] = {battery.name: battery for battery in ALL}
MEASURES: dict[str, Measure] = {measure.name: measure for battery in ALL for measure in battery.measures}

"""The named batteries."""

from sae.evaluation.batteries.measure import Battery, Measure
from sae.evaluation.batteries.measures.clouds import ISOTROPY_MEASURE, SPARSENESS, SPECTRUM
from sae.evaluation.batteries.measures.clusters import CLUSTERS, MULTIDIMENSIONAL
from sae.evaluation.batteries.measures.codes import CODE_SPARSENESS, DENSITY, NEEDED, TOGETHER
from sae.evaluation.batteries.measures.convergence import CONVERGENT
from sae.evaluation.batteries.measures.cooccurrence import COACTIVATION, LOBES
from sae.evaluation.batteries.measures.cosines import COHERENCE, NEAREST
from sae.evaluation.batteries.measures.crystal import CRYSTALS
from sae.evaluation.batteries.measures.dimensions import DIMENSION
from sae.evaluation.batteries.measures.family import FAMILIES
from sae.evaluation.batteries.measures.frame import FRAME
from sae.evaluation.batteries.measures.galaxies import CLUSTERING
from sae.evaluation.batteries.measures.layers import LAYERS
from sae.evaluation.batteries.measures.pair_codes import ACTIVATION_MATCHING, UNIVERSALITY
from sae.evaluation.batteries.measures.pairs import MATCHING, SPLITTING
from sae.evaluation.batteries.measures.quality import LAYER_QUALITY
from sae.evaluation.batteries.measures.sparsity import ACTIVATION_SPARSITY
from sae.evaluation.batteries.measures.stitches import STITCHING

ALL = (
    Battery("atoms", "Atoms", "a dictionary's atoms", (COHERENCE, NEAREST, FRAME, CLUSTERING, CLUSTERS, CRYSTALS)),
    Battery(
        "codes",
        "Codes",
        "a dictionary's codes on a store",
        (DENSITY, CODE_SPARSENESS, NEEDED, TOGETHER, COACTIVATION, FAMILIES, LOBES, MULTIDIMENSIONAL),
    ),
    Battery("activations", "Activations", "activations, site by site", (SPECTRUM, ISOTROPY_MEASURE, SPARSENESS, DIMENSION)),
    Battery("layers", "Layers", "the sites of a store beside each other", (LAYERS,)),
    Battery(
        "pair",
        "Two dictionaries",
        "two dictionaries, by their atoms and by their codes",
        (MATCHING, SPLITTING, ACTIVATION_MATCHING, UNIVERSALITY, CONVERGENT, STITCHING),
    ),
    Battery("layer_quality", "Layers of a model", "every layer of a language model on prompts", (LAYER_QUALITY,)),
    Battery("sparsity", "Sparsity of a model", "neurons of a language model's MLPs on prompts", (ACTIVATION_SPARSITY,)),
)
BATTERIES: dict[str, Battery] = {battery.name: battery for battery in ALL}
MEASURES: dict[str, Measure] = {measure.name: measure for battery in ALL for measure in battery.measures}

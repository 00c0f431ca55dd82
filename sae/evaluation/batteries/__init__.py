"""Batteries: named sets of geometry measures on a dictionary, a store, a pair of dictionaries or a language model.

Every number comes with its null and with what it means, every result is kept in the result cache, and which numbers stand out is decided for
all of them together. `sae.geometry` is the mathematics; this is the part that reads stores and dictionaries.
"""

from sae.evaluation.batteries.findings import RATE, Finding, Number, Quantity, judged, largest_rejected
from sae.evaluation.batteries.inputs import CodeSample, Inputs, Truth
from sae.evaluation.batteries.measure import Battery, Measure, Outcome
from sae.evaluation.batteries.registry import BATTERIES, MEASURES
from sae.evaluation.batteries.run import Done, Group, Results, Task, gather, perform, plan, suited

__all__ = [
    "BATTERIES",
    "MEASURES",
    "RATE",
    "Battery",
    "CodeSample",
    "Done",
    "Finding",
    "Group",
    "Inputs",
    "Measure",
    "Number",
    "Outcome",
    "Quantity",
    "Results",
    "Task",
    "Truth",
    "gather",
    "judged",
    "largest_rejected",
    "perform",
    "plan",
    "suited",
]

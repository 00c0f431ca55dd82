"""Measures of evaluation that are cheap, count their runs, and whose numbers are known."""

import dataclasses

from sae.evaluation.batteries import Battery, Measure, Number, Outcome, Quantity


@dataclasses.dataclass(frozen=True, kw_only=True)
class CountedConfig:
    """Settings of the counted measures."""

    n_tokens: int = 100
    """Tokens."""


FORMULAS = {"FVU": "sum |a - a_hat|^2 / sum |a - mean|^2", "L0": "mean number of active latents"}


def counted_measure(name, calls, numbers, *, needs=("dictionary", "store"), title=""):
    """A measure that notes its runs in `calls`; `numbers(inputs)` are dicts of a Number."""

    def compute(inputs, config):
        calls.append((name, inputs.name("dictionary"), config.n_tokens))
        return Outcome(tuple(Number(**each) for each in numbers(inputs)), notes=(f"{config.n_tokens} tokens",))

    names = ("FVU", "L0", "other", "CE increase")
    quantities = tuple(Quantity(n, f"What {n} means.", "here", formula=FORMULAS.get(n, "")) for n in names)
    return Measure(name, title or f"Title of {name}", "Text.", needs, quantities, compute, CountedConfig(), CountedConfig(n_tokens=10))


def share(inputs):
    """FVU and L0 of a dictionary, by its size: known, with intervals."""
    d_sae = inputs.dictionary.d_sae
    fvu = 8.0 / d_sae
    return [{"quantity": "FVU", "value": fvu, "low": fvu * 0.88, "high": fvu * 1.12}, {"quantity": "L0", "value": d_sae / 8}]


def of_site(inputs):
    """The layer of the site."""
    return [{"quantity": "other", "value": float(inputs.site.split(".")[1])}]


def counted_batteries(calls):
    """Batteries of the names that `sae evaluate` knows, by what they need."""
    length = [{"quantity": "other", "value": 3.5, "note": "10 tokens"}]
    increase = [{"quantity": "CE increase", "value": 0.25}]
    several = [{"quantity": "other", "value": 0.5, "subject": "a"}, {"quantity": "other", "value": None, "subject": "b"}]
    measures = {
        "fidelity": counted_measure("reconstruction", calls, share),
        "lengths": counted_measure("description", calls, lambda inputs: length),
        "effects": counted_measure("downstream", calls, lambda inputs: increase, needs=("dictionary", "store", "model")),
        "attributes": counted_measure("disentanglement", calls, of_site, needs=("dictionary", "model")),
        "seeds": counted_measure("stability", calls, lambda inputs: several, needs=("dictionary", "other")),
    }
    return {name: Battery(name, name.capitalize(), name, (measure,), family="evaluation") for name, measure in measures.items()}

"""What was measured, as names and values: for the head of a page, and for its JSON."""

from collections.abc import Sequence

from sae.dictionaries.base import Dictionary
from sae.evaluation.batteries.inputs import Inputs


def facts_of(inputs: Inputs) -> dict[str, str]:
    """What was measured, as names and values."""
    facts = {}
    for key, dictionary in (("dictionary", inputs.dictionary), ("other", inputs.other)):
        if dictionary is not None:
            title = "Dictionary" if key == "dictionary" else "Compared with"
            facts[title] = f"{inputs.name(key)}: {_sizes(dictionary)}; digest {dictionary.digest[:12]}"
    if inputs.store is not None:
        facts["Store"] = f"{inputs.name('store')}: {inputs.store.n_tokens:,} tokens; digest {inputs.store.digest[:12]}"
        facts["Site" if inputs.site else "Sites"] = inputs.site or _sites_text(inputs.sites)
    elif inputs.site:
        facts["Site"] = inputs.site
    if inputs.model is not None:
        facts["Model"] = f"{inputs.name('model')}; digest {inputs.model.digest[:12]}"
    if inputs.prompts:
        facts["Prompts"] = f"{len(inputs.prompts):,}"
    return facts


def kind_of(dictionary: Dictionary) -> str:
    """Its class, with the kind of its activation where it has one."""
    activation = getattr(dictionary.config, "activation", None)
    named = type(dictionary).__name__
    return named if activation is None else f"{named} ({type(activation).__name__})"


def _sizes(dictionary: Dictionary) -> str:
    return f"{kind_of(dictionary)}, {dictionary.d_sae:,} atoms of width {dictionary.W_dec.shape[1]}"


def _sites_text(sites: Sequence[str]) -> str:
    return ", ".join(sites) if len(sites) <= 3 else f"{sites[0]} … {sites[-1]} ({len(sites)})"

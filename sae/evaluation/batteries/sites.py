"""Names of sites, short, a choice of them, and the one that dictionaries read."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from sae.activations.store import ActivationStore
from sae.dictionaries.base import Dictionary
from sae.errors import ConfigError


def short_sites(names: Sequence[str]) -> list[str]:
    """The names of sites without the parts that all of them share: layers where they are one kind of site."""
    parts = [name.split(".") for name in names]
    if len(names) < 2 or len({len(part) for part in parts}) > 1:
        return list(names)
    varying = [j for j in range(len(parts[0])) if len({part[j] for part in parts}) > 1]
    return [".".join(part[j] for j in varying) or name for part, name in zip(parts, names, strict=True)]


def evenly(names: Sequence[str], n: int) -> tuple[str, ...]:
    """At most `n` of the names, evenly spaced, the first and the last among them."""
    if len(names) <= n:
        return tuple(names)
    return tuple(names[round(i * (len(names) - 1) / (n - 1))] for i in range(n))


def matching_sites(store: ActivationStore, patterns: Sequence[str]) -> tuple[str, ...]:
    """The sites of the store that match any of the patterns; all of them for no pattern. Raises ConfigError where none does."""
    found = tuple(name for name in store.site_names if not patterns or any(fnmatchcase(name, pattern) for pattern in patterns))
    if not found:
        raise ConfigError(f"--site must match a site of the store ({', '.join(store.site_names)}), got {', '.join(patterns)}")
    return found


def site_of(dictionaries: Sequence[Dictionary], store: ActivationStore, patterns: Sequence[str] = ()) -> str:
    """The site of the store that the dictionaries read: the one that is asked for, the one that they were trained on, or its only one.

    Raises ConfigError where that leaves none or several.
    """
    sites = matching_sites(store, patterns)
    trained = {str(d.provenance["site"]) for d in dictionaries if d.provenance.get("site")}
    candidates = [name for name in sites if name in trained] if len(sites) > 1 else list(sites)
    if len(candidates) == 1:
        return candidates[0]
    fitting = [name for name in sites if store.site(name).width == dictionaries[0].d_in]
    said = f"trained on {', '.join(sorted(trained))}" if trained else "the dictionary does not say where it was trained"
    asked = f"got {', '.join(patterns)}" if patterns else "none was given"
    raise ConfigError(f"--site must name one site of the store, {asked} ({said}); of its width there are {', '.join(fitting) or 'none'}")

"""Names of sites, short, and a choice of them."""

from collections.abc import Sequence


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

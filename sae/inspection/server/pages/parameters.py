"""What the query of an address says, checked: a wrong value is refused with its name, never bent into a right one."""

import math
import re
from collections.abc import Sequence

from starlette.datastructures import QueryParams

from sae.inspection.server.context import Source
from sae.inspection.server.failures import NotFound, Refused

INTEGER = re.compile(r"[0-9]{1,12}")


class Parameters:
    """The query of a request. An absent or empty parameter takes its default."""

    def __init__(self, query: QueryParams) -> None:
        self.query = query

    def choice(self, name: str, allowed: Sequence[str], default: str) -> str:
        """One of `allowed`."""
        value = self.query.get(name) or default
        if value not in allowed:
            raise Refused(f"{name} must be one of {', '.join(a for a in allowed if a)}, got {value[:60]!r}", field=name)
        return value

    def integer(self, name: str, default: int, low: int, high: int) -> int:
        """An integer in low..high."""
        text = self.query.get(name)
        if not text:
            return default
        if not INTEGER.fullmatch(text) or not low <= int(text) <= high:
            raise Refused(f"{name} must be an integer in {low}..{high}, got {text[:60]!r}", field=name)
        return int(text)

    def number(self, name: str) -> float | None:
        """A finite number, or None where there is none."""
        text = self.query.get(name)
        if not text:
            return None
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or "_" in text:
            raise Refused(f"{name} must be a number, got {text[:60]!r}", field=name)
        return value

    def text(self, name: str, longest: int) -> str:
        """Text of at most `longest` characters; empty where there is none."""
        value = self.query.get(name, "")
        if len(value) > longest:
            raise Refused(f"{name} must have at most {longest} characters, got {len(value)}", field=name)
        if "\x00" in value:
            raise Refused(f"{name} must not hold the character 0", field=name)
        return value

    def latents(self, name: str, source: Source, most: int) -> list[int]:
        """Latent ids, each once, from as many parameters of this name; commas and spaces part several in one."""
        words = [word for value in self.query.getlist(name) for word in re.split(r"[,\s]+", value.strip()) if word]
        found = list(dict.fromkeys(latent_of(source, word.removeprefix("#")) for word in words))
        if len(found) > most:
            raise Refused(f"{name} may name at most {most} features, got {len(found)}", field=name)
        return found


def latent_of(source: Source, text: str) -> int:
    """The latent that an address names. Raises Refused unless it is a plain decimal integer, NotFound beyond the dictionary."""
    if not INTEGER.fullmatch(text) and not (text.isascii() and text.isdigit()):
        raise Refused(f"a feature is named by a plain integer, got {text[:60]!r}", field="index")
    if len(text) > 12 or int(text) >= source.index.d_sae:
        raise NotFound(f"{source.name} has features 0..{source.index.d_sae - 1}, not {text[:30]}", field="index")
    return int(text)

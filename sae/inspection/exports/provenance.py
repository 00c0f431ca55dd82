"""Where the passages of an index come from: the model, the data set, its revision and its licence.

Passages are quoted from somebody's texts, so every export says whose they are. The index itself is named by digests; the words are kept
beside it, in `provenance.json`, which `sae index` writes from what the activation store says.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Protocol, runtime_checkable

from sae.errors import ConfigError, FormatError
from sae.fingerprint import from_json, to_json
from sae.storage import read_json, write_json

PROVENANCE = "provenance.json"
NOT_RECORDED = "not recorded"


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Whose texts an index quotes, and which model read them; empty where it is not known."""

    model: str = ""
    """Name of the language model."""
    dataset: str = ""
    """Name of the data set, or of the corpus."""
    revision: str = ""
    """Revision of the data set: a commit, a version, or the SHA-256 of the corpus."""
    licence: str = ""
    """Licence of its texts, in words."""

    def lines(self) -> list[str]:
        """It as lines for people; what is not known is said to be so."""
        return [f"{field.name}: {getattr(self, field.name) or NOT_RECORDED}" for field in fields(self)]


@runtime_checkable
class HasFolder(Protocol):
    """What lies in a folder, such as `sae.inspection.FeatureIndex`."""

    @property
    def folder(self) -> Path:
        """The folder."""
        ...


def provenance_of(index: HasFolder) -> Provenance:
    """What is recorded beside an index; all empty where nothing is. Raises FormatError for a damaged record."""
    file = Path(index.folder) / PROVENANCE
    if not file.is_file():
        return Provenance()
    try:
        return from_json(Provenance, read_json(file))
    except ConfigError as error:
        raise FormatError(f"{file} is damaged: {error}") from error


def record_provenance(folder: str | Path, provenance: Provenance) -> None:
    """Write `provenance.json` into the folder of an index, over an older one."""
    write_json(Path(folder) / PROVENANCE, to_json(provenance))

"""Loading what encodes texts: a language model, and the dictionaries and stores of indexes. The part of `sae serve` that needs torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from sae.activations.store import ActivationStore
from sae.cli.machine import compute_device, load_model
from sae.dictionaries.base import Dictionary
from sae.dictionaries.checkpoint import load_dictionary
from sae.errors import ConfigError
from sae.inspection.encoded import recorded_framing
from sae.inspection.index import FeatureIndex
from sae.inspection.live import Live, framing_of


def load_live(indexes: Mapping[str, FeatureIndex], model: str, dictionaries: Sequence[Path], stores: Sequence[Path]) -> dict[str, Live]:
    """What encodes texts for each index whose dictionary is among the folders, by the index's name.

    Texts are framed, masked and rounded as those of the index's store: the one that is given, or what `sae index` recorded of it; as in a
    store made by default where neither is there. Raises ConfigError for a folder that belongs to no index, and for an index that was made
    with another language model.
    """
    if not dictionaries:
        raise ConfigError("--dictionary must name the dictionary of an index to encode texts with")
    device = compute_device(None)
    loaded = {folder: _dictionary(folder) for folder in dictionaries}
    opened = {folder: ActivationStore.open(folder) for folder in stores}
    _all_used(
        "--dictionary", {folder: d.digest for folder, d in loaded.items()}, {i.manifest.source.dictionary_digest for i in indexes.values()}
    )
    _all_used("--store", {folder: s.digest for folder, s in opened.items()}, {i.manifest.source.store_digest for i in indexes.values()})
    stored = next((s.manifest for s in opened.values()), None)
    language_model = load_model(model, stored=stored, dtype=None, device=device)
    found = {}
    for name, index in indexes.items():
        about = index.manifest.source
        dictionary = next((d for d in loaded.values() if d.digest == about.dictionary_digest), None)
        store = next((s for s in opened.values() if s.digest == about.store_digest), None)
        made_with = index.manifest.key.get("model")
        if dictionary is None:
            continue
        if made_with and made_with != language_model.digest:
            raise ConfigError(f"--model {model} is not the language model that {index.folder} was made with: its weights are others")
        framing = recorded_framing(index.folder) if store is None else framing_of(store, about.site)
        found[name] = Live(language_model, dictionary.to(device), about.site, framing=framing)
    return found


def _dictionary(path: Path) -> Dictionary:
    for folder in (path.expanduser(), path.expanduser() / "dictionary"):
        if (folder / "config.json").is_file():
            return load_dictionary(folder).eval()
    raise ConfigError(f"--dictionary must be the folder of a dictionary or of a run, {path} is none")


def _all_used(option: str, digests: Mapping[Path, str], known: set[str]) -> None:
    for folder, digest in digests.items():
        if digest not in known:
            raise ConfigError(f"{option} {folder} belongs to none of the indexes")

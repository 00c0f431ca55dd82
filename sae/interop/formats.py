"""The formats, by name: which one a path holds, reading it, writing it.

    identify("layer_12/average_l0_82/params.npz")       "gemma_scope"
    dictionary = read("some/folder")                    whatever it is
    write(dictionary, "for/others", "saelens")

A format is recognised by the names of its files, by keys of its configuration and by names of its tensors; no weights are read for that, and
nothing is concluded from the name of a folder.
"""

import importlib
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from types import ModuleType

from sae.dictionaries.base import Dictionary
from sae.dictionaries.checkpoint import load_dictionary, save_dictionary
from sae.errors import ConfigError, FormatError
from sae.interop.files import names_in, read_json

WEIGHTS = (".safetensors", ".npz", ".pt", ".pth")
MAX_LISTED = 2_000
"""Files of a folder that are looked at."""


@dataclass(frozen=True)
class Format:
    """One format: how it is recognised, read and written."""

    name: str
    """What it is called in arguments."""
    title: str
    """What it is called in sentences."""
    about: str
    """Which dictionaries it holds, and in which files."""
    layouts: tuple[tuple[str, ...], ...]
    """The files that must be there, as patterns; any one of these sets is enough."""
    extras: tuple[str, ...] = ()
    """Files that may be there besides."""
    file: str = ""
    """The file's name, where the format is a single file and not a folder."""
    marks: Callable[[Set[str], Set[str]], bool] = field(default=lambda keys, names: True, repr=False)
    """Whether keys of the configuration and names of tensors are this format's, where the files' names do not settle it."""

    def read(self, path: str | Path) -> Dictionary:
        """The dictionary at `path`. Raises FormatError saying what is wrong with it."""
        path = Path(path)
        path = _single(path, self) if self.file and path.is_dir() else path
        try:
            return (_read_own(path) if self.name == OWN else self._module().read(path)).eval()
        except ConfigError as error:
            raise FormatError(f"{path} does not hold a dictionary of the format {self.name}: {error}") from error

    def write(self, dictionary: Dictionary, path: str | Path) -> None:
        """Write the dictionary at `path`. Raises ConfigError saying what the format cannot hold."""
        path = Path(path)
        if self.name == OWN:
            save_dictionary(dictionary, path)
        else:
            self._module().write(dictionary, path / self.file if self.file and path.suffix not in WEIGHTS else path)

    def _module(self) -> ModuleType:
        return importlib.import_module(f"sae.interop.{self.name}")


OWN = "sae"
"""The name of the workbench's own format."""
_OPENAI = {"pre_bias", "latent_bias"}
_LEARNED = (
    {"encoder.weight", "encoder.bias", "decoder.weight"},
    {"encoder.weight", "r_mag", "gate_bias", "mag_bias"},
    {"W_enc", "b_enc", "W_dec", "b_dec"},
    {"ae", "step"},
)  # fmt: skip
_ELSEWHERE = (
    "sae_weights.safetensors",
    "sae_weights.pt",
    "checkpoints/pruned.safetensors",
    "checkpoints/pruned.pt",
    "checkpoints/final.pt",
)
"""Where OpenMOSS's libraries look for weights besides."""
FORMATS: dict[str, Format] = {
    format.name: format
    for format in (
        Format(
            OWN, "SAE workbench", "every dictionary of the workbench: config.json, weights.safetensors, provenance.json",
            (("config.json", "weights.safetensors", "provenance.json"),),
            marks=lambda keys, names: {"kind", "digest"} <= keys,
        ),
        Format(
            "saelens", "SAELens", "cfg.json and sae_weights.safetensors of SAELens 6, and of versions before",
            (("cfg.json", "sae_weights.safetensors"),),
            ("activation_scaler.json", "activation_whitening.safetensors", "sparsity.safetensors", "runner_cfg.json"),
        ),
        Format(
            "gemma_scope", "Gemma Scope", "JumpReLU autoencoders and transcoders: params.npz, or config.json and params.safetensors",
            (("*.npz",), ("params.safetensors",), ("params_layer_*.safetensors",)), ("config.json",),
        ),
        Format(
            "sparsify", "sparsify", "TopK autoencoders and transcoders: cfg.json and sae.safetensors",
            (("cfg.json", "sae.safetensors"),),
        ),
        Format(
            "dictionary_learning", "dictionary_learning", "every architecture of the library: ae.pt and config.json",
            (("ae.pt",), ("*.pt",), ("*.pth",)), ("config.json",),
            marks=lambda keys, names: "sae_type" not in keys and any(names >= marks for marks in _LEARNED),
        ),
        Format(
            "openai_topk", "OpenAI's TopK release", "TopK and ReLU autoencoders of GPT-2 small: one .pt file",
            (("*.pt",),), file="autoencoder.pt", marks=lambda keys, names: names >= _OPENAI,
        ),
        Format(
            "llama_scope", "Llama Scope", "hyperparams.json and checkpoints/final.safetensors",
            tuple(("hyperparams.json", name) for name in ("checkpoints/final.safetensors", *_ELSEWHERE)), ("lm_config.json",),
        ),
        Format(
            "llamascopium", "llamascopium", "config.json and sae_weights.safetensors, successor of Llama Scope's library",
            tuple(("config.json", name) for name in (*_ELSEWHERE, "checkpoints/final.safetensors")),
            marks=lambda keys, names: bool(keys & {"sae_type", "act_fn", "hook_point_in"}),
        ),
    )
}  # fmt: skip
"""Every format, by name."""


def read(path: str | Path, format: str | None = None) -> Dictionary:
    """The dictionary at `path`, of the format that it is found to have unless one is given. Raises FormatError saying what is wrong with it."""
    return named(format or identify(path)).read(path)


def write(dictionary: Dictionary, path: str | Path, format: str) -> None:
    """Write a dictionary in a format. Raises ConfigError saying what the format cannot hold."""
    named(format).write(dictionary, path)


def named(format: str) -> Format:
    """The format of this name. Raises ConfigError listing those that there are."""
    if format not in FORMATS:
        raise ConfigError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    return FORMATS[format]


def identify(path: str | Path) -> str:
    """The name of the format of what is at `path`, a folder or a file of weights. Raises FormatError saying what was seen and what is known."""
    path = _home(Path(path))
    files = _files(path)
    folder = path if path.is_dir() else path.parent
    found = [name for name, chosen in fitting(files).items() if _inside(FORMATS[name], folder, chosen)]
    if len(found) == 1:
        return found[0]
    if found:
        raise FormatError(f"{path} could be {' or '.join(found)}: say which (format=); there are {_shown(files)}")
    known = "; ".join(f"{format.name} ({' or '.join(' + '.join(layout) for layout in format.layouts)})" for format in FORMATS.values())
    raise FormatError(f"{path} is of no format that is known; there are {_shown(files)}; known are {known}{_advice(path, files)}")


def fitting(files: Sequence[str]) -> dict[str, list[str]]:
    """By name of each format whose files are all among `files` (the names in a folder): those that are its own."""
    found = {}
    for format in FORMATS.values():
        for layout in format.layouts:
            if all(_matching(files, pattern) for pattern in layout):
                own = {name for pattern in (*layout, *format.extras) for name in _matching(files, pattern)}
                found[format.name] = sorted(own)
                break
    return found


def files_of(path: str | Path, format: str) -> tuple[Path, list[str]]:
    """(folder, names from there) of the files that are the format's own in what is at `path`."""
    path = _home(Path(path))
    if path.is_dir():
        return path, fitting(_files(path)).get(format, [])
    others = [name for name in _files(path.parent) if not name.endswith(WEIGHTS)]
    return path.parent, fitting([path.name, *others]).get(format, [])


def _home(path: Path) -> Path:
    """The path, or the dictionary's folder where it is that of a training run."""
    if not path.exists():
        raise FormatError(f"{path} does not exist")
    return path / "dictionary" if (path / "dictionary" / "config.json").is_file() else path


def _matching(files: Sequence[str], pattern: str) -> list[str]:
    return [name for name in files if fnmatchcase(name, pattern) and name.count("/") == pattern.count("/")]


def _files(path: Path) -> list[str]:
    """Names of the files in a folder and in the folders right in it, or of the one file."""
    if not path.is_dir():
        return [path.name]
    try:
        entries = sorted(path.iterdir())[:MAX_LISTED]
        inner = [
            item for entry in entries if entry.name == "checkpoints" and entry.is_dir() for item in sorted(entry.iterdir())[:MAX_LISTED]
        ]
        return [item.relative_to(path).as_posix() for item in [*entries, *inner] if item.is_file()]
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error}") from error


def _inside(format: Format, folder: Path, files: Sequence[str]) -> bool:
    """Whether what is written in the files is the format's."""
    keys: set[str] = set()
    names: set[str] = set()
    for name in files:
        if name in ("cfg.json", "config.json"):
            keys |= read_json(folder / name).keys()
        elif name.endswith(WEIGHTS):
            names.update(names_in(folder / name))
    return format.marks(keys, names)


def _single(folder: Path, format: Format) -> Path:
    """The one file in a folder that holds the format."""
    files = fitting(_files(folder)).get(format.name, [])
    if len(files) != 1:
        raise FormatError(
            f"{folder} must hold one file {format.layouts[0][0]} ({format.name}), it holds {_shown(files)}: give the file itself"
        )
    return folder / files[0]


def _read_own(path: Path) -> Dictionary:
    folder = _home(path)
    for name in ("config.json", "provenance.json"):
        read_json(folder / name)
    return load_dictionary(folder)


def _shown(files: list[str]) -> str:
    return (", ".join(files[:12]) + (f" and {len(files) - 12} more files" if len(files) > 12 else "")) or "no files"


def _advice(path: Path, files: list[str]) -> str:
    if path.is_dir() and not files:
        inner = sorted(entry.name for entry in path.iterdir() if entry.is_dir())
        return f". It holds the folders {', '.join(inner[:8])}{' ...' if len(inner) > 8 else ''}: give one of those" if inner else ""
    if path.suffix == ".safetensors":
        return ". Formats with a configuration beside the weights are given as the folder that holds both"
    return ""

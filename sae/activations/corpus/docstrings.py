"""Docstrings of installed packages as a corpus: technical English of a clear licence, with nothing to fetch."""

import ast
import importlib.util
import itertools
import random
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from sae.activations.corpus.documents import Corpus, from_texts, lone_surrogate
from sae.errors import ConfigError


def installed_docstrings(
    packages: Sequence[str] = ("numpy", "scipy", "sklearn", "torch"),
    *,
    max_documents: int | None = None,
    min_characters: int = 200,
    seed: int = 0,
) -> Corpus:
    """Docstrings of installed packages, in a seeded order, each once, with the label `package`. Nothing is imported: the files are parsed.

    Files are visited in a seeded order and one docstring of each package is taken in turn, up to `max_documents` (None: all; that
    takes half a minute). Docstrings under `min_characters`, or that UTF-8 cannot write, are left out, and so are files that do not parse. The
    texts are those of the installed versions, and the digest covers them. Raises ConfigError for a package that is not installed.
    """
    generator = random.Random(seed)
    streams = [_package_docstrings(package, min_characters, generator) for package in packages]
    found: dict[str, str] = {}
    for pair in itertools.islice(_in_turn(streams), max_documents):
        found.setdefault(*pair)
    texts = list(found)
    generator.shuffle(texts)
    labels = [{"package": found[text]} for text in texts]
    return from_texts(texts, labels, name="installed_docstrings", licence="those of the packages: " + ", ".join(packages))


def _package_files(package: str) -> list[Path]:
    if not package.isidentifier():
        raise ConfigError(f"packages must be top-level package names, got {package!r} (installed_docstrings)")
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise ConfigError(f"packages must be installed, {package!r} is not (installed_docstrings)")
    if spec.submodule_search_locations:
        return sorted(path for root in spec.submodule_search_locations for path in Path(root).rglob("*.py"))
    return [Path(spec.origin)] if spec.origin and spec.origin.endswith(".py") else []


def _package_docstrings(package: str, min_characters: int, generator: random.Random) -> Iterator[tuple[str, str]]:
    """(text, package) of every distinct docstring that is long enough."""
    files, seen = _package_files(package), set()
    generator.shuffle(files)
    for path in files:
        for text in _docstrings(path):
            if len(text) >= min_characters and text not in seen and lone_surrogate(text) is None:
                seen.add(text)
                yield text, package


def _in_turn(streams: Sequence[Iterator[tuple[str, str]]]) -> Iterator[tuple[str, str]]:
    remaining = list(streams)
    while remaining:
        for stream in list(remaining):
            item = next(stream, None)
            if item is None:
                remaining.remove(stream)
            else:
                yield item


def _docstrings(path: Path) -> Iterator[str]:
    """Docstrings of a Python file, in the order of the file; none if it does not parse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's files
            module = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(module):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text:
                yield text

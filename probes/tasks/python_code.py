"""Python's own sources as data with exact labels: kinds of tokens, prose versus code, and which package a docstring is from.

    files of a package --ast, tokenize--> pieces: statements, docstrings, lexical tokens, each with its place

The tokens are those of the standard library's `tokenize`, so the labels are right by construction; the texts are excerpts of whole lines. The
files are those of this interpreter and of the installed packages: other versions give other texts, and another digest.
"""

import ast
import importlib.util
import io
import itertools
import keyword
import random
import sys
import sysconfig
import textwrap
import tokenize
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from probes.tasks.task import Task, numbered
from sae.errors import ConfigError

TOKEN_KINDS = ("name", "keyword", "number", "string", "comment", "operator")
LIBRARY_LICENCE = "PSF-2.0 (Python standard library)"
SKIPPED = ("test", "tests", "encodings", "pydoc_data", "idlelib", "lib2to3", "site-packages", "dist-packages", "__pycache__", "ensurepip")


class LexicalToken(NamedTuple):
    """One token of Python source."""

    kind: str
    """One of TOKEN_KINDS."""
    begin: int
    """Number of its first character in the source."""
    end: int
    """Number of the character after its last."""


def lexical_tokens(source: str) -> list[LexicalToken]:
    """The tokens of Python source of the kinds that `token_kinds` asks about, by `tokenize`, in order.

    Keywords are the reserved words, not those that are names elsewhere (match, type). Formatted strings are left out: since Python 3.12 they
    are cut into parts, before they were one string. Raises ConfigError for source that does not tokenise.
    """
    lines = [0, *(i + 1 for i, character in enumerate(source) if character == "\n")]  # as readline cuts them
    found, inside = [], 0
    try:
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            name = tokenize.tok_name[token.type]
            inside += name.endswith("STRING_START") - name.endswith("STRING_END")
            kind = None if inside or name.endswith("STRING_END") else _kind(token)
            if kind:
                begin, end = (lines[row - 1] + column for row, column in (token.start, token.end))
                found.append(LexicalToken(kind, begin, end))
    except (tokenize.TokenError, SyntaxError) as error:
        raise ConfigError(f"source must be Python that tokenises: {error} (lexical_tokens)") from error
    return found


def _kind(token: tokenize.TokenInfo) -> str | None:
    if token.type == tokenize.NAME:
        return "keyword" if keyword.iskeyword(token.string) else "name"
    if token.type == tokenize.STRING:
        prefix = token.string[: min(token.string.index(quote) for quote in "'\"" if quote in token.string)]
        return None if "f" in prefix.lower() else "string"
    return {tokenize.NUMBER: "number", tokenize.COMMENT: "comment", tokenize.OP: "operator"}.get(token.type)


def library_files(package: str | None = None) -> list[Path]:
    """Python files of an installed package, or of the standard library (None), sorted; tests and tables of characters are left out. Nothing is imported.

    Raises ConfigError for a package that is not installed, or that has no Python files.
    """
    if package is None:
        roots = [Path(sysconfig.get_paths()["stdlib"])]
    else:
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
        if spec is None:
            raise ConfigError(f"packages must be installed top-level packages, {package!r} is not one (library_files)")
        roots = [Path(root) for root in spec.submodule_search_locations or ()]
    found = sorted(path for root in roots for path in root.rglob("*.py") if not set(path.relative_to(root).parts) & set(SKIPPED))
    if not found:
        raise ConfigError(f"{package or 'the standard library'} has no Python source files here (library_files)")
    return found


def _source(path: Path) -> tuple[str, ast.Module] | None:
    """Text and syntax tree of a file; None if it is no Python in UTF-8, or has line ends that `ast` and `tokenize` count differently."""
    try:
        text = path.read_text(encoding="utf-8")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's files
            tree = ast.parse(text)
    except (OSError, SyntaxError, ValueError):
        return None
    return None if "\r" in text or text[:1] == "\ufeff" else (text, tree)


def _shuffled(files: Sequence[Path], seed: int) -> Iterator[tuple[int, str, ast.Module]]:
    """(number, text, tree) of the files that parse, in a seeded order."""
    order = list(files)
    random.Random(seed).shuffle(order)
    for number, path in enumerate(order):
        found = _source(path)
        if found is not None:
            yield number, *found


def token_kinds(
    files: Sequence[Path] | None = None, *, n_excerpts: int = 600, n_lines: int = 16, n_per_file: int = 4, seed: int = 0
) -> Task:
    """What kind of Python token some characters are: name, keyword, number, string, comment or operator. A row is one token of the source.

    The texts are excerpts of `n_lines` whole lines, at most `n_per_file` of a file, from `files` (None: the standard library) in a seeded
    order; a token that goes over the edge of its excerpt is left out. Groups are files.
    Raises ConfigError when a kind has too few tokens.
    """
    texts, spans, labels, groups = [], [], [], []
    for number, source, _ in _shuffled(library_files() if files is None else files, seed):
        try:
            tokens = lexical_tokens(source)
        except ConfigError:
            continue  # ast parses more than tokenize
        for begin, end in _excerpts(source, n_lines, n_per_file, random.Random(f"{seed} {number}")):
            if len(texts) == n_excerpts:
                break
            inside = [token for token in tokens if begin <= token.begin and token.end <= end]
            spans += [(len(texts), token.begin - begin, token.end - begin) for token in inside]
            labels += [TOKEN_KINDS.index(token.kind) for token in inside]
            groups += [number] * len(inside)
            texts.append(source[begin:end])
        if len(texts) == n_excerpts:
            break
    return Task(
        "token_kinds",
        "token",
        tuple(texts),
        np.array(labels, dtype=np.int64),
        np.array(groups, dtype=np.int64),
        TOKEN_KINDS,
        _python_source("sources of the standard library" if files is None else f"{len(files)} Python files"),
        LIBRARY_LICENCE if files is None else "that of the files",
        spans=np.array(spans, dtype=np.int64).reshape(-1, 3),
    )


def _excerpts(source: str, n_lines: int, n_per_file: int, generator: random.Random) -> list[tuple[int, int]]:
    """First and last character of non-overlapping runs of `n_lines` lines that are not blank throughout."""
    ends = [i + 1 for i, character in enumerate(source) if character == "\n"]
    bounds = [(0 if i == 0 else ends[i - 1], ends[i + n_lines - 1]) for i in range(0, len(ends) - n_lines + 1, n_lines)]
    bounds = [(begin, end - 1) for begin, end in bounds if source[begin:end].strip()]
    return sorted(generator.sample(bounds, min(n_per_file, len(bounds))))


def prose_or_code(files: Sequence[Path] | None = None, *, n_texts: int = 1200, n_per_file: int = 4, seed: int = 0) -> Task:
    """Whether a text is code (Python statements, without comments and docstrings) or prose (a paragraph of a docstring).

    Both are cut from the same `files` (None: the standard library), with 80 to 600 characters; each file gives at most `n_per_file` of
    each, and as many of one as of the other. Groups are files. Prose about code has code words in it; examples, tables and signatures
    (paragraphs that are indented, begin with >>> or have less than two thirds of their characters in plain words) are left out.
    """
    texts, labels, groups = [], [], []
    for number, source, tree in _shuffled(library_files() if files is None else files, seed):
        generator = random.Random(f"{seed} {number}")
        parts = [list(dict.fromkeys(_paragraphs(tree))), list(dict.fromkeys(_statements(tree, source)))]
        n = min(n_per_file, *map(len, parts))
        for label, found in enumerate(parts):
            texts += generator.sample(found, n)
            labels += [label] * n
            groups += [number] * n
        if len(texts) >= n_texts:
            break
    return Task(
        "prose_or_code",
        "text",
        tuple(texts[:n_texts]),
        np.array(labels[:n_texts], dtype=np.int64),
        np.array(groups[:n_texts], dtype=np.int64),
        ("prose", "code"),
        _python_source("docstrings and statements of the standard library" if files is None else f"{len(files)} Python files"),
        LIBRARY_LICENCE if files is None else "that of the files",
    )


def _statements(tree: ast.Module, source: str) -> Iterator[str]:
    """Runs of statements of function bodies without docstring or comments, as `ast` writes them, of 80 to 600 characters."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            text = "\n".join(ast.unparse(statement) for statement in body)
            if 80 <= len(text) <= 600:
                yield text


def _docstrings(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and (text := ast.get_docstring(node)):
            yield text


def _paragraphs(tree: ast.Module) -> Iterator[str]:
    for docstring in _docstrings(tree):
        for paragraph in docstring.split("\n\n"):
            words = sum(len(word) for word in paragraph.split() if word.strip(".,;:()'\"!?").isalpha())
            indented = any(line[:1].isspace() for line in paragraph.split("\n"))
            if 80 <= len(paragraph) <= 600 and not indented and ">>>" not in paragraph and words > 0.67 * len(paragraph):
                yield paragraph


def docstring_package(
    packages: Sequence[str] = ("numpy", "scipy", "sklearn", "torch"), *, n_per_package: int = 400, n_characters: int = 400, seed: int = 0
) -> Task:
    """Which installed package a docstring is from. Groups are files, of which each gives at most 4 docstrings; nothing is imported.

    A docstring is cut to its first `n_characters`; shorter ones than half of that, and those that name their package, are left out.
    Raises ConfigError for a package that is not installed.
    """
    texts, labels, groups = [], [], []
    for label, package in enumerate(packages):
        taken: dict[str, int] = {}
        for number, _, tree in _shuffled(library_files(package), seed):
            whole = (textwrap.dedent(text)[:n_characters] for text in _docstrings(tree))
            long = (text for text in whole if len(text) >= n_characters // 2 and package.lower() not in text.lower() and text not in taken)
            taken.update(dict.fromkeys(itertools.islice(long, 4), number))
            if len(taken) >= n_per_package:
                break
        chosen = list(taken)[:n_per_package]
        texts += chosen
        labels += [label] * len(chosen)
        groups += [(package, taken[text]) for text in chosen]
    return Task(
        "docstring_package",
        "text",
        tuple(texts),
        np.array(labels, dtype=np.int64),
        numbered(groups),
        tuple(packages),
        f"docstrings of the installed {', '.join(packages)}",
        "those of the packages: " + ", ".join(packages),
    )


def _python_source(what: str) -> str:
    return f"{what} (Python {'.'.join(map(str, sys.version_info[:3]))})"

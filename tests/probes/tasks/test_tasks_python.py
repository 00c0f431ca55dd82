import ast
import io
import keyword
import random
import textwrap
import tokenize

import numpy as np
import pytest

from probes.tasks import TOKEN_KINDS, docstring_package, lexical_tokens, prose_or_code, python_code, token_kinds
from sae.errors import ConfigError

SOURCE = '''# café — a comment
import os


def naïve(x, *, y=0x1F):
    """A docstring
    of two lines with "quotes"."""
    if x is not None and y >= 1.5e3:  # 日本語
        return f"left {out}" + r'raw\\n' + b"bytes".decode()
    match = {"é": x, 'b': [1_000, 2j]}
    return match
'''
EXPECTED = {
    "comment": ["# café — a comment", "# 日本語"],
    "keyword": ["import", "def", "if", "is", "not", "None", "and", "return", "return"],
    "name": ["os", "naïve", "x", "y", "x", "y", "decode", "match", "x", "match"],
    "number": ["0x1F", "1.5e3", "1_000", "2j"],
    "string": ['"""A docstring\n    of two lines with "quotes"."""', "r'raw\\n'", 'b"bytes"', '"é"', "'b'"],
}


def test_tokens_of_a_fixture_are_those_written_down():
    found = lexical_tokens(SOURCE)
    for kind, expected in EXPECTED.items():
        assert [SOURCE[token.begin : token.end] for token in found if token.kind == kind] == expected
    assert {SOURCE[t.begin : t.end] for t in found if t.kind == "operator"} == set("(),*=:+.{}[]") | {">="}
    assert not any("left" in SOURCE[token.begin : token.end] for token in found)  # a formatted string is left out


@pytest.fixture(scope="module")
def kinds():
    return token_kinds(n_excerpts=80, seed=3)


def independent(path):
    """(kind, line, column, string) of every token, straight from `tokenize`, by exact types of the reference grammar."""
    names = {tokenize.NUMBER: "number", tokenize.STRING: "string", tokenize.COMMENT: "comment", tokenize.OP: "operator"}
    for token in tokenize.tokenize(io.BytesIO(path.read_bytes()).readline):
        kind = names.get(token.type)
        if token.type == tokenize.NAME:
            kind = "keyword" if token.string in keyword.kwlist else "name"
        if kind and not (kind == "string" and "f" in token.string.lower().split(token.string[-1])[0]):
            yield kind, *token.start, token.string


def test_tokens_of_random_library_files_are_those_of_tokenize():
    files = random.Random(5).sample(python_code.library_files(), 25)
    n = 0
    for path in files:
        source = path.read_text(encoding="utf-8")
        found = []
        for token in lexical_tokens(source):
            before = source[: token.begin]
            line, column = before.count("\n") + 1, len(before) - (before.rfind("\n") + 1)
            found.append((token.kind, line, column, source[token.begin : token.end]))
        assert found == list(independent(path)), path
        n += len(found)
    assert n > 10_000


def test_labelled_spans_are_tokens_of_their_kind(kinds):
    assert kinds.classes == TOKEN_KINDS
    assert min(kinds.counts.values()) >= 20
    for row in random.Random(0).sample(range(len(kinds)), 2000):
        text, kind = kinds.row_text(row), kinds.classes[kinds.y[row]]
        if kind == "keyword":
            assert text in keyword.kwlist
        elif kind == "name":
            assert text.isidentifier()
            assert text not in keyword.kwlist
        elif kind == "number":
            assert isinstance(ast.literal_eval(text), (int, float, complex))
        elif kind == "string":
            assert isinstance(ast.literal_eval(text), (str, bytes))
        elif kind == "comment":
            assert text.startswith("#")
            assert "\n" not in text
        else:
            assert not any(c.isalnum() or c.isspace() for c in text)


def test_excerpts_are_whole_lines_and_do_not_overlap(kinds):
    assert len(set(kinds.texts)) == len(kinds.texts) == 80
    assert all(text.count("\n") == 15 for text in kinds.texts)
    per_file = {group: {int(t) for t in kinds.spans[kinds.groups == group, 0]} for group in np.unique(kinds.groups)}
    assert max(map(len, per_file.values())) <= 4
    assert sum(map(len, per_file.values())) == len({t for texts in per_file.values() for t in texts})


def test_kinds_of_given_files_follow_the_seed(tmp_path):
    for i in range(6):
        lines = "\n".join(f"value_{j} = [{j}, 'text {i}']  # comment {j}\nif value_{j}: pass" for j in range(30))
        (tmp_path / f"m{i}.py").write_text(lines, encoding="utf-8")
    (tmp_path / "broken.py").write_text("def (:\n", encoding="utf-8")
    (tmp_path / "latin.py").write_bytes(b"x = '\xe9'\n" * 40)
    files = sorted(tmp_path.glob("*.py"))
    first, again, other = (token_kinds(files, n_excerpts=10, n_lines=8, n_per_file=2, seed=seed) for seed in (0, 0, 1))
    assert first.digest == again.digest != other.digest
    assert len(set(first.groups.tolist())) >= 5
    assert first.licence == "that of the files"


def test_prose_and_code_are_what_they_are_called():
    task = prose_or_code(n_texts=300)
    assert task.classes == ("prose", "code")
    assert 149 <= task.counts["code"] <= 151
    for text, label in zip(task.texts, task.y, strict=True):
        assert 80 <= len(text) <= 600
        assert "#" not in text or label == 0 or "#" in ast.unparse(ast.parse(textwrap.dedent(f"def f():\n{textwrap.indent(text, '    ')}")))
        parses = True
        try:
            ast.parse(f"async def f():\n  for _ in ():\n{textwrap.indent(text, '    ')}")
        except SyntaxError:
            parses = False
        assert parses == bool(label), text
    for group in np.unique(task.groups)[:-1]:
        labels = task.y[task.groups == group]
        assert (labels == 0).sum() == (labels == 1).sum() <= 4


def test_docstrings_are_of_their_package_and_do_not_name_it():
    packages = ("numpy", "sklearn")
    task = docstring_package(packages, n_per_package=60, n_characters=300)
    assert list(task.counts.values()) == [60, 60]
    assert not any(packages[label] in text.lower() for text, label in zip(task.texts, task.y, strict=True))
    assert all(150 <= len(text) <= 300 for text in task.texts)
    assert all(len(set(task.y[task.groups == group])) == 1 for group in np.unique(task.groups))
    for package, label in (("numpy", 0), ("sklearn", 1)):
        sources = [path.read_text(encoding="utf-8") for path in python_code.library_files(package)]
        for text in [t for t, y in zip(task.texts, task.y, strict=True) if y == label][:8]:
            assert any(text.split("\n")[0][:60] in source for source in sources), text


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: lexical_tokens("x = (1,\n"), ["Python that tokenises"]),
        (lambda: docstring_package(("numpy", "no_such_package")), ["must be installed", "no_such_package"]),
        (lambda: docstring_package(("numpy", "../secrets")), ["top-level packages", "../secrets"]),
        (lambda: token_kinds([]), ["at least 20 rows of each class", "0 of 'name'"]),
        (lambda: docstring_package(("numpy", "scipy"), n_per_package=5), ["5 of 'numpy' and 5 of 'scipy'"]),
    ],
)
def test_bad_source_is_named(call, words):
    with pytest.raises(ConfigError) as caught:
        call()
    assert all(word in str(caught.value) for word in words), caught.value

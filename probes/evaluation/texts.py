"""Labelled texts that need no download, read by a model once: what sparse probing and the ablations are measured on.

    tasks --tokens--> rows --one pass of the model--> activations of every token that a row is read from, kept in the result cache
    acts  = mean over the tokens of a text, or the last token of a span             codes = the same of c (probes.evaluation.codes)

    era                   passages of State of the Union addresses: before 1900 or later
    prose_or_code         paragraphs of docstrings, statements of Python
    docstring_package     which of four packages a docstring is from
    token_kinds           which kind of token in Python source: name, keyword, number, string, comment, operator
    noun_class            what a noun in a sentence names: an animal, a plant, a food, a vehicle, a piece of clothing
    noun_frame            whether that sentence is about what the noun names, or about the word
    leading_capital       whether a token of the passages begins with a capital letter
    ends_s                whether it is letters that end in -s but not -ss; of the same tokens

A dictionary that comes later costs its own encoding, not another run of the model. Python's own sources are those of this installation.
"""

import importlib.metadata
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import sparse
from torch import Tensor

from probes.evaluation.codes import lengths
from probes.features.captured import needed_tokens
from probes.features.location import Located, RowConfig, TokenRows, locate, pool_codes, pool_rows
from probes.problem import Problem
from probes.tasks import python_code, speeches, wordnet
from probes.tasks.lexical import PROPERTIES, token_task
from probes.tasks.task import Task
from sae.activations.corpus import state_of_the_union
from sae.errors import ConfigError
from sae.evaluation.batteries import Inputs
from sae.evaluation.batteries.inputs import verified
from sae.fingerprint import to_json
from sae.models.language_model import LanguageModel
from sae.models.sites import Site
from sae.storage import Key, load_tensors, map_tensors, read_json, save_tensors, write_json

PACKAGES = ("numpy", "scipy", "sklearn", "torch")
TASKS = ("era", "prose_or_code", "docstring_package", "token_kinds", "noun_class", "noun_frame", "leading_capital", "ends_s")
"""The tasks there are."""
OF_PASSAGES = ("era", "leading_capital", "ends_s")
ABOUT = tuple(pattern.partition("{}")[0] for pattern in wordnet.SENTENCES if "about the {}" in pattern)
"""How sentences begin that are about what the noun names."""
BLOCK = 16_384
"""Tokens encoded and pooled at a time, or one row."""


@dataclass(frozen=True, kw_only=True)
class TextsConfig:
    """Which texts are read."""

    tasks: tuple[str, ...] = TASKS
    """Names of tasks, of TASKS."""
    n_per_speech: int = 4
    """Passages of each address (48 words each)."""
    n_tokens: int = 4000
    """Tokens of the passages that are asked about."""
    n_texts: int = 400
    """Texts of `prose_or_code`, and of `docstring_package`."""
    n_excerpts: int = 120
    """Excerpts of 8 lines of Python source, one of a file."""
    n_nouns: int = 150
    """Nouns of each class."""
    context: int = 128
    """Tokens of a text at most, the separator included."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.tasks if name not in TASKS]
        if unknown or not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise ConfigError(f"tasks must be one or more of {', '.join(TASKS)}, each once, got {list(self.tasks)} (TextsConfig)")
        for name in ("n_per_speech", "n_tokens", "n_texts", "n_excerpts", "n_nouns"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)} (TextsConfig)")


@dataclass(frozen=True, eq=False)
class Texts:
    """Rows of labelled texts with the activations of their tokens."""

    problems: tuple[Problem, ...]
    """What is asked of which rows."""
    rows: TokenRows
    """Tokens of every row, as numbers of rows of `acts`."""
    acts: Float[Tensor, "n_tokens d_in"]
    """Activations of the tokens, in the model's dtype."""

    def problem(self, name: str) -> Problem:
        """The problem of that name. Raises ConfigError for another."""
        for problem in self.problems:
            if problem.name == name:
                return problem
        raise ConfigError(f"task must be one of {', '.join(each.name for each in self.problems)}, got {name!r}")

    def pooled(self) -> Float[np.ndarray, "n_rows d_in"]:
        """Activations of every row, float32."""
        found = [pool_rows(self._block(tokens).numpy(), starts, self.rows.reduce) for tokens, starts in self._blocks()]
        return np.concatenate(found)

    def codes(self, inputs: Inputs, key: str) -> sparse.csr_matrix:
        """Codes of every row as lengths, CSR float32, encoded once and kept in the result cache under the dictionary and `key`."""
        dictionary = inputs.chosen("dictionary")

        def fill(folder: Path) -> None:
            parts = []
            for tokens, starts in self._blocks():
                unique, place = np.unique(tokens, return_inverse=True)
                z = sparse.csr_matrix(lengths(dictionary, self._block(unique)).csr(), dtype=np.float32)
                parts.append(pool_codes(z, place.reshape(-1), starts, self.rows.reduce))
            whole = sparse.csr_matrix(sparse.vstack(parts, format="csr"))
            whole.sort_indices()
            tensors = {part: torch.from_numpy(np.ascontiguousarray(getattr(whole, part))) for part in ("data", "indices", "indptr")}
            save_tensors(folder / "codes.safetensors", tensors)

        path = verified(inputs.cache, Key("evaluation.text_codes", 1, {"texts": key}, {"dictionary": dictionary.digest}), fill)
        kept = load_tensors(path / "codes.safetensors")
        return sparse.csr_matrix(
            tuple(kept[part].numpy() for part in ("data", "indices", "indptr")), shape=(len(self.rows), dictionary.d_sae)
        )

    def _block(self, tokens: Int[np.ndarray, "_"]) -> Tensor:
        return self.acts[torch.from_numpy(tokens)].float()

    def _blocks(self) -> list[tuple[Int[np.ndarray, "_"], Int[np.ndarray, "_"]]]:
        """(tokens, starts) of consecutive rows, of about BLOCK tokens each."""
        starts, blocks, begin = self.rows.starts, [], 0
        while begin < len(self.rows):
            end = min(max(begin + 1, int(np.searchsorted(starts, starts[begin] + BLOCK, side="right")) - 1), len(self.rows))
            blocks.append((self.rows.tokens[starts[begin] : starts[end]], starts[begin : end + 1] - starts[begin]))
            begin = end
        return blocks


def offline_tasks(config: TextsConfig, model: LanguageModel, *, seed: int) -> list[Task]:
    """The tasks that `config` names, in its order."""
    made: dict[str, Task] = {}
    corpus = state_of_the_union()
    if set(config.tasks) & set(OF_PASSAGES):
        era = speeches.era(corpus, n_words=48, n_per_document=config.n_per_speech, seed=seed)
        made["era"] = era
        if set(config.tasks) & {"leading_capital", "ends_s"}:
            options = {"n_rows": config.n_tokens, "seed": seed, "source": era.source, "licence": era.licence}
            capital = token_task("leading_capital", era.texts, era.groups, **options).labelled(model.tokenizer)
            holds = PROPERTIES["ends_s"].holds
            ends = np.array([int(holds(capital.row_text(i))) for i in range(len(capital))], dtype=np.int64)
            made |= {"leading_capital": capital, "ends_s": replace(capital, name="ends_s", y=ends)}
    if "prose_or_code" in config.tasks:
        made["prose_or_code"] = python_code.prose_or_code(n_texts=config.n_texts, seed=seed)
    if "docstring_package" in config.tasks:
        made["docstring_package"] = python_code.docstring_package(PACKAGES, n_per_package=-(-config.n_texts // len(PACKAGES)), seed=seed)
    if "token_kinds" in config.tasks:
        made["token_kinds"] = python_code.token_kinds(n_excerpts=config.n_excerpts, n_lines=8, n_per_file=1, seed=seed)
    if set(config.tasks) & {"noun_class", "noun_frame"}:
        nouns = wordnet.noun_class(n_per_class=config.n_nouns, seed=seed)
        about = np.array([int(text.startswith(ABOUT)) for text in nouns.texts], dtype=np.int64)
        made |= {"noun_class": nouns, "noun_frame": replace(nouns, name="noun_frame", y=about, classes=("the word", "what it names"))}
    return [made[name] for name in config.tasks]


def captured_texts(model: LanguageModel, site: Site, tasks: list[Task], *, context: int) -> Texts:
    """The tasks' rows with the activations of their tokens, from one pass of the model; what is beyond the context is left out."""
    located: Located = locate(tasks, model.tokenizer, RowConfig(missing="drop"))
    acts, numbers, counted = needed_tokens(model, located, site, context=context)
    problems, _ = located.problems(located.offsets() < context - 1, counted, cut=True, where=f"a context of {context} tokens")
    rows = located.token_rows(counted)
    return Texts(problems, TokenRows(np.searchsorted(numbers, rows.tokens), rows.starts, rows.reduce), acts)


def read_texts(inputs: Inputs, site: Site, config: TextsConfig) -> tuple[Texts, str]:
    """(texts, name of what made them), from the result cache or computed: once for a model and a site."""
    model = inputs.language_model
    key = Key("evaluation.texts", 1, _options(inputs, site, config), {"model": model.digest})

    def fill(folder: Path) -> None:
        made = captured_texts(model, site, offline_tasks(config, model, seed=inputs.seed), context=config.context)
        tensors = {"acts": made.acts, "tokens": torch.from_numpy(made.rows.tokens), "starts": torch.from_numpy(made.rows.starts)}
        for i, problem in enumerate(made.problems):
            tensors |= {f"{part}/{i}": torch.from_numpy(np.ascontiguousarray(getattr(problem, part))) for part in ("rows", "y", "groups")}
        save_tensors(folder / "texts.safetensors", tensors)
        write_json(folder / "texts.json", {"reduce": made.rows.reduce, "problems": [[p.name, list(p.classes)] for p in made.problems]})

    path = verified(inputs.cache, key, fill)
    kept, head = map_tensors(path / "texts.safetensors"), read_json(path / "texts.json")
    problems = tuple(
        Problem(name, *(kept[f"{part}/{i}"].numpy() for part in ("rows", "y", "groups")), tuple(classes))
        for i, (name, classes) in enumerate(head["problems"])
    )
    return Texts(problems, TokenRows(kept["tokens"].numpy(), kept["starts"].numpy(), head["reduce"]), kept["acts"]), key.digest


def _options(inputs: Inputs, site: Site, config: TextsConfig) -> Mapping[str, object]:
    """All that decides the texts: Python's sources and the packages' docstrings are those of this installation."""
    versions = {}
    if set(config.tasks) & {"prose_or_code", "token_kinds"}:
        versions["python"] = sys.version
    if "docstring_package" in config.tasks:
        versions |= {name: importlib.metadata.version({"sklearn": "scikit-learn"}.get(name, name)) for name in PACKAGES}
    dtype = str(inputs.language_model.dtype)
    return {"config": to_json(config), "site": site.name, "seed": inputs.seed, "dtype": dtype, "versions": versions}

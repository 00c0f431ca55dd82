"""Where in a text the answer is: the tokens of the exact answer, the positions around it, and the activations there.

    window = smallest [first, last] of the tokens whose decoded text holds the answer: `last` grows until it does, then `first` as long as it does

Orgad, Toker, Gekhman, Reichart, Szpektor, Kotek & Belinkov, "LLMs Know More Than They Show", 2024, arXiv 2410.02707, section 3: what a model
knows of being right is best read at the tokens of the exact answer.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from probes.features import CapturingModel
from sae.errors import ConfigError
from sae.models.sites import Site

LAST_POSITIONS = 8


class AnswerWindow(NamedTuple):
    """Token positions of an answer."""

    first: int
    """Position of its first token."""
    last: int
    """Position of its last token."""


def locate_answer(ids: Sequence[int], answer: str, decode: Callable[[Sequence[int]], str], *, start: int = 0) -> AnswerWindow | None:
    """The tokens of the first occurrence of `answer` at or after position `start`; None where the decoded text does not hold it.

    decode: token ids -> text, of any number of tokens (a token may hold part of a character). Raises ConfigError for an empty answer.
    """
    if not answer.strip():
        raise ConfigError(f"answer must have a character that is not blank, got {answer!r} (locate_answer)")
    last = next((i for i in range(start, len(ids)) if answer in decode(ids[start : i + 1])), None)
    if last is None:
        return None
    first = max(i for i in range(start, last + 1) if answer in decode(ids[i : last + 1]))
    return AnswerWindow(first, last)


def answer_positions(n_tokens: int, window: AnswerWindow, *, question_end: int) -> dict[str, int]:
    """Name -> position of the tokens worth reading: the question's last, before, first, last and after the answer, and the last eight of all.

    question_end: position after the question's last token. A position after the end, or before the start, is the nearest there is.
    Raises ConfigError for a window or a question outside the tokens.
    """
    if not 0 <= window.first <= window.last < n_tokens:
        raise ConfigError(f"window must lie in the {n_tokens} tokens, got {window.first}..{window.last} (answer_positions)")
    if not 1 <= question_end <= n_tokens:
        raise ConfigError(f"question_end must be in 1..n_tokens={n_tokens}, got {question_end} (answer_positions)")
    named = {
        "question last": question_end - 1,
        "before answer": max(window.first - 1, 0),
        "answer first": window.first,
        "answer last": window.last,
        "after answer": min(window.last + 1, n_tokens - 1),
    }
    return named | {f"-{i}": max(n_tokens - i, 0) for i in range(LAST_POSITIONS, 0, -1)}


def position_activations(
    model: CapturingModel,
    rows: Sequence[Sequence[int]],
    positions: Sequence[Mapping[str, int]],
    sites: Sequence[Site],
    *,
    batch_rows: int = 16,
) -> dict[tuple[int, str], Float[np.ndarray, "n width"]]:
    """(layer, name) -> activations [n, width], float32, at each row's position of that name, in one pass of the model.

    rows: token ids of each text, any separator included. Padding is on the right, where a causal model cannot see it. Raises ConfigError for
    positions that differ in names or lie outside their row, two sites of one layer, activations that are not finite.
    """
    if not rows or len(rows) != len(positions) or batch_rows < 1:
        raise ConfigError(
            f"rows and positions must be as many, and at least 1, got {len(rows)} and {len(positions)} (position_activations)"
        )
    names = list(positions[0])
    for i, (row, named) in enumerate(zip(rows, positions, strict=True)):
        if list(named) != names or not all(0 <= position < len(row) for position in named.values()):
            raise ConfigError(f"positions[{i}] must give {names} within 0..{len(row) - 1}, got {dict(named)} (position_activations)")
    if len({site.layer for site in sites}) < len(sites):
        raise ConfigError(f"sites must be of different layers, got {[site.name for site in sites]} (position_activations)")
    found = {(int(site.layer or 0), name): np.empty((len(rows), site.width), dtype=np.float32) for site in sites for name in names}
    order = np.argsort([len(row) for row in rows], kind="stable")
    for start in range(0, len(rows), batch_rows):
        batch = order[start : start + batch_rows]
        longest = max(len(rows[i]) for i in batch)
        tokens = torch.tensor([[*rows[i], *[rows[i][0]] * (longest - len(rows[i]))] for i in batch])
        captured = model.capture(tokens, sites)
        where = torch.tensor([[positions[i][name] for name in names] for i in batch])
        for site in sites:
            acts = captured[site][torch.arange(len(batch))[:, None], where].float()
            if not bool(acts.isfinite().all()):
                raise ConfigError(f"activations at {site.name} must be finite, got NaN or Inf (position_activations)")
            for j, name in enumerate(names):
                found[int(site.layer or 0), name][batch] = acts[:, j].cpu().numpy()
    return found

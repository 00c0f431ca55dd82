"""Texts through a language model, all layers at once, each batch reduced before the next: what measures of layers are made of.

    row:   sep t_1 t_2 ... t_n          the first `skip_first` places are left out: position 0 carries activations many times as long as all others

Texts of like length run together, padded on the right, where a causal model does not see it. Nothing but the reduced values of a batch is
kept, so the memory does not grow with the number of tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.errors import ConfigError
from sae.models.language_model import LanguageModel
from sae.models.sites import Site


@dataclass(frozen=True, eq=False)
class PromptBatch:
    """The activations of some prompts at one site."""

    site: Site
    """Where."""
    prompt_ids: Int[Tensor, " prompts"]
    """Which of the texts these are."""
    tokens: Float[Tensor, "tokens d"]
    """Activations of their tokens, prompt after prompt, in the model's dtype."""
    lengths: Int[Tensor, " prompts"]
    """Number of tokens of each."""


def prompt_tokens(model: LanguageModel, texts: Sequence[str], *, max_tokens: int, skip_first: int) -> list[list[int]]:
    """The separator and the first `max_tokens` tokens of each text.

    Raises ConfigError for no texts, max_tokens < 1, a context that is too long for the model, and a text of which `skip_first` leaves no token.
    """
    if not texts:
        raise ConfigError("texts must hold at least one text, got none (layer passes)")
    if not 1 <= max_tokens < model.shape.n_ctx:
        raise ConfigError(f"max_tokens must be in 1..{model.shape.n_ctx - 1}, got {max_tokens} (layer passes of {model.name})")
    if skip_first < 0:
        raise ConfigError(f"skip_first must be at least 0, got {skip_first} (layer passes)")
    rows = [[model.separator_id, *ids[:max_tokens]] for ids in model.tokenize(texts)]
    for text, row in zip(texts, rows, strict=True):
        if len(row) <= skip_first:
            raise ConfigError(
                f"every text must have more than {skip_first - 1} tokens, got {len(row) - 1} in {text!r}; leave it out (layer passes)"
            )
    return rows


def prompt_batches(
    model: LanguageModel, rows: Sequence[Sequence[int]], sites: Sequence[Site], *, batch_prompts: int, skip_first: int
) -> Iterator[PromptBatch]:
    """Every site of every batch of prompts, batch after batch; shortest prompts first. Raises ConfigError for batch_prompts < 1."""
    if batch_prompts < 1:
        raise ConfigError(f"batch_prompts must be at least 1, got {batch_prompts} (layer passes)")
    order = torch.tensor([len(row) for row in rows]).argsort(stable=True)
    for chosen in order.split(batch_prompts):
        members = [rows[i] for i in chosen.tolist()]
        context = max(len(row) for row in members)
        tokens = torch.tensor([[*row, *[row[-1]] * (context - len(row))] for row in members])
        lengths = torch.tensor([len(row) for row in members]) - skip_first
        places = torch.arange(context)
        used = ((places >= skip_first) & (places < lengths[:, None] + skip_first)).to(model.device)
        captured = model.capture(tokens, sites)
        for site in sites:
            yield PromptBatch(site=site, prompt_ids=chosen, tokens=captured.pop(site)[used], lengths=lengths)

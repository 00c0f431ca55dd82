"""What a latent's decoder direction does to the logits when written into the residual stream.

    effect[i, v] = u_i . W_U[:, v],   u_i = W_dec[i] / |W_dec[i]|

with the model's final-norm gain folded into W_U, and the mean over the vocabulary removed.

The direct path only: what later layers make of the direction is not in it ("logit lens", nostalgebraist 2020; for dictionaries T. Bricken
et al., "Towards Monosemanticity", Transformer Circuits, 2023). The division by the final norm's scale is left out, so effects compare
within a model, not between models.
"""

from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.errors import ConfigError

CONVENTION = (
    "Change of each token's logit per unit of the decoder direction (unit length) written at this site, direct path to the unembedding "
    "only: final-norm gain folded in, division by the final norm's scale left out, mean over the vocabulary removed."
)
BLOCK = 256


@runtime_checkable
class LogitModel(Protocol):
    """What is asked of a language model here; `sae.models.LanguageModel` has it."""

    def logit_effects(self, directions: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_vocab"]:
        """Effects of the directions on the logits."""
        ...


class TopEffects(NamedTuple):
    """The ends of each latent's logit effects."""

    top_ids: Int[np.ndarray, "n k"]
    """Most promoted token ids, descending."""
    top: Float[np.ndarray, "n k"]
    """Their effects."""
    bottom_ids: Int[np.ndarray, "n k"]
    """Most suppressed token ids, ascending."""
    bottom: Float[np.ndarray, "n k"]
    """Their effects."""


def top_effects(source: LogitModel | Float[Tensor, "n_rows d_vocab"], directions: Float[Tensor, "n d_model"], *, k: int) -> TopEffects:
    """The `k` most promoted and most suppressed tokens of each direction.

    `source` is the [n, d_vocab] matrix of effects, already in the convention above, or a model whose `logit_effects` gives it; a model
    gets unit directions, in blocks, so the matrix is never held whole. Raises ConfigError when a matrix has another number of rows than
    there are directions.
    """
    if isinstance(source, Tensor) and len(source) != len(directions):
        raise ConfigError(f"effects must have one row for each of the {len(directions)} directions, got {len(source)} (top_effects)")
    parts = []
    for start in range(0, len(directions), BLOCK):
        rows = slice(start, start + BLOCK)
        if isinstance(source, Tensor):
            block = source[rows].float()
        else:
            unit = torch.nn.functional.normalize(directions[rows].detach().float(), dim=1)
            block = source.logit_effects(unit).detach().float().cpu()
        n_kept = min(k, block.shape[1])
        top, bottom = torch.topk(block, n_kept, dim=1), torch.topk(block, n_kept, dim=1, largest=False)
        parts.append([top.indices.numpy(), top.values.numpy(), bottom.indices.numpy(), bottom.values.numpy()])
    return TopEffects(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))

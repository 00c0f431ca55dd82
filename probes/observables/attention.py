"""The linear maps of attention heads, measured, and directions pulled back through them.

    head h, pattern a frozen:   out_t = sum_s a[t, s] N(x_s) W_V W_O            y reads out_t as   a[t, s] C (gain * W_V W_O y)   reads x_s

On a context of one token a head attends to itself alone, a = 1, whatever its queries and keys: so one pass over 2 d_model such contexts gives
W_V of every head (shared keys and fused projections included, the norm's gain folded in), and one over the unit vectors of z gives W_O. No
convention of storing weights matters. The norm's scale, one positive number per token, is left out, and so are biases.
J. Dunefsky, A. Cohan, "Observable Propagation", 2023 (arXiv 2312.16291), section 2; N. Elhage et al., "A Mathematical Framework for
Transformer Circuits", 2021.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sae.errors import ConfigError
from sae.models.edits import Edit

if TYPE_CHECKING:
    from sae.models.language_model import LanguageModel
    from sae.models.sites import Site

LENGTH = 100.0
"""Root mean square of the inputs that W_V is measured with: large, so that the norm's epsilon vanishes."""
NOT_LINEAR = 1e-2
"""Largest relative difference between a layer and the maps measured of it; rounding is far below, also of bfloat16."""


@dataclass(frozen=True, eq=False)
class AttentionMaps:
    """W_V and W_O of every head of some layers. Made by `attention_maps`."""

    layers: tuple[int, ...]
    """The layers."""
    W_V: Float[np.ndarray, "layers heads d_model d_head"]
    """Value map of the residual stream over the norm's scale: gain (and the norm's centring) folded in."""
    W_O: Float[np.ndarray, "layers heads d_head d_model"]
    """What each head writes."""

    def pull_back(self, y: Float[np.ndarray, " d_model"]) -> Float[np.ndarray, "layers heads d_model"]:
        """W_V W_O y of every head: what a reading of the head's output is as a reading of the residual stream it attends to, at weight 1."""
        return np.einsum("lhdk,lhk->lhd", self.W_V, self.W_O @ y)


def through_attention(
    y: Float[np.ndarray, "context d_model"],
    pattern: Float[np.ndarray, "heads context context"],
    W_V: Float[np.ndarray, "heads d_model d_head"],
    W_O: Float[np.ndarray, "heads d_head d_model"],
) -> Float[np.ndarray, "context d_model"]:
    """One attention layer with its skip connection, transposed: y_s + sum_h sum_t pattern[h, t, s] W_V W_O y_t.

    The inner product of the result with the layer's input is that of y with its output, over all positions, when no norm comes between.
    """
    read = np.einsum("hkd,td->htk", W_O, y)
    return y + np.einsum("hdk,hts,htk->sd", W_V, pattern, read, optimize=True)


def pull_back(function: Callable[[Tensor], Tensor], at: Float[Tensor, "... d"], y: Float[Tensor, "... d_out"]) -> Float[Tensor, "... d"]:
    """J^T y of any differentiable part of a model at a reference point: an MLP, say, which is linear only there.

    `function(at)` must have the shape of `y`. Source: arXiv 2312.16291, section 2.3.
    """
    _, transpose = torch.func.vjp(function, at)
    return transpose(y)[0]


def attention_maps(model: "LanguageModel", layers: Sequence[int] | None = None) -> AttentionMaps:
    """W_V and W_O of the heads of `layers` (None: all), measured in four short passes.

    Raises ConfigError for a layer that the model does not have, one without heads, and an architecture in which a norm or another
    non-linear step comes between (a norm after the heads, attention sinks).
    """
    chosen = tuple(range(model.shape.n_layers)) if layers is None else tuple(layers)
    if not chosen or not set(chosen) <= set(range(model.shape.n_layers)):
        raise ConfigError(f"layers must be some of 0..{model.shape.n_layers - 1}, got {list(chosen)} (attention_maps)")
    entry, z, out = (
        [model.site(f"blocks.{layer}.{suffix}") for layer in chosen] for suffix in ("hook_resid_pre", "attn.hook_z", "hook_attn_out")
    )
    W_V = _values(model, entry, z)
    W_O = _outputs(model, z, out)
    n_heads = model.shape.n_heads
    if W_V.shape[2] % n_heads:
        raise ConfigError(f"z must have one part for each of n_heads={n_heads}, got width {W_V.shape[2]} (attention_maps of {model.name})")
    d_head = W_V.shape[2] // n_heads
    heads = W_V.reshape(len(chosen), -1, n_heads, d_head).transpose(0, 2, 1, 3)
    return AttentionMaps(chosen, np.ascontiguousarray(heads), W_O.reshape(len(chosen), n_heads, d_head, -1))


def _values(model: "LanguageModel", entry: list["Site"], z: list["Site"]) -> np.ndarray:
    """[layers, d_model, width of z]. For x = r b, b a unit vector with mean 0 or along 1, N(x) = sqrt(d) gain C b + bias, so that half the
    difference of z at x and at -x is sqrt(d) C (gain b) W_V; the b are an orthonormal basis. Whether the norm is centred is seen from an
    input that is shifted along 1: such a norm makes noise of 1 itself, so its part is then set to 0."""
    d = model.shape.d_model
    basis = torch.linalg.qr(torch.cat([torch.ones(d, 1), torch.eye(d)[:, 1:]], dim=1))[0].T
    inputs = LENGTH * d**0.5 * basis
    test = torch.randn(2, d, generator=torch.Generator().manual_seed(0)) * LENGTH
    found = _responses(model, entry, z, torch.cat([inputs, -inputs, test, -test, test + 2 * LENGTH]))
    maps = []
    for site, rows in zip(z, found, strict=True):
        plus, minus, there, back, shifted = rows.split([d, d, 2, 2, 2])
        odd = (plus - minus) / (2 * d**0.5)
        centred = bool((shifted - there).norm() <= NOT_LINEAR * there.norm())
        if centred:
            odd[0] = 0
        map_ = basis.T.double() @ odd
        x = test.double() - test.double().mean(dim=1, keepdim=True) if centred else test.double()
        expected = x @ map_ / x.square().mean(dim=1, keepdim=True).sqrt()
        _require_linear((there - back) / 2, expected, site, model.name)
        maps.append(map_.numpy())
    return np.stack(maps)


def _outputs(model: "LanguageModel", z: list["Site"], out: list["Site"]) -> np.ndarray:
    """[layers, width of z, d_model]: the response of attn_out to the unit vectors of z, less that to 0."""
    width = z[0].width
    test = torch.randn(2, width, generator=torch.Generator().manual_seed(1))
    found = _responses(model, z, out, torch.cat([torch.eye(width), torch.zeros(1, width), test]))
    maps = []
    for site, rows in zip(out, found, strict=True):
        map_ = rows[:width] - rows[width]
        _require_linear(rows[width + 1 :] - rows[width], test.double() @ map_, site, model.name)
        maps.append(map_.numpy())
    return np.stack(maps)


def _responses(model: "LanguageModel", enter: list["Site"], leave: list["Site"], inputs: Tensor) -> list[Tensor]:
    """What `leave` is, float64, where each row of `inputs` is put at `enter` of the same layer, in a context of its own of one token."""
    tokens = torch.zeros(len(inputs), 1, dtype=torch.long)
    edits = [Edit.replace(site, inputs[:, None, :].to(model.device)) for site in enter]
    captured = model.capture(tokens, leave, edits=edits)
    return [captured[site][:, 0].double().cpu() for site in leave]


def _require_linear(found: Tensor, expected: Tensor, site: "Site", name: str) -> None:
    if (found - expected).norm() > NOT_LINEAR * found.norm():
        raise ConfigError(
            f"the heads of {name} are not a norm followed by linear maps at {site.name}; their maps cannot be told (attention_maps)"
        )

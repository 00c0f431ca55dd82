"""Where the sites are: TransformerLens' adapter of an architecture, asked for the modules whose borders its hooks stand at.

    blocks.3.attn.hook_z   ->   the input of model.layers.3.self_attn.o_proj         (llama; transformer.h.3.attn.c_proj in gpt2)

TransformerLens knows, for more than a hundred architectures, which module is the block, the attention, its output projection. Its own
forward pass is not used: it rebuilds attention and costs 3 to 4 % of a pass where the Hugging Face model, hooked at the same borders, costs
nothing, and it would be one more implementation to trust. So its bridge is built around a skeleton of the model, whose weights are zeros
that take no memory, read, and let go; the model itself is never wrapped.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sae.errors import ConfigError
from sae.models.loading import PreTrainedModel
from sae.models.sites import SUFFIXES, Kind, ModelShape

UNKNOWN = (ValueError, RuntimeError, AttributeError, TypeError, KeyError)
"""What TransformerLens raises while it builds a bridge around something that it does not expect."""


@dataclass(frozen=True, kw_only=True)
class Border:
    """Where the activations of a site enter or leave a module of the Hugging Face model."""

    module: str
    """The module's path in the model."""
    side: Literal["in", "out"]
    """Whether the activations are its first argument or its (first) result."""
    scale: float = 1.0
    """What the model multiplies them with before it adds them to the residual stream (Granite's residual multiplier)."""


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """The parts of a language model."""

    shape: ModelShape
    """Its sizes."""
    borders: Mapping[tuple[int, Kind], Border]
    """(layer, kind of site) -> where it is; what the architecture does not have is missing."""
    final_norm: str | None
    """Path of the norm before the unembedding, where there is one."""

    def block(self, layer: int) -> str:
        """Path of a block."""
        return self.borders[layer, "resid_pre"].module


def anatomy(model: PreTrainedModel) -> Anatomy:
    """The parts of `model`, which is left as it is.

    Raises ConfigError when TransformerLens does not know the architecture, cannot take this model of it, or does not know its blocks; and
    when the model is already wrapped.
    """
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    if any(type(module).__module__.startswith("transformer_lens.") for module in model.modules()):
        raise ConfigError("model is already wrapped by TransformerLens, which changes a model in place; load a fresh copy")
    architecture = type(model).__name__
    try:
        skeleton = _skeleton(model)
        paths = {id(module): path for path, module in skeleton.named_modules()}
        kept = list(skeleton.modules())  # so that no id is given twice
        bridge: Any = build_bridge_from_module(skeleton, architecture, hf_config=skeleton.config, model_name=architecture)
        points: dict[str, Any] = dict(bridge.hook_dict)
    except UNKNOWN as error:
        raise ConfigError(f"TransformerLens has no adapter for the architecture {architecture!r} as it is here: {error}") from error
    sides = {id(getattr(part, f"hook_{side}")): (part, side) for part in bridge.modules() for side in _sides(part)}
    config = bridge.cfg
    borders: dict[tuple[int, Kind], Border] = {}
    for layer in range(int(config.n_layers)):
        for kind, suffix in SUFFIXES.items():
            point = points.get(f"blocks.{layer}.{suffix}")
            border = None if point is None else _border(bridge, layer, kind, sides.get(id(point)), paths)
            if border is not None:
                borders[layer, kind] = border
        if not {(layer, "resid_pre"), (layer, "resid_post")} <= borders.keys():
            raise ConfigError(f"TransformerLens does not say where block {layer} of the architecture {architecture!r} begins and ends")
    norm = getattr(bridge, "ln_final", None)
    final_norm = paths.get(id(getattr(norm, "original_component", None)))
    del kept
    return Anatomy(shape=_shape(config, model), borders=borders, final_norm=final_norm)


def _skeleton(model: PreTrainedModel) -> Any:
    """A copy of the module tree with weights of zeros, each a single number seen in the weight's shape."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(torch.zeros((), dtype=parameter.dtype).expand(parameter.shape), requires_grad=False)
    memo |= {id(buffer): buffer for buffer in model.buffers()}
    return copy.deepcopy(model, memo)


def _sides(part: nn.Module) -> list[str]:
    return [side for side in ("in", "out") if f"hook_{side}" in part._modules and "_original_component" in part._modules]


def _border(bridge: Any, layer: int, kind: Kind, found: tuple[Any, str] | None, paths: Mapping[int, str]) -> Border | None:
    """The border that a hook point stands at; None when it is none, or stands where this kind of site is not."""
    scale = 1.0
    if found is None and kind in ("attn_out", "mlp_out"):  # a point of the block's own, for what is scaled after the module
        part = getattr(bridge.blocks[layer], kind.removesuffix("_out"), None)
        multiplier = getattr(bridge.cfg, "residual_multiplier", None)
        if part is None or multiplier is None:
            return None
        found, scale = (part, "out"), float(multiplier)
    if found is None or (kind == "mlp_post" and found[1] == "out"):  # TransformerLens' hook_post of a mixture of experts is its output
        return None
    path = paths.get(id(found[0].original_component))
    side: Literal["in", "out"] = "in" if found[1] == "in" else "out"
    return None if path is None else Border(module=path, side=side, scale=scale)


def _shape(config: Any, model: PreTrainedModel) -> ModelShape:
    return ModelShape(
        n_layers=int(config.n_layers),
        d_model=int(config.d_model),
        d_mlp=int(config.d_mlp),
        n_heads=int(config.n_heads),
        d_head=int(config.d_head),
        d_vocab=int(unembedding(model).shape[0]),
        n_ctx=int(config.n_ctx),
    )


def unembedding(model: PreTrainedModel) -> Tensor:
    """W_U as rows: [d_vocab, d_model]. Raises ConfigError for a model without one."""
    layer: Any = model.get_output_embeddings()
    if layer is None:
        raise ConfigError(f"{type(model).__name__} has no output embedding; a causal language model is needed")
    return layer.weight


def weights(model: PreTrainedModel) -> Mapping[str, Tensor]:
    """The model's weights by name, tied ones once."""
    saved = model.state_dict()
    buffers = {name: tensor for name, tensor in model.named_buffers() if name in saved}
    return dict(model.named_parameters()) | buffers

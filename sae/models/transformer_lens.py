"""TransformerLens' bridge around a Hugging Face model, reduced to three things: run, capture, resume.

Everything here that is less obvious than it looks:

* The bridge wraps the Hugging Face model **in place**: its submodules are replaced and its attention becomes eager. The weights are the raw
  ones (nothing folded, no compatibility mode), so logits and activations are those of the model as published.
* The bridge gets no tokenizer: it is only ever given tensors.
* TransformerLens computes each norm twice, once as the model does and once for hooks within the norm: 4 % and more of a pass. No site is
  within a norm, so it is computed once.
* A pass that captures is stopped by the last wanted activation itself: `stop_at_layer` cannot stop after the last block.
* TransformerLens reads resid_mid where the second norm does, beside the residual stream: what a hook returns there reaches the MLP only. An
  edit of resid_mid is therefore carried on to resid_post, where the skip connection would have brought it.
* A pass that resumes skips the blocks before the resumption: `start_at_layer` runs them and discards what they give.
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sae.errors import ConfigError, SaeError
from sae.models.loading import PreTrainedModel
from sae.models.sites import ModelShape, Site

Hook = Callable[[Tensor], Tensor | None]


class Bridge:
    """A causal language model that can be hooked at `Site`s. One forward pass at a time: hooks belong to the wrapped model."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Wraps `model` in place: evaluation mode, eager attention, no gradients of weights.

        Raises ConfigError when TransformerLens does not know the architecture, or when the model is already wrapped.
        """
        from transformer_lens.model_bridge.sources import build_bridge_from_module

        if any(type(module).__module__.startswith("transformer_lens.") for module in model.modules()):
            raise ConfigError("model is already wrapped by TransformerLens, which changes a model in place; load a fresh copy")
        model.eval()
        model.set_attn_implementation("eager")
        architecture = type(model).__name__
        try:
            self._bridge: Any = build_bridge_from_module(model, architecture, hf_config=model.config, model_name=architecture)
        except ValueError as error:
            raise ConfigError(f"TransformerLens has no adapter for the architecture {architecture!r}: {error}") from error
        self.model = model
        self.shape = _shape(self._bridge.cfg, model)
        for parameter in [*model.parameters(), *self._bridge.parameters()]:
            parameter.requires_grad_(False)
        _compute_norms_once_(self._bridge)
        self._points: dict[str, Any] = dict(self._bridge.hook_dict)
        self._lock = threading.RLock()

    def has(self, site: Site) -> bool:
        """Whether this architecture has the site (a block with parallel attention and MLP has no resid_mid, for one)."""
        return site.name in self._points

    def logits(self, tokens: Tensor, hooks: Sequence[tuple[Site, Hook]]) -> Tensor:
        """Logits [batch, context, d_vocab]; each hook gets its site's activations [batch, context, width] and may return others."""
        with self._lock, self._hooked(_carried(hooks)):
            return self._bridge.forward(tokens, return_type="logits", use_cache=False)

    def capture(self, tokens: Tensor, sites: Sequence[Site], hooks: Sequence[tuple[Site, Hook]]) -> dict[Site, Tensor]:
        """The activations at `sites`, after `hooks`. The pass ends with the last of them: nothing deeper is computed."""
        from transformer_lens.model_bridge.exceptions import StopAtLayerException

        wanted = set(sites)
        captured: dict[Site, Tensor] = {}

        def keep(site: Site) -> Hook:
            def hook(acts: Tensor) -> None:
                captured[site] = acts
                if len(captured) == len(wanted):
                    raise StopAtLayerException(acts)

            return hook

        with self._lock, self._hooked([*_carried(hooks), *((site, keep(site)) for site in wanted)]):
            self._bridge.forward(tokens, return_type=None, use_cache=False)
        if len(captured) != len(wanted):
            silent = ", ".join(sorted(site.name for site in wanted - set(captured)))
            raise SaeError(f"the model ran to its end without passing {silent}")
        return captured

    def resume(self, acts: Tensor, layer: int) -> Tensor:
        """Logits of a pass whose residual stream [batch, context, d_model] enters block `layer`; n_layers means the final norm."""
        with self._lock:
            if layer == 0:
                return self._bridge.forward(acts, return_type="logits", use_cache=False, start_at_layer=0)
            with self._skipped(layer, acts):
                return self._bridge.forward(acts, return_type="logits", use_cache=False)

    @contextlib.contextmanager
    def _hooked(self, hooks: Sequence[tuple[Site, Hook]]) -> Iterator[None]:
        handles = []
        try:
            for site, hook in hooks:
                point = self._points[site.name]
                handles.append((point, point.add_hook(_flat(site, hook))))
            yield
        finally:
            for point, handle in handles:
                handle.hook.remove()
                point.fwd_hooks.remove(handle)

    @contextlib.contextmanager
    def _skipped(self, layer: int, acts: Tensor) -> Iterator[None]:
        """Blocks before `layer` do nothing, and the last of them returns `acts`."""
        as_tuple = self._blocks_return_tuples

        def injected(*_: Any, **__: Any) -> Any:
            return (acts,) if as_tuple else acts

        blocks: list[nn.Module] = list(self._bridge.blocks)[:layer]
        try:
            for block in blocks:
                object.__setattr__(block, "forward", injected)  # past the bridge's own __setattr__, which would forward it
            yield
        finally:
            for block in blocks:
                block.__dict__.pop("forward", None)

    @functools.cached_property
    def _blocks_return_tuples(self) -> bool:
        """Whether a block returns (acts,) or acts: it depends on the architecture and on the version of the Hugging Face library."""
        kinds: list[bool] = []
        token = torch.zeros(1, 1, dtype=torch.long, device=self.model.device)
        handle = self._bridge.blocks[0].register_forward_hook(lambda _module, _args, output: kinds.append(isinstance(output, tuple)))
        try:
            with torch.no_grad():
                self._bridge.forward(token, return_type=None, use_cache=False, stop_at_layer=1 if self.shape.n_layers > 1 else None)
        finally:
            handle.remove()
        return kinds[0]

    def final_norm(self) -> nn.Module:
        """The norm before the unembedding, as in the Hugging Face model."""
        return self._bridge.ln_final.original_component

    def unembedding(self) -> Tensor:
        """W_U as rows: [d_vocab, d_model]."""
        return _unembedding(self.model)


def _compute_norms_once_(bridge: nn.Module) -> None:
    from transformer_lens.model_bridge import NormalizationBridge

    def once(norm: Any, acts: Tensor, **_: Any) -> Tensor:
        acts = norm.hook_in(acts)
        return norm.hook_out(norm.original_component(acts).to(acts.dtype))

    for module in bridge.modules():
        delegates = isinstance(module, NormalizationBridge) and module.use_native_layernorm_autograd
        if delegates and type(module).forward is NormalizationBridge.forward:
            object.__setattr__(module, "forward", functools.partial(once, module))


def _carried(hooks: Sequence[tuple[Site, Hook]]) -> list[tuple[Site, Hook]]:
    """The hooks, and before them at resid_post one for each at resid_mid that adds there what it changed."""
    late: list[tuple[Site, Hook]] = []
    same: list[tuple[Site, Hook]] = []
    for site, hook in hooks:
        if site.kind != "resid_mid":
            same.append((site, hook))
            continue
        changes: list[Tensor] = []
        same.append((site, functools.partial(_record_change, hook, changes)))
        post = Site(name=site.name.replace("resid_mid", "resid_post"), layer=site.layer, kind="resid_post", width=site.width)
        late.append((post, functools.partial(_add_change, changes)))
    return late + same


def _record_change(hook: Hook, changes: list[Tensor], acts: Tensor) -> Tensor | None:
    result = hook(acts)
    if result is not None:
        changes.append(result - acts)
    return result


def _add_change(changes: list[Tensor], acts: Tensor) -> Tensor | None:
    return acts + changes.pop() if changes else None


def _flat(site: Site, hook: Hook) -> Callable[..., Tensor | None]:
    """The hook in TransformerLens' form, which sees heads (z is [batch, context, n_heads, d_head] there) laid end to end."""

    def flat(tensor: Tensor, **_: Any) -> Tensor | None:
        acts = tensor if tensor.dim() == 3 else tensor.flatten(2)
        assert acts.shape[-1] == site.width, f"{site.name} has width {acts.shape[-1]}, expected {site.width}"
        result = hook(acts)
        return None if result is None else result.reshape(tensor.shape)

    return flat


def _shape(config: Any, model: PreTrainedModel) -> ModelShape:
    return ModelShape(
        n_layers=int(config.n_layers),
        d_model=int(config.d_model),
        d_mlp=int(config.d_mlp),
        n_heads=int(config.n_heads),
        d_head=int(config.d_head),
        d_vocab=int(_unembedding(model).shape[0]),
        n_ctx=int(config.n_ctx),
    )


def _unembedding(model: PreTrainedModel) -> Tensor:
    layer: Any = model.get_output_embeddings()
    if layer is None:
        raise ConfigError(f"{type(model).__name__} has no output embedding; a causal language model is needed")
    return layer.weight


def weights(model: PreTrainedModel) -> Mapping[str, Tensor]:
    """The model's weights by name, tied ones once, before anything wraps it."""
    saved = model.state_dict()
    buffers = {name: tensor for name, tensor in model.named_buffers() if name in saved}
    return dict(model.named_parameters()) | buffers

"""A Hugging Face model, hooked at sites, reduced to three things: run, capture, resume.

Everything here that is less obvious than it looks:

* The model computes as published, by its own code; hooks stand at the borders of its modules. So a pass that captures costs what the
  pass alone costs. What a module gives is copied at once, since some models go on to write into it.
* Attention is PyTorch's fused kernel wherever the library offers it, as it does by default: equal to the eager one up to rounding. With
  a soft cap on the scores the library's fused path leaves the cap out, silently; those models run eager, and so does one whose fused path
  is seen to give other logits.
* A pass that captures is stopped by the last wanted activation itself: nothing deeper is computed, no logits either.
* resid_mid is read where the second norm does, beside the residual stream: what a hook returns there reaches the MLP only. An edit of
  resid_mid is therefore carried on to resid_post, where the skip connection would have brought it.
* A pass that resumes skips the blocks before the resumption; the tokens it is given are then of no account.
* Which sites there are, and how wide, is seen in a pass over two tokens. A resid_mid is one only if it is the sum it should be, which in
  a model with its norms after the sums it is not.
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sae.errors import ConfigError, SaeError
from sae.models.loading import PreTrainedModel, quiet
from sae.models.sites import SUFFIXES, Kind, ModelShape, Site
from sae.models.transformer_lens import Anatomy, Border, anatomy, unembedding

Hook = Callable[[Tensor], Tensor | None]

PROBE_LENGTH = 16
"""Tokens with which the fused attention is compared to the eager one."""
ROUNDING = 16.0
"""How many machine epsilons the logits may differ by, relative to their length; and the terms of a sum in the residual stream."""


class _AllCapturedError(Exception):
    """Ends a pass that has nothing left to capture."""


class HookedModel:
    """A causal language model that can be hooked at `Site`s. One forward pass at a time: hooks belong to the model."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Changes `model` in place: evaluation mode, fused attention, no gradients of weights.

        Raises ConfigError when TransformerLens does not know the architecture, or when the model is wrapped already.
        """
        self._anatomy: Anatomy = anatomy(model)
        self.model = model
        model.eval()
        _set_attention_(model, self.shape)
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        self._lock = threading.RLock()

    @property
    def shape(self) -> ModelShape:
        """The sizes of the model."""
        return self._anatomy.shape

    @property
    def name(self) -> str:
        """The name of the architecture."""
        return type(self.model).__name__

    @functools.cached_property
    def sites(self) -> Mapping[str, Site]:
        """Every site that the model has by its name, block after block, with the width it was seen to have."""
        borders = self._anatomy.borders
        guesses = [
            Site(name=f"blocks.{layer}.{SUFFIXES[kind]}", layer=layer, kind=kind, width=0)
            for layer in range(self.shape.n_layers)
            for kind in SUFFIXES
            if (layer, kind) in borders
        ]
        seen: dict[Site, Tensor] = {}
        hooks = [(site, functools.partial(_note, seen, site)) for site in guesses]
        tokens = torch.tensor([[0, min(1, self.shape.d_vocab - 1)]], device=self.model.device)
        with torch.no_grad():
            self.logits(tokens, hooks)
        found = {site.name: replace(site, width=seen[site].shape[-1]) for site in guesses if site in seen}
        acts: dict[tuple[int, Kind], Tensor] = {(site.layer, site.kind): value.float() for site, value in seen.items()}
        eps = torch.finfo(self.model.dtype).eps
        for layer in range(self.shape.n_layers):
            if (layer, "resid_mid") in acts and not _adds_up(acts, layer, ROUNDING * eps):
                del found[f"blocks.{layer}.{SUFFIXES['resid_mid']}"]
        return found

    def logits(self, tokens: Tensor, hooks: Sequence[tuple[Site, Hook]], *, positions: Tensor | None = None) -> Tensor:
        """Logits [batch, context, d_vocab]; each hook gets its site's activations [batch, context, width] and may return others.

        `positions` [batch, context] are counted from 0 in each document; see `sae.models.isolation`.
        """
        with self._lock, self._hooked(_carried(hooks), tokens.shape):
            return self._forward(tokens, positions).logits

    def capture(
        self, tokens: Tensor, sites: Sequence[Site], hooks: Sequence[tuple[Site, Hook]], *, positions: Tensor | None = None
    ) -> dict[Site, Tensor]:
        """The activations at `sites`, after `hooks`. The pass ends with the last of them: nothing deeper is computed."""
        wanted = set(sites)
        captured: dict[Site, Tensor] = {}

        def keep(site: Site, acts: Tensor) -> None:
            with torch.inference_mode(False), torch.no_grad():
                captured.setdefault(site, acts.clone())
            if len(captured) == len(wanted):
                raise _AllCapturedError

        keepers = [(site, functools.partial(keep, site)) for site in wanted]
        graphless = torch.no_grad() if hooks else torch.inference_mode()  # hooks are not ours: they get ordinary tensors
        with self._lock, graphless, self._hooked([*_carried(hooks), *keepers], tokens.shape), contextlib.suppress(_AllCapturedError):
            self._forward(tokens, positions)
        if len(captured) != len(wanted):
            silent = ", ".join(sorted(site.name for site in wanted - set(captured)))
            raise SaeError(f"the model ran to its end without passing {silent}")
        return {site: captured[site] for site in sites}

    def resume(self, acts: Tensor, layer: int) -> Tensor:
        """Logits of a pass whose residual stream [batch, context, d_model] enters block `layer`; n_layers means the final norm.

        Raises ConfigError for an architecture whose blocks also read the tokens.
        """
        if getattr(self.model.config.get_text_config(), "hidden_size_per_layer_input", None):
            raise ConfigError(f"the blocks of {self.name} read the tokens again, so that a pass cannot be resumed from activations alone")
        tokens = torch.zeros(acts.shape[:2], dtype=torch.long, device=acts.device)
        with self._lock, self._entered(acts, layer):
            return self._forward(tokens, None).logits

    def carry(self, acts: Tensor, layer: int, site: Site) -> Tensor:
        """The activations at `site` of a pass whose residual stream enters block `layer`; the pass ends there. Errors as for `resume`."""
        kept: list[Tensor] = []

        def keep(found: Tensor) -> None:
            kept.append(found.detach().clone())
            raise _AllCapturedError

        _ = self._block_result  # found out by a pass of its own, which no hook may see
        with self._lock, torch.no_grad(), self._hooked([(site, keep)], acts.shape[:2]), contextlib.suppress(_AllCapturedError):
            self.resume(acts, layer)
        if not kept:
            raise SaeError(f"the model ran to its end without passing {site.name}")
        return kept[0]

    def _forward(self, tokens: Tensor, positions: Tensor | None) -> Any:
        placed = {} if positions is None else {"position_ids": positions}
        return self.model(input_ids=tokens, use_cache=False, **placed)

    @contextlib.contextmanager
    def _hooked(self, hooks: Sequence[tuple[Site, Hook]], shape: torch.Size) -> Iterator[None]:
        handles = []
        try:
            for site, hook in hooks:
                border = self._anatomy.borders[site.layer, site.kind]
                handles.append(_hook_border(self.model.get_submodule(border.module), border, _shaped(site, border, hook, shape)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextlib.contextmanager
    def _entered(self, acts: Tensor, layer: int) -> Iterator[None]:
        """Blocks before `layer` do nothing, the last of them returns `acts`; the first block of all reads `acts` if none is before it."""
        wrap = self._block_result

        def injected(*_: Any, **__: Any) -> Any:
            return acts if wrap is Tensor else wrap([acts])

        blocks: list[Any] = [self.model.get_submodule(self._anatomy.block(i)) for i in range(layer)]
        first = self.model.get_submodule(self._anatomy.block(0))
        handle = None if layer else _hook_border(first, self._anatomy.borders[0, "resid_pre"], lambda _: acts)
        try:
            for block in blocks:
                block.forward = injected
            yield
        finally:
            for block in blocks:
                del block.forward
            if handle is not None:
                handle.remove()

    @functools.cached_property
    def _block_result(self) -> type:
        """Whether a block returns acts, (acts,) or [acts]: it depends on the architecture and on the version of the Hugging Face library."""
        kinds: list[type] = []
        token = torch.zeros(1, 1, dtype=torch.long, device=self.model.device)
        block = self.model.get_submodule(self._anatomy.block(0))
        handle = block.register_forward_hook(lambda _module, _args, output: kinds.append(type(output)))
        try:
            with torch.no_grad():
                self._forward(token, None)
        finally:
            handle.remove()
        return kinds[0]

    def final_norm(self) -> nn.Module:
        """The norm before the unembedding, as in the Hugging Face model. Raises ConfigError when there is none."""
        if self._anatomy.final_norm is None:
            raise ConfigError(f"{self.name} has no norm before the unembedding")
        return self.model.get_submodule(self._anatomy.final_norm)

    def unembedding(self) -> Tensor:
        """W_U as rows: [d_vocab, d_model]."""
        return unembedding(self.model)


def _set_attention_(model: PreTrainedModel, shape: ModelShape) -> None:
    """Fused attention where the library offers it and it is the same function: no soft cap on the scores, and equal logits on a probe."""
    config: Any = model.config.get_text_config()
    capped = getattr(config, "attn_logit_softcapping", None) is not None
    tokens = torch.randint(0, shape.d_vocab, (1, min(PROBE_LENGTH, shape.n_ctx)), generator=torch.Generator().manual_seed(0)).to(
        model.device
    )
    logits: list[Tensor] = []
    with quiet(), torch.no_grad():
        for implementation in ("eager",) if capped else ("eager", "sdpa"):
            try:
                model.set_attn_implementation(implementation)
            except (ValueError, ImportError):
                continue
            logits.append(model(input_ids=tokens, use_cache=False).logits.float())
        if len(logits) == 2 and (logits[1] - logits[0]).norm() > ROUNDING * torch.finfo(model.dtype).eps * logits[0].norm():
            model.set_attn_implementation("eager")


def _hook_border(module: nn.Module, border: Border, hook: Hook) -> Any:
    """`hook` on what enters or leaves the module: its first positional argument, `hidden_states` where that is given by name, or its
    first result."""

    def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = hook(args[0] if args else kwargs["hidden_states"])
        if result is None:
            return None
        return ((result, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": result})

    def after(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        sequence = isinstance(output, (tuple, list))
        result = hook(output[0] if sequence else output)
        if result is None:
            return None
        return type(output)([result, *output[1:]]) if sequence else result

    return module.register_forward_pre_hook(before, with_kwargs=True) if border.side == "in" else module.register_forward_hook(after)


def _shaped(site: Site, border: Border, hook: Hook, shape: torch.Size) -> Hook:
    """The hook, seeing activations [batch, context, width] whatever shape they have in the model, and scaled as the model adds them."""

    def shaped(tensor: Tensor) -> Tensor | None:
        acts = tensor.reshape(*shape, -1)
        result = hook(acts if border.scale == 1.0 else acts * border.scale)
        if result is None:
            return None
        result = result if border.scale == 1.0 else result / border.scale
        return result.clone().reshape(tensor.shape)  # a copy: the model may write into it, and it may be the caller's own

    return shaped


def _note(seen: dict[Site, Tensor], site: Site, acts: Tensor) -> None:
    seen.setdefault(site, acts.clone())


def _adds_up(acts: Mapping[tuple[int, Kind], Tensor], layer: int, tolerance: float) -> bool:
    """Whether resid_mid = resid_pre + attn_out and resid_post = resid_mid + mlp_out, relative to the largest of the terms."""
    try:
        pre, attn, mid, mlp, post = (acts[layer, k] for k in ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post"))
    except KeyError:
        return True  # nothing to judge by: a block without attention, say
    scale = torch.stack([term.norm() for term in (pre, attn, mid, mlp, post)]).max()
    return bool((pre + attn - mid).norm() <= tolerance * scale and (mid + mlp - post).norm() <= tolerance * scale)


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

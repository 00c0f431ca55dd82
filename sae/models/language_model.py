"""A causal language model to look into: capture activations, edit them, resume from them.

    a = capture(tokens, sites)            run(tokens, edits)            resume(a[site], site) = run(tokens)

The weights are raw: nothing folded, so activations and logits are those of the model as published. It is the Hugging Face model that computes
them, by its own code and with its default attention, at the places that TransformerLens names.
"""

import copy
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.errors import ConfigError
from sae.fingerprint import digest, digest_tensors
from sae.models.edits import Edit
from sae.models.hooked import Hook, HookedModel
from sae.models.isolation import IsolatingModel
from sae.models.loading import PreTrainedModel, PreTrainedTokenizerBase, load_pretrained
from sae.models.sites import ModelShape, Site, matching
from sae.models.transformer_lens import weights

__all__ = ["Edit", "LanguageModel", "ModelShape", "Site", "default_dtype"]


class LanguageModel:
    """A causal language model at named sites. Made by `LanguageModel.load`.

    No weight requires a gradient. A graph is recorded only where an argument brings one: `resume` is differentiable in `acts`, `run` in
    what its edits hold. Attention is the fused one of PyTorch where the Hugging Face library offers it and it is the same function (not with
    a soft cap on the scores); it differs from the eager one in the last bits. Threads may share a model: passes take turns.
    """

    def __init__(self, model: HookedModel, tokenizer: PreTrainedTokenizerBase, *, name: str, digest: str) -> None:
        self._model = model
        self._isolating = IsolatingModel(model)
        self.tokenizer = tokenizer
        self.name = name
        self.digest = digest

    @classmethod
    def load(
        cls,
        source: str | Path | PreTrainedModel,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
    ) -> "LanguageModel":
        """The model at `source`: a folder written by `save_pretrained`, a `.gguf` file, a hub name, or a loaded Hugging Face model (with
        `tokenizer`), which is changed in place: cast, moved, put into evaluation mode.

        `dtype` None means `default_dtype(device)`, and for a loaded model its own. `digest` is taken over the weights as published, before
        any cast, so it does not depend on `dtype`.

        Raises ConfigError, FormatError or SaeError as `load_pretrained` does, and ConfigError for an architecture that TransformerLens
        has no adapter for.
        """
        if isinstance(source, (str, Path)):
            model, tokenizer, name = load_pretrained(source, tokenizer=tokenizer)
            dtype = dtype or default_dtype(device)
        else:
            if tokenizer is None:
                raise ConfigError("tokenizer must be given with a loaded model, got None (LanguageModel.load)")
            model, name = source, Path(source.name_or_path or "").name or type(source).__name__
        digest = digest_tensors(weights(model))
        torch.nn.Module.to(model, device=device, dtype=dtype or model.dtype)
        return cls(HookedModel(model), tokenizer, name=name, digest=digest)

    @property
    def shape(self) -> ModelShape:
        """The sizes of the model."""
        return self._model.shape

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights, and of the activations."""
        return self._model.model.dtype

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self._model.model.device

    @property
    def separator_id(self) -> int:
        """The token that opens a document: `<|endoftext|>` where the tokenizer has it, else the end-of-sequence token, else BOS.

        Raises ConfigError when the tokenizer has none of them.
        """
        named = self.tokenizer.get_vocab().get("<|endoftext|>")
        candidates: tuple[Any, ...] = (named, self.tokenizer.eos_token_id, self.tokenizer.bos_token_id)
        for candidate in candidates:
            if candidate is not None:
                return int(candidate)
        raise ConfigError(f"the tokenizer of {self.name} has no <|endoftext|>, end-of-sequence or BOS token to separate documents with")

    def site(self, name: str) -> Site:
        """The site of that name. Raises ConfigError, naming the nearest, when the model does not have it.

        Its width is that of the activations themselves, seen in a pass over two tokens: layers may differ in it.
        """
        kind = Site.parse(name, self.shape).kind
        if name not in self._model.sites:
            raise ConfigError(f"{self._model.name} has no {name}: a {kind} does not exist in this architecture, or not in this layer")
        return self._model.sites[name]

    def sites(self, patterns: Sequence[str]) -> tuple[Site, ...]:
        """The sites that `patterns` name, in the order of the patterns and, within one, of the model (blocks upwards); each once.

        A pattern is a site's name, in which each part between dots may be a glob, as `fnmatch` has them: `*` and `?` stand for any characters
        and `[...]` for one of those in it, but none for a dot. A pattern leaves out what the architecture does not have. Raises ConfigError,
        naming the nearest, for a pattern that matches nothing.

        >>> model.sites(["blocks.*.hook_resid_post", "blocks.1[0-5].mlp.hook_post"])
        """
        if isinstance(patterns, str):
            raise ConfigError(f"patterns must be a list of site names or globs, got the string {patterns!r} (LanguageModel.sites)")
        return tuple(self._model.sites[name] for name in matching(patterns, list(self._model.sites)))

    def tokenize(self, texts: Sequence[str], *, special_tokens: bool = False) -> list[list[int]]:
        """Token ids of each text. No special tokens are added.

        Text that spells a special token is taken as text, or, with `special_tokens`, as that token: for what a chat template has written.
        Raises ConfigError for a string that is not text: a lone surrogate, left by reading bytes that are not UTF-8.
        """
        if len(texts) == 0:
            return []
        for i, text in enumerate(texts):
            _check_text(i, text)
        no: dict[str, Any] = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
        encoded: Any = self.tokenizer(list(texts), split_special_tokens=not special_tokens, **no)
        return [list(ids) for ids in encoded["input_ids"]]

    @cached_property
    def vocabulary_digest(self) -> str:
        """SHA-256 of the tokenizer's tokens with their ids."""
        return digest(self.tokenizer.get_vocab())

    def vocabulary(self) -> list[str]:
        """The text of each token id, `d_vocab` strings: leading spaces kept, U+FFFD for bytes that are no character by themselves.

        Ids that the tokenizer does not use are written `<unused 12>`. Decoded once.
        """
        return list(self._vocabulary)

    @cached_property
    def _vocabulary(self) -> tuple[str, ...]:
        n_used = min(len(self.tokenizer), self.shape.d_vocab)
        raw = self.tokenizer.convert_ids_to_tokens(list(range(n_used)))
        texts: list[str] = self.tokenizer.batch_decode([[i] for i in range(n_used)], clean_up_tokenization_spaces=False)
        for i, (token, text) in enumerate(zip(raw, texts, strict=True)):
            if token.startswith("\u2581") and not text.startswith(" "):
                texts[i] = f" {text}"  # SentencePiece's space, which decoding drops at the start of a text
        return (*texts, *(f"<unused {i}>" for i in range(n_used, self.shape.d_vocab)))

    def capture(
        self,
        tokens: Int[Tensor, "batch context"],
        sites: Sequence[Site],
        *,
        edits: Sequence[Edit] = (),
        document_ids: Int[Tensor, "batch context"] | None = None,
    ) -> dict[Site, Float[Tensor, "batch context width"]]:
        """The activations at `sites`, in the model's dtype, in one pass that ends at the deepest of them.

        `edits` take effect first, also at the site itself. Heads of z are laid end to end. With `document_ids` every run of equal ids in a
        row is a document by itself: it sees nothing of its neighbours and starts at position 0, so its activations are, up to rounding,
        those of the document run alone; see `sae.models.isolation`. Whether the architecture does this is tried when it is first asked for.

        Raises ConfigError for tokens out of range, too long a context, a site that the model does not have, `document_ids` of another shape
        than `tokens`, and an architecture that does not keep documents apart, or not with edits.
        """
        if not sites:
            return {}
        for site in sites:
            self._check_site(site)
        tokens, hooks = self._checked(tokens), self._hooks(edits)
        if document_ids is None:
            return self._model.capture(tokens, sites, hooks)
        return self._isolating.capture(tokens, sites, hooks, self._checked_documents(document_ids, tokens))

    def run(
        self,
        tokens: Int[Tensor, "batch context"],
        edits: Sequence[Edit] = (),
        *,
        document_ids: Int[Tensor, "batch context"] | None = None,
    ) -> Float[Tensor, "batch context d_vocab"]:
        """The logits (float32) with `edits` applied; edits of one site in their order. `document_ids` and errors are as for `capture`."""
        tokens, hooks = self._checked(tokens), self._hooks(edits)
        if document_ids is None:
            return self._model.logits(tokens, hooks).float()
        return self._isolating.logits(tokens, hooks, self._checked_documents(document_ids, tokens)).float()

    def resume(self, acts: Float[Tensor, "batch context d_model"], site: Site) -> Float[Tensor, "batch context d_vocab"]:
        """The logits (float32) of a pass whose residual stream at `site`, a resid_pre or resid_post, is `acts`. Costs only the blocks left.

        Raises ConfigError for another kind of site or another width.
        """
        layer = self._entered_layer(acts, site)
        return self._model.resume(acts.to(device=self.device, dtype=self.dtype), layer).float()

    def carry(self, acts: Float[Tensor, "batch context d_model"], site: Site, to: Site) -> Float[Tensor, "batch context width"]:
        """The activations at `to` (in the model's dtype, without a graph) of a pass whose residual stream at `site` is `acts`.

            resume(carry(acts, site, to), to) = resume(acts, site)         where `to` is a resid_post

        Costs the blocks between the two. Raises ConfigError as `resume`, and for a `to` that comes before `site`.
        """
        self._check_site(to)
        layer = self._entered_layer(acts, site)
        acts = acts.to(device=self.device, dtype=self.dtype)
        if to == site:
            return acts.detach().clone()
        if to.layer < layer:
            raise ConfigError(f"to must come after {site.name}, got {to.name} (LanguageModel.carry)")
        return self._model.carry(acts, layer, to)

    def _entered_layer(self, acts: Tensor, site: Site) -> int:
        """The block that acts at the site enter."""
        self._check_site(site)
        if site.kind not in ("resid_pre", "resid_post"):
            raise ConfigError(f"site must be a resid_pre or a resid_post to resume from, got {site.name} (LanguageModel.resume)")
        if acts.shape[-1] != site.width:
            raise ConfigError(f"acts must have width {site.width}, got {acts.shape[-1]} (LanguageModel.resume from {site.name})")
        return site.layer + (site.kind == "resid_post")

    def logit_effects(self, directions: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_vocab"]:
        """What adding each direction to the last residual stream does to the logits, to first order and up to the norm's common scale.

            effect = W_U (gain * direction),   minus its mean over the vocabulary

        A LayerNorm also subtracts the direction's mean over coordinates first. The division by the residual stream's length, which is
        one positive number per token, and any soft cap of the logits are left out; subtracting the mean changes no probability. The
        "logit lens" of a direction: nostalgebraist, "interpreting GPT: the logit lens", 2020.
        """
        with torch.no_grad():
            gain, centred = norm_gain(self._model.final_norm(), self.shape.d_model)
            wide = directions.to(device=self.device, dtype=torch.float32)
            written = (wide - wide.mean(dim=-1, keepdim=True) if centred else wide) * gain
            effects = torch.cat([written @ rows.float().T for rows in self._model.unembedding().split(8192)], dim=-1)
            return effects - effects.mean(dim=-1, keepdim=True)

    def unembedding(self) -> Float[Tensor, "d_vocab d_model"]:
        """W_U as rows, in the model's dtype; not a copy. Raises ConfigError for a model without one."""
        return self._model.unembedding().detach()

    def final_norm(self) -> torch.nn.Module:
        """The norm before the unembedding, as the Hugging Face model has it. Raises ConfigError when there is none."""
        return self._model.final_norm()

    def _checked(self, tokens: Tensor) -> Tensor:
        if tokens.numel() == 0 or tokens.shape[1] > self.shape.n_ctx:
            allowed = f"[batch, context] with context in 1..n_ctx={self.shape.n_ctx}"
            raise ConfigError(f"tokens must be {allowed}, got {list(tokens.shape)} ({self.name})")
        low, high = (int(bound) for bound in tokens.aminmax())
        if low < 0 or high >= self.shape.d_vocab:
            raise ConfigError(f"token ids must be in 0..{self.shape.d_vocab - 1}, got {low}..{high} ({self.name})")
        return tokens.to(device=self.device, dtype=torch.long)

    def _checked_documents(self, document_ids: Tensor, tokens: Tensor) -> Tensor:
        if document_ids.shape != tokens.shape:
            raise ConfigError(
                f"document_ids must have the shape of tokens, {list(tokens.shape)}, got {list(document_ids.shape)} ({self.name})"
            )
        return document_ids.to(tokens.device)

    def _check_site(self, site: Site) -> None:
        if self.site(site.name) != site:
            raise ConfigError(f"{site.name} of width {site.width} belongs to another model; here its width is {self.site(site.name).width}")

    def _hooks(self, edits: Sequence[Edit]) -> list[tuple[Site, Hook]]:
        for edit in edits:
            self._check_site(edit.site)
        return [(edit.site, edit.apply) for edit in edits]


def _check_text(i: int, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"texts[{i}] is not text: character {error.start} is the lone surrogate {text[error.start]!r}, as reading bytes that are not "
            'UTF-8 leaves it; decode with errors="replace" (LanguageModel.tokenize)'
        ) from error


def norm_gain(norm: torch.nn.Module, d_model: int) -> tuple[Float[Tensor, " d_model"], bool]:
    """The gain of a norm layer (float32), and whether it subtracts the mean: measured, so that no convention of storing it matters.

    N(x) = gain * (x - mean(x)?) / scale(x) + bias,       so with mean(x) = 0:  gain = (N(x) - N(-x)) / (2 x) * rms(x)
    """
    parameter = next(norm.parameters())
    sign = 1.0 - 2.0 * (torch.arange(d_model) % 2)
    x = 1e3 * sign * (1.0 + torch.arange(d_model) / d_model)  # large, so that the norm's epsilon vanishes
    x = x - x.mean()
    wide = copy.deepcopy(norm).float()
    shifted, plain, negated = (wide(v.to(parameter.device)) for v in (x + 1e3, x, -x))
    x = x.to(parameter.device)
    gain = (plain - negated) / (2 * x) * x.square().mean().sqrt()
    return gain, bool((shifted - plain).abs().max() <= 1e-3 * plain.abs().max())


def default_dtype(device: str | torch.device = "cpu") -> torch.dtype:
    """bfloat16 where the hardware multiplies it natively (on a CPU: AVX512-BF16 or AMX), else float32."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    checks = [getattr(torch.cpu, name, None) for name in names] if kind == "cpu" else []
    return torch.bfloat16 if any(check() for check in checks if check is not None) else torch.float32

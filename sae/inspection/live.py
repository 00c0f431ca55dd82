"""Live encoding: typed texts to sparse features, token by token, exactly as an index was made.

text -> row [bos] [separator] tokens -> activations at the site -> (rounded as the store rounds) -> dictionary -> entries

live = Live(model, dictionary, "blocks.15.hook_resid_post")
live = Live(model, dictionary, store.site_names[0], framing=framing_of(store, store.site_names[0]))       # as the store has it
live.encode(["The nation and the people."])[0].latents
"""

import threading
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sae.activations.store import ActivationStore
from sae.dictionaries.base import Dictionary
from sae.dictionaries.codes import SparseCodes
from sae.dictionaries.pursuit import MatchingPursuit
from sae.errors import ConfigError
from sae.inspection.contrast import contrast_texts
from sae.inspection.encoded import Contrast, EncodedText, Framing, TextTooLongError, TokenisedText, check_texts
from sae.inspection.vocabulary import token_texts
from sae.models.language_model import LanguageModel

__all__ = ["Live", "framing_of"]


def framing_of(store: ActivationStore, site_name: str) -> Framing:
    """How the rows of a store were made, so that texts are encoded like them: BOS, separator, outlier threshold, rounding.

    Rows of an int8 store are rounded by a rule of their own; texts are then left as the model gives them.
    """
    capture, model = store.manifest.capture, store.manifest.model
    return Framing(
        bos_id=capture.bos_id,
        separator_id=None if model is None else model.separator_id,
        largest_norm=store.statistics(site_name).threshold,
        dtype="float32" if capture.dtype == "int8" else capture.dtype,
    )


class Live:
    """Encodes texts with a language model and a dictionary. Threads may share one: calls take turns. Nothing is changed or kept.

    `framing` None is that of a store made by default: the model's separator opens a text, position 0 is masked. `context` is the most
    tokens of a row, by default the model's. Raises ConfigError for a site that the model does not have or whose width is not the
    dictionary's, for a dictionary that states another site or model, and for a context that the model cannot see.
    """

    def __init__(
        self,
        model: LanguageModel,
        dictionary: Dictionary,
        site_name: str,
        *,
        framing: Framing | None = None,
        context: int | None = None,
    ) -> None:
        self.model, self.dictionary, self.site = model, dictionary, model.site(site_name)
        self.framing = Framing(separator_id=model.separator_id) if framing is None else framing
        self.limit = model.shape.n_ctx if context is None else context
        self._lock = threading.Lock()
        self._check(context)

    @property
    def site_name(self) -> str:
        """TransformerLens name of the site."""
        return self.site.name

    @cached_property
    def dictionary_digest(self) -> str:
        """SHA-256 of the dictionary."""
        return self.dictionary.digest

    @cached_property
    def vocabulary(self) -> list[str]:
        """The text of each token id, as an index has it: bytes of incomplete characters are named."""
        return token_texts(None, self.model, n_least=0)

    def atoms(self, latents: Sequence[int]) -> Float[np.ndarray, "n d_in"]:
        """The decoder directions of latents, rows of W_dec, float32."""
        return self.dictionary.W_dec.detach()[torch.tensor(list(latents), dtype=torch.long)].float().cpu().numpy()

    def tokenise(self, texts: Sequence[str]) -> list[TokenisedText]:
        """The rows of the texts. Raises ConfigError for an empty text, one of whitespace, with NUL or a lone surrogate, and
        TextTooLongError (with `n_tokens` and `limit`) for one that is longer than the context: nothing is cut off."""
        check_texts(texts)
        opening = self.framing.opening
        for i, text in enumerate(texts):
            if len(text) > self._longest_token * self.limit:
                raise TextTooLongError(
                    f"texts[{i}] has {len(text)} characters, more than the {self.limit} tokens of the context can spell; shorten it",
                    n_tokens=None,
                    limit=self.limit,
                )
        rows = [(*opening, *ids) for ids in self.model.tokenize(texts)]
        for i, row in enumerate(rows):
            if len(row) > self.limit:
                raise TextTooLongError(
                    f"texts[{i}] has {len(row)} tokens with the {len(opening)} that open it, the limit is {self.limit}; shorten it",
                    n_tokens=len(row),
                    limit=self.limit,
                )
            if len(row) == len(opening):
                raise ConfigError(f"texts[{i}] has no token; the tokenizer drops all of its characters")
        return [
            TokenisedText(text, tuple(self.vocabulary[i] for i in row), tuple(row), len(opening))
            for text, row in zip(texts, rows, strict=True)
        ]

    def encode(self, texts: Sequence[str], *, top_k: int | None = None, masked: bool = False) -> list[EncodedText]:
        """What fires at each token of each text, in the order of the texts; errors as in `tokenise`.

        With `top_k` only the latents of largest |value| at each token, in the order they have. With `masked` the special tokens are
        encoded too; an index never does. Each text is a pass of its own, so no other text changes its codes.
        """
        if top_k is not None and (isinstance(top_k, bool) or not 1 <= top_k <= self.dictionary.d_sae):
            raise ConfigError(f"top_k must be in 1..d_sae={self.dictionary.d_sae} or None, got {top_k!r} (Live.encode)")
        rows = self.tokenise(texts)
        with self._lock, torch.no_grad():
            return [self._encoded(row, top_k, masked) for row in rows]

    def contrast(self, texts_a: Sequence[str], texts_b: Sequence[str], *, n: int = 50) -> list[Contrast]:
        """The `n` latents that tell two sets of texts apart best, with what chance gives; `sae.inspection.contrast` has the definition."""
        for name, texts in (("texts_a", texts_a), ("texts_b", texts_b)):
            check_texts(texts, name=name)
        return contrast_texts(self.encode(texts_a), self.encode(texts_b), n=n)

    def acts(self, token_ids: Sequence[int]) -> Float[Tensor, "n_tokens width"]:
        """The activations of a row at the site, float32, rounded as the framing says. Raises ConfigError for ids out of range."""
        captured = self.model.capture(torch.tensor([list(token_ids)]), [self.site])[self.site][0]
        rounded = captured.to(getattr(torch, self.framing.dtype))
        return rounded.to(device=self.dictionary.W_dec.device, dtype=torch.float32)

    def _encoded(self, row: TokenisedText, top_k: int | None, masked: bool) -> EncodedText:
        acts = self.acts(row.token_ids)
        largest = float("inf") if self.framing.largest_norm is None else self.framing.largest_norm
        special = [i == 0 or norm > largest for i, norm in enumerate(torch.linalg.vector_norm(acts, dim=1).tolist())]
        kept = [i for i, is_special in enumerate(special) if masked or not is_special]
        entries: list[list[tuple[int, float, int]]] = [[] for _ in special]
        for i, found in zip(kept, self._entries(acts[kept]), strict=True):
            entries[i] = _strongest(found, top_k)
        columns = [tuple(tuple(entry[j] for entry in token) for token in entries) for j in range(3)]
        steps = columns[2] if isinstance(self.dictionary, MatchingPursuit) else None
        return EncodedText(row.text, row.tokens, row.token_ids, tuple(special), columns[0], columns[1], steps)

    def _entries(self, acts: Tensor) -> list[list[tuple[int, float, int]]]:
        """(latent, value, step) of every row; a latent that a pursuit selects again is one entry, its values added."""
        if len(acts) == 0:
            return []
        pursuit = isinstance(self.dictionary, MatchingPursuit)
        codes: SparseCodes = self.dictionary.pursue(acts).steps if pursuit else self.dictionary.encode(acts)
        indices, values, counts = codes.indices.tolist(), codes.values.tolist(), codes.counts.tolist()
        found = []
        for latents, numbers, count in zip(indices, values, counts, strict=True):
            total: dict[int, float] = {}
            first: dict[int, int] = {}
            for step in range(count):
                total[latents[step]] = total.get(latents[step], 0.0) + numbers[step]
                first.setdefault(latents[step], step)
            found.append([(latent, value, first[latent]) for latent, value in total.items() if value != 0])
        return found

    def _check(self, context: int | None) -> None:
        said = self.dictionary.provenance.get("site")
        if said is not None and said != self.site.name:
            raise ConfigError(f"site_name must be {said}, the site that the dictionary was trained at, got {self.site.name} (Live)")
        made_with = self.dictionary.provenance.get("model_digest")
        if made_with is not None and made_with != self.model.digest:
            raise ConfigError(
                f"model must be the one whose activations the dictionary was trained on, of digest {str(made_with)[:12]}, got "
                f"{self.model.name} of digest {self.model.digest[:12]} (Live)"
            )
        if self.site.width != self.dictionary.d_in:
            raise ConfigError(
                f"the dictionary encodes activations of width {self.dictionary.d_in}, {self.site.name} of {self.model.name} has "
                f"{self.site.width} (Live)"
            )
        lowest, highest = len(self.framing.opening) + 1, self.model.shape.n_ctx
        if context is not None and not lowest <= context <= highest:
            raise ConfigError(f"context must be in {lowest}..n_ctx={highest} of {self.model.name}, got {context} (Live)")
        for i in self.framing.opening:
            if not 0 <= i < self.model.shape.d_vocab:
                raise ConfigError(f"token ids of the framing must be in 0..{self.model.shape.d_vocab - 1}, got {i} (Live)")

    @cached_property
    def _longest_token(self) -> int:
        """Most characters that one token stands for."""
        return max(len(text) for text in self.model.vocabulary())


def _strongest(entries: list[tuple[int, float, int]], top_k: int | None) -> list[tuple[int, float, int]]:
    """The `top_k` entries of largest |value|, in the order they have; ties go to the earlier."""
    if top_k is None or len(entries) <= top_k:
        return entries
    chosen = sorted(sorted(range(len(entries)), key=lambda i: -abs(entries[i][1]))[:top_k])
    return [entries[i] for i in chosen]

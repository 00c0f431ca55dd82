"""Vectors of whole texts: the last hidden states of a transformer, pooled over the tokens of each text.

    h = encoder(tokens)  [length, width]         mean: v = (1/length) sum_t h_t      cls: v = h_0      last: v = h_{length - 1}
                                                 and, if normalised, v / |v|

Reimers and Gurevych, "Sentence-BERT: sentence embeddings using Siamese BERT-networks", EMNLP 2019, arXiv 1908.10084. A folder in the
layout of sentence-transformers says itself how its vectors are pooled; any other encoder is told.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae.errors import ConfigError, FormatError, SaeError
from sae.fingerprint import digest, digest_tensors, to_json
from sae.models.loading import UNREADABLE, PreTrainedModel, PreTrainedTokenizerBase, quiet
from sae.models.transformer_lens import weights
from sae.storage import read_json

logger = logging.getLogger(__name__)

Pooling = Literal["mean", "cls", "last"]
POOLINGS: dict[str, Pooling] = {"mean": "mean", "cls": "cls", "lasttoken": "last"}
"""Name in a sentence-transformers folder -> name here."""
LEGACY_POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""Switch in the Pooling module of an older sentence-transformers folder -> what it switches on."""
LONGEST = 1_000_000  # tokenizers without a limit say 1e30


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """How a text becomes a vector, apart from the weights and the tokenizer."""

    pooling: Pooling
    """Which hidden states count: the mean over all tokens, the first, or the last."""
    normalise: bool
    """Whether vectors are brought to length 1."""
    max_length: int
    """Longer texts are cut to this many tokens, special tokens included (tokens)."""
    prompt: str = ""
    """What is put before every text."""

    def __post_init__(self) -> None:
        if self.pooling not in get_args(Pooling):
            raise ConfigError(f"pooling must be one of {', '.join(get_args(Pooling))}, got {self.pooling!r} (EncoderConfig)")
        if self.max_length < 1:
            raise ConfigError(f"max_length must be at least 1, got {self.max_length} (EncoderConfig)")


@dataclass(frozen=True)
class EncodedTexts:
    """Vectors of texts."""

    vectors: Float[Tensor, "n width"]
    """One per text, float32."""
    n_cut: int
    """How many of the texts were longer than the encoder's max_length."""


class TextEncoder:
    """Texts to vectors. Made by `TextEncoder.load`.

    encoder = TextEncoder.load(default_encoder())
    vectors = encoder.encode(["A dog is an animal.", "Birds can fly."])          # [2, 384]
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, name: str, weights_digest: str, config: EncoderConfig
    ) -> None:
        self._model = model
        self.tokenizer = tokenizer
        self.name = name
        self.weights_digest = weights_digest
        self.config = config

    @classmethod
    def load(
        cls,
        source: str | Path | PreTrainedModel,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        pooling: Pooling | None = None,
        normalise: bool | None = None,
        max_length: int | None = None,
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
    ) -> "TextEncoder":
        """The encoder at `source`: a folder of sentence-transformers or of `save_pretrained`, a hub name, or a loaded Hugging Face model
        (with `tokenizer`), which is moved, cast and set to eval mode in place. Of an encoder-decoder the encoder is used.

        `pooling`, `normalise` and `max_length` None mean what the sentence-transformers folder says; elsewhere the first two must be given,
        and `max_length` is what tokenizer and model can take. `dtype` None means float32, and for a loaded model its own.

        Raises ConfigError for a missing path or setting, FormatError for a folder that holds no encoder or one with modules that are not
        known here (the vectors would be others than published), SaeError for a hub name that cannot be reached.
        """
        known: dict[str, Any] = {}
        if isinstance(source, (str, Path)):
            folder, name = _folder(source)
            known = _sentence_transformers_settings(folder)
            model, found = _read(folder / known.pop("transformer", ""))
            tokenizer, dtype = tokenizer or found, dtype or torch.float32
        else:
            if tokenizer is None:
                raise ConfigError("tokenizer must be given with a loaded model, got None (TextEncoder.load)")
            model, name = source.base_model, Path(source.name_or_path or "").name or type(source).__name__
            model = model.get_encoder() if model.config.is_encoder_decoder else model
        given = {"pooling": pooling, "normalise": normalise, "max_length": max_length}
        known |= {key: value for key, value in given.items() if value is not None}
        missing = [key for key in ("pooling", "normalise") if key not in known]
        if missing:
            raise ConfigError(f"{' and '.join(missing)} must be given: {name} has no modules.json that says how to pool (TextEncoder.load)")
        known.setdefault("max_length", _longest(model, tokenizer, name))
        weights_digest = digest_tensors({key: value for key, value in weights(model).items() if not key.startswith("pooler.")})
        torch.nn.Module.to(model.eval(), device=device, dtype=dtype or model.dtype)
        return cls(model, tokenizer, name=name, weights_digest=weights_digest, config=EncoderConfig(**known))

    @property
    def digest(self) -> str:
        """SHA-256 over the weights as published and the config: with the tokenizer, all that decides what a text becomes."""
        return digest({"weights": self.weights_digest, "config": to_json(self.config)})

    @property
    def width(self) -> int:
        """Number of coordinates of a vector."""
        return int(self._model.config.hidden_size)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the encoder computes in."""
        return self._model.dtype

    @property
    def device(self) -> torch.device:
        """Where the encoder computes."""
        return self._model.device

    def with_config(self, **changes: Any) -> "TextEncoder":
        """The same weights with other fields of the config: `encoder.with_config(pooling="cls")`."""
        config = replace(self.config, **changes)
        return TextEncoder(self._model, self.tokenizer, name=self.name, weights_digest=self.weights_digest, config=config)

    def n_tokens(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each text has before it is cut, prompt and special tokens included; more than `config.max_length` are cut."""
        return [len(ids) for ids in self._tokenize(texts, cut=False)]

    def encode(self, texts: Sequence[str], *, batch: int = 32) -> Float[Tensor, "n width"]:
        """One vector per text, in the order of the texts, float32, on the CPU. `batch` texts at a time, those of like length together.

        What else is in the batch changes a vector by rounding only: padding is masked. The number of texts that were cut is logged.
        Raises ConfigError for a text without tokens and for one string instead of several, FormatError when a vector is not finite.
        """
        encoded = self.encode_counted(texts, batch=batch)
        if encoded.n_cut:
            what = "%d of %d texts have more than max_length=%d tokens and were cut"
            logger.warning(what, encoded.n_cut, len(texts), self.config.max_length)
        return encoded.vectors

    def encode_counted(self, texts: Sequence[str], *, batch: int = 32) -> EncodedTexts:
        """`encode`, with the number of texts that were cut instead of a line in the log."""
        if isinstance(texts, str):
            raise ConfigError(f"texts must be a sequence of strings, got one string {texts[:40]!r} (TextEncoder.encode)")
        if batch < 1:
            raise ConfigError(f"batch must be at least 1, got {batch} (TextEncoder.encode)")
        out = torch.empty(len(texts), self.width)
        if len(texts) == 0:
            return EncodedTexts(out, 0)
        token_lists = self._tokenize(texts, cut=True)
        order = sorted(range(len(texts)), key=lambda i: len(token_lists[i]))
        for first in range(0, len(order), batch):
            rows = order[first : first + batch]
            out[rows] = self._vectors([token_lists[i] for i in rows]).cpu()
        finite = torch.isfinite(out).all(dim=1)
        if not bool(finite.all()):
            bad = int((~finite).nonzero()[0, 0])
            raise FormatError(f"{self.name} gives NaN or infinite values in {self.dtype} for texts[{bad}] {texts[bad][:40]!r}; try float32")
        full = [text for text, ids in zip(texts, token_lists, strict=True) if len(ids) >= self.config.max_length]
        return EncodedTexts(out, sum(length > self.config.max_length for length in self.n_tokens(full)) if full else 0)

    def _tokenize(self, texts: Sequence[str], *, cut: bool) -> list[list[int]]:
        limits: dict[str, Any] = {"truncation": True, "max_length": self.config.max_length} if cut else {}
        prompted = [self.config.prompt + text for text in texts]
        encoded: Any = self.tokenizer(prompted, **limits, return_attention_mask=False, verbose=False)
        token_lists = [list(ids) for ids in encoded["input_ids"]]
        for i, ids in enumerate(token_lists):
            if not ids:
                raise ConfigError(f"every text must have a token, texts[{i}] {texts[i][:40]!r} has none; leave it out ({self.name})")
        return token_lists

    def _vectors(self, token_lists: Sequence[list[int]]) -> Float[Tensor, "batch width"]:
        length = max(len(ids) for ids in token_lists)
        tokens = torch.full((len(token_lists), length), self.tokenizer.pad_token_id or 0, dtype=torch.long)
        mask = torch.zeros(len(token_lists), length, dtype=torch.bool)
        for row, ids in enumerate(token_lists):
            tokens[row, : len(ids)] = torch.tensor(ids)
            mask[row, : len(ids)] = True
        tokens, mask = tokens.to(self.device), mask.to(self.device)
        with torch.no_grad():
            hidden = self._model(input_ids=tokens, attention_mask=mask.long()).last_hidden_state.float()
        vectors = pool(hidden, mask, self.config.pooling)
        return torch.nn.functional.normalize(vectors, dim=1) if self.config.normalise else vectors


def pool(hidden: Float[Tensor, "batch length width"], mask: Bool[Tensor, "batch length"], pooling: Pooling) -> Float[Tensor, "batch width"]:
    """The mean of the hidden states where `mask` is true, or the one at the first or the last such position of a row."""
    if pooling == "mean":
        kept = mask[..., None].to(hidden.dtype)
        return (hidden * kept).sum(dim=1) / kept.sum(dim=1)
    positions = torch.arange(mask.shape[1], device=mask.device)
    chosen = torch.where(mask, positions, -1).amax(dim=1) if pooling == "last" else torch.where(mask, positions, mask.shape[1]).amin(dim=1)
    return hidden[torch.arange(len(hidden), device=hidden.device), chosen]


def _folder(source: str | Path) -> tuple[Path, str]:
    """The folder that `source` is, or that the hub's files of this name are copied to, and the name to show."""
    path = Path(source).expanduser()
    if path.is_dir():
        return path, path.resolve().name
    if isinstance(source, Path) or source.startswith(("/", ".", "~")):
        raise ConfigError(f"source {str(source)!r} does not exist; give the folder of an encoder or a hub name (TextEncoder.load)")
    from huggingface_hub import snapshot_download

    try:
        with quiet():
            return Path(snapshot_download(source, allow_patterns=["*.json", "*.txt", "*.model", "*.safetensors"])), source
    except UNREADABLE as error:
        raise SaeError(f"the encoder {source!r} is neither a folder here nor can it be had from the Hugging Face hub: {error}") from error


def _read(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    from transformers import AutoModel, AutoTokenizer

    try:
        with quiet():
            model, report = AutoModel.from_pretrained(folder, dtype="auto", local_files_only=True, output_loading_info=True)
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except UNREADABLE as error:
        raise FormatError(f"{folder} does not hold a text encoder with its tokenizer: {error}") from error
    model = model.get_encoder() if model.config.is_encoder_decoder else model
    absent = sorted(name for name in report["missing_keys"] if not name.startswith(("pooler.", "decoder.")))
    if absent:
        raise FormatError(f"{folder} lacks {len(absent)} of the weights of a {type(model).__name__}, {absent[0]} for one; fetch it again")
    return model, tokenizer


def _longest(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> int:
    known = [tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None)]
    limits = [int(limit) for limit in known if limit is not None and 0 < limit < LONGEST]
    if not limits:
        raise ConfigError(f"max_length must be given: neither the tokenizer nor the config of {name} states one (TextEncoder.load)")
    return min(limits)


def _sentence_transformers_settings(folder: Path) -> dict[str, Any]:
    """Pooling, normalise, max_length, prompt and where the transformer is, as far as the folder says; nothing without modules.json."""
    if not (folder / "modules.json").is_file():
        return {}
    modules = read_json(folder / "modules.json")
    kinds = [str(module["type"]).rsplit(".", 1)[-1] for module in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise FormatError(
            f"{folder / 'modules.json'} has the modules {', '.join(kinds)}; only Transformer, Pooling and an optional Normalize are known "
            "here, so its vectors would be others than published; encode with its own library and use import_arrays"
        )
    transformer = folder / modules[0]["path"]
    settings: dict[str, Any] = {"transformer": modules[0]["path"], "normalise": len(kinds) == 3}
    settings["pooling"] = _pooling(folder / modules[1]["path"] / "config.json")
    own = read_json(transformer / "sentence_bert_config.json") if (transformer / "sentence_bert_config.json").is_file() else {}
    if own.get("do_lower_case"):
        raise FormatError(f"{transformer / 'sentence_bert_config.json'} asks for lower case, which is not done here; lower the texts first")
    if own.get("max_seq_length") is not None:
        settings["max_length"] = int(own["max_seq_length"])
    prompts = read_json(folder / "config_sentence_transformers.json") if (folder / "config_sentence_transformers.json").is_file() else {}
    if prompts.get("default_prompt_name") is not None:
        settings["prompt"] = str(prompts["prompts"][prompts["default_prompt_name"]])
    return settings


def _pooling(file: Path) -> Pooling:
    config = read_json(file)
    modes = config.get("pooling_mode", [mode for key, mode in LEGACY_POOLINGS.items() if config.get(key)])
    modes = [modes] if isinstance(modes, str) else modes
    if len(modes) != 1 or modes[0] not in POOLINGS or config.get("include_prompt") is False:
        asked = " and ".join(modes) + (" without the prompt" if config.get("include_prompt") is False else "")
        raise FormatError(f"{file} asks for pooling by {asked or 'nothing'}; known here is one of {', '.join(POOLINGS)}, prompt included")
    return POOLINGS[modes[0]]

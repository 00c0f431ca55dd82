"""Reading a causal language model and its tokenizer: a folder, a GGUF file, or a name on the Hugging Face hub.

A folder or a file never touches the network. A name does what the Hugging Face library does with it, `HF_HUB_OFFLINE` included.
"""

import contextlib
import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import SafetensorError

from sae.errors import ConfigError, FormatError, SaeError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
else:
    PreTrainedModel = PreTrainedTokenizerBase = Any  # the library takes seconds to import


UNREADABLE = (OSError, ValueError, KeyError, IndexError, RuntimeError, struct.error, SafetensorError)
"""What the Hugging Face library raises for files that are missing, damaged or of another kind (NotImplementedError is a RuntimeError)."""


class LoadedModel(NamedTuple):
    """A model as it was published: its own dtype, on the CPU, not yet wrapped."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str


def load_pretrained(source: str | Path, *, tokenizer: PreTrainedTokenizerBase | None = None) -> LoadedModel:
    """The model and tokenizer at `source`.

    Raises FormatError for a file or folder that holds no such model, ConfigError for a path that does not exist, SaeError for a hub name
    that cannot be reached.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return _from_folder(path, tokenizer)
    if path.is_file():
        if path.suffix != ".gguf":
            raise FormatError(f"{path} is a file but not a .gguf; give a folder written by save_pretrained, a .gguf file or a hub name")
        return _from_gguf(path, tokenizer)
    if isinstance(source, Path) or source.startswith(("/", ".", "~")) or source.endswith(".gguf"):
        raise ConfigError(f"source {str(source)!r} does not exist; give a folder, a .gguf file or a hub name")
    return _from_hub(source, tokenizer)


def _from_folder(path: Path, tokenizer: PreTrainedTokenizerBase | None) -> LoadedModel:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        with quiet():
            model = AutoModelForCausalLM.from_pretrained(path, dtype="auto", local_files_only=True, attn_implementation="eager")
            tokenizer = tokenizer or AutoTokenizer.from_pretrained(path, local_files_only=True)
    except UNREADABLE as error:
        raise FormatError(f"{path} does not hold a causal language model with its tokenizer: {error}") from error
    return LoadedModel(model, tokenizer, path.resolve().name)


def _from_gguf(path: Path, tokenizer: PreTrainedTokenizerBase | None) -> LoadedModel:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name, "local_files_only": True}
    try:
        with quiet(), contextlib.redirect_stderr(io.StringIO()):  # the progress bar of the dequantisation has no switch
            model = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32, attn_implementation="eager")
            tokenizer = tokenizer or AutoTokenizer.from_pretrained(**place)
    except UNREADABLE as error:
        raise FormatError(f"{path} cannot be read as a GGUF causal language model: {error}") from error
    forget_quantization_(model)
    return LoadedModel(model, tokenizer, path.stem)


def _from_hub(name: str, tokenizer: PreTrainedTokenizerBase | None) -> LoadedModel:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        with quiet():
            model = AutoModelForCausalLM.from_pretrained(name, dtype="auto", attn_implementation="eager")
            tokenizer = tokenizer or AutoTokenizer.from_pretrained(name)
    except UNREADABLE as error:
        raise SaeError(f"the model {name!r} is neither a folder here nor can it be had from the Hugging Face hub: {error}") from error
    return LoadedModel(model, tokenizer, name)


def forget_quantization_(model: PreTrainedModel) -> None:
    """Make a model read from GGUF an ordinary one: its weights are dequantised already, only the marks that forbid `save_pretrained` go."""
    for attribute, value in (("hf_quantizer", None), ("is_quantized", False), ("quantization_method", None)):
        setattr(model, attribute, value)
    if hasattr(model.config, "quantization_config"):
        delattr(model.config, "quantization_config")
    model.config.architectures = [type(model).__name__]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no remarks from the Hugging Face library while it loads; its settings are as before afterwards."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()

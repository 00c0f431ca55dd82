"""Where a program computes, and with which language model."""

import os
from typing import Any, Literal

import torch

from sae.activations.manifest import Manifest
from sae.errors import ConfigError, SaeError
from sae.models.assets import SMOLLM2, default_model
from sae.models.language_model import LanguageModel

DEFAULT = "default"
ModelDtype = Literal["bfloat16", "float16", "float32"]


def set_threads(threads: int | None) -> None:
    """Use so many threads in this process; None leaves torch's number. Raises ConfigError for none."""
    if threads is not None:
        if threads < 1:
            raise ConfigError(f"--threads must be at least 1, got {threads}")
        torch.set_num_threads(threads)


def processes() -> tuple[int, int, int]:
    """(number of this process, its number on this machine, number of all) as torchrun tells; (0, 0, 1) without it. Raises ConfigError."""
    found = []
    for name, default in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1")):
        value = os.environ.get(name, default)
        if not value.isdecimal():
            raise ConfigError(f"{name} must be a whole number in the environment, got {value!r}")
        found.append(int(value))
    return found[0], found[1], max(1, found[2])


def compute_device(name: str | None) -> torch.device:
    """The device of that name; None: a GPU where there is one. `cuda` is, under torchrun, the one with the number of the process.

    Raises ConfigError when it cannot be used.
    """
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", processes()[1])
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device {name} cannot be used: {str(error).splitlines()[0]}") from error
    return device


def load_model(source: str | None, *, stored: Manifest | None, dtype: ModelDtype | None, device: torch.device) -> LanguageModel:
    """The model at `source` (`default`, a folder, a .gguf file, a hub name); None: the one that the store was made with, by its name.

    A dtype that is not given is that of the store, or else what suits the device. Raises ConfigError where there is none, and as
    `LanguageModel.load` does.
    """
    record = None if stored is None else stored.model
    chosen = dtype or (record.dtype if record else None)
    options: dict[str, Any] = {"device": device, "dtype": None if chosen is None else getattr(torch, chosen)}
    if source is None and record is None:
        raise ConfigError(f"MODEL must be given: {DEFAULT}, a folder, a .gguf file or a hub name")
    if source == DEFAULT or (source is None and record is not None and record.name == SMOLLM2.name):
        return LanguageModel.load(default_model(), **options)
    if source is not None:
        return LanguageModel.load(source, **options)
    assert record is not None
    try:
        return LanguageModel.load(record.name, **options)
    except SaeError as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"the store's model {record.name!r} cannot be found by its name: say where it is ({reason})") from error

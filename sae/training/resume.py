"""Stopping at step n and going on as if nothing had happened.

    folder/step-00000600/   config.json, weights.safetensors, provenance.json    the dictionary
                            training.safetensors                                 optimiser moments, running averages, tokens since each latent fired
                            training.json                                        step, tokens, pressure, TrainConfig

A checkpoint appears whole or not at all; older ones are removed only after the new one is in place.
"""

import re
import shutil
from pathlib import Path
from typing import Any

from torch import Tensor

from sae.dictionaries.base import Dictionary
from sae.dictionaries.checkpoint import load_dictionary, write_dictionary
from sae.errors import ConfigError, FormatError
from sae.fingerprint import from_json, to_json
from sae.storage import atomic_folder, load_tensors, read_json, save_tensors, write_json
from sae.training.loop import TrainConfig, TrainState

FORMAT = 2


def save_training(folder: str | Path, dictionary: Dictionary, state: TrainState, *, keep: int = 2) -> Path:
    """Write a checkpoint of the run to `folder` and remove all but the newest `keep`; returns the checkpoint's own folder."""
    if keep < 1:
        raise ConfigError(f"keep must be at least 1, got {keep} (save_training)")
    folder = Path(folder)
    tensors = _tensors(state)
    path = folder / f"step-{state.step:08d}"
    with atomic_folder(path) as temporary:
        write_dictionary(dictionary, temporary)
        save_tensors(temporary / "training.safetensors", tensors)
        record = {"format": FORMAT, "step": state.step, "n_tokens": state.n_tokens}
        record |= {"pressure": state.pressure, "config": to_json(state.config)}
        write_json(temporary / "training.json", record)
    for old in checkpoints(folder)[:-keep]:
        if old != path:
            shutil.rmtree(old)
    return path


def checkpoints(folder: str | Path) -> list[Path]:
    """The finished checkpoints in `folder`, oldest first."""
    return sorted(path for path in Path(folder).glob("step-*") if re.fullmatch(r"step-\d{8}", path.name))


def load_training(folder: str | Path) -> tuple[Dictionary, TrainState]:
    """(dictionary, state) of the newest checkpoint in `folder`, or of the checkpoint that `folder` itself is; on the CPU.

    Give both to `train` with batches that start at batch `state.step`. Raises FormatError if there is none or if it is damaged.
    """
    folder = Path(folder)
    if not (folder / "training.json").exists():
        found = checkpoints(folder)
        if not found:
            raise FormatError(f"{folder} has no training checkpoint (step-...)")
        folder = found[-1]
    dictionary = load_dictionary(folder)
    record = _record(folder / "training.json")
    tensors = load_tensors(folder / "training.safetensors")
    state = TrainState.start(dictionary, record["config"])
    state.step, state.n_tokens, state.pressure = record["step"], record["n_tokens"], record["pressure"]
    state.optimiser.n_steps = state.step
    expected = _tensors(state)
    if set(tensors) != set(expected):
        raise FormatError(f"{folder / 'training.safetensors'}: missing or unexpected tensors {sorted(set(tensors) ^ set(expected))}")
    for name, tensor in expected.items():
        if tensors[name].shape != tensor.shape:
            raise FormatError(f"{folder / 'training.safetensors'}: {name} must have shape {list(tensor.shape)}")
        tensor.copy_(tensors[name])  # each keeps the memory layout of its parameter
    return dictionary, state


def _tensors(state: TrainState) -> dict[str, Tensor]:
    """The state's own tensors by their names on disk."""
    moments = {f"{moment}.{name}": tensor for name, moments in state.optimiser.moments.items() for moment, tensor in moments.items()}
    return {"since_fired": state.since_fired, **moments, **{f"average.{name}": tensor for name, tensor in state.averages.items()}}


def _record(path: Path) -> dict[str, Any]:
    record = read_json(path)
    if not isinstance(record, dict) or set(record) != {"format", "step", "n_tokens", "pressure", "config"} or record["format"] != FORMAT:
        raise FormatError(f"{path} is not a training record of format {FORMAT}")
    try:
        return {
            "config": from_json(TrainConfig, record["config"], where="config"),
            "step": from_json(int, record["step"], where="step"),
            "n_tokens": from_json(int, record["n_tokens"], where="n_tokens"),
            "pressure": from_json(float, record["pressure"], where="pressure"),
        }
    except ConfigError as error:
        raise FormatError(f"{path} does not describe a run: {error}") from error

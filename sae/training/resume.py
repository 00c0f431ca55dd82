"""Stopping at step n and going on as if nothing had happened.

    folder/step-00000600/   config.json, weights.safetensors, provenance.json    the dictionary
                            training.safetensors                                 optimiser moments, running averages, tokens since each latent fired
                            training.json                                        step, tokens, pressure, TrainConfig

A checkpoint appears whole or not at all; older ones are removed only after the new one is in place.
"""

import os
import re
import shutil
from pathlib import Path
from typing import Any

from sae.dictionaries.base import Dictionary
from sae.dictionaries.checkpoint import load_dictionary, write_dictionary
from sae.errors import ConfigError, FormatError
from sae.fingerprint import from_json, to_json
from sae.storage import atomic_folder, load_tensors, read_json, save_tensors, write_json
from sae.storage.atomic import TEMPORARY_PREFIX
from sae.training.loop import TrainConfig, TrainState

FORMAT = 2


def save_training(folder: str | Path, dictionary: Dictionary, state: TrainState, *, keep: int = 2) -> Path:
    """Write a checkpoint of the run to `folder` and remove all but the newest `keep`; returns the checkpoint's own folder."""
    if keep < 1:
        raise ConfigError(f"keep must be at least 1, got {keep} (save_training)")
    folder = Path(folder)
    path = folder / f"step-{state.step:08d}"
    with atomic_folder(path) as temporary:
        write_dictionary(dictionary, temporary)
        save_tensors(temporary / "training.safetensors", state.tensors())
        write_record(temporary / "training.json", state)
    remove_old(folder, path, keep)
    return path


def remove_old(folder: Path, path: Path, keep: int) -> None:
    """Remove all checkpoints of `folder` but the newest `keep` and `path`."""
    for old in checkpoints(folder)[:-keep]:
        if old != path:
            remove_checkpoint(old)


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint. It is gone at once: a kill on the way leaves no half of it under its name."""
    retired = path.with_name(f"{TEMPORARY_PREFIX}{path.name}")
    shutil.rmtree(retired, ignore_errors=True)  # of an earlier kill
    os.replace(path, retired)
    shutil.rmtree(retired)


def write_record(path: Path, state: TrainState) -> None:
    """Write what a state holds besides tensors."""
    record = {"format": FORMAT, "step": state.step, "n_tokens": state.n_tokens}
    write_json(path, record | {"pressure": state.pressure, "config": to_json(state.config)})


def checkpoints(folder: str | Path) -> list[Path]:
    """The finished checkpoints in `folder`, oldest first."""
    return sorted(path for path in Path(folder).glob("step-*") if re.fullmatch(r"step-\d{8}", path.name))


def load_training(folder: str | Path) -> tuple[Dictionary, TrainState]:
    """(dictionary, state) of the newest checkpoint in `folder`, or of the checkpoint that `folder` itself is; on the CPU.

    Give both to `train` with batches that start at batch `state.step`. Raises FormatError if there is none or if it is damaged.
    """
    folder = newest(folder)
    dictionary = load_dictionary(folder)
    state = read_record(folder / "training.json", dictionary)
    tensors = load_tensors(folder / "training.safetensors")
    expected = state.tensors()
    if set(tensors) != set(expected):
        raise FormatError(f"{folder / 'training.safetensors'}: missing or unexpected tensors {sorted(set(tensors) ^ set(expected))}")
    for name, tensor in expected.items():
        if tensors[name].shape != tensor.shape:
            raise FormatError(f"{folder / 'training.safetensors'}: {name} must have shape {list(tensor.shape)}")
        tensor.copy_(tensors[name])  # each keeps the memory layout of its parameter
    return dictionary, state


def newest(folder: str | Path) -> Path:
    """The newest checkpoint in `folder`, or `folder` itself if it is one. Raises FormatError if there is none."""
    folder = Path(folder)
    if (folder / "training.json").exists():
        return folder
    found = checkpoints(folder)
    if not found:
        raise FormatError(f"{folder} has no training checkpoint (step-...)")
    return found[-1]


def read_record(path: Path, dictionary: Dictionary) -> TrainState:
    """The state that `write_record` wrote, its tensors still those of a start. Raises FormatError if the file is damaged."""
    record = _record(path)
    state = TrainState.start(dictionary, record["config"])
    state.step, state.n_tokens, state.pressure = record["step"], record["n_tokens"], record["pressure"]
    state.optimiser.n_steps = state.step
    return state


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

"""Sharded dictionaries on disk: the ordinary folders, written and read shard by shard.

    file of a tensor [d_in, d_sae]   columns first_p .. last_p of W_enc and of its moments come from process p
    file of a tensor [d_sae, ...]    rows first_p .. last_p

The first process writes, one shard of one tensor at a time, through the file's memory map; readers map the file and copy their own part. No
process ever holds the whole in memory of its own. A checkpoint does not remember over how many processes it was spread: it goes on over any
other number, or unsharded in one.
"""

import json
import math
import struct
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae.dictionaries.autoencoder import AutoencoderConfig
from sae.dictionaries.base import whole_digest
from sae.dictionaries.checkpoint import FORMAT
from sae.dictionaries.scaling import Scaling
from sae.errors import ConfigError, FormatError
from sae.fingerprint import from_json, to_json
from sae.storage import atomic_folder, map_tensors, read_json, write_json
from sae.storage.tensors import DTYPES
from sae.training.loop import TrainState
from sae.training.peers import Peers, bounds
from sae.training.resume import newest, read_record, remove_old, write_record
from sae.training.sharded import SHARDED, ShardedAutoencoder
from sae.training.world import World

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integers of a number of bytes: how values of any dtype go through numpy."""


def save_sharded(dictionary: ShardedAutoencoder, folder: str | Path) -> None:
    """Write the whole of which each process of `dictionary.shards` has a part, atomically, for `load_dictionary`.

    All these processes call it together, and return once it is whole. In a grid, call it where `world.along_rows.rank` is 0.
    """
    _write(dictionary, Path(folder), None)


def save_sharded_training(folder: str | Path, dictionary: ShardedAutoencoder, state: TrainState, world: World, *, keep: int = 2) -> Path:
    """`save_training` for a shard: all processes of `world` call it together, and return once the checkpoint is whole."""
    if keep < 1:
        raise ConfigError(f"keep must be at least 1, got {keep} (save_sharded_training)")
    folder = Path(folder)
    path = folder / f"step-{state.step:08d}"
    with world.together():
        if world.along_rows.rank == 0:
            _write(dictionary, path, state)
        if world.is_first:
            remove_old(folder, path, keep)
    return path


def load_sharded(folder: str | Path, shards: Peers) -> ShardedAutoencoder:
    """This process's latents of the Autoencoder saved in `folder`. Raises FormatError for a damaged folder, ConfigError for a kind that is not
    sharded.
    """
    folder = Path(folder)
    head = read_json(folder / "config.json")
    if not isinstance(head, dict) or head.get("format") != FORMAT or head.get("kind") != "Autoencoder" or "scale" not in head:
        raise FormatError(f"{folder / 'config.json'} must describe an Autoencoder of format {FORMAT} to be sharded")
    config = from_json(AutoencoderConfig, head["config"], where="config")
    tensors = map_tensors(folder / "weights.safetensors")
    with shards.together():
        if shards.rank == 0 and whole_digest("Autoencoder", config, {"scale": head["scale"]}, tensors) != head["digest"]:
            raise FormatError(f"{folder} is damaged: its weights do not have the digest {head['digest'][:12]}")
    scaling = Scaling(tensors["scaling_mean"].clone(), head["scale"])
    own = ShardedAutoencoder(config, shards, scaling, provenance=read_json(folder / "provenance.json")).to(tensors["W_dec"].dtype)
    _fill_(own, own.state_dict(), tensors, folder / "weights.safetensors")
    return own


def load_sharded_training(folder: str | Path, world: World) -> tuple[ShardedAutoencoder, TrainState]:
    """`load_training` of this process's latents; of any checkpoint of an Autoencoder with TopK, sharded or not. On the world's device."""
    folder = newest(folder)
    own = load_sharded(folder, world.along_latents).to(world.device)
    state = read_record(folder / "training.json", own)
    _fill_(own, state.tensors(), map_tensors(folder / "training.safetensors"), folder / "training.safetensors")
    return own, state


def _write(dictionary: ShardedAutoencoder, folder: Path, state: TrainState | None) -> None:
    """Each stage is one that all processes enter and leave together, so that a full disk of the first is an error of all."""
    shards, first = dictionary.shards, dictionary.shards.rank == 0
    files = {"weights.safetensors": dictionary.state_dict()} | ({"training.safetensors": state.tensors()} if state else {})
    with ExitStack() as stack:
        with shards.together():
            temporary = stack.enter_context(atomic_folder(folder)) if first else folder
        for name, own in files.items():
            _write_tensors(temporary / name, dictionary, own)
        with shards.together():
            if first:
                _write_heads(temporary, dictionary, state)
            stack.close()


def _write_heads(folder: Path, dictionary: ShardedAutoencoder, state: TrainState | None) -> None:
    scale = dictionary.scaling.scale
    head = {"format": FORMAT, "kind": "Autoencoder", "config": to_json(dictionary.config), "scale": scale}
    head["digest"] = whole_digest("Autoencoder", dictionary.config, {"scale": scale}, map_tensors(folder / "weights.safetensors"))
    write_json(folder / "config.json", head)
    write_json(folder / "provenance.json", to_json(dictionary.provenance))
    if state:
        write_record(folder / "training.json", state)


def _write_tensors(path: Path, dictionary: ShardedAutoencoder, own: Mapping[str, Tensor]) -> None:
    """One safetensors file of the whole tensors, by the first process; a shard of a tensor at a time."""
    shards = dictionary.shards
    shapes = {name: _whole_shape(dictionary, name, tensor) for name, tensor in own.items()}
    with shards.together():
        places = _make_file(path, own, shapes) if shards.rank == 0 else {}
    for name, tensor in own.items():
        block = _by_latent(name, tensor.detach())
        parts = [bounds(dictionary.d_sae, rank, shards.size) for rank in range(shards.size)] if _is_sharded(name) else [(0, len(block))]
        for rank, (start, stop) in enumerate(parts):
            with shards.together():
                part = shards.sent_to_first(block, rank, (stop - start, *block.shape[1:]))
                if shards.rank == 0:
                    integers = INTEGERS[part.element_size()]
                    mapped = np.memmap(path, str(integers).removeprefix("torch."), "r+", places[name], tuple(shapes[name]))
                    _by_latent(name, mapped)[start:stop] = part.cpu().contiguous().view(integers).numpy()


def _make_file(path: Path, tensors: Mapping[str, Tensor], shapes: Mapping[str, list[int]]) -> dict[str, int]:
    """Make a safetensors file of zeros for tensors of these dtypes and the given shapes; the place in the file of each, in bytes."""
    codes = {dtype: code for code, dtype in DTYPES.items()}
    header: dict[str, dict] = {}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + math.prod(shapes[name]) * tensor.element_size()
        header[name] = {"dtype": codes[tensor.dtype], "shape": shapes[name], "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return {name: 8 + len(text) + entry["data_offsets"][0] for name, entry in header.items()}


@torch.no_grad()
def _fill_(own: ShardedAutoencoder, targets: Mapping[str, Tensor], tensors: Mapping[str, Tensor], path: Path) -> None:
    """Copy this process's part of every mapped tensor into its target, in place."""
    if set(targets) != set(tensors):
        raise FormatError(f"{path}: missing or unexpected tensors {sorted(set(targets) ^ set(tensors))}")
    for name, target in targets.items():
        if list(tensors[name].shape) != _whole_shape(own, name, target):
            raise FormatError(f"{path}: {name} must have shape {_whole_shape(own, name, target)}, got {list(tensors[name].shape)}")
        latents = slice(own.first, own.last) if _is_sharded(name) else slice(None)
        _by_latent(name, target).copy_(_by_latent(name, tensors[name])[latents])


def _whole_shape(dictionary: ShardedAutoencoder, name: str, own: Tensor) -> list[int]:
    """The shape of a tensor of the whole dictionary, from this process's part of it."""
    if not _is_sharded(name):
        return list(own.shape)
    rows = [dictionary.d_sae, *_by_latent(name, own).shape[1:]]
    return rows[::-1] if _is_by_column(name, own) else rows


def _by_latent(name: str, tensor: Any) -> Any:
    """A view with one latent a row."""
    return tensor.T if _is_by_column(name, tensor) else tensor


def _is_by_column(name: str, tensor: Any) -> bool:
    return _parameter(name) == "W_enc" and tensor.ndim == 2


def _is_sharded(name: str) -> bool:
    return _parameter(name) in SHARDED


def _parameter(name: str) -> str:
    """The parameter that a tensor of the state belongs to: exp_avg.W_enc is W_enc's."""
    return name.rsplit(".", 1)[-1]

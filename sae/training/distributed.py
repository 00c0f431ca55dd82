"""Training in several processes: started by torchrun, on one machine or many.

    # program.py;   torchrun --nproc-per-node 2 program.py,   or plainly   python program.py
    with launched() as world:
        for step in train(dictionary, map(world.rows, batches), objective, config, world=world):
            if world.is_first: ...

Data parallel (the default): every process has the whole dictionary and its rows of each batch; gradients are added up. With `latent_shards`
processes form a grid, world size = row groups x latent shards: neighbours in rank share the latents of one dictionary (`ShardedAutoencoder`)
and see the same rows.
"""

import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist

from sae.errors import ConfigError
from sae.training.peers import Peers
from sae.training.world import World

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun tells a process, in its environment."""


@contextmanager
def launched(*, latent_shards: int | Literal["all"] = 1, timeout: float = 600.0) -> Iterator[World]:
    """The world that torchrun has started this process in; in a plain process, a world of one.

    NCCL and one GPU per process where every process of the machine can have one, otherwise gloo on the CPU. `latent_shards` is the number of
    processes that share the latents of one dictionary, or "all". A process that waits for another longer than `timeout` seconds gives up with
    an error. Raises ConfigError where latent_shards does not divide the number of processes, torchrun's variables are incomplete, or a process
    group exists already.
    """
    found = [name for name in VARIABLES if name in os.environ]
    if found and len(found) < len(VARIABLES):
        raise ConfigError(f"{', '.join(name for name in VARIABLES if name not in found)} must be set as torchrun does (launched)")
    n_processes = int(os.environ["WORLD_SIZE"]) if found else 1
    shards = n_processes if latent_shards == "all" else latent_shards
    if shards < 1 or n_processes % shards:
        raise ConfigError(f"latent_shards must divide the number of processes {n_processes}, got {shards} (launched)")
    if not found:
        yield World(device=_device(0, 1))
        return
    if dist.is_initialized():
        raise ConfigError("torch.distributed must not have a process group yet (launched)")
    device = _device(int(os.environ["LOCAL_RANK"]), int(os.environ.get("LOCAL_WORLD_SIZE", n_processes)))
    _init_process_group("gloo" if device.type == "cpu" else "nccl", timedelta(seconds=timeout))
    try:
        yield _grid(dist.get_rank(), n_processes, shards, device)
    finally:
        # Closes the connections: whoever still waits for this process hears of its end.
        dist.destroy_process_group()


def _init_process_group(backend: str, timeout: timedelta) -> None:
    """Under names of its own in torchrun's store: a second launch in the same process would otherwise read the addresses of the first."""
    store, rank, n_processes = next(iter(dist.rendezvous("env://", timeout=timeout)))
    n_launches = store.add(f"launches of {rank}", 1)
    own = dist.PrefixStore(f"launch {n_launches}", store)
    dist.init_process_group(backend, store=own, rank=rank, world_size=n_processes, timeout=timeout)


def _device(local_rank: int, n_local: int) -> torch.device:
    if torch.cuda.is_available() and torch.cuda.device_count() >= n_local:
        torch.cuda.set_device(local_rank)
        return torch.device("cuda", local_rank)
    return torch.device("cpu")


def _grid(rank: int, n_processes: int, shards: int, device: torch.device) -> World:
    """rank = row group * shards + latent shard. Every process makes all groups, in the same order, as torch wants it."""
    ranks = torch.arange(n_processes).view(-1, shards)
    along_rows = [dist.new_group(column) if len(column) > 1 else None for column in ranks.T.tolist()]
    along_latents = [dist.new_group(row) if len(row) > 1 else None for row in ranks.tolist()]
    group, latent = divmod(rank, shards)
    return World(
        along_rows=_peers(group, n_processes // shards, along_rows[latent]),
        along_latents=_peers(latent, shards, along_latents[group]),
        everyone=_peers(rank, n_processes, dist.group.WORLD),
        device=device,
    )


def _peers(rank: int, size: int, group: Any) -> Peers:
    return Peers(rank, size, None if group is None else weakref.ref(group))

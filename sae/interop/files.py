"""Files that strangers wrote, read without trusting them.

    read_json   read_safetensors   read_npz   read_torch        what the file declares is checked against what it has, then read
    Tensors     check_keys                                      what was read is checked against what the format says
    write_json  write_safetensors  write_npz  write_torch       the same kinds, atomically

Nothing is unpickled, except torch files by `weights_only`, which knows tensors and plain values and runs no code. Nothing is allocated
because a file claims to be large: sizes are compared with the file's own first. Whatever is wrong is a FormatError that names the file and the thing.
"""

import contextlib
import io
import itertools
import json
import math
import re
import stat
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae.errors import FormatError
from sae.interop.archives import ARCHIVE_ERRORS, checked_members, read_array
from sae.storage import atomic_path, map_tensors, read_header, save_tensors, write_json

__all__ = [
    "Tensors",
    "check_keys",
    "names_in",
    "read_json",
    "read_npz",
    "read_safetensors",
    "read_torch",
    "write_json",
    "write_npz",
    "write_safetensors",
    "write_torch",
]

MAX_JSON = 1 << 24
"""Bytes of the largest JSON file that is read."""
MAX_DEPTH = 64
"""Levels of nesting that a JSON file or a torch file may have."""
MAX_VALUES = 1_000_000
"""Values that a JSON file or a torch file may hold, tensors counted as one."""
UNPICKLING = (
    OSError, RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError, AssertionError, EOFError, ArithmeticError,
    MemoryError, torch.serialization.pickle.UnpicklingError,
)  # fmt: skip
"""What torch's restricted unpickler raises when it meets nonsense."""
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
"""The dtypes that weights may have."""


def _file(path: str | Path) -> tuple[Path, int]:
    """(path, size) of an ordinary file."""
    path = Path(path)
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise FormatError(f"{path} does not exist") from error
    except (OSError, ValueError) as error:
        raise FormatError(f"{path} cannot be read: {error}") from error
    if not stat.S_ISREG(status.st_mode):
        raise FormatError(f"{path} must be a file, it is {'a folder' if stat.S_ISDIR(status.st_mode) else 'something else'}")
    if status.st_size == 0:
        raise FormatError(f"{path} is empty")
    return path, status.st_size


def read_json(path: str | Path) -> dict[str, Any]:
    """The object in a JSON file. Raises FormatError for anything else, for a key given twice, and for numbers that JSON does not have."""
    path, size = _file(path)
    if size > MAX_JSON:
        raise FormatError(f"{path} must be a configuration of at most {MAX_JSON:,} bytes, it has {size:,}")
    try:
        text = path.read_bytes().decode("utf-8")
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_number, parse_float=_finite)
        json.dumps(value, ensure_ascii=False).encode("utf-8")  # half of a surrogate pair cannot be written again
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise FormatError(f"{path} must hold a JSON object, it holds a {type(value).__name__}")
    for _ in _walk(value, path):  # raises for what is nested too deeply to be copied
        continue
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} is given twice")
    return found


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is not a JSON number")


def _finite(text: str) -> float:
    if not math.isfinite(float(text)):
        raise ValueError(f"{text} is larger than any number")
    return float(text)


def _walk(value: Any, path: Path) -> Iterator[tuple[str, Any]]:
    """(name, value) of everything inside dicts, lists and tuples. Raises FormatError for nesting that is deep, endless or enormous."""
    waiting, n_seen = [("", value, 0)], 0
    while waiting:
        name, value, depth = waiting.pop()
        n_seen += 1
        if depth > MAX_DEPTH:
            raise FormatError(f"{path} is nested more than {MAX_DEPTH} levels deep")
        if n_seen > MAX_VALUES:
            raise FormatError(f"{path} holds more than {MAX_VALUES:,} values")
        yield name, value
        if isinstance(value, (dict, list, tuple)):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            waiting += [(f"{name}.{key}" if name else str(key), item, depth + 1) for key, item in items]


def read_safetensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, memory-mapped: `Tensors.take` copies what is used."""
    path, _ = _file(path)
    header, _, _ = read_header(path)
    places = sorted((*entry["data_offsets"], name) for name, entry in header.items())
    for (_, end, name), (begin, _, other) in itertools.pairwise(places):
        if end > begin:
            raise FormatError(f"{path}: tensors {name!r} and {other!r} share bytes")
    for begin, end, name in places:
        if begin == end:
            raise FormatError(f"{path}: tensor {name!r} of shape {header[name]['shape']} holds nothing")
    return map_tensors(path)


def read_npz(path: str | Path) -> dict[str, Tensor]:
    """The arrays of an npz file. Pickled arrays, and arrays larger than their bytes, are refused before they are read."""
    path, size = _file(path)
    found: dict[str, Tensor] = {}
    with _archive(path) as archive:
        for member in checked_members(archive, path, size):
            name = member.filename.removesuffix(".npy")
            found[name] = torch.from_numpy(read_array(archive, member, f"{path}: array {name!r}"))
    return found


@contextlib.contextmanager
def _archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """The opened npz file; whatever zipfile finds wrong inside the block is a FormatError."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except FormatError:
        raise
    except ARCHIVE_ERRORS as error:
        raise FormatError(f"{path} is not a whole npz file: {error}") from error


def read_torch(path: str | Path) -> dict[str, Any]:
    """The dictionary of tensors and plain values in a file of torch.save. Any code in it is refused and not executed."""
    path, size = _file(path)
    value = _load_torch(path, size)
    if not isinstance(value, dict):
        raise FormatError(f"{path} must hold a dictionary of tensors, it holds a {type(value).__name__}")
    for name, item in _walk(value, path):
        if isinstance(item, dict) and not all(isinstance(key, str) for key in item):
            raise FormatError(
                f"{path}: the keys of {name or 'the dictionary'} must be text, got {[k for k in item if type(k) is not str][:3]}"
            )
        if isinstance(item, Tensor):
            _check_plain(item, size, f"{path}: tensor {name!r}")
    return value


def _load_torch(path: Path, size: int, *, mapped: bool = False) -> Any:
    """What torch's restricted unpickler finds; `mapped`: without the elements, where the file is a zip."""
    try:
        with open(path, "rb") as file:
            zipped = file.read(4) == b"PK\3\4"  # as torch decides it
        if zipped:
            with zipfile.ZipFile(path) as archive:
                checked_members(archive, path, size, stored=True)
        with warnings.catch_warnings(action="ignore"):  # about pickle's dialects: what cannot be read fails
            source = path if zipped else io.BytesIO(path.read_bytes())
            return torch.load(source, weights_only=True, map_location="cpu", mmap=mapped and zipped)
    except FormatError:
        raise
    except (*ARCHIVE_ERRORS, *UNPICKLING) as error:
        raise FormatError(f"{path} is not a torch file of tensors and plain values: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """What torch found, without its advice to run the code in the file."""
    text = str(error)
    refused = re.search(r"(?:GLOBAL|class) ([\w.]+) (?:was not an allowed|whose module)", text)
    if refused:
        return f"it holds code ({refused[1]}), which is never run"
    return re.sub(r".*WeightsUnpickler error: ", "", text, flags=re.DOTALL).strip().split("\n", maxsplit=1)[0] or type(error).__name__


def _check_plain(tensor: Tensor, size: int, where: str) -> None:
    """Raises FormatError unless the tensor's elements are all in the file: a view may repeat one element a billion times."""
    if (
        type(tensor) not in (Tensor, torch.nn.Parameter)
        or tensor.layout != torch.strided
        or tensor.device.type != "cpu"
        or tensor.is_quantized
    ):
        raise FormatError(f"{where} must be an ordinary tensor, got {type(tensor).__name__} ({tensor.layout}, {tensor.device})")
    held = tensor.untyped_storage().nbytes()
    if tensor.numel() * tensor.element_size() > held or held > size:
        raise FormatError(f"{where} of shape {list(tensor.shape)} is larger than the {min(held, size):,} bytes it has in the file")


def names_in(path: str | Path) -> list[str]:
    """The names in a weight file (.safetensors, .npz, .pt, .pth), without the elements."""
    path, size = _file(path)
    if path.suffix == ".safetensors":
        return sorted(read_header(path)[0])
    if path.suffix == ".npz":
        with _archive(path) as archive:
            return sorted(member.filename.removesuffix(".npy") for member in checked_members(archive, path, size))
    if path.suffix in (".pt", ".pth"):
        value = _load_torch(path, size, mapped=True)
        return sorted(map(str, value)) if isinstance(value, dict) else []
    raise FormatError(f"{path} must be a file of weights (.safetensors, .npz, .pt, .pth)")


class Tensors:
    """What a weight file holds, taken out by name; what was not asked for is an error in the end.

    found = Tensors(read_safetensors(path), path)
    W_enc = found.take("encoder.weight", None, d_in)     # [d_sae, d_in], float32, finite
    found.ignore("stats_last_nonzero")
    found.finish()
    """

    def __init__(self, found: Mapping[str, Any], path: str | Path):
        self.found, self.path = dict(found), Path(path)
        self.known: set[str] = set()
        self.dtypes: dict[str, torch.dtype] = {}

    def has(self, name: str) -> bool:
        """Whether the file holds this name."""
        return name in self.found

    def require(self, *names: str) -> None:
        """Raises FormatError listing all of these names that are not there."""
        missing = sorted(set(names) - self.found.keys())
        if missing:
            raise FormatError(f"{self.path} lacks {_list(missing)}; it has {_list(sorted(self.found))}")

    def take(self, name: str, *shape: int | None) -> Tensor:
        """A copy of the tensor in float32 on the CPU. A width None may be any; FormatError for another shape or dtype, and for NaN or Inf."""
        self.require(name)
        self.known.add(name)
        tensor, where = self.found[name], f"{self.path}: {name}"
        if not isinstance(tensor, Tensor):
            raise FormatError(f"{where} must be a tensor, it is a {type(tensor).__name__}")
        wanted = f"[{', '.join('any' if width is None else str(width) for width in shape)}]"
        if not _fits(tensor.shape, shape):
            turned = "; it is transposed" if tensor.ndim == 2 and _fits(tensor.shape[::-1], shape) else ""
            raise FormatError(f"{where} must have shape {wanted}, got {list(tensor.shape)}{turned}")
        if tensor.numel() == 0:
            raise FormatError(f"{where} holds nothing: its shape is {list(tensor.shape)}")
        if tensor.dtype not in FLOATS:
            allowed = ", ".join(map(_name, FLOATS))
            raise FormatError(f"{where} must be of dtype {allowed}, got {_name(tensor.dtype)}")
        self.dtypes[name] = tensor.dtype
        taken = tensor.detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        # A sum is finite only if every term is (an overflow of finite terms is settled by looking at each), and is thirty times as fast.
        n_bad = 0 if bool(torch.isfinite(taken.sum())) else int((~torch.isfinite(taken)).sum())
        if n_bad:
            raise FormatError(
                f"{where} must be finite, {n_bad:,} of its {taken.numel():,} values are NaN or Inf (or too large for float32)"
            )
        return taken

    def scalar(self, name: str) -> float:
        """One finite number, be it a plain one or a tensor with a single element of any real dtype."""
        self.require(name)
        self.known.add(name)
        value = self.found[name]
        if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex() and value.dtype != torch.bool:
            value = value.detach().double().item()
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            got = f"a tensor of shape {list(value.shape)} and dtype {_name(value.dtype)}" if isinstance(value, Tensor) else repr(value)[:80]
            raise FormatError(f"{self.path}: {name} must be one number, got {got}")
        if not math.isfinite(value):
            raise FormatError(f"{self.path}: {name} must be finite, got {value}")
        return float(value)

    def ignore(self, *names: str) -> None:
        """Names that the file may hold and that nobody reads."""
        self.known.update(names)

    def finish(self) -> None:
        """Raises FormatError listing everything in the file that nobody asked for."""
        unknown = sorted(self.found.keys() - self.known)
        if unknown:
            raise FormatError(f"{self.path} holds more than this format has: {_list(unknown)}; known are {_list(sorted(self.known))}")

    def notes(self) -> list[str]:
        """A sentence for the provenance when the weights taken were not all float32."""
        others = sorted({_name(dtype) for dtype in self.dtypes.values()} - {"float32"})
        return [f"the file holds weights of dtype {', '.join(others)}: they are read as float32"] if others else []


def _fits(found: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(found) == len(wanted) and all(want in (None, have) for have, want in zip(found, wanted, strict=True))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _list(names: list[str]) -> str:
    """Names for a message; of a great many, the first."""
    shown = ", ".join(repr(name[:80]) for name in names[:20])
    return (shown + (f" and {len(names) - 20} more" if len(names) > 20 else "")) or "nothing"


def check_keys(config: Mapping[str, Any], *, known: Set[str], required: Set[str], path: str | Path, free: Set[str] = frozenset()) -> None:
    """Raises FormatError for a required key that is missing, and for one that is not `known`, `required` or `free`.

    `free` are keys that may hold anything and are only carried along.
    """
    missing = sorted(required - config.keys())
    if missing:
        raise FormatError(f"{path} lacks the key {_list(missing)}; it has {_list(sorted(config))}")
    unknown = sorted(config.keys() - known - required - free)
    if unknown:
        raise FormatError(f"{path} has the unknown key {_list(unknown)}; known are {', '.join(sorted(known | required | free))}")


def write_safetensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors as a safetensors file; the same tensors give the same bytes."""
    save_tensors(path, tensors, metadata)


def write_npz(path: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as an uncompressed npz file; the same tensors give the same bytes."""
    arrays = {name: tensor.detach().cpu().contiguous().numpy() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary, open(temporary, "xb") as file:
        np.savez(file, **arrays)


def write_torch(path: str | Path, values: Mapping[str, Any]) -> None:
    """Write a dictionary of tensors and plain values as torch.save does; the same values give the same bytes."""
    plain = {name: value.detach().cpu().clone().contiguous() if isinstance(value, Tensor) else value for name, value in values.items()}
    with atomic_path(path) as temporary, open(temporary, "xb") as file:  # a file, not a path: the path's name would be in the bytes
        torch.save(plain, file)

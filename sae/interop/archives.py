"""Zip archives of arrays, looked at before they are unpacked.

An npz file is a zip of npy files: 6 bytes \\x93NUMPY, 2 bytes of version, the length of a header (2 or 4 bytes), the header `{'descr': dtype,
'fortran_order': bool, 'shape': (...)}` as Python text, and the elements. A torch file is a zip of one pickle and the elements of each storage.
Both say how large they are in several places; all of these are compared with the file's own size before anything is allocated.
"""

import ast
import math
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from sae.errors import FormatError

ARCHIVE_ERRORS = (
    zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, RuntimeError, ValueError, OverflowError, MemoryError,
)  # fmt: skip
"""What zipfile raises for a damaged archive, besides FormatError, which is a ValueError and passes through first."""
MAX_MEMBERS = 100_000
MAX_RATIO = 16
"""How many times larger than the file its contents may be: weights hardly compress."""
FREE_BYTES = 1 << 26
"""Contents of up to this size are read whatever their ratio."""
MAX_HEADER = 1 << 16
DTYPES = {
    f"{order}{kind}{size}" for order in "<>" for kind, sizes in (("f", (2, 4, 8)), ("i", (2, 4, 8)), ("u", (2, 4, 8))) for size in sizes
}
DTYPES |= {"|b1", "|i1", "|u1"}
"""numpy's names of the dtypes that torch has too."""


def checked_members(archive: zipfile.ZipFile, path: Path, size: int, *, stored: bool = False) -> list[zipfile.ZipInfo]:
    """The archive's files, once their declared sizes were found possible; `stored`: none may be compressed."""
    members = archive.infolist()
    if not members or len(members) > MAX_MEMBERS:
        raise FormatError(f"{path} must hold between 1 and {MAX_MEMBERS:,} arrays, it holds {len(members):,}")
    names = [member.filename for member in members]
    if len(set(names)) < len(names):
        raise FormatError(f"{path} holds the file {next(name for name in names if names.count(name) > 1)!r} twice")
    for member in members:
        if member.flag_bits & 1:
            raise FormatError(f"{path}: {member.filename!r} is encrypted")
        if member.compress_type != zipfile.ZIP_STORED and (stored or member.compress_type != zipfile.ZIP_DEFLATED):
            raise FormatError(f"{path}: {member.filename!r} is compressed in a way that this format does not use")
        if member.compress_size > size or (member.compress_type == zipfile.ZIP_STORED and member.file_size != member.compress_size):
            raise FormatError(
                f"{path}: {member.filename!r} claims {max(member.file_size, member.compress_size):,} bytes, the file has {size:,}"
            )
    total = sum(member.file_size for member in members)
    if total > (size if stored else max(FREE_BYTES, MAX_RATIO * size)):
        raise FormatError(f"{path} claims to hold {total:,} bytes, and has {size:,}: that is no file of weights, and it is not unpacked")
    return members


def read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, where: str) -> Shaped[np.ndarray, "..."]:
    """One array of an npz file, in this machine's byte order."""
    if not member.filename.endswith(".npy"):
        raise FormatError(f"{where} is not an npy file")
    with archive.open(member) as file:
        descr, fortran, shape, begin = _header(file, where)
        if not isinstance(descr, str) or descr not in DTYPES:
            objects = ": it holds pickled objects, which can run code and are never read" if "O" in str(descr) else ""
            raise FormatError(f"{where} must hold numbers of a dtype that torch has, got {str(descr)[:80]!r}{objects}")
        dtype = np.dtype(descr)
        if not isinstance(shape, tuple) or len(shape) > 8 or not all(type(width) is int and 0 < width < 2**48 for width in shape):
            raise FormatError(f"{where} must have a shape of at most 8 positive widths, got {str(shape)[:200]}")
        n_bytes = math.prod(shape) * dtype.itemsize
        if begin + n_bytes != member.file_size:
            raise FormatError(
                f"{where} of shape {list(shape)} and dtype {descr} takes {n_bytes:,} bytes, there are {member.file_size - begin:,}"
            )
        data = _read_exactly(file, n_bytes, where)
        if file.read(1):  # reading to the end also compares the checksum
            raise FormatError(f"{where} has bytes after its elements")
    array = data.view(dtype).reshape(shape, order="F" if fortran else "C")
    return np.ascontiguousarray(array.astype(dtype.newbyteorder("="), copy=False)).reshape(shape)


def _header(file: Any, where: str) -> tuple[Any, bool, Any, int]:
    """(dtype, whether the first width runs fastest, shape, bytes before the elements)."""
    magic = file.read(8)
    if magic[:6] != b"\x93NUMPY" or len(magic) < 8:
        raise FormatError(f"{where} is not an npy file")
    if magic[6:] not in (b"\1\0", b"\2\0"):
        raise FormatError(f"{where} must be of npy version 1.0 or 2.0, got {magic[6]}.{magic[7]}")
    width, code = (2, "<H") if magic[6] == 1 else (4, "<I")
    (length,) = struct.unpack(code, file.read(width))
    if length > MAX_HEADER:
        raise FormatError(f"{where} has a header of {length:,} bytes, at most {MAX_HEADER:,} make sense")
    try:
        header = ast.literal_eval(file.read(length).decode("latin-1").strip())
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise FormatError(f"{where} has a damaged header: {error}") from error
    if not isinstance(header, dict) or set(header) != {"descr", "fortran_order", "shape"} or type(header["fortran_order"]) is not bool:
        raise FormatError(f"{where} has a damaged header: {str(header)[:200]}")
    return header["descr"], header["fortran_order"], header["shape"], 8 + width + length


def _read_exactly(file: Any, n_bytes: int, where: str) -> np.ndarray:
    data, done = np.empty(n_bytes, np.uint8), 0
    while done < n_bytes:
        piece = file.read(min(1 << 22, n_bytes - done))
        if not piece:
            raise FormatError(f"{where} is truncated: {done:,} of {n_bytes:,} bytes")
        data[done : done + len(piece)] = np.frombuffer(piece, np.uint8)
        done += len(piece)
    return data

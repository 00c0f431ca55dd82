"""A value's name: frozen dataclass <-> strict JSON <-> SHA-256.

    digest(value) = sha256(canonical(value)),     canonical = JSON with sorted keys, no spaces, no NaN, ASCII only

Two values have the same digest exactly when their canonical JSON is the same text, so a digest can name a result on disk by what produced
it. Tensors and files are digested by their bytes together with names, dtypes and shapes.
"""

import dataclasses
import functools
import hashlib
import json
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Union

from sae.errors import ConfigError


def to_json(value: Any) -> Any:
    """The plain JSON value (dict, list, str, int, float, bool, None) of a frozen dataclass or of nested JSON-like data.

    Dataclasses become dicts of their fields, tuples become lists. Raises ConfigError for anything else (a tensor, a path, NaN, a non-string key).
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ConfigError(f"JSON keys must be strings, got {key!r} of type {type(key).__name__}")
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"JSON numbers must be finite, got {value!r}")
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    raise ConfigError(f"a {type(value).__name__} has no JSON form: {value!r}")


def from_json(cls: Any, data: Any, *, where: str = "") -> Any:
    """The instance of the dataclass or annotated type (such as list[Config]) `cls` that `data` describes; the inverse of `to_json`.

    Strict: an unknown key, a missing key without default, or a value of the wrong type raises ConfigError naming the key. An int is accepted
    where a float is declared. Fields may be JSON scalars, Literal, tuples, lists, dicts, optionals, unions and nested dataclasses.
    """
    return _parse(cls, data, where or getattr(cls, "__name__", str(cls)))


def _parse(kind: Any, data: Any, where: str) -> Any:
    if kind in (str, int, float, bool):
        return _parse_scalar(kind, data, where)
    is_dataclass, origin, args = _anatomy(kind)
    if is_dataclass:
        return _parse_dataclass(kind, data, where)
    if kind is Any:
        return data
    if origin is typing.Literal:
        if data not in args or type(data) is not type(args[args.index(data)]):
            raise ConfigError(f"{where} must be one of {list(args)}, got {data!r}")
        return data
    if origin in (Union, types.UnionType):
        return _parse_union(args, data, where)
    if origin is tuple:
        if not isinstance(data, (list, tuple)):
            raise ConfigError(f"{where} must be a list, got {data!r}")
        kinds = [args[0]] * len(data) if len(args) == 2 and args[1] is Ellipsis else list(args)
        if len(kinds) != len(data):
            raise ConfigError(f"{where} must have {len(kinds)} entries, got {len(data)}")
        return tuple(_parse(k, item, f"{where}[{i}]") for i, (k, item) in enumerate(zip(kinds, data, strict=True)))
    if origin is list:
        if not isinstance(data, list):
            raise ConfigError(f"{where} must be a list, got {data!r}")
        return [_parse(args[0], item, f"{where}[{i}]") for i, item in enumerate(data)]
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(data, Mapping):
            raise ConfigError(f"{where} must be a mapping, got {data!r}")
        return {_parse(args[0], key, where): _parse(args[1], item, f"{where}.{key}") for key, item in data.items()}
    return _parse_scalar(kind, data, where)


@functools.cache
def _anatomy(kind: Any) -> tuple[bool, Any, tuple[Any, ...]]:
    """(whether it is a dataclass, origin, arguments) of a type."""
    return dataclasses.is_dataclass(kind), typing.get_origin(kind), typing.get_args(kind)


def _parse_dataclass(kind: Any, data: Any, where: str) -> Any:
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where} must be a mapping with the fields of {kind.__name__}, got {data!r}")
    kinds, required = _fields(kind)
    if not data.keys() <= kinds.keys():
        unknown = min(data.keys() - kinds.keys())
        raise ConfigError(f"unknown key {unknown!r} in {where}; allowed: {', '.join(sorted(kinds))}")
    for name in required:
        if name not in data:
            raise ConfigError(f"missing key {name!r} in {where}")
    return kind(**{name: _parse(kinds[name], data[name], f"{where}.{name}") for name in kinds if name in data})


@functools.cache
def _fields(kind: Any) -> tuple[dict[str, Any], list[str]]:
    """(type by name, names without default) of a dataclass's fields."""
    hints = typing.get_type_hints(kind)
    fields = [field for field in dataclasses.fields(kind) if field.init]
    required = [f.name for f in fields if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING]
    return {field.name: hints[field.name] for field in fields}, required


def _parse_union(args: tuple[Any, ...], data: Any, where: str) -> Any:
    if data is None and type(None) in args:
        return None
    problems = []
    for kind in args:
        if kind is type(None):
            continue
        try:
            return _parse(kind, data, where)
        except ConfigError as error:
            problems.append(str(error))
    raise ConfigError(f"{where} fits none of its allowed types: " + "; ".join(problems or [f"got {data!r}"]))


def _parse_scalar(kind: Any, data: Any, where: str) -> Any:
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    if kind in (str, int, float, bool) and type(data) is kind:
        if kind is float and not math.isfinite(data):
            raise ConfigError(f"{where} must be finite, got {data!r}")
        return data
    if kind is type(None) and data is None:
        return None
    raise ConfigError(f"{where} must be of type {getattr(kind, '__name__', kind)}, got {data!r} of type {type(data).__name__}")


def canonical(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no spaces, ASCII, finite numbers only."""
    return json.dumps(to_json(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def digest(value: Any) -> str:
    """SHA-256 (64 hexadecimal digits) of `canonical(value)`."""
    return hashlib.sha256(canonical(value).encode("ascii")).hexdigest()


def tensor_bytes(tensor: Any) -> memoryview:
    """The (torch) tensor's elements in row-major order as little-endian bytes, without a copy where it is contiguous on the CPU."""
    import torch  # only those who have a tensor need it

    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy()) if flat.numel() else memoryview(b"")


def digest_tensors(tensors: Mapping[str, Any]) -> str:
    """SHA-256 over names (sorted), dtypes, shapes and bytes of the (torch) tensors; independent of device, strides and insertion order."""
    state = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        state.update(canonical([name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]).encode("ascii"))
        state.update(tensor_bytes(tensor))
    return state.hexdigest()


def digest_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

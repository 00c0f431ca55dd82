import errno
import json
import struct
from pathlib import Path

import pytest
import torch
import xxhash
from safetensors import safe_open
from safetensors.torch import load_file

from sae.errors import CacheError, FormatError
from sae.storage import checksum, load_tensors, map_tensors, read_header, save_tensors

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
]


def example():
    generator = torch.Generator().manual_seed(3)
    tensors = {str(d).removeprefix("torch."): (torch.randn(5, 3, generator=generator) * 9).to(d) for d in DTYPES}
    tensors["uint16"] = torch.arange(60_000, 60_007).to(torch.uint16)
    tensors["transposed"] = torch.randn(4, 6, generator=generator).T
    tensors["empty"] = torch.empty(0, 7)
    return tensors


def test_the_mapped_tensors_equal_what_the_safetensors_library_reads(tmp_path):
    path, tensors = tmp_path / "t.safetensors", example()
    save_tensors(path, tensors, {"made": "here"})
    theirs, ours = load_file(path), map_tensors(path)
    assert set(ours) == set(theirs) == set(tensors)
    for name, tensor in tensors.items():
        assert ours[name].dtype == tensor.dtype
        assert ours[name].shape == tensor.shape
        assert torch.equal(ours[name].double(), tensor.double())
        assert torch.equal(ours[name].double(), theirs[name].double())
    assert read_header(path)[1] == {"made": "here"}


def test_writing_into_a_mapped_tensor_does_not_touch_the_file(tmp_path):
    path = tmp_path / "t.safetensors"
    save_tensors(path, {"x": torch.ones(4)})
    map_tensors(path)["x"].zero_()
    assert torch.equal(load_tensors(path)["x"], torch.ones(4))


@pytest.mark.parametrize("cut", [1, 5, 100])
def test_a_truncated_file_is_named_before_anything_is_read(tmp_path, cut):
    path = tmp_path / "t.safetensors"
    save_tensors(path, {"x": torch.ones(100)})
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(FormatError, match=r"t\.safetensors is truncated"):
        map_tensors(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"abc", "truncated"),
        (struct.pack("<Q", 10**9) + b"{}", "header claims"),
        (struct.pack("<Q", 2) + b"{]", "damaged safetensors header"),
        (
            struct.pack("<Q", 64)
            + json.dumps({"x": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}).ljust(64).encode()
            + b"\0" * 8,
            "does not fit",
        ),
        (
            struct.pack("<Q", 64) + json.dumps({"x": {"dtype": "Q4", "shape": [2], "data_offsets": [0, 8]}}).ljust(64).encode() + b"\0" * 8,
            "unknown dtype",
        ),
    ],
)
def test_a_damaged_header_says_what_is_wrong(tmp_path, content, message):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=message):
        map_tensors(path)


def test_a_disk_that_fills_up_while_tensors_are_written_is_a_cache_error_and_leaves_nothing(small_disk):
    folder = small_disk(100_000)
    with pytest.raises(CacheError, match=r"no space left on device while writing .*t\.safetensors"):
        save_tensors(folder / "t.safetensors", {"x": torch.ones(100_000)})
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("names", [("a",), ("b", "a", "c"), ("ü x", "a.b")])
def test_what_is_written_is_what_the_safetensors_library_reads(tmp_path, names):
    generator = torch.Generator().manual_seed(0)
    kinds = [torch.bfloat16, torch.int8, torch.float64, torch.uint16, torch.bool]
    tensors = {}
    for i, name in enumerate(names * 2):
        values = torch.randint(0, 2, (i, 3), generator=generator).to(kinds[i % 5])
        tensors[f"{name}{i}"] = values.T if i % 2 else values
    digest = save_tensors(tmp_path / "t.safetensors", tensors, {"über": "text"})
    assert digest == checksum(tmp_path / "t.safetensors") == xxhash.xxh3_128((tmp_path / "t.safetensors").read_bytes()).hexdigest()
    found = load_file(tmp_path / "t.safetensors")
    assert {name: (t.dtype, t.tolist()) for name, t in found.items()} == {name: (t.dtype, t.tolist()) for name, t in tensors.items()}
    with safe_open(tmp_path / "t.safetensors", "pt") as file:
        assert file.metadata() == {"über": "text"}
    mapped = map_tensors(tmp_path / "t.safetensors")
    assert all(torch.equal(mapped[name], tensors[name]) and mapped[name].is_contiguous() for name in tensors)


def test_a_mapped_file_keeps_no_descriptor_open(tmp_path):
    save_tensors(tmp_path / "t.safetensors", {"x": torch.ones(3)})
    before = len(list(Path("/proc/self/fd").iterdir()))
    mapped = [map_tensors(tmp_path / "t.safetensors") for _ in range(50)]
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert all(m["x"].sum() == 3 for m in mapped)


def test_a_place_that_cannot_be_written_is_a_cache_error_that_says_what_to_do(tmp_path, monkeypatch):
    def refused(*_arguments, **_options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("builtins.open", refused)
    with pytest.raises(CacheError, match=r"t\.safetensors cannot be written \(Permission denied\): choose a folder you may write to"):
        save_tensors(tmp_path / "t.safetensors", {"x": torch.ones(3)})


def test_files_are_readable_by_others_as_far_as_the_umask_allows(tmp_path):
    save_tensors(tmp_path / "t.safetensors", {"x": torch.ones(3)})
    (tmp_path / "plain").touch()
    assert (tmp_path / "t.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode

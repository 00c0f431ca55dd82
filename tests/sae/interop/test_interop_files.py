"""Files of strangers: what is whole comes back as it is, whatever is not is a FormatError that says what and where."""

import io
import json
import os
import resource
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from sae.errors import FormatError
from sae.interop import archives, files
from sae.interop.files import (
    Tensors,
    check_keys,
    read_json,
    read_npz,
    read_safetensors,
    read_torch,
    write_json,
    write_npz,
    write_safetensors,
    write_torch,
)

WRITERS = {
    "json": (read_json, lambda path, _: write_json(path, CONFIG)),
    "safetensors": (read_safetensors, lambda path, tensors: write_safetensors(path, tensors)),
    "npz": (read_npz, lambda path, tensors: write_npz(path, tensors)),
    "torch": (read_torch, lambda path, tensors: write_torch(path, {**tensors, "k": 3, "config": {"name": "é", "list": [1, 2.5, None]}})),
    "torch of old": (read_torch, lambda path, tensors: torch.save(dict(tensors), path, _use_new_zipfile_serialization=False)),
    "compressed npz": (read_npz, lambda path, tensors: compressed(path, tensors)),
}
CONFIG = {"d_in": 8, "d_sae": 24, "name": "résid", "nested": {"list": [1, 2.5, None, True]}}


def some_tensors(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {"W_enc": torch.randn(4, 6, generator=generator), "b_enc": torch.randn(6, generator=generator), "k": torch.tensor(3)}


def compressed(path, tensors):
    with open(path, "wb") as file:
        np.savez_compressed(file, **{name: tensor.numpy() for name, tensor in tensors.items()})


def fails(read, path, *words):
    with pytest.raises(FormatError) as caught:
        read(path)
    for word in (Path(path).name, *words):
        assert word in str(caught.value), str(caught.value)


def rezipped(path, out, change):
    """A copy of a zip file with its members' bytes changed by `change(name, data)`; None leaves one out."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            data = change(name, old.read(name))
            if data is not None:
                new.writestr(zipfile.ZipInfo(name), data)
    return out


@pytest.mark.parametrize("kind", [kind for kind in WRITERS if kind != "json"])
def test_tensors_come_back_bit_for_bit(tmp_path, kind):
    read, write = WRITERS[kind]
    write(tmp_path / "file", some_tensors())
    found = read(tmp_path / "file")
    for name, tensor in some_tensors().items():
        if name != "k":
            assert torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype
    assert int(found["k"]) == 3


@pytest.mark.parametrize("kind", ["json", "safetensors", "npz", "torch"])
def test_the_same_values_give_the_same_bytes(tmp_path, kind):
    WRITERS[kind][1](tmp_path / "a", some_tensors())
    WRITERS[kind][1](tmp_path / "another name", some_tensors())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "another name").read_bytes()


def test_other_libraries_read_what_is_written(tmp_path):
    from safetensors.torch import load_file

    tensors = some_tensors()
    write_safetensors(tmp_path / "a.safetensors", tensors)
    write_npz(tmp_path / "a.npz", {"W": tensors["W_enc"].T})
    write_torch(tmp_path / "a.pt", {"W": tensors["W_enc"][1:3]})
    assert torch.equal(load_file(tmp_path / "a.safetensors")["W_enc"], tensors["W_enc"])
    assert np.array_equal(np.load(tmp_path / "a.npz", allow_pickle=False)["W"], tensors["W_enc"].T.numpy())
    loaded = torch.load(tmp_path / "a.pt", weights_only=True)["W"]
    assert torch.equal(loaded, tensors["W_enc"][1:3]) and loaded.untyped_storage().nbytes() == 2 * 6 * 4  # not the whole it is a part of


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f2", "<f8", "<i8", ">u2", "|u1", "|b1"])
def test_arrays_of_every_layout_and_byte_order_are_read(tmp_path, order, dtype):
    array = np.asarray(np.random.default_rng(0).normal(size=(3, 4, 2)) * 5, order=order).astype(dtype)
    np.savez(tmp_path / "a.npz", a=array, single=np.array(7, dtype))
    found = read_npz(tmp_path / "a.npz")
    assert np.array_equal(found["a"].numpy(), array)
    assert found["single"].shape == () and found["single"].item() == np.array(7, dtype)


@pytest.mark.parametrize("kind", WRITERS)
def test_what_is_no_whole_file_is_named(tmp_path, kind):
    read, write = WRITERS[kind]
    write(tmp_path / "whole", some_tensors())
    data = (tmp_path / "whole").read_bytes()
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "truncated").write_bytes(data[: len(data) * 2 // 3])
    (tmp_path / "first byte").write_bytes(data[:1])
    (tmp_path / "text").write_text("version https://git-lfs.github.com/spec/v1\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link to nothing").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "whole")
    fails(read, tmp_path / "missing", "does not exist")
    fails(read, tmp_path / "link to nothing", "does not exist")
    fails(read, tmp_path / "empty", "is empty")
    fails(read, tmp_path / "folder", "must be a file, it is a folder")
    fails(read, tmp_path / "pipe", "must be a file")
    for name in ("truncated", "first byte", "text", "loop"):
        fails(read, tmp_path / name)
    assert read(tmp_path / "link").keys() == read(tmp_path / "whole").keys()  # a downloaded file is a link to one


@pytest.mark.parametrize("kind", WRITERS)
def test_no_damage_escapes_as_another_error(tmp_path, kind):
    read, write = WRITERS[kind]
    write(tmp_path / "whole", some_tensors())
    data = (tmp_path / "whole").read_bytes()
    generator, path, messages = np.random.default_rng(0), tmp_path / "damaged", []
    for i in range(150):
        damaged = bytearray(data)
        for _ in range(int(generator.integers(1, 4))):
            damaged[generator.integers(len(damaged))] = generator.integers(256)
        if i % 4 == 0:
            del damaged[generator.integers(1, len(damaged)) :]
        if i % 7 == 0:
            damaged[: i % 50] = generator.bytes(i % 50)
        path.write_bytes(damaged)
        try:
            Tensors(read(path), path).finish()
        except FormatError as error:
            messages.append(str(error))
    assert len(messages) > 40
    assert all(str(path) in message for message in messages)


# JSON


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ('{"k": 1, "d": 2, "k": 3}', "'k' is given twice"),
        ('{"k": {"a": 1, "a": 2}}', "'a' is given twice"),
        ('{"k": NaN}', "NaN"),
        ('{"k": -Infinity}', "Infinity"),
        ('{"k": 1e999}', "1e999"),
        ('{"k": ' + "9" * 10_000 + "}", "digits"),
        ('{"k": "\\ud800"}', "surrogates"),
        ("[1, 2]", "must hold a JSON object, it holds a list"),
        ('{"k": ' + "[" * 100 + "]" * 100 + "}", "nested more than 64 levels"),
        ('{"k": ' + "[" * 100_000 + "]" * 100_000 + "}", "JSON"),
        ('{"k": 1}}', "Extra data"),
    ],
    ids=range(11),
)
def test_json_that_is_not_json_is_refused(tmp_path, text, word):
    (tmp_path / "cfg.json").write_text(text)
    fails(read_json, tmp_path / "cfg.json", word)


def test_json_of_another_encoding_or_size_is_refused(tmp_path):
    (tmp_path / "cfg.json").write_bytes('{"é": 1}'.encode("latin-1"))
    fails(read_json, tmp_path / "cfg.json", "utf-8")
    (tmp_path / "cfg.json").write_text('{"k": "' + "x" * (1 << 24) + '"}')
    fails(read_json, tmp_path / "cfg.json", "at most 16,777,216 bytes")


def test_unknown_and_missing_keys_are_named_with_those_that_are_known():
    check_keys({"k": 1, "metadata": 2}, known={"k", "d_in"}, required={"k"}, free={"metadata"}, path="cfg.json")
    with pytest.raises(FormatError, match=r"cfg.json has the unknown key 'kk', 'q'; known are d_in, k, metadata"):
        check_keys({"k": 1, "kk": 1, "q": 1}, known={"d_in"}, required={"k"}, free={"metadata"}, path="cfg.json")
    with pytest.raises(FormatError, match=r"cfg.json lacks the key 'd_in', 'k'; it has 'q'"):
        check_keys({"q": 1}, known=set(), required={"k", "d_in"}, path="cfg.json")


# what a file claims


def header_of(entries, data=b"", tail=b""):
    text = json.dumps(entries).encode() if isinstance(entries, dict) else entries
    return struct.pack("<Q", len(text)) + text + data + tail


def entry(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (header_of({"W": entry([50_000, 50_000], 0, 10_000_000_000)}, b"\0" * 64), "truncated"),
        (struct.pack("<Q", 10_000_000_000) + b"{}", "claims"),
        (header_of({"W": entry([2, 2], 0, 16)}, b"\0" * 16, b"tail"), "trailing"),
        (header_of({"W": entry([2, 2], 0, 16), "V": entry([2, 2], 0, 16)}, b"\0" * 16), "share bytes"),
        (header_of({"W": entry([0, 10**17], 0, 0)}), "holds nothing"),
        (header_of({"W": entry([4], 0, 4, "F8_E4M3")}, b"\0" * 4), "F8_E4M3"),
        (header_of({"W": entry([4], 0, 32, "C64")}, b"\0" * 32), "C64"),
        (header_of({"W": entry([-2, -2], 0, 16)}, b"\0" * 16), "damaged shape"),
        (header_of(b"[" * 100_000), "damaged"),
        (header_of(b"[]"), "not an object"),
    ],
    ids=range(10),
)
def test_a_safetensors_header_that_lies_is_refused(tmp_path, content, word):
    (tmp_path / "w.safetensors").write_bytes(content)
    fails(read_safetensors, tmp_path / "w.safetensors", word)


def npy(descr="<f4", shape=(2, 2), data=b"\0" * 16, header=None):
    text = (header or f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}").encode()
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + data


def npz(path, members, how=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", how) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (npy(shape=(50_000, 50_000)), "takes 10,000,000,000 bytes"),
        (npy(shape=(0, 10**18)), "positive widths"),
        (npy(shape=(-2, -2)), "positive widths"),
        (npy(shape=[2, 2]), "positive widths"),
        (npy(shape=(True, 4)), "positive widths"),
        (npy(shape=(2, 3)), "takes 24 bytes, there are 16"),
        (npy("|O"), "pickled objects"),
        (npy([("a", "<f4")]), "dtype"),
        (npy("<c8", (2,)), "<c8"),
        (npy("<U4", (1,)), "<U4"),
        (npy("<f16", (1,)), "<f16"),
        (npy(header="{'descr': __import__('os').getcwd(), 'fortran_order': False, 'shape': (2,)}"), "damaged header"),
        (npy(header="(" * 5_000), "damaged header"),
        (npy(header="{'descr': '<f4'}"), "damaged header"),
        (b"\x93NUMPY\3\0" + b"\0" * 50, "version"),
        (b"nothing of the kind", "not an npy file"),
    ],
    ids=range(16),
)
def test_an_array_that_lies_is_refused(tmp_path, content, word):
    fails(read_npz, npz(tmp_path / "p.npz", {"W_enc.npy": content}), "W_enc", word)


def test_an_npz_with_pickled_arrays_is_refused_and_runs_nothing(tmp_path):
    np.savez(tmp_path / "p.npz", W_enc=np.array([Marks(tmp_path / "ran"), 2], dtype=object))
    fails(read_npz, tmp_path / "p.npz", "W_enc", "never read")
    assert not (tmp_path / "ran").exists()


def test_an_npz_with_other_files_none_or_the_same_twice_is_refused(tmp_path):
    fails(read_npz, npz(tmp_path / "p.npz", {"readme.txt": "text"}), "readme.txt", "not an npy file")
    fails(read_npz, npz(tmp_path / "p.npz", {}), "holds 0")
    twice = npz(tmp_path / "p.npz", {"W.npy": npy(), "V.npy": npy()}).read_bytes()
    (tmp_path / "p.npz").write_bytes(twice.replace(b"V.npy", b"W.npy"))
    fails(read_npz, tmp_path / "p.npz", "'W.npy' twice")


def test_a_zip_that_inflates_is_refused_before_it_does(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "FREE_BYTES", 1 << 20)
    n = 9_000_000
    path = npz(tmp_path / "bomb.npz", {"W.npy": npy(shape=(n // 4,), data=b"\0" * n)}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 30_000
    fails(read_npz, path, "claims to hold 9,000", "not unpacked")


def test_a_zip_that_claims_less_than_it_holds_is_refused(tmp_path):
    path = npz(tmp_path / "p.npz", {"W.npy": npy(shape=(50_000,), data=b"\0" * 200_000)}, zipfile.ZIP_DEFLATED)
    data, true = path.read_bytes(), struct.pack("<I", len(npy(shape=(50_000,), data=b"\0" * 200_000)))
    assert data.count(true) == 2  # in the member's own header, and in the directory
    path.write_bytes(data.replace(true, struct.pack("<I", 1_000)))
    fails(read_npz, path, "W")


# torch files


class Marks:
    """Unpickling one makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["value", "key", "whole", "nested"])
def test_code_in_a_torch_file_is_refused_and_not_run(tmp_path, zipped, place):
    mark = Marks(tmp_path / "ran")
    value = {"value": {"W": torch.ones(2), "x": mark}, "key": {mark: 1}, "whole": mark, "nested": {"config": {"list": [1, (mark,)]}}}[place]
    torch.save(value, tmp_path / "ae.pt", _use_new_zipfile_serialization=zipped)
    fails(read_torch, tmp_path / "ae.pt", "code", "open", "never run")
    assert not (tmp_path / "ran").exists()


def test_a_whole_module_is_refused(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "ae.pt")
    fails(read_torch, tmp_path / "ae.pt", "torch.nn.modules.linear.Linear")


@pytest.mark.parametrize(
    ("value", "word"),
    [
        ([torch.ones(2)], "it holds a list"),
        (torch.ones(2), "it holds a Tensor"),
        ({1: torch.ones(2)}, "must be text, got [1]"),
        ({"a": {2: 1}}, "keys of a must be text"),
        ({"W": torch.ones(1).expand(50_000, 50_000)}, "larger than the 4 bytes"),
        ({"a": {"W": torch.eye(3).to_sparse()}}, "'a.W' must be an ordinary tensor"),
        ({"W": torch.ones(3, device="meta")}, "'W' must be an ordinary tensor"),
    ],
    ids=range(7),
)
def test_a_torch_file_of_something_else_is_refused(tmp_path, value, word):
    torch.save(value, tmp_path / "ae.pt")
    fails(read_torch, tmp_path / "ae.pt", word)


def test_values_that_hold_themselves_or_each_other_a_million_times_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_VALUES", 10_000)
    itself = []
    itself.append(itself)
    torch.save({"a": itself}, tmp_path / "ae.pt")
    fails(read_torch, tmp_path / "ae.pt", "levels deep")
    many = [1] * 10
    for _ in range(20):
        many = [many] * 10
    torch.save({"a": many}, tmp_path / "ae.pt")
    fails(read_torch, tmp_path / "ae.pt", "more than 10,000 values")


def test_a_torch_file_whose_storage_is_smaller_than_it_says_is_refused(tmp_path):
    write_torch(tmp_path / "whole.pt", {"W": torch.ones(16)})

    def declare(name, data):
        return data.replace(b"K\x10tq", b"J" + struct.pack("<i", 2_000_000_000) + b"tq") if name.endswith("data.pkl") else data

    path = rezipped(tmp_path / "whole.pt", tmp_path / "ae.pt", declare)
    assert path.read_bytes() != (tmp_path / "whole.pt").read_bytes()
    fails(read_torch, path)
    fails(read_torch, rezipped(tmp_path / "whole.pt", tmp_path / "ae.pt", lambda name, data: None if "data/0" in name else data))


def test_a_compressed_torch_file_is_refused(tmp_path):
    write_torch(tmp_path / "whole.pt", {"W": torch.zeros(100_000)})
    with zipfile.ZipFile(tmp_path / "whole.pt") as old, zipfile.ZipFile(tmp_path / "ae.pt", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    fails(read_torch, tmp_path / "ae.pt", "is compressed in a way")


def test_ten_gigabytes_declared_in_a_kilobyte_take_no_memory(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(header_of({"W": entry([50_000, 50_000], 0, 10_000_000_000)}, b"\0" * 64))
    npz(tmp_path / "w.npz", {"W.npy": npy(shape=(50_000, 50_000))})
    whole = io.BytesIO()
    torch.save({"W": torch.ones(16)}, whole, _use_new_zipfile_serialization=False)
    old = whole.getvalue().replace(b"K\x10N", b"\x8a\x05" + (2_500_000_000).to_bytes(5, "little") + b"N")
    assert old != whole.getvalue()
    (tmp_path / "w.pt").write_bytes(old)
    torch.save({"W": torch.ones(1).expand(50_000, 50_000)}, tmp_path / "view.pt")
    program = """
import resource, sys
from sae.errors import FormatError
from sae.interop import archives, files
from sae.interop.files import read_npz, read_safetensors, read_torch
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for read, name in ((read_safetensors, "w.safetensors"), (read_npz, "w.npz"), (read_torch, "w.pt"), (read_torch, "view.pt")):
    try:
        read(name)
    except FormatError as error:
        print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30)),
    )  # fmt: skip
    *lines, megabytes = result.stdout.splitlines()
    assert [line.split(":")[0].split(" ")[0] for line in lines] == ["w.safetensors", "w.npz", "w.pt", "view.pt"]
    assert int(megabytes) < 60


# tensors by name


def test_tensors_are_taken_in_float32_as_copies():
    found = {"a": torch.randn(3, 2, dtype=torch.float64), "b": torch.randn(2).bfloat16(), "c": torch.randn(2, 3).T}
    tensors = Tensors(found, "w.pt")
    taken = {name: tensors.take(name, None, *(2,) * (found[name].ndim - 1)) for name in found}
    for name, tensor in taken.items():
        assert tensor.dtype == torch.float32 and tensor.is_contiguous() and torch.equal(tensor, found[name].float())
        tensor.zero_()
    assert all(bool((tensor != 0).all()) for tensor in found.values())
    tensors.finish()
    assert tensors.notes() == ["the file holds weights of dtype bfloat16, float64: they are read as float32"]
    assert Tensors({"a": torch.ones(1)}, "w").notes() == []


@pytest.mark.parametrize(
    ("tensor", "shape", "words"),
    [
        (torch.ones(3, 2), (2, 3), ("must have shape [2, 3], got [3, 2]", "transposed")),
        (torch.ones(3, 2), (None, 3), ("must have shape [any, 3]", "transposed")),
        (torch.ones(3, 2), (4, 4), ("must have shape [4, 4], got [3, 2]",)),
        (torch.ones(3), (1, 3), ("must have shape [1, 3], got [3]",)),
        (torch.ones(0, 3), (None, 3), ("holds nothing",)),
        (torch.tensor([1.0, torch.nan, torch.inf]), (3,), ("2 of its 3 values are NaN or Inf",)),
        (torch.tensor([1e300], dtype=torch.float64), (1,), ("1 of its 1 values", "float32")),
        (torch.ones(3, dtype=torch.int64), (3,), ("float32, float16, bfloat16, float64, got int64",)),
        (torch.ones(3).to(torch.float8_e4m3fn), (3,), ("got float8_e4m3fn",)),
        (torch.ones(3, dtype=torch.complex64), (3,), ("got complex64",)),
        (torch.ones(3, dtype=torch.bool), (3,), ("got bool",)),
        ("text", (3,), ("must be a tensor, it is a str",)),
    ],
    ids=range(12),
)
def test_a_tensor_that_does_not_fit_is_named(tensor, shape, words):
    with pytest.raises(FormatError) as caught:
        Tensors({"W_enc": tensor}, "w.pt").take("W_enc", *shape)
    for word in ("w.pt: W_enc", *words):
        assert word in str(caught.value)


def test_missing_and_unknown_tensors_are_listed():
    tensors = Tensors({"a": torch.ones(2), "b": torch.ones(2), "c": 1, "d": 2}, "w.pt")
    assert tensors.has("a") and not tensors.has("q")
    with pytest.raises(FormatError, match=r"w.pt lacks 'x', 'y'; it has 'a', 'b', 'c', 'd'"):
        tensors.require("x", "a", "y")
    with pytest.raises(FormatError, match=r"w.pt lacks 'x'; it has 'a'"):
        tensors.take("x", 2)
    tensors.take("a", 2)
    tensors.ignore("d", "not there")
    with pytest.raises(FormatError, match=r"w.pt holds more than this format has: 'b', 'c'; known are 'a', 'd', 'not there'"):
        tensors.finish()


@pytest.mark.parametrize(
    "value",
    [3, 3.0, torch.tensor(3), torch.tensor([3.0]), torch.tensor([[3]], dtype=torch.uint8), torch.tensor(3.0).double()],
    ids=range(6),
)
def test_a_number_is_read_from_a_plain_one_or_a_tensor_of_one(value):
    assert Tensors({"k": value}, "w.pt").scalar("k") == 3.0


@pytest.mark.parametrize(
    "value", [True, "3", None, torch.ones(2), torch.tensor(True), torch.tensor(1j), torch.nan, torch.tensor(torch.inf)], ids=range(8)
)
def test_what_is_not_one_finite_number_is_refused(value):
    with pytest.raises(FormatError, match=r"w.pt: k must be"):
        Tensors({"k": value}, "w.pt").scalar("k")

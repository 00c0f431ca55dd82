"""Files made to harm, or harmed, in every format: each is a FormatError that names the file, and nothing is executed or allocated.

The files are golden ones with one thing changed, so what is refused is refused for that one thing.
"""

import json
import shutil
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign_files import place_of, random_autoencoder
from safetensors.torch import load_file, save_file

from sae.dictionaries.activations import TopK
from sae.dictionaries.checkpoint import save_dictionary
from sae.errors import FormatError
from sae.interop.formats import FORMATS, read
from sae.storage import read_header

WEIGHTS = (".safetensors", ".npz", ".pt")
UNREAD = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square", "dataset_average_activation_norm.")
"""How the names of tensors begin that a format carries and that these specimens do not use."""


@dataclass(frozen=True)
class Specimen:
    """One whole dictionary of a format, in a folder of its own."""

    format: str
    place: Path
    weights: Path
    config: Path | None

    def read(self):
        return read(self.place, self.format)


SPECIMENS = {
    "sae": "", "saelens": "saelens/topk", "gemma_scope npz": "gemma_scope/v1", "gemma_scope safetensors": "gemma_scope/v2",
    "sparsify": "sparsify/layers.5", "openai_topk": "openai_topk/topk", "dictionary_learning": "dictionary_learning/top_k",
    "dictionary_learning jump_relu": "dictionary_learning/jump_relu", "llama_scope": "llama_scope/plain",
    "llamascopium": "llamascopium/jump_relu", "llamascopium pt": "llamascopium/torch_file",
}  # fmt: skip
CONFIGURED = [name for name in SPECIMENS if name not in ("gemma_scope npz", "openai_topk")]


def specimen(name, folder):
    """A fresh copy."""
    target = folder / "it"
    if name == "sae":
        save_dictionary(random_autoencoder(TopK(k=4)), target)
        return Specimen("sae", target, target / "weights.safetensors", target / "config.json")
    golden = place_of(SPECIMENS[name])
    if golden.is_dir():
        shutil.copytree(golden, target, ignore=shutil.ignore_patterns("expected.safetensors"))
    else:
        target.mkdir()
        shutil.copy(golden, target)
    weights = next(path for path in sorted(target.rglob("*")) if path.suffix in WEIGHTS)
    configs = [path for path in sorted(target.rglob("*.json")) if path.name in ("config.json", "cfg.json", "hyperparams.json")]
    return Specimen(name.split(" ")[0], target if golden.is_dir() else weights, weights, configs[0] if configs else None)


def load(path):
    """Everything in a weight file, by an outside library."""
    if path.suffix == ".safetensors":
        return {name: tensor.clone() for name, tensor in load_file(path).items()}
    if path.suffix == ".npz":
        return dict(np.load(path))
    values = torch.load(path, weights_only=True)
    return dict(values.get("sae", values))


def save(path, values):
    """The same kind of file with other contents."""
    if path.suffix == ".safetensors":
        metadata = read_header(path)[1]
        path.unlink()
        save_file({name: value.contiguous() for name, value in values.items()}, path, metadata=metadata or None)
    elif path.suffix == ".npz":
        np.savez(path, **values)
    else:
        whole = torch.load(path, weights_only=True)
        torch.save(whole | {"sae": values} if "sae" in whole else values, path)


def change(path, name, make):
    """Put make(tensor) in the place of one tensor of a weight file."""
    values = load(path)
    tensor = values[name]
    made = make(torch.as_tensor(tensor))
    values[name] = made.numpy() if isinstance(tensor, np.ndarray) else made
    save(path, values)


def tensors_of(given, *, n_axes=(1, 2)):
    """Names of the floating tensors that are read, of so many axes."""
    found = {name: torch.as_tensor(value) for name, value in load(given.weights).items() if isinstance(value, (torch.Tensor, np.ndarray))}
    return [name for name, value in found.items() if value.is_floating_point() and not name.startswith(UNREAD) and value.ndim in n_axes]


def refused(given, *words, file=None):
    """The message of the FormatError that reading raises."""
    with pytest.raises(FormatError) as caught:
        given.read()
    message = str(caught.value)
    assert str(file or given.place) in message, message
    for word in words:
        assert word in message, message
    return message


def outcome(given):
    """The message of the FormatError that reading raises, or None where it succeeds; any other error is raised."""
    try:
        dictionary = given.read()
    except FormatError as error:
        message = str(error)
    else:
        assert dictionary.d_sae < 100
        return None
    assert str(given.place) in message, message
    return message


class Marks:
    """Unpickling one makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.fixture(params=SPECIMENS)
def given(request, tmp_path):
    """A copy of one dictionary of each format."""
    return specimen(request.param, tmp_path)


@pytest.fixture(params=CONFIGURED)
def configured(request, tmp_path):
    """A copy of one dictionary of each format that has a configuration."""
    return specimen(request.param, tmp_path)


def test_every_format_is_among_the_specimens():
    assert {name.split(" ")[0] for name in SPECIMENS} == set(FORMATS)


def test_the_specimens_are_whole(given):
    assert given.read().d_sae > 0


def test_truncated_weights_are_refused(given):
    data = given.weights.read_bytes()
    for n in (0, 1, len(data) // 3, len(data) - 1):
        given.weights.write_bytes(data[:n])
        refused(given, file=given.weights)


def test_missing_weights_and_folders_in_their_place_are_refused(given):
    given.weights.unlink()
    if given.place.is_dir():
        refused(given)
    given.weights.mkdir()
    refused(given)


def test_weights_of_another_dtype_are_refused(given):
    original = given.weights.read_bytes()
    for name in tensors_of(given):
        for dtype in (torch.int32, torch.complex64, torch.bool):
            change(given.weights, name, lambda tensor, dtype=dtype: tensor.to(dtype))
            refused(given, file=given.weights)
            given.weights.write_bytes(original)
        if given.weights.suffix != ".npz":
            change(given.weights, name, lambda tensor: tensor.to(torch.float8_e4m3fn))
            refused(given, file=given.weights)
            given.weights.write_bytes(original)


def test_a_transposed_tensor_is_refused(given):
    original = given.weights.read_bytes()
    names = tensors_of(given, n_axes=(2,))
    assert names
    for name in names:
        change(given.weights, name, lambda tensor: tensor.T.contiguous())
        refused(given, name, file=given.weights)
        given.weights.write_bytes(original)


def test_tensors_of_another_width_are_refused(given):
    original = given.weights.read_bytes()
    for name in tensors_of(given, n_axes=(1,)):
        change(given.weights, name, lambda tensor: tensor[:-1].clone())
        refused(given, file=given.weights)
        given.weights.write_bytes(original)


def test_extra_tensors_are_listed(given):
    values = load(given.weights)
    first = next(value for value in values.values() if isinstance(value, (torch.Tensor, np.ndarray)))
    save(given.weights, values | {"strange": first.copy() if isinstance(first, np.ndarray) else first.clone()})
    refused(given, "'strange'", file=given.weights)


def test_missing_matrices_are_listed(given):
    values = load(given.weights)
    for name in tensors_of(given, n_axes=(2,)):
        if name != "decoder.weight" or given.format != "openai_topk":  # there, without it the encoder is the decoder
            save(given.weights, {key: value for key, value in values.items() if key != name})
            assert name.lower() in refused(given, file=given.weights).lower()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
def test_weights_that_are_not_finite_are_refused(given, value):
    original = given.weights.read_bytes()
    for name in tensors_of(given, n_axes=(0, 1, 2)):
        if value == -torch.inf and "log_" in name:
            continue  # the logarithm of 0
        change(given.weights, name, lambda tensor: torch.where(torch.arange(tensor.numel()).reshape(tensor.shape) == 0, value, tensor))
        message = refused(given)
        assert given.format == "sae" or (name in message and str(given.weights) in message), message
        given.weights.write_bytes(original)


def test_code_in_the_weights_is_refused_and_not_run(given, tmp_path):
    values = load(given.weights) | {"strange": Marks(tmp_path / "ran")}
    torch.save({key: torch.as_tensor(value) if isinstance(value, np.ndarray) else value for key, value in values.items()}, given.weights)
    refused(given, file=given.weights)
    torch.save(Marks(tmp_path / "ran"), given.weights)
    refused(given, file=given.weights)
    torch.save({"W_enc": Marks(tmp_path / "ran")}, given.weights, _use_new_zipfile_serialization=False)
    refused(given, file=given.weights)
    assert not (tmp_path / "ran").exists()


def test_pickled_arrays_are_refused_and_nothing_is_run(given, tmp_path):
    values = {name: np.asarray([Marks(tmp_path / "ran")] * 2, dtype=object) for name in load(given.weights)}
    with open(given.weights, "wb") as file:
        np.savez(file, **values)
    refused(given, file=given.weights)
    assert not (tmp_path / "ran").exists()


def test_ten_gigabytes_declared_in_a_kilobyte_are_refused(given):
    shape = (50_000, 50_000)
    name = tensors_of(given, n_axes=(2,))[0]
    if given.weights.suffix == ".safetensors":
        text = json.dumps({name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 10_000_000_000]}}).encode()
        given.weights.write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 64)
    elif given.weights.suffix == ".npz":
        text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode()
        with zipfile.ZipFile(given.weights, "w") as archive:
            archive.writestr(f"{name}.npy", b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + b"\0" * 64)
    else:
        save(given.weights, load(given.weights) | {name: torch.ones(1).expand(shape)})
    assert given.weights.stat().st_size < 10_000
    refused(given, file=given.weights)


def test_a_configuration_that_is_no_json_is_refused(configured):
    data = configured.config.read_bytes()
    first = data.decode().split('"')[1]
    for text in (
        b"", data[: len(data) // 2], b"[]", b"null", data + b"}", data.replace(b"{", b'{"nan": NaN, ', 1), b'{"a": ' * 100_000,
        data.replace(b"{", f'{{"{first}": 1, '.encode(), 1), b'{"a": "\xff"}',
    ):  # fmt: skip
        configured.config.write_bytes(text)
        refused(configured, file=configured.config)


def test_unknown_keys_of_a_configuration_are_named(configured):
    config = json.loads(configured.config.read_text())
    configured.config.write_text(json.dumps(config | {"strange_key": 1}))
    refused(configured, "strange_key", file=configured.config)


WRONG = [None, True, -1, 0, 1.5, 10**12, 10**30, 1e308, "", "x", [], ["x"], {}, {"x": 1}]


def places(value, path=()):
    """The path to every value inside nested objects."""
    for key, item in value.items():
        yield (*path, key)
        if isinstance(item, dict):
            yield from places(item, (*path, key))


def test_no_value_of_a_configuration_does_more_than_be_refused(configured):
    original = json.loads(configured.config.read_text())
    generator, n_refused = np.random.default_rng(0), 0
    for path in places(original):
        for value in ["absent", *generator.choice(len(WRONG), 3, replace=False).tolist()]:
            inner = config = json.loads(json.dumps(original))
            for key in path[:-1]:
                inner = inner[key]
            if value == "absent":
                del inner[path[-1]]
            else:
                inner[path[-1]] = WRONG[value]
            configured.config.write_text(json.dumps(config))
            message = outcome(configured)
            n_refused += message is not None
    assert n_refused > 0


def test_no_damage_escapes_as_another_error(given):
    generator = np.random.default_rng(0)
    for path in (given.weights, given.config):
        if path is None:
            continue
        data = path.read_bytes()
        for i in range(30):
            damaged = bytearray(data)
            head = min(len(damaged), 400) if i % 2 else len(damaged)  # where the names and sizes are, as often as anywhere
            for _ in range(int(generator.integers(1, 4))):
                damaged[generator.integers(head)] = generator.integers(256)
            path.write_bytes(damaged)
            outcome(given)
        path.write_bytes(data)
    assert given.read().d_sae > 0

import dataclasses
import hashlib
from typing import Literal

import pytest
import torch

from sae.errors import ConfigError
from sae.fingerprint import canonical, digest, digest_file, digest_tensors, from_json, to_json


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
    k: int
    scale: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer:
    name: Literal["a", "b"]
    inner: Inner
    sites: tuple[str, ...] = ()
    limit: int | None = None
    table: dict[str, float] = dataclasses.field(default_factory=dict)


VALUE = Outer(name="a", inner=Inner(k=4, scale=0.5), sites=("x", "y"), limit=None, table={"z": 1.5})


def test_a_config_survives_the_round_trip_through_json():
    assert from_json(Outer, to_json(VALUE)) == VALUE


def test_the_digest_is_the_sha256_of_the_canonical_text():
    text = '{"inner":{"k":4,"scale":0.5},"limit":null,"name":"a","sites":["x","y"],"table":{"z":1.5}}'
    assert canonical(VALUE) == text
    assert digest(VALUE) == hashlib.sha256(text.encode()).hexdigest()


def test_the_order_of_keys_does_not_matter_but_every_value_does():
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert len({digest(v) for v in ({"a": 1}, {"a": 2}, {"a": "1"}, {"a": 1.0}, {"b": 1}, {"a": True}, {"a": None})}) == 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": 1}, "unknown key 'colour' in Outer; allowed: inner, limit, name, sites, table"),
        ({"name": "c"}, r"Outer\.name must be one of \['a', 'b'\], got 'c'"),
        ({"inner": {"scale": 1.0}}, r"missing key 'k' in Outer\.inner"),
        ({"inner": {"k": 1.5}}, r"Outer\.inner\.k must be of type int, got 1\.5"),
        ({"inner": {"k": True}}, r"Outer\.inner\.k must be of type int, got True"),
        ({"inner": {"k": 1, "scale": float("nan")}}, "must be finite"),
        ({"sites": "x"}, r"Outer\.sites must be a list"),
        ({"sites": [1]}, r"Outer\.sites\[0\] must be of type str"),
        ({"limit": "3"}, r"Outer\.limit fits none"),
        ({"table": [1]}, r"Outer\.table must be a mapping"),
    ],
)
def test_wrong_configs_are_refused_with_the_name_of_the_key(change, message):
    with pytest.raises(ConfigError, match=message):
        from_json(Outer, {**to_json(VALUE), **change})


def test_an_int_is_accepted_where_a_float_is_declared():
    assert from_json(Inner, {"k": 1, "scale": 2}) == Inner(k=1, scale=2.0)


@pytest.mark.parametrize("value", [float("inf"), {1: 2}, {"a": object()}, torch.ones(1)])
def test_what_has_no_json_form_is_refused(value):
    with pytest.raises(ConfigError):
        canonical(value)


def test_tensor_digests_depend_on_names_dtypes_shapes_and_bytes_only():
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    base = digest_tensors({"x": x, "y": x[0]})
    assert base == digest_tensors({"y": x[0].clone(), "x": x.T.contiguous().T})
    others = [{"x": x, "z": x[0]}, {"x": x.double(), "y": x[0]}, {"x": x.reshape(4, 6), "y": x[0]}, {"x": -x, "y": x[0]}]
    assert len({base, *map(digest_tensors, others)}) == 5


def test_file_digest(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    assert digest_file(tmp_path / "f") == hashlib.sha256(b"abc").hexdigest()


def test_annotated_types_are_read_back_like_dataclasses():
    assert from_json(list[Inner], to_json([Inner(k=1), Inner(k=2)])) == [Inner(k=1), Inner(k=2)]

import json
import os
import pickle
import struct
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from fsspec.core import url_to_fs
from hypothesis import given, settings
from hypothesis import strategies as st

from pge_lightning.artifact import (
    check_header,
    decode,
    decode_shapes,
    decode_signature,
    encode,
    encode_signature,
    read_beginning,
)
from pge_lightning.errors import ArtifactError
from pge_lightning.probe import PROBES
from pge_lightning.signature import Signature


def make_signature(probe="default", seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"stem.weight": (4, 1, 3, 3), "a.bias": (4,), "scale": ()}
    chosen = PROBES[probe]
    count = 3 if chosen.paired else 1
    units = {name: torch.randn(count, *shape, generator=generator) for name, shape in shapes.items()}
    starts = {name: tuple(f"{name}{k}" for k in range(count)) for name in shapes} if chosen.paired else {}
    frozen = {"base.weight": "0123456789abcdef"}
    return Signature(units, starts, chosen, 200, count, "data-fingerprint", 1797, 0.1 + seed, frozen)


def with_header(header, tensors=None):
    tensors = {"x": torch.ones(2)} if tensors is None else tensors
    return safetensors.torch.save(tensors, metadata={"pge": json.dumps(header)})


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.bool]
)
def test_encode_keeps_every_bit_of_every_type(dtype):
    tensors = {"matrix": torch.randn(5, 3).to(dtype), "empty": torch.empty(0, 4, dtype=dtype)}
    back, header = decode(encode(tensors, {"note": "ü", "value": 0.1}, "thing"), "thing")
    assert header == {"note": "ü", "value": 0.1}
    assert back.keys() == tensors.keys()
    assert all(same(back[name], tensor) for name, tensor in tensors.items())


def test_encode_keeps_not_a_number_and_scalars():
    back, header = decode(encode({"x": torch.tensor([float("nan"), -0.0]), "n": torch.tensor(7)}, {}, "thing"), "thing")
    assert back["x"].isnan().tolist() == [True, False]
    assert torch.signbit(back["x"][1])
    assert back["n"].shape == ()
    assert back["n"] == 7
    assert header == {}


def test_encode_takes_tied_and_transposed_tensors():
    weight = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
    back, _ = decode(encode({"a": weight, "tied": weight, "t": weight.T, "part": weight[0, 1:]}, {}, "thing"), "thing")
    assert torch.equal(back["a"], weight)
    assert torch.equal(back["tied"], weight)
    assert torch.equal(back["t"], weight.T)
    assert torch.equal(back["part"], weight[0, 1:])


def test_decoded_tensors_can_be_written_to():
    back, _ = decode(encode({"a": torch.zeros(2), "b": torch.zeros(2)}, {}, "thing"), "thing")
    back["a"] += 1
    assert back["b"].tolist() == [0, 0]


def test_equal_content_gives_equal_bytes():
    tensors = {name: torch.full((3,), float(k)) for k, name in enumerate("dbca")}
    header = {"z": 1, "a": {"y": 2, "b": [3]}}
    again = encode(dict(reversed(tensors.items())), dict(reversed(header.items())), "thing")
    assert encode(tensors, header, "thing") == again


def test_header_cannot_replace_schema_or_kind():
    back, header = decode(encode({}, {"schema": 99, "kind": "other"}, "thing"), "thing")
    assert (back, header) == ({}, {})


@pytest.mark.parametrize("tensor", [torch.eye(2).to_sparse(), torch.zeros(2, dtype=torch.complex128)])
def test_encode_refuses_what_safetensors_cannot_store(tensor):
    with pytest.raises(ArtifactError, match=r"Expected dense tensors .* Leave that tensor out"):
        encode({"x": tensor}, {}, "thing")


def test_every_truncation_is_refused():
    blob = encode({"x": torch.ones(4)}, {"note": "n"}, "thing")
    for length in range(len(blob)):
        with pytest.raises(ArtifactError, match=r"truncated|only the beginning"):
            decode(blob[:length], "thing")


def test_appended_bytes_are_refused():
    with pytest.raises(ArtifactError, match="truncated or damaged"):
        decode(encode({"x": torch.ones(4)}, {}, "thing") + b"\0", "thing")


@pytest.mark.parametrize("mask", [0x01, 0x20, 0x80, 0xFF])
def test_a_flipped_byte_never_raises_anything_but_an_artifact_error(mask):
    blob = encode_signature(make_signature())
    refused = 0
    for position in range(len(blob) - 4 * 3 * 41):
        damaged = bytearray(blob)
        damaged[position] ^= mask
        try:
            decode_signature(bytes(damaged))
        except ArtifactError:
            refused += 1
    assert refused > 200


@given(st.binary(max_size=200))
def test_random_bytes_are_refused(data):
    with pytest.raises(ArtifactError):
        decode(data, "thing")


@settings(max_examples=50)
@given(st.recursive(st.none() | st.integers() | st.text(), lambda x: st.dictionaries(st.text(), x), max_leaves=5))
def test_random_json_headers_are_refused(header):
    with pytest.raises(ArtifactError):
        decode(with_header(header), "thing")


@pytest.mark.parametrize(
    "data",
    [
        pickle.dumps({"x": 1}),
        b"PK\x03\x04" + bytes(100),
        safetensors.torch.save({"x": torch.ones(2)}),
        safetensors.torch.save({"x": torch.ones(2)}, metadata={"format": "pt"}),
        safetensors.torch.save({"x": torch.ones(2)}, metadata={"pge": "not json"}),
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 60_000) + b"[" * 60_000,
        struct.pack("<Q", 2**62) + b"{}",
    ],
)
def test_foreign_files_are_refused(data):
    with pytest.raises(ArtifactError, match=r"^Expected a thing .*, but got .* (Check|Copy)"):
        decode(data, "thing")


def test_pickled_code_is_never_run(tmp_path):
    class Mine:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    with pytest.raises(ArtifactError):
        decode(pickle.dumps(Mine()), "thing")
    assert not (tmp_path / "ran").exists()


def test_newer_schema_names_the_cure():
    with pytest.raises(ArtifactError, match=r"Expected schema 1 or older, but got 2\. Upgrade pge-lightning\."):
        decode(with_header({"schema": 2, "kind": "thing"}), "thing")


def test_other_kind_is_refused():
    with pytest.raises(ArtifactError, match="Expected a signature, but got a 'encoder' file"):
        decode_signature(encode({"x": torch.ones(2)}, {}, "encoder"))


@pytest.mark.parametrize("schema", [None, "1", True, 0, -1, 1.0])
def test_a_header_without_a_proper_schema_is_refused(schema):
    with pytest.raises(ArtifactError, match="without a schema"):
        check_header({"schema": schema, "kind": "thing"}, "thing")


@pytest.mark.parametrize("probe", ["default", "published"])
def test_signature_comes_back_bit_for_bit_in_order(probe):
    signature = make_signature(probe)
    back = decode_signature(encode_signature(signature))
    assert list(back.units) == list(signature.units)
    assert all(same(back.units[name], stack) for name, stack in signature.units.items())
    assert replace(back, units={}) == replace(signature, units={})
    assert list(back.starts) == list(signature.starts)
    back.check_comparable(signature)


def test_a_signature_from_before_frozen_parameters_were_noted_can_be_read():
    signature = make_signature()
    tensors, header = decode(encode_signature(signature), "signature")
    assert header.pop("frozen") == dict(signature.frozen)
    back = decode_signature(encode(tensors, header, "signature"))
    assert back.frozen == {}
    back.check_comparable(signature)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("frozen", ["base.weight"]),
        ("units", ["stem.weight"]),
        ("units", None),
        ("starts", {"stem.weight": ["a"]}),
        ("starts", {"stem.weight": ["a"], "scale": ["b"], "a.bias": ["c"], "more": ["d"]}),
        ("starts", 3),
        ("probe", {"name": "default", "lr": -1}),
        ("probe", {"of": "the future"}),
        ("budget", ...),
    ],
)
def test_damaged_signature_header_is_refused(field, value):
    tensors, header = decode(encode_signature(make_signature()), "signature")
    damaged = {key: old for key, old in {**header, field: value}.items() if old is not ...}
    with pytest.raises(ArtifactError, match="Expected the header of a signature"):
        decode_signature(encode(tensors, damaged, "signature"))


@pytest.mark.parametrize("count", [1, 3, 1000])
def test_shapes_are_read_from_the_beginning_alone(count, tmp_path):
    tensors = {f"unit{number}": torch.zeros(2, number, 3) for number in range(count)}
    blob = encode(tensors, {"note": "x" * 100}, "example")
    path = tmp_path / "blob"
    path.write_bytes(blob)
    fs, root = url_to_fs(str(path))
    beginning = read_beginning(fs, root)
    assert blob.startswith(beginning)
    assert len(beginning) <= max(2**16, len(blob) - sum(tensor.nbytes for tensor in tensors.values()))
    expected = {name: list(tensor.shape) for name, tensor in tensors.items()}
    assert decode_shapes(beginning, "example") == decode_shapes(blob, "example") == expected


def test_a_beginning_that_is_none_is_refused(tmp_path):
    blob = encode_signature(make_signature())
    path = tmp_path / "blob"
    fs, root = url_to_fs(str(path))
    for content in (b"", b"short", b"damaged" * 100, b"\xff" * 100, blob[:200]):
        path.write_bytes(content)
        with pytest.raises(ArtifactError):
            decode_shapes(read_beginning(fs, root), "signature")
    with pytest.raises(ArtifactError, match="Expected a summary, but got a 'signature' file"):
        decode_shapes(blob, "summary")
    header = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])
    text = json.dumps({**header, "scale": {"dtype": "F32"}}).encode()
    with pytest.raises(ArtifactError, match="damaged header"):
        decode_shapes(struct.pack("<Q", len(text)) + text, "signature")


@pytest.mark.parametrize("mask", [1, 128, 255])
def test_a_flipped_byte_in_the_beginning_raises_nothing_but_an_artifact_error(mask):
    blob = encode_signature(make_signature())
    refused = 0
    for position in range(len(blob)):
        changed = blob[:position] + bytes([blob[position] ^ mask]) + blob[position + 1 :]
        try:
            decode_shapes(changed, "signature")
        except ArtifactError:
            refused += 1
    assert refused > 100

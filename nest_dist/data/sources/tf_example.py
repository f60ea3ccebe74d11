"""The wire format of tf.train.Example, read without TensorFlow or protobuf.

    Example { 1: Features { 1: repeated map entry { 1: name, 2: Feature } } }
    Feature { 1: BytesList | 2: FloatList | 3: Int64List }, each { 1: repeated value }

Source: protobuf.dev, "Encoding"; tensorflow/core/example/{example,feature}.proto.
"""

import struct
import typing
from collections.abc import Iterator

VARINT, EIGHT_BYTES, LENGTH_DELIMITED, FOUR_BYTES = 0, 1, 2, 5
BYTES, FLOATS, INTEGERS = 1, 2, 3


def parse(record: bytes) -> dict[str, list[typing.Any]]:
    """The values of each feature: memoryviews into `record`, floats or integers.

    Raises:
        ValueError: if it is no tf.train.Example.
    """
    view = memoryview(record)
    found: dict[str, list[typing.Any]] = {}
    try:
        for _, features in _fields(view):
            for _, entry in _fields(features):
                parts = dict(_fields(entry))
                found[bytes(parts[1]).decode()] = _values(parts.get(2, memoryview(b"")))
    except (IndexError, KeyError, TypeError, struct.error) as error:
        raise ValueError("the record is no tf.train.Example") from error
    return found


def _values(feature: memoryview) -> list[typing.Any]:
    for kind, listed in _fields(feature):
        if kind == BYTES:
            return [value for _, value in _fields(listed)]
        if kind == FLOATS:
            # Packed, or one field of four bytes each; both are four bytes in a row.
            packed = b"".join(bytes(value) for _, value in _fields(listed))
            return list(struct.unpack(f"<{len(packed) // 4}f", packed))
        return [_signed(value) for _, field in _fields(listed) for value in _integers(field)]
    return []


def _integers(field: typing.Any) -> Iterator[int]:
    if isinstance(field, int):
        yield field
        return
    at = 0
    while at < len(field):
        value, at = _varint(field, at)
        yield value


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _fields(view: memoryview) -> Iterator[tuple[int, typing.Any]]:
    """Number and content of each field: an integer, or the bytes."""
    at = 0
    while at < len(view):
        tag, at = _varint(view, at)
        kind = tag & 7
        if kind == VARINT:
            value, at = _varint(view, at)
            yield tag >> 3, value
            continue
        if kind == LENGTH_DELIMITED:
            length, at = _varint(view, at)
        elif kind in (EIGHT_BYTES, FOUR_BYTES):
            length = 8 if kind == EIGHT_BYTES else 4
        else:
            raise ValueError(f"the record is no tf.train.Example: it has wire type {kind}")
        if at + length > len(view):
            raise ValueError("the record is no tf.train.Example: a field reaches over its end")
        yield tag >> 3, view[at : at + length]
        at += length


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = view[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7

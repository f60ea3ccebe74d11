"""tf.train.Example, read without TensorFlow.

Source: tensorflow/core/example/{example,feature}.proto.
"""

import functools
import typing
from collections.abc import Sequence

from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

Field = descriptor_pb2.FieldDescriptorProto
LISTS = {"bytes": Field.TYPE_BYTES, "floats": Field.TYPE_FLOAT, "integers": Field.TYPE_INT64}


def parse(record: bytes) -> dict[str, Sequence[typing.Any]]:
    """The values of each feature: bytes, floats or integers.

    Raises:
        ValueError: if the record is no tf.train.Example.
    """
    try:
        example = _example().FromString(record)
    except message.DecodeError as error:
        raise ValueError("the record is no tf.train.Example") from error
    values: dict[str, Sequence[typing.Any]] = {}
    for entry in example.features.feature:
        lists = [content.value for _, content in entry.value.ListFields()]
        values[entry.key.decode()] = list(lists[0]) if lists else []
    return values


@functools.cache
def _example() -> typing.Any:
    """The class of these messages, in a pool of its own: TensorFlow may be there as well."""
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", syntax="proto3")

    def message_type(name: str, *fields: typing.Any) -> None:
        file.message_type.add(name=name, field=fields)

    for name, kind in LISTS.items():
        message_type(name, Field(name="value", number=1, label=Field.LABEL_REPEATED, type=kind))
    message_type(
        "Feature",
        *(Field(name=name, number=at, type_name=name) for at, name in enumerate(LISTS, 1)),
    )
    message_type(
        "Entry",
        Field(name="key", number=1, type=Field.TYPE_BYTES),
        Field(name="value", number=2, type_name="Feature"),
    )
    message_type(
        "Features",
        Field(name="feature", number=1, label=Field.LABEL_REPEATED, type_name="Entry"),
    )
    message_type("Example", Field(name="features", number=1, type_name="Features"))
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("Example"))

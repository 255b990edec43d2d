"""`tf.train.Example`, the protocol buffer in which TensorFlow stores a record.

    Example  { Features features = 1; }
    Features { map<string, Feature> feature = 1; }
    Feature  { oneof kind { BytesList bytes_list = 1; FloatList float_list = 2;
                            Int64List int64_list = 3; } }

Each list has one repeated field `value = 1`.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from robot_qsft.datasets.formats.optional import optional_import

Values: TypeAlias = "NDArray[np.float32] | NDArray[np.int64] | list[bytes]"
"""What one key of an example holds, flat."""

_PACKAGE = "robot_qsft"
_PURPOSE = "reading tf.train.Example records"


def parse_example(payload: bytes, *, about: str) -> Mapping[str, Values]:
    """The lists of an example by their key; a list that holds nothing is an empty list of bytes.

    Args:
        payload: of the record.
        about: what it is, for the message.

    Raises:
        ValueError: when it is none, or protobuf is not installed.
    """
    message_module = optional_import("google.protobuf.message", purpose=_PURPOSE)
    try:
        example = example_class().FromString(payload)
        return {key: _values(feature) for key, feature in example.features.feature.items()}
    except (message_module.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"expected a tf.train.Example in {about}, but the content cannot be parsed; "
            "restore the file or write it again"
        ) from error


@cache
def example_class() -> Any:
    """The class of the message, made here: nothing of TensorFlow is needed.

    Raises:
        ValueError: when protobuf is not installed.
    """
    descriptors = optional_import("google.protobuf.descriptor_pb2", purpose=_PURPOSE)
    pools = optional_import("google.protobuf.descriptor_pool", purpose=_PURPOSE)
    factory = optional_import("google.protobuf.message_factory", purpose=_PURPOSE)
    kinds = descriptors.FieldDescriptorProto
    file = descriptors.FileDescriptorProto(
        name=f"{_PACKAGE}/example.proto", package=_PACKAGE, syntax="proto3"
    )

    def add_field(message: Any, name: str, number: int, kind: int, **more: Any) -> None:
        if kind == kinds.TYPE_MESSAGE:
            more["type_name"] = f".{_PACKAGE}.{more['type_name']}"
        message.field.add(
            name=name, number=number, type=kind, **({"label": kinds.LABEL_OPTIONAL} | more)
        )

    lists = {
        "BytesList": kinds.TYPE_BYTES,
        "FloatList": kinds.TYPE_FLOAT,
        "Int64List": kinds.TYPE_INT64,
    }
    for name, kind in lists.items():
        add_field(file.message_type.add(name=name), "value", 1, kind, label=kinds.LABEL_REPEATED)
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, name in enumerate(lists, start=1):
        field = name.replace("List", "_list").lower()
        add_field(feature, field, number, kinds.TYPE_MESSAGE, type_name=name, oneof_index=0)
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    add_field(entry, "key", 1, kinds.TYPE_STRING)
    add_field(entry, "value", 2, kinds.TYPE_MESSAGE, type_name="Feature")
    add_field(
        features,
        "feature",
        1,
        kinds.TYPE_MESSAGE,
        label=kinds.LABEL_REPEATED,
        type_name="Features.FeatureEntry",
    )
    add_field(
        file.message_type.add(name="Example"),
        "features",
        1,
        kinds.TYPE_MESSAGE,
        type_name="Features",
    )
    pool = pools.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.Example"))


def _values(feature: Any) -> Values:
    kind = feature.WhichOneof("kind")
    if kind == "float_list":
        return np.array(feature.float_list.value, np.float32)
    if kind == "int64_list":
        return np.array(feature.int64_list.value, np.int64)
    return list(feature.bytes_list.value)

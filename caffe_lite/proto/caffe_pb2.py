"""The messages and enums of proto/caffe.proto, under the names that protoc's generated module would give them:
`NetParameter`, `SolverParameter`, ..., `Phase`, `TRAIN`, `TEST`, and `DESCRIPTOR`.

The schema lives in a DescriptorPool of its own. The default pool of a process takes each message name once, so that a
second ``caffe.NetParameter`` (another Caffe's, OpenCV's, an exporter's) would make the import fail.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from google.protobuf.message_factory import GetMessageClass

from caffe_lite import resources


def _load() -> Any:
    """Return the FileDescriptor of the schema; it keeps its pool alive."""
    pool = DescriptorPool()
    pool.AddSerializedFile(resources.path("proto/caffe.desc").read_bytes())
    return pool.FindFileByName("caffe.proto")


def _attributes(file: Any) -> dict[str, Any]:
    """Return message classes, enums and the values of top-level enums by name."""
    names: dict[str, Any] = {}
    for name, enum in file.enum_types_by_name.items():
        names[name] = EnumTypeWrapper(enum)
        names.update((value.name, value.number) for value in enum.values)
    for name, message in file.message_types_by_name.items():
        names[name] = GetMessageClass(message)
        names[name].__module__ = __name__  # pickle looks the class up there
    return names


def __getattr__(name: str) -> Any:
    """Answer for unknown names only; with it, type checkers take every name for Any."""
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


DESCRIPTOR = _load()
globals().update(_attributes(DESCRIPTOR))

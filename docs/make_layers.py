"""Writes docs/layers.md: every layer type with the prototxt fields it reads, from the register and the schema.

python docs/make_layers.py
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from caffe_lite import layers
from caffe_lite.layers.base import Layer
from caffe_lite.proto import caffe_pb2
from caffe_lite.prototxt_diagnosis import is_repeated

PAGE = Path(__file__).with_name("layers.md")
# What the code reads, and what the docstring says of the fields that change nothing.
READS = re.compile(r"\bparam\.(\w+_param)\b|``(\w+_param) \{")
HEAD = """# Layers

Every layer type, and the fields of its prototxt messages with their types and defaults. This page is written by
`python docs/make_layers.py` from the layers' own code and the schema; what a field means says
[caffe.proto](../proto/caffe.proto), what a layer computes the docstring of its class.

| type | family | bottoms | tops | reads |
| --- | --- | --- | --- | --- |
"""


def page() -> str:
    """Return the page as Markdown."""
    parts = [HEAD]
    messages: dict[str, Any] = {}
    for name in layers.layer_type_list():
        found = dict(messages_of(layers.REGISTRY[name]))
        messages |= found
        parts.append(row(name, layers.REGISTRY[name], found))
    for name in sorted(messages):
        parts.append(section(name, messages[name]))
    return "".join(parts)


def row(name: str, layer: type[Layer], found: dict[str, Any]) -> str:
    """Return the layer's line of the table."""
    family = layer.__module__.rpartition(".")[2]
    bottoms = count(layer.exact_bottoms, layer.min_bottoms, layer.max_bottoms)
    tops = "as bottoms" if layer.equal_bottoms_and_tops else count(layer.exact_tops, layer.min_tops, layer.max_tops)
    reads = ", ".join(f"[{message}](#{message})" for message in sorted(found)) or "–"
    return f"| {name} | [{family}](../caffe_lite/layers/{family}.py) | {bottoms} | {tops} | {reads} |\n"


def count(exact: int | None, least: int, most: int | None) -> str:
    """Return how many bottoms or tops a layer takes, in words."""
    if exact is not None:
        return str(exact)
    if most is not None:
        return str(most) if least == most else f"{least} to {most}"
    return f"{least} or more" if least else "any"


def messages_of(layer: type[Layer]) -> Iterator[tuple[str, Any]]:
    """Yield the messages of ``LayerParameter`` that a layer and its bases read or name, with their types."""
    fields = caffe_pb2.LayerParameter.DESCRIPTOR.fields_by_name
    for base in layer.__mro__:
        if base.__module__.startswith("caffe_lite.layers.") and base is not Layer:
            for match in READS.finditer(inspect.getsource(base)):
                if (name := match[match.lastindex or 0]) in fields:
                    yield name, fields[name].message_type


def section(name: str, message: Any) -> str:
    """Return a message's heading and its table of fields."""
    lines = [f"\n## {name}\n", "\n", "| field | type | default |\n", "| --- | --- | --- |\n"]
    lines += [f"| {field.name} | {type_of(field)} | {default_of(field)} |\n" for field in message.fields]
    return "".join(lines)


def type_of(field: Any) -> str:
    """Return a field's type as the prototxt's author thinks of it."""
    kinds = {1: "integer", 2: "integer", 3: "integer", 4: "integer", 5: "float", 6: "float", 7: "bool", 9: "text"}
    if field.enum_type:
        kind = ", ".join(field.enum_type.values_by_name)
    elif field.message_type:
        kind = field.message_type.name
    else:
        kind = kinds.get(field.cpp_type, "text")
    return f"{kind}, repeated" if is_repeated(field) else kind


def default_of(field: Any) -> str:
    """Return a field's default, or a dash where there is none."""
    if is_repeated(field) or field.message_type or not field.has_default_value:
        return "–"
    if field.enum_type:
        return str(field.enum_type.values_by_number[field.default_value].name)
    if isinstance(field.default_value, float):
        return f"{field.default_value:.7g}"
    return str(field.default_value).lower() if isinstance(field.default_value, bool) else str(field.default_value)


if __name__ == "__main__":
    sys.exit(0 if PAGE.write_text(page(), encoding="utf-8") else 1)

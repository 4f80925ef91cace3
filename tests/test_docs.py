"""The pages that are generated say what the code does."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from caffe_lite import layers
from caffe_lite.proto import caffe_pb2

MAKE = Path(__file__).resolve().parents[1] / "docs" / "make_layers.py"
# Messages of layers that the original never had (the forks'), by LayerParameter's field numbers.
CAFFE_1_0 = range(100, 149)


@pytest.fixture(scope="module")
def make():
    return runpy.run_path(str(MAKE))


def test_the_table_of_layers_is_current(make):
    assert make["PAGE"].read_text(encoding="utf-8") == make["page"](), "run python docs/make_layers.py"


def test_every_message_of_caffe_is_read_by_some_layer(make):
    read = {name for layer in layers.REGISTRY.values() for name, _ in make["messages_of"](layer)}
    fields = caffe_pb2.LayerParameter.DESCRIPTOR.fields
    assert {field.name for field in fields if field.number in CAFFE_1_0} - read == set()

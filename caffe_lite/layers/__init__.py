"""The layer types: every module of this folder is imported, and registers its classes."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

from caffe_lite.blob import Blob
from caffe_lite.errors import NetError, suggest
from caffe_lite.layers.base import REGISTRY, Layer, register

if TYPE_CHECKING:
    from caffe_lite.devices.base import Device

__all__ = ["REGISTRY", "Layer", "create", "layer_type_list", "register"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def layer_type_list() -> list[str]:
    """Return the prototxt types of all layers, in alphabetical order."""
    return sorted(REGISTRY)


def create(param: Any, phase: int, device: Device) -> Layer:
    """Return the layer that the ``LayerParameter`` `param` asks for, its params filled where `param` holds blobs.

    Raises `NetError` if no layer has that type.
    """
    if param.type not in REGISTRY:
        known = layer_type_list()
        problem = f"unknown layer type '{param.type}'." if param.type else "the layer has no type."
        words = [problem, suggest(param.type, known), f"Known types: {', '.join(known)}."]
        raise NetError(" ".join(filter(None, words)))
    layer = REGISTRY[param.type](param, phase, device)
    for proto in param.blobs:
        layer.blobs.append(_blob_from(proto, device))
        layer.param_propagate_down.append(True)
    return layer


def _blob_from(proto: Any, device: Device) -> Blob:
    from caffe_lite.serialization import blobproto

    array = blobproto.to_array(proto)
    blob = Blob(device, array.shape)
    device.upload(blob.data_buffer, array)
    return blob

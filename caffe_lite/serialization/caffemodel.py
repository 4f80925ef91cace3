"""`.caffemodel` files: a net's weights, read whichever of Caffe's three layer formats they are in."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from caffe_lite.errors import WeightsError
from caffe_lite.serialization import blobproto, files, message

if TYPE_CHECKING:
    from caffe_lite.blob import Blob
    from caffe_lite.net import Net

logger = logging.getLogger("caffe_lite")

Array = NDArray[np.float32]


def read(path: files.PathLike) -> list[tuple[str, list[Array]]]:
    """Return name and params (float32, in the net's order) of every layer in the file at `path`.

    Layers without params are in the list as well.  In files from before 2015 every param has four axes.

    Raises:
        MissingFileError, FileAccessError: the file cannot be read.
        WeightsError: the file is no ``.caffemodel``, or it is damaged.
    """
    layers = []
    for name, blob_protos in layers_of(message.read(path, "NetParameter")):
        try:
            layers.append((name, [blobproto.to_array(blob_proto) for blob_proto in blob_protos]))
        except WeightsError as error:
            raise error.located(f"{os.fspath(path)}: layer '{name}'") from error
    return layers


def layers_of(net_param: Any) -> Iterator[tuple[str, Any]]:
    """Yield name and blobs of each layer: the current format, V1 (``layers``) and V0 (``layers { layer {} }``)."""
    for layer in net_param.layer:
        yield layer.name, layer.blobs
    for layer in net_param.layers:
        if layer.HasField("layer"):
            yield layer.layer.name, layer.layer.blobs
        else:
            yield layer.name, layer.blobs


def copy_to(net: Net, path: files.PathLike) -> None:
    """Copy the weights in the file at `path` to the layers of `net` that have the same names.

    Layers of the net that the file lacks keep their weights.  Nothing is copied unless everything fits.

    Raises:
        MissingFileError, FileAccessError: the file cannot be read.
        WeightsError: the file is no ``.caffemodel``, or the shapes of some params differ: all of them are listed.
    """
    targets = {layer.name: layer.blobs for layer in reversed(net.layers)}  # of two with one name the first counts
    source = read(path)
    matches = []
    mismatches = []
    for name, arrays in source:
        if name not in targets:
            logger.info("Ignoring source layer %s", name)
            continue
        matches.append((targets[name], arrays))
        mismatches += _mismatches(name, targets[name], arrays)
    if mismatches:
        raise WeightsError(_mismatch_message(os.fspath(path), mismatches))
    for blobs, arrays in matches:
        for blob, array in zip(blobs, arrays, strict=True):
            blob.data[...] = array.reshape(blob.shape)
    if not any(arrays for _, arrays in matches):
        _warn_of_nothing_copied(os.fspath(path), source, targets)


def _mismatches(name: str, blobs: list[Blob], arrays: list[Array]) -> list[tuple[str, str, str, str]]:
    """Return a row (layer, param, the net's shape, the file's shape) for each param that does not fit."""
    rows = []
    for index in range(max(len(blobs), len(arrays))):
        wanted = tuple(blobs[index].shape) if index < len(blobs) else None
        found = arrays[index].shape if index < len(arrays) else None
        if wanted is None or found is None or not shapes_agree(wanted, found):
            rows.append((name, str(index), _shape_text(wanted), _shape_text(found)))
    return rows


def shapes_agree(wanted: tuple[int, ...], found: tuple[int, ...]) -> bool:
    """Whether a param of shape `found` in a file fits a net's param of shape `wanted`.

    Old files give each param four axes, a bias (1, 1, 1, N) for example: leading ones do not count there.
    """
    return wanted == found or (len(wanted) < 4 and (1,) * (4 - len(wanted)) + wanted == found)


def _shape_text(shape: tuple[int, ...] | None) -> str:
    if shape is None:
        return "none"
    return f"({', '.join(map(str, shape))})"


def _mismatch_message(path: str, rows: list[tuple[str, str, str, str]]) -> str:
    """Return the text of the error for params that do not fit, one line a param."""
    table = [("layer", "param", "net", "file"), *rows]
    widths = [max(len(row[column]) for row in table) for column in range(4)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    count = "1 param does" if len(rows) == 1 else f"{len(rows)} params do"
    return (
        f"{path}: the shapes of {count} not fit the net, nothing was copied.\n  "
        + "\n  ".join(lines)
        + "\nTo learn such a layer from scratch, give it another name in the net's prototxt."
    )


def _warn_of_nothing_copied(path: str, source: list[tuple[str, list[Array]]], targets: dict[str, list[Blob]]) -> None:
    """Log the names on both sides, if there are params on either."""
    in_file = [name for name, arrays in source if arrays]
    in_net = [name for name, blobs in reversed(targets.items()) if blobs]
    if in_file or in_net:
        logger.warning(
            "%s: no weights were copied, because no layer with params has the name of one in the net. "
            "Layers in the file: %s. Layers in the net: %s.",
            path,
            ", ".join(in_file) or "none",
            ", ".join(in_net) or "none",
        )


def write(path: files.PathLike, net: Net, write_diff: bool = False, to: files.Write = files.write_atomically) -> None:
    """Write the weights of `net` to the file at `path` as Caffe does: each layer's whole param with its blobs.

    `to` does the writing; `files.together` gives one for several files.

    Raises:
        FileAccessError: the file cannot be written; the old one stays.
        WeightsError: the file would be larger than 2 GiB.
    """
    count = sum(blob.count for layer in net.layers for blob in layer.blobs)
    message.check_size(path, count * (8 if write_diff else 4))
    message.write(path, to_message(net, write_diff), to)


def to_message(net: Net, write_diff: bool = False) -> Any:
    """Return `net` as a ``NetParameter`` of the wire schema; see `message.wire_class`."""
    net_param = message.wire_class("NetParameter")(name=net.name)
    for layer in net.layers:
        layer_param = net_param.layer.add()
        layer_param.MergeFromString(layer.param.SerializeToString())
        layer_param.ClearField("blobs")
        for blob in layer.blobs:
            blobproto.fill(layer_param.blobs.add(), blob.data, blob.diff if write_diff else None)
    return net_param

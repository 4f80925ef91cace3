"""Net: what pycaffe calls a net.

`NetStructure` builds the layers, blobs and params, `NetRunner` runs them; here are the constructors, the names, forward
and backward with arrays in and out, and the weights' files.
"""

from __future__ import annotations

import functools
import logging
import os
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from caffe_lite.blob import Blob
from caffe_lite.errors import ShapeError, UsageError, suggest
from caffe_lite.graph import PHASE_NAMES
from caffe_lite.layers.memory_data import MemoryData
from caffe_lite.random import next_seed
from caffe_lite.runner import NetRunner

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from caffe_lite.devices.base import Device
    from caffe_lite.layers import Layer
    from caffe_lite.prototxt import Source

    Arrays = dict[str, NDArray[np.float32]]
    Path = str | os.PathLike[str]

logger = logging.getLogger("caffe_lite")


class Net(NetRunner):
    """A network: layers, the blobs between them, and forward and backward over any range of them.

    Args:
        network_file: a prototxt.
        phase: ``TRAIN`` or ``TEST``.  ``Net(network_file, weights, phase)`` is pycaffe's older form.
        level, stages: the rest of the ``NetState`` that layers are included by.
        weights: a ``.caffemodel`` to copy params from.

    Raises:
        MissingFileError, PrototxtError: a file is absent, or is not what it should be.
        NetError, ShapeError: the net cannot be built; the message names file, line and layer.
        WeightsError: the weights do not fit.
    """

    def __init__(
        self,
        network_file: Path,
        phase: int | Path,
        level: int = 0,
        stages: Iterable[str] | None = None,
        weights: Path | None = None,
    ) -> None:
        from caffe_lite import prototxt

        if isinstance(phase, (str, os.PathLike)):
            weights, phase, level = phase, level, 0
        elif not isinstance(level, int):
            raise UsageError(f"level must be a number. Received {level!r}. Weights are given as weights=...")
        if phase not in (0, 1):
            raise UsageError(f"phase must be TRAIN (0) or TEST (1). Received {phase}.")
        param, source = prototxt.read_net(network_file)
        param.state.phase = phase
        param.state.level = level
        param.state.stage.extend(stages or ())
        self._start(param, source, None, None)
        if weights is not None:
            try:
                self.copy_from(weights)
            except BaseException:
                self.close()
                raise

    @classmethod
    def from_param(
        cls,
        net_param: Any,
        state: Any = None,
        source: Source | None = None,
        device: Device | None = None,
        seed: int | None = None,
    ) -> Net:
        """Build the net of a ``NetParameter`` in the ``NetState`` `state` (its own by default).

        `source` gives the lines for messages; `seed` is the next of `random.next_seed` by default.
        """
        net = cls.__new__(cls)
        param = type(net_param)()
        param.CopyFrom(net_param)
        if state is not None:
            param.state.CopyFrom(state)
        net._start(param, source, device, seed)
        return net

    def _start(self, param: Any, source: Source | None, device: Device | None, seed: int | None) -> None:
        from caffe_lite.devices import host_device

        super().__init__(param, device or host_device(), next_seed() if seed is None else seed, source)

    # -- what pycaffe shows

    @functools.cached_property
    def params(self) -> OrderedDict[str, list[Blob]]:
        """Layer name to params, of the layers that have any."""
        return OrderedDict((name, layer.blobs) for name, layer in self.layer_dict.items() if layer.blobs)

    @functools.cached_property
    def layer_dict(self) -> OrderedDict[str, Layer]:
        """Layer name to layer."""
        return OrderedDict(zip(self.layer_names, self.layers, strict=True))

    @functools.cached_property
    def blob_loss_weights(self) -> OrderedDict[str, float]:
        """Blob name to loss weight."""
        return OrderedDict(zip(self.blob_names, self._loss_weights, strict=True))

    @functools.cached_property
    def top_names(self) -> OrderedDict[str, list[str]]:
        """Layer name to the names of its tops."""
        return self._names_of(self._top_ids)

    @functools.cached_property
    def bottom_names(self) -> OrderedDict[str, list[str]]:
        """Layer name to the names of its bottoms."""
        return self._names_of(self._bottom_ids)

    @property
    def _layer_names(self) -> list[str]:
        return self.layer_names

    @property
    def _blob_names(self) -> list[str]:
        return self.blob_names

    def _names_of(self, all_ids: list[list[int]]) -> OrderedDict[str, list[str]]:
        return OrderedDict(
            (name, [self.blob_names[index] for index in ids])
            for name, ids in zip(self.layer_names, all_ids, strict=True)
        )

    def __repr__(self) -> str:
        def blobs(names: Sequence[str]) -> str:
            return ", ".join(f"{name} {self.blobs[name].shape}" for name in names) or "nothing"

        count = sum(blob.count for blob in self.parameters.blobs)
        return (
            f"<Net '{self.name}' {PHASE_NAMES[self.phase]}: {len(self.layers)} layers, {count} weights, "
            f"{blobs(self.inputs)} -> {blobs(self.outputs)}>"
        )

    # -- forward and backward as pycaffe has them

    def forward(
        self,
        blobs: Sequence[str] | None = None,
        start: str | int | None = None,
        end: str | int | None = None,
        **kwargs: ArrayLike,
    ) -> Arrays:
        """Run the layers from `start` to `end` (names or indices, both included; the whole net by default).

        Keywords give the net's inputs, all of them or none; an array of another shape with as many axes as the blob
        reshapes the net.  Returns the data of the net's outputs (with `end`: of that layer's tops) and of `blobs`, as
        arrays that show the blobs' own memory.  Raises `UsageError` for unknown names, `ShapeError` for an array that
        does not fit, `DataError` for values that a layer rejects.
        """
        if kwargs:
            self._check_names(kwargs, self.inputs, "inputs")
            for name, value in kwargs.items():
                self._set_input(self.blobs[name], value)
        if start is None and end is None:
            self.run_forward()
            names = self.outputs
        else:
            last = self._index(end, self._last)
            self._run_forward(self._index(start, 0), last)
            names = self.outputs if end is None else self._top_list(last)
        return {name: self._blob(name).data for name in (*names, *(blobs or ()))}

    def backward(
        self,
        diffs: Sequence[str] | None = None,
        start: str | int | None = None,
        end: str | int | None = None,
        **kwargs: ArrayLike,
    ) -> Arrays:
        """Run the layers from `start` down to `end` (names or indices, both included; the whole net by default).

        Keywords give the diffs of the net's outputs, all of them or none; without them a backward pass begins with
        the loss weights.  Returns the diffs of the net's inputs (with `end`: of that layer's bottoms) and of `diffs`.
        The params' diffs are added to.  Raises as `forward`.
        """
        if kwargs:
            self._check_names(kwargs, self.outputs, "outputs")
            for name, value in kwargs.items():
                _assign(self.blobs[name], self.blobs[name].diff, np.asarray(value))
        last = self._index(end, 0)
        self._backward(self._index(start, self._last), last)
        names = self.inputs if end is None else [self.blob_names[index] for index in self._bottom_ids[last]]
        return {name: self._blob(name).diff for name in (*names, *(diffs or ()))}

    def _forward(self, start: int, end: int) -> float:
        """Run layers `start` to `end`, both included, and return the loss of their tops."""
        self._check_range(start, end)
        self._run_forward(start, end)
        return self._loss_of(start, end)

    def _backward(self, start: int, end: int) -> None:
        """Run the backward passes of layers `start` down to `end`, both included."""
        self._check_range(end, start)
        self._run_backward(start, end)

    def set_input_arrays(self, data: NDArray[Any], labels: NDArray[Any]) -> None:
        """Let the MemoryData layer, the net's first, take its batches from two float32 arrays.

        `data` is (items, channels, height, width), `labels` (items,) or (items, 1, 1, 1), both as long as a multiple
        of the batch size.  Raises `UsageError` or `ShapeError`.
        """
        layer = self.layers[0]
        if not isinstance(layer, MemoryData):
            raise UsageError(f"set_input_arrays needs a net whose first layer is MemoryData. It is {layer.type}.")
        with self.at(0):
            layer.set_arrays(data, labels)

    # -- weights

    def copy_from(self, path: Path) -> None:
        """Copy params by layer name from a ``.caffemodel``; layers that it lacks keep theirs.

        Raises `MissingFileError`, and `WeightsError` for another kind of file or shapes that differ.
        """
        from caffe_lite.serialization import caffemodel

        caffemodel.copy_to(self, path)

    def save(self, path: Path) -> None:
        """Write the params to a ``.caffemodel``.  Raises `FileAccessError`."""
        from caffe_lite.serialization import caffemodel

        caffemodel.write(path, self)

    def share_with(self, other: Net) -> None:
        """Use the data of the params of `other`, layer by layer of the same name; diffs stay apart.

        Raises `ShapeError`, and shares nothing, unless all those layers have params of the same shapes.
        """
        pairs: list[tuple[Blob, Blob]] = []
        for name, source in zip(other.layer_names, other.layers, strict=True):
            target = self.layer_dict.get(name)
            if target is None:
                logger.info("Ignoring source layer %s", name)
                continue
            expected, received = ([blob.shape for blob in layer.blobs] for layer in (target, source))
            if expected != received:
                raise ShapeError(
                    f"layer '{name}' cannot share its params: the shapes differ. "
                    f"Expected {expected}, received {received}."
                )
            pairs += zip(target.blobs, source.blobs, strict=True)
        for blob, source_blob in pairs:
            blob.share_data(source_blob)
        if len(pairs) == len(self.parameters.all):
            self.parameters.follow(other.parameters)

    share_trained_layers_with = share_with

    # -- arguments

    def _index(self, layer: str | int | None, default: int) -> int:
        if layer is None:
            return default
        if isinstance(layer, str):
            if layer not in self.layer_names:
                raise UsageError(_unknown("layer", layer, self.layer_names))
            return self.layer_names.index(layer)
        self._check_range(layer, layer)
        return layer

    def _check_range(self, first: int, last: int) -> None:
        if first < 0 or last > self._last:
            raise UsageError(f"layers {first} to {last} do not all exist. Expected indices from 0 to {self._last}.")

    def _blob(self, name: str) -> Blob:
        if name not in self.blobs:
            raise UsageError(_unknown("blob", name, self.blob_names))
        return self.blobs[name]

    def _check_names(self, given: Iterable[str], expected: list[str], what: str) -> None:
        if set(given) != set(expected):
            raise UsageError(
                f"the arguments are not the net's {what}. "
                f"Expected {', '.join(expected) or 'none'}, received {', '.join(given)}."
            )

    def _set_input(self, blob: Blob, value: ArrayLike) -> None:
        array = np.asarray(value)
        if array.ndim == len(blob.shape):
            blob.reshape(array.shape)
        _assign(blob, blob.data, array)

    def _top_list(self, index: int) -> list[str]:
        return [self.blob_names[top] for top in self._top_ids[index]]


def _assign(blob: Blob, target: NDArray[np.float32], value: NDArray[Any]) -> None:
    """Write `value` into `target`, the data or diff of `blob`, broadcast as pycaffe does within one batch size."""
    fits = value.shape[:1] == target.shape[:1]
    if fits:
        try:
            target[...] = value
        except ValueError:
            fits = False
    if not fits:
        raise ShapeError(
            f"the array for blob '{blob.name}' does not fit. Expected {blob.shape}, received {value.shape}."
        )


def _unknown(what: str, name: str, known: Iterable[str]) -> str:
    known = list(dict.fromkeys(known))
    hint = suggest(name, known)
    return f"the net has no {what} '{name}'. " + (hint or f"It has {', '.join(known)}.")

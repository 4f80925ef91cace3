"""NetStructure: the layers, blobs and params of a net, built from its message in Caffe's order.

For each layer: find the bottoms, create the tops, set up, reshape, loss weights, params; then, over the whole net, who
needs a gradient.  Running it is the business of `Net`.
"""

from __future__ import annotations

import contextlib
import logging
from collections import OrderedDict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from caffe_lite import graph
from caffe_lite.blob import Blob
from caffe_lite.errors import CaffeError, NetError, OutOfMemoryError
from caffe_lite.layers import REGISTRY, Layer, create
from caffe_lite.parameters import Parameters
from caffe_lite.random import layer_generator

if TYPE_CHECKING:
    from caffe_lite.devices.base import Buffer, Device
    from caffe_lite.prototxt import Source

logger = logging.getLogger("caffe_lite")

AUTOMATIC = "(automatic)"  # Caffe's name for a top that the prototxt does not mention


class NetStructure:
    """What a net consists of.

    Attributes:
        name, phase, device: as given; phase is ``TRAIN`` (0) or ``TEST`` (1).
        layers, layer_names: in the order in which they run, Splits included.
        blob_names: every blob once, in the order in which they are made.
        bottoms, tops: for each layer, its blobs.
        inputs: the tops of Input layers.
        outputs: the blobs that no layer consumes, sorted by name as in Caffe.
        layer_need_backward, bottom_need_backward: for each layer (and each of its bottoms) whether backward runs.
        parameters: the learnable params.
        loss_tops: (layer index, blob, loss weight) of each top with a loss weight.
    """

    def __init__(self, param: Any, device: Device, seed: int, source: Source | None = None) -> None:
        self.name = str(param.name)
        self.phase = int(param.state.phase)
        self.device = device
        self.layers: list[Layer] = []
        self.layer_names: list[str] = []
        self.blob_names: list[str] = []
        self.bottoms: list[list[Blob]] = []
        self.tops: list[list[Blob]] = []
        self.inputs: list[str] = []
        self.parameters = Parameters(device)
        self.loss_tops: list[tuple[int, Blob, float]] = []
        self._open: list[Layer] = []  # the layers to close
        self._blobs: list[Blob] = []
        self._loss_weights: list[float] = []  # of each blob
        self._bottom_ids: list[list[int]] = []
        self._top_ids: list[list[int]] = []
        self._ids: dict[str, int] = {}
        self._filled: dict[int, Buffer] = {}  # the diffs that hold their loss weight, by blob id
        self._memory_used = 0
        self._seed = seed
        self._places: list[str] = []
        try:
            self._build(param, source)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the layers' threads and files.  The blobs stay as they are; closing twice is allowed."""
        while self._open:
            self._open.pop().close()

    @contextlib.contextmanager
    def at(self, index: int) -> Iterator[None]:
        """Put the place of layer `index` in front of any `CaffeError` from the `with` block."""
        try:
            yield
        except CaffeError as error:
            raise self.placed(index, error) from error.__cause__

    def placed(self, index: int, error: CaffeError) -> CaffeError:
        """Return `error` with the place of layer `index` in front, and the largest blobs where memory ran out."""
        error = error.located(self._places[index])
        if isinstance(error, OutOfMemoryError):
            largest = sorted(self._blobs, key=lambda blob: -blob.count)[:3]
            sizes = ", ".join(f"'{blob.name}' {blob.shape} {blob.count * 4 / 2**20:.1f} MiB" for blob in largest)
            error = OutOfMemoryError(f"{error} The largest blobs: {sizes}.")
        return error

    def fill_loss_weights(self) -> None:
        """Write the loss weights into the diffs that begin the backward pass, where the memory is new."""
        for index, blob, weight in self.loss_tops:
            with self.at(index):
                if self._filled.get(id(blob)) is not blob.diff_buffer:
                    self.device.fill(blob.diff_buffer, weight)
                    self._filled[id(blob)] = blob.diff_buffer

    # -- building

    def _build(self, param: Any, source: Source | None) -> None:
        places = _places(param, source)
        filtered, kept, left_out = graph.filter_net(param, lambda index: places[index])
        if logger.isEnabledFor(logging.INFO):
            logger.info("Initializing net from parameters: \n%s", graph.text_of(filtered))
        excluded = [param.layer[index] for index in left_out]
        split, origins = graph.insert_splits(filtered, _is_loss, excluded, lambda index: places[kept[index]])
        self._places = [
            places[kept[origin]] if layer.name == filtered.layer[origin].name else _place(source, kept[origin], layer)
            for origin, layer in zip(origins, split.layer, strict=True)
        ]
        for layer_param in split.layer:
            with self.at(len(self.layers)):
                self._add_layer(layer_param)
        self._warn_of_twins()
        self._plan_backward(split.force_backward)
        self.outputs = self._find_outputs()
        try:
            self.parameters.pack()
        except OutOfMemoryError as error:
            raise error.located(f"the params of net '{self.name}'") from error.__cause__
        self.fill_loss_weights()
        self.blobs: OrderedDict[str, Blob] = OrderedDict(zip(self.blob_names, self._blobs, strict=True))
        logger.info("Network initialization done.")

    def _add_layer(self, param: Any) -> None:
        if len(param.propagate_down) not in (0, len(param.bottom)):
            raise NetError(
                "propagate_down must be given once per bottom or not at all. "
                f"Expected {len(param.bottom)}, received {len(param.propagate_down)}."
            )
        if not param.HasField("phase"):
            param.phase = self.phase
        logger.info("Creating layer %s", param.name)
        layer = create(param, param.phase, self.device)
        layer.rng = layer_generator(self._seed, param.name)
        layer.seed = int(layer.rng.integers(2**64, dtype=np.uint64))
        if layer.draws_random:
            layer.passes = self.device.alloc(1, np.int32)
        self.layers.append(layer)
        self.layer_names.append(param.name)
        logger.info("Creating Layer %s", param.name)
        self._connect_bottoms(param)
        self._connect_tops(param, layer)
        _check_blob_counts(layer, self.bottoms[-1], self.tops[-1])
        self._set_up(layer)
        self._add_params(layer)

    def _connect_bottoms(self, param: Any) -> None:
        ids = []
        for name in param.bottom:
            logger.info("%s <- %s", param.name, name)
            ids.append(self._ids[name])
        self._bottom_ids.append(ids)
        self.bottoms.append([self._blobs[index] for index in ids])

    def _connect_tops(self, param: Any, layer: Layer) -> None:
        ids = []
        for position, name in enumerate(param.top):
            if position < len(param.bottom) and param.bottom[position] == name:
                if not layer.in_place:
                    raise NetError(
                        f"top '{name}' is also the bottom, but this layer does not work in place. Rename it."
                    )
                logger.info("%s -> %s (in-place)", param.name, name)
            else:
                logger.info("%s -> %s", param.name, name)
                self._ids[name] = self._new_blob(name)
            ids.append(self._ids[name])
        if layer.auto_tops:
            for _ in range(len(ids), layer.exact_tops or layer.min_tops):
                logger.info("%s -> %s", param.name, AUTOMATIC)
                ids.append(self._new_blob(AUTOMATIC))
        self._top_ids.append(ids)
        self.tops.append([self._blobs[index] for index in ids])
        if param.type == "Input":
            self.inputs += param.top

    def _new_blob(self, name: str) -> int:
        self._blobs.append(Blob(self.device, name=name))
        self.blob_names.append(name)
        self._loss_weights.append(0.0)
        return len(self._blobs) - 1

    def _set_up(self, layer: Layer) -> None:
        index = len(self.layers) - 1
        bottoms, tops = self.bottoms[index], self.tops[index]
        layer.setup(bottoms, tops)
        self._open.append(layer)
        layer.reshape(bottoms, tops)
        logger.info("Setting up %s", layer.name)
        weights = _loss_weights(layer, len(tops))
        for blob_id, blob, weight in zip(self._top_ids[index], tops, weights, strict=True):
            self._loss_weights[blob_id] = weight
            logger.info("Top shape: %s", _shape_string(blob))
            if weight:
                self.loss_tops.append((index, blob, weight))
                logger.info("    with loss weight %g", weight)
            self._memory_used += blob.count
        logger.info("Memory required for data: %d", self._memory_used * 4)

    def _add_params(self, layer: Layer) -> None:
        specs = layer.param.param
        if len(specs) > len(layer.blobs):
            raise NetError(f"too many param entries. Expected at most {len(layer.blobs)}, received {len(specs)}.")
        layer.param_propagate_down = [spec.lr_mult != 0 for spec in specs] + [True] * (len(layer.blobs) - len(specs))
        for index, blob in enumerate(layer.blobs):
            spec = specs[index] if index < len(specs) else None
            self.parameters.add(len(self.layers) - 1, layer.name, index, blob, spec)

    # -- over the whole net

    def _warn_of_twins(self) -> None:
        """Log each layer with params that has the name of one before it, which Caffe allows."""
        first: dict[str, int] = {}
        for index, layer in enumerate(self.layers):
            if layer.blobs and first.setdefault(layer.name, index) != index:
                logger.warning(
                    "%s: %s has the same name. Rename one: files of weights tell layers apart by name.",
                    self._places[index], self._places[first[layer.name]],
                )  # fmt: skip

    def _plan_backward(self, force: bool) -> None:
        losses = {index for index, _, _ in self.loss_tops}
        wiring = [
            graph.Wiring(
                bottoms=self._bottom_ids[index],
                tops=self._top_ids[index],
                propagate_down=layer.param.propagate_down,
                learns=any(layer.param_propagate_down),
                loss=index in losses,
                allow_force=[layer.allow_force_backward(bottom) for bottom in range(len(self.bottoms[index]))],
            )
            for index, layer in enumerate(self.layers)
        ]
        plan = graph.plan_backward(wiring)
        for name, need in zip(reversed(self.layer_names), reversed(plan.layers), strict=True):
            logger.info("%s %s backward computation.", name, "needs" if need else "does not need")
        if force:
            graph.force_backward(wiring, plan)
            for layer in self.layers:
                layer.param_propagate_down = [True] * len(layer.blobs)
        self.layer_need_backward = plan.layers
        self.bottom_need_backward = plan.bottoms

    def _find_outputs(self) -> list[str]:
        available: set[str] = set()
        for layer in self.layers:
            available.difference_update(layer.param.bottom)
            available.update(layer.param.top)
        for name in sorted(available):
            logger.info("This network produces output %s", name)
        return sorted(available)


def _is_loss(layer_type: str) -> bool:
    return layer_type in REGISTRY and REGISTRY[layer_type].is_loss


def _places(param: Any, source: Source | None) -> list[str]:
    return [_place(source, index, layer) for index, layer in enumerate(param.layer)]


def _place(source: Source | None, index: int, layer: Any) -> str:
    described = graph.describe_layer(layer)
    return f"{source.path}:{source.line(index)}: {described}" if source is not None else described


def _shape_string(blob: Blob) -> str:
    return "".join(f"{dim} " for dim in blob.shape) + f"({blob.count})"


def _loss_weights(layer: Layer, tops: int) -> list[float]:
    """Return one loss weight a top.  A loss layer's default goes into its message, so that it is saved with the net."""
    weights = layer.param.loss_weight
    if layer.is_loss and not weights:
        weights.extend([1.0] + [0.0] * (tops - 1))
    if len(weights) not in (0, tops):
        raise NetError(
            f"loss_weight must be given once per top or not at all. Expected {tops}, received {len(weights)}."
        )
    return list(weights) or [0.0] * tops


def _check_blob_counts(layer: Layer, bottoms: list[Blob], tops: list[Blob]) -> None:
    """Raise `NetError` unless the layer takes so many bottoms and tops; the tops have no shapes yet."""
    given = [str(blob) for blob in bottoms]
    _check_count("bottoms", given, layer.exact_bottoms, layer.min_bottoms, layer.max_bottoms)
    made = [f"'{blob.name}'" for blob in tops]
    _check_count("tops", made, layer.exact_tops, layer.min_tops, layer.max_tops)
    if layer.equal_bottoms_and_tops and len(bottoms) != len(tops):
        expected = f"one for each of the {len(bottoms)} bottoms {', '.join(given)}"
        raise NetError(f"wrong number of tops. Expected {expected}, received {_counted(made)}.")


def _check_count(what: str, given: list[str], exact: int | None, least: int, most: int | None) -> None:
    count = len(given)
    if exact is not None and count != exact:
        raise NetError(f"wrong number of {what}. Expected {exact}, received {_counted(given)}.")
    if count < least:
        raise NetError(f"wrong number of {what}. Expected at least {least}, received {_counted(given)}.")
    if most is not None and count > most:
        raise NetError(f"wrong number of {what}. Expected at most {most}, received {_counted(given)}.")


def _counted(given: list[str]) -> str:
    return f"{len(given)}: {', '.join(given)}" if given else "0"

"""Drives one layer without a net, and checks it: `from .harness import check_layer, check_reference, run_layer`.

A test gives the text of a ``LayerParameter`` and the bottoms; names of bottoms and tops may be left out:

    run = run_layer('type: "ReLU" relu_param { negative_slope: 0.1 }', [x])
    run.tops[0]
    bottom_diffs, param_diffs = run.backward([top_diff])

Whatever a test asks for, the harness also holds the layer to `Layer`'s promises: a pass replayed from a tape gives the
same bits as the first one, tops and bottom diffs are overwritten (they hold NaN before), param diffs are added to.
Tolerances come from one table, `TOLERANCES`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import text_format
from numpy.typing import NDArray

from caffe_lite.blob import Blob
from caffe_lite.devices import host_device
from caffe_lite.layers import create
from caffe_lite.proto import caffe_pb2

Array = NDArray[Any]
Definition = Callable[[list[Array], list[Array]], Sequence[Any]]

REFERENCE = Path(__file__).resolve().parents[1] / "reference" / "layers"
TRAIN, TEST = caffe_pb2.TRAIN, caffe_pb2.TEST


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """`absolute` + `relative` times the largest magnitude expected."""

    absolute: float
    relative: float

    def of(self, expected: Array) -> float:
        """Return the largest error allowed against `expected`."""
        finite = np.abs(expected[np.isfinite(expected)])
        return self.absolute + self.relative * float(finite.max(initial=0.0))


TOLERANCES = {
    "reference": Tolerance(1e-5, 1e-4),  # another float32 program: the original Caffe
    "definition": Tolerance(2e-6, 2e-5),  # a float64 definition
    "exact": Tolerance(0.0, 0.0),  # the same bits
    "gradient": Tolerance(1e-6, 4e-3),  # a difference quotient: a factor wrong by 1 % does not pass
}


def random(seed: int, *shape: int, scale: float = 1.0) -> Array:
    """Return float32 normals."""
    return np.asarray(np.random.default_rng(seed).standard_normal(shape) * scale, np.float32)


def distinct(seed: int, *shape: int, gap: float = 0.05) -> Array:
    """Return shuffled values at steps of `gap` around zero, zero itself left out: no ties, and nothing near a kink."""
    count = math.prod(shape)
    values = (np.arange(count) - count // 2 + 0.5) * gap
    return np.random.default_rng(seed).permutation(values).reshape(shape).astype(np.float32)


def labels(seed: int, classes: int, *shape: int) -> Array:
    """Return whole numbers from 0 to `classes` - 1 as float32, as label blobs hold them."""
    return np.random.default_rng(seed).integers(0, classes, shape).astype(np.float32)


def assert_close(actual: Any, expected: Any, what: str, tolerance: str | Tolerance = "definition") -> None:
    """Fail with the worst index, both values, the errors and the tolerance unless `actual` is near `expected`.

    NaN equals NaN and an infinity itself.  Shapes must be equal.
    """
    given, wanted = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert given.shape == wanted.shape, f"{what}: shape {given.shape}, expected {wanted.shape}"
    if given.size == 0:
        return
    limit = (TOLERANCES[tolerance] if isinstance(tolerance, str) else tolerance).of(wanted)
    same = (given == wanted) | (np.isnan(given) & np.isnan(wanted))
    with np.errstate(invalid="ignore"):
        error = np.where(same, 0.0, np.abs(given - wanted))
    error = np.where(np.isnan(error), np.inf, error)
    worst = np.unravel_index(int(error.argmax()), error.shape)
    if error[worst] > limit:
        index = tuple(int(i) for i in worst)
        size = abs(wanted[worst])
        relative = error[worst] / size if 0 < size < np.inf else np.inf
        raise AssertionError(
            f"{what}: {int((error > limit).sum())} of {error.size} elements differ. Worst at {index}: "
            f"{given[worst]:.9g}, expected {wanted[worst]:.9g}. Absolute error {error[worst]:.3g}, "
            f"relative {relative:.3g}, tolerance {limit:.3g}."
        )


def layer_parameter(text: str) -> Any:
    """Return the ``LayerParameter`` that `text` describes."""
    return text_format.Parse(text, caffe_pb2.LayerParameter())


class LayerRun:
    """One layer with its blobs, set up, reshaped and run forward once.

    Attributes:
        layer: the layer.
        bottom, top: its blobs; where a top has a bottom's name, they are one blob.
        tops: copies of the tops' data after the last forward pass.
    """

    def __init__(
        self,
        param: Any,
        bottoms: Sequence[Array],
        phase: int = TRAIN,
        params: Sequence[Array] | None = None,
        in_place: bool = False,
    ) -> None:
        self.device = host_device()
        self.layer = create(param, phase, self.device)
        self.layer.seed = 0x0123456789ABCDEF
        self.layer.passes = self.device.alloc(1, np.int32)
        self.bottom = [Blob(self.device, np.shape(array), f"bottom_{i}") for i, array in enumerate(bottoms)]
        self.top = self._tops(in_place)
        self._values = [np.array(array, np.float32) for array in bottoms]
        for blob, value in zip(self.bottom, self._values, strict=True):
            blob.data[...] = value
        self.layer.setup(self.bottom, self.top)
        if params is not None:
            self.set_params(params)
        self.layer.reshape(self.bottom, self.top)
        self.tops = self.forward()

    def _tops(self, in_place: bool) -> list[Blob]:
        """Make the tops: those the prototxt names, or else as many as the layer must have."""
        layer, names = self.layer, list(self.layer.param.top)
        if not names:
            count = layer.exact_tops if layer.exact_tops is not None else max(layer.min_tops, 1)
            count = len(self.bottom) if layer.equal_bottoms_and_tops else count
            names = [f"top_{i}" for i in range(count)]
        by_name = dict(zip(layer.param.bottom, self.bottom, strict=False))
        tops = [by_name.get(name) or Blob(self.device, (), name) for name in names]
        return [self.bottom[0], *tops[1:]] if in_place else tops

    @property
    def params(self) -> list[Array]:
        """Copies of the params."""
        return [blob.data.copy() for blob in self.layer.blobs]

    def set_params(self, params: Sequence[Array]) -> None:
        """Overwrite the params."""
        for blob, value in zip(self.layer.blobs, params, strict=True):
            assert blob.shape == np.shape(value), f"param of shape {blob.shape} set to shape {np.shape(value)}"
            blob.data[...] = value

    def reshape(self, *bottoms: Array) -> list[Array]:
        """Give the bottoms new shapes and values, run forward and return the tops."""
        self._values = [np.array(array, np.float32) for array in bottoms]
        for blob, value in zip(self.bottom, self._values, strict=True):
            blob.reshape(value.shape)
        self.layer.reshape(self.bottom, self.top)
        return self.forward()

    def forward(self, *bottoms: Array, passes: int = 0) -> list[Array]:
        """Run forward, on new values of the bottoms if given, directly and from a tape; return the tops.

        `passes` is what layers that draw random numbers read as the count of the net's passes.
        """
        if bottoms:
            self._values = [np.array(array, np.float32) for array in bottoms]
        assert self.layer.passes is not None
        self.device.upload(self.layer.passes, np.array([passes], np.int32))
        first = self._forward(lambda: self.layer.forward(self.bottom, self.top))
        with self.device.record() as tape:
            self.layer.forward(self.bottom, self.top)
        again = self._forward(tape.replay)
        for i, (top, replayed) in enumerate(zip(first, again, strict=True)):
            assert_close(replayed, top, f"top {i} replayed from a tape", "exact")
        self.tops = first
        return first

    def forward_once(self) -> list[Array]:
        """Run forward once, so that params which a pass changes change once, and return the tops."""
        return self._forward(lambda: self.layer.forward(self.bottom, self.top))

    def _forward(self, launch: Callable[[], None]) -> list[Array]:
        if self.layer.runs_python:
            for blob, value in zip(self.bottom, self._values, strict=True):
                blob.data[...] = value
            self.layer.prepare(self.bottom, self.top)
        for blob in self.top:  # before the bottoms: a top may share their memory
            blob.data[...] = np.nan
        for blob, value in zip(self.bottom, self._values, strict=True):
            blob.data[...] = value
        launch()
        self.device.synchronize()
        if self.layer.checks_values:
            self.layer.check(self.bottom)
        return [blob.data.copy() for blob in self.top]

    def default_top_diffs(self, seed: int = 77) -> list[Array]:
        """Return the loss weight for a loss, else normals for every top."""
        rng = np.random.default_rng(seed)
        if not self.layer.is_loss:
            return [np.asarray(rng.standard_normal(blob.shape), np.float32) for blob in self.top]
        weights = list(self.layer.param.loss_weight) or [1.0]
        weights += [0.0] * (len(self.top) - len(weights))
        return [np.full(blob.shape, weight, np.float32) for blob, weight in zip(self.top, weights, strict=True)]

    def backward(
        self, top_diffs: Sequence[Array] | None = None, propagate_down: Sequence[bool] | None = None
    ) -> tuple[list[Array | None], list[Array]]:
        """Run backward; return the bottoms' diffs (None where not `propagate_down`) and the params' diffs.

        `propagate_down` is by default true for the bottoms that `allow_force_backward`.
        """
        diffs = self.default_top_diffs() if top_diffs is None else list(top_diffs)
        down = propagate_down
        if down is None:
            down = [self.layer.allow_force_backward(i) for i in range(len(self.bottom))]
        down = list(down)
        result = self._backward(diffs, down, 0.0, lambda: self.layer.backward(self.top, down, self.bottom))
        self._forward(lambda: self.layer.forward(self.bottom, self.top))  # in place, backward needs the top again
        with self.device.record() as tape:
            self.layer.backward(self.top, down, self.bottom)
        again = self._backward(diffs, down, 1.0, tape.replay)
        for i, (diff, replayed) in enumerate(zip(result[0], again[0], strict=True)):
            if diff is not None:
                assert_close(replayed, diff, f"diff of bottom {i} replayed from a tape", "exact")
        for i, (diff, added) in enumerate(zip(result[1], again[1], strict=True)):
            assert_close(added, diff + 1.0, f"diff of param {i}, which must be added to", "reference")
        return result

    def _backward(
        self, top_diffs: list[Array], down: list[bool], before: float, launch: Callable[[], None]
    ) -> tuple[list[Array | None], list[Array]]:
        for blob in self.bottom:  # before the tops: a top may share their memory
            blob.diff[...] = np.nan
        for blob, diff in zip(self.top, top_diffs, strict=True):
            blob.diff[...] = diff
        for blob in self.layer.blobs:
            blob.diff[...] = before
        launch()
        self.device.synchronize()
        bottom_diffs = [blob.diff.copy() if wanted else None for blob, wanted in zip(self.bottom, down, strict=True)]
        return bottom_diffs, [blob.diff.copy() for blob in self.layer.blobs]

    @contextmanager
    def nudged(self, kind: str, index: int, step: Array) -> Iterator[None]:
        """Within the block, bottom or param `index` is larger by `step`, in float32."""
        if kind == "bottom":
            kept = self._values[index]
            self._values[index] = (kept + step).astype(np.float32)
        else:
            kept = self.layer.blobs[index].data.copy()
            self.layer.blobs[index].data[...] = kept + step
        yield
        if kind == "bottom":
            self._values[index] = kept
        else:
            self.layer.blobs[index].data[...] = kept

    def objective(self, top_diffs: Sequence[Array]) -> float:
        """Run forward and return the tops' product with `top_diffs`, summed in float64."""
        tops = self._forward(lambda: self.layer.forward(self.bottom, self.top))
        pairs = zip(tops, top_diffs, strict=True)
        return sum(float(np.sum(top.astype(np.float64) * diff)) for top, diff in pairs if np.any(diff))


def run_layer(
    layer_text: str,
    bottoms: Sequence[Array],
    phase: int = TRAIN,
    params: Sequence[Array] | None = None,
    in_place: bool = False,
) -> LayerRun:
    """Set a layer up, run it forward and return it.  `params` replace what the fillers made."""
    return LayerRun(layer_parameter(layer_text), bottoms, phase, params, in_place)


# -- against the original Caffe


def reference_names(*types: str) -> list[str]:
    """Return the recorded cases whose layer type is one of `types`, in alphabetical order."""
    return sorted(path.stem for path in REFERENCE.glob("*.prototxt") if _case(path.stem).type in types)


def _case(name: str) -> Any:
    net = text_format.Parse((REFERENCE / f"{name}.prototxt").read_text(), caffe_pb2.NetParameter())
    return next(layer for layer in net.layer if layer.name == "layer")


def _numbered(case: Any, key: str) -> dict[int, Array]:
    """Return the arrays KEY_0, KEY_1, ... by number."""
    found = (name.rpartition("_") for name in case.files)
    return {int(number): case[f"{key}_{number}"] for stem, _, number in found if stem == key}


# Cases in which the original's backward pass did not run: the diffs recorded are zero.
WITHOUT_BACKWARD = ("batch_reindex", "embed", "embed_nobias", "filter", "parameter")


def check_reference(name: str) -> LayerRun:
    """Run the recorded case `name` and compare tops, bottom diffs and param diffs with the original's."""
    with np.load(REFERENCE / f"{name}.npz") as case:
        bottoms, params, top_diffs = (_numbered(case, key) for key in ("bottom", "param", "top_diff"))
        tops, bottom_diffs, param_diffs = (_numbered(case, key) for key in ("top", "bottom_diff", "param_diff"))
        params_after = _numbered(case, "param_after")
        phase = caffe_pb2.Phase.Value(str(case["phase"]))
    run = LayerRun(_case(name), list(bottoms.values()), phase, list(params.values()) or None)
    for i, expected in tops.items():
        assert_close(run.tops[i], expected, f"{name}: top {i}", "reference")
    if name in WITHOUT_BACKWARD:
        assert not any(diff.any() for diff in (*bottom_diffs.values(), *param_diffs.values())), f"{name}: has diffs"
    elif top_diffs:
        defaults = run.default_top_diffs()
        diffs = [top_diffs.get(i, default) for i, default in enumerate(defaults)]
        actual = run.backward(diffs, [i in bottom_diffs for i in bottoms])
        for i, expected in bottom_diffs.items():
            assert_close(actual[0][i], expected, f"{name}: diff of bottom {i}", "reference")
        for i, expected in param_diffs.items():
            assert_close(actual[1][i], expected, f"{name}: diff of param {i}", "reference")
    if params_after:
        run.set_params(list(params.values()))
        run.forward_once()
        for i, expected in params_after.items():
            assert_close(run.params[i], expected, f"{name}: param {i} after a forward pass", "reference")
    return run


# -- against mathematics


def check_gradient(
    layer_text: str,
    bottoms: Sequence[Array],
    phase: int = TRAIN,
    params: Sequence[Array] | None = None,
    step: float = 4e-3,
    tops: Sequence[int] | None = None,
    in_place: bool = False,
    seed: int = 1701,
) -> None:
    """Compare each gradient with a central difference of the forward pass along one random direction.

    The direction has the signs of the gradient itself, so that the two sides are large and a factor wrong by one
    percent cannot hide in the rounding of the forward pass.  `tops` are the tops with a gradient (default: all, or a
    loss's first); bottoms must keep `2 * step` away from kinks.
    """
    run = run_layer(layer_text, bottoms, phase, params, in_place)
    top_diffs = run.default_top_diffs()
    if tops is None:
        tops = [0] if run.layer.is_loss else range(len(top_diffs))
    top_diffs = [diff if i in tops else np.zeros_like(diff) for i, diff in enumerate(top_diffs)]
    bottom_diffs, param_diffs = run.backward(top_diffs)
    rng = np.random.default_rng(seed)
    gradients: list[tuple[str, int, Array | None]] = [("bottom", i, diff) for i, diff in enumerate(bottom_diffs)]
    fixed = [i for i, spec in enumerate(run.layer.param.param) if spec.lr_mult == 0]  # statistics
    gradients += [("param", i, diff) for i, diff in enumerate(param_diffs) if i not in fixed]
    for kind, index, gradient in gradients:
        if gradient is None:
            continue
        signs = np.where(gradient == 0, rng.choice([-1.0, 1.0], gradient.shape), np.sign(gradient))
        direction = signs * rng.uniform(0.5, 1.5, gradient.shape)
        with run.nudged(kind, index, step * direction):
            above = run.objective(top_diffs)
        with run.nudged(kind, index, -step * direction):
            below = run.objective(top_diffs)
        analytic = float(np.sum(gradient * direction))
        what = f"gradient of {kind} {index} along a random direction (seed {seed}), against a difference quotient"
        assert_close(analytic, (above - below) / (2 * step), what, "gradient")


def check_layer(
    layer_text: str,
    bottoms: Sequence[Array],
    definition: Definition,
    phase: int = TRAIN,
    params: Sequence[Array] | None = None,
    gradient: bool = True,
    in_place: bool | None = None,
    batch_axis: int | None = 0,
    tops: Sequence[int] | None = None,
    step: float = 4e-3,
) -> LayerRun:
    """Hold a layer to `definition(bottoms, params)`, written in float64, which returns the tops.

    Checks the forward pass, the same layer object after a reshape to a batch of one and back (unless `batch_axis` is
    None), the layer in place if its class allows that (or as `in_place` says), and the gradients.
    """
    run = run_layer(layer_text, bottoms, phase, params)
    weights = [param.astype(np.float64) for param in run.params]

    def expect(tops: Sequence[Array], inputs: Sequence[Array], when: str) -> None:
        expected = definition([np.asarray(array, np.float64) for array in inputs], weights)
        for i, (top, value) in enumerate(zip(tops, expected, strict=True)):
            assert_close(top, value, f"top {i}{when}")

    before = run.tops
    expect(before, bottoms, "")
    if batch_axis is not None:
        single = [np.take(array, [0], batch_axis) for array in bottoms]
        expect(run.reshape(*single), single, " for a batch of one")
        for i, (top, first) in enumerate(zip(run.reshape(*bottoms), before, strict=True)):
            assert_close(top, first, f"top {i} after a reshape and back", "exact")
    if run.layer.in_place if in_place is None else in_place:
        _check_in_place(layer_text, bottoms, phase, run)
    if gradient:
        check_gradient(layer_text, bottoms, phase, run.params, step, tops)
    return run


def _check_in_place(layer_text: str, bottoms: Sequence[Array], phase: int, apart: LayerRun) -> None:
    """Check that a layer whose top is its bottom computes what it computes with two blobs."""
    run = run_layer(layer_text, bottoms, phase, apart.params, in_place=True)
    for i, (top, expected) in enumerate(zip(run.tops, apart.tops, strict=True)):
        assert_close(top, expected, f"top {i} in place", "exact")
    actual, expected_diffs = run.backward(), apart.backward()
    for i, (diff, expected) in enumerate(zip(actual[0], expected_diffs[0], strict=True)):
        if expected is not None:
            assert_close(diff, expected, f"diff of bottom {i} in place", "exact")
    for i, (diff, expected) in enumerate(zip(actual[1], expected_diffs[1], strict=True)):
        assert_close(diff, expected, f"diff of param {i} in place", "exact")

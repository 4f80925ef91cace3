"""What every layer has in common: `Layer`, and the register of layer types."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np

from caffe_lite.blob import Blob
from caffe_lite.errors import ShapeError

if TYPE_CHECKING:
    from caffe_lite.devices.base import Buffer, Device

Class = TypeVar("Class", bound="type[Layer]")

REGISTRY: dict[str, type[Layer]] = {}


def register(type_name: str) -> Callable[[Class], Class]:
    """Make the decorated class the layer of prototxt type `type_name`."""

    def decorate(layer_class: Class) -> Class:
        layer_class.type = type_name
        REGISTRY[type_name] = layer_class
        return layer_class

    return decorate


class Layer:
    """One step of a net: bottoms in, tops out, and the way back.

    A subclass implements `setup` (read the options, create the params), `reshape` (size the tops; every shape error is
    raised here), `forward` and `backward`.  The last two only launch kernels: the net records them once and replays
    them.  Writes to ``top.data`` and ``bottom.diff`` overwrite; writes to a param's ``diff`` add.

    Attributes (set before `setup`):
        param: the ``LayerParameter``.
        phase: ``TRAIN`` (0) or ``TEST`` (1).
        device: where the layer runs.
        blobs: the params; `setup` appends to it, unless it is already filled.
        param_propagate_down: for each param, whether its gradient is wanted.
        rng: a numpy generator for the fillers.
        seed: 64 bits, this layer's own, for kernels that draw random numbers.
        passes: int32[1] on the device, the number of the net's forward passes so far, for the same kernels.
    """

    # What Caffe checks of the number of bottoms and tops: exactly, or at least and at most.
    exact_bottoms: ClassVar[int | None] = None
    min_bottoms: ClassVar[int] = 0
    max_bottoms: ClassVar[int | None] = None
    exact_tops: ClassVar[int | None] = None
    min_tops: ClassVar[int] = 0
    max_tops: ClassVar[int | None] = None
    equal_bottoms_and_tops: ClassVar[bool] = False

    auto_tops: ClassVar[bool] = False  # missing tops are made up (losses)
    is_loss: ClassVar[bool] = False  # the first top has loss weight 1 unless the prototxt says otherwise
    in_place: ClassVar[bool] = False  # the top may be the bottom
    runs_python: ClassVar[bool] = False  # `prepare` is called before each forward pass; cuts the tape
    python_backward: ClassVar[bool] = False  # `backward` is called in each backward pass; cuts the tape
    draws_random: bool = False  # the kernels read `passes`; some layers know only from their options
    checks_values: ClassVar[bool] = False  # `check` is called after each forward pass

    type: str = ""

    def __init__(self, param: Any, phase: int, device: Device) -> None:
        self.param = param
        self.phase = phase
        self.device = device
        self.blobs: list[Blob] = []
        self.param_propagate_down: list[bool] = []
        self.rng = np.random.default_rng(0)
        self.seed = 0
        self.passes: Buffer | None = None

    @property
    def name(self) -> str:
        """The layer's name in the prototxt."""
        return str(self.param.name)

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Read the options and create the params.  Called once, when the bottoms have their first shapes."""

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Give the tops their shapes.  Called before the first forward pass and whenever a bottom's shape changed."""
        raise NotImplementedError

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Launch what computes the tops' data."""
        raise NotImplementedError

    def backward(self, top: list[Blob], propagate_down: Sequence[bool], bottom: list[Blob]) -> None:
        """Launch what computes the bottoms' diffs where `propagate_down`, and adds to the params' diffs."""
        raise NotImplementedError

    def allow_force_backward(self, bottom_index: int) -> bool:
        """Whether ``force_backward`` applies to a bottom (a label never gets a gradient)."""
        return True

    def prepare(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Run Python before `forward`, in each pass (`runs_python` only): hand over a batch, perhaps reshape the tops.

        The bottoms are computed by then.  A layer that is Python altogether computes its tops here, and its `forward`
        launches nothing; with `python_backward` nothing of it is recorded.
        """

    def check(self, bottom: list[Blob]) -> None:
        """Raise what a kernel of the last forward pass found wrong with the values (`checks_values` only)."""

    def seek(self, passes: int) -> None:
        """Go on as after `passes` forward passes (data layers find their place again when training resumes)."""

    def close(self) -> None:
        """Let go of threads and files."""

    # -- for subclasses

    def launch(self, kernel: str, work: int, *args: Buffer | float | tuple[int, ...]) -> None:
        """Launch `kernel` on this layer's device; see `Device.launch`."""
        self.device.launch(kernel, work, *args)

    def add_param(self, shape: Sequence[int], filler: Any) -> None:
        """Append a param of `shape`, filled as the ``FillerParameter`` says."""
        from caffe_lite.fillers import fill

        blob = Blob(self.device, shape)
        self.device.upload(blob.data_buffer, fill(filler, tuple(shape), self.rng))
        self.blobs.append(blob)
        self.param_propagate_down.append(True)

    def axis_of(self, blob: Blob, axis: int) -> int:
        """Return `axis` of `blob` as a non-negative index; a negative one counts from the end."""
        axes = len(blob.shape)
        if not -axes <= axis < axes:
            expected = f"Expected -{axes} to {axes - 1}" if axes else "There is none"
            raise ShapeError(f"axis {axis} does not exist. {expected} for bottom {blob}. Use another axis or bottom.")
        return axis % axes

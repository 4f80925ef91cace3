"""Every launch on the host device also runs in the emulation, on copies of the same buffers, and must agree."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from layers.harness import Tolerance, assert_close
from numpy.typing import NDArray

from caffe_lite.devices.base import Buffer, Tape
from caffe_lite.devices.host import HostDevice

from .emulation import NUMPY, Library

TOLERANCE = Tolerance(2e-6, 2e-5)  # another compiler, another order of additions
GEOMETRIES = ((3, 64), (1, 32), (2, 96))  # blocks and threads: few, so that loops go round more than once
PRIMITIVES = ("gemm", "conv_forward", "conv_backward_data", "conv_backward_weights")


class Replay:
    """Takes the place of `HostDevice.launch`.

    Attributes:
        kernels: the names of the kernels compared so far.
    """

    def __init__(self, library: Library, monkeypatch: Any) -> None:
        self.kernels: set[str] = set()
        self._library = library
        self._launch = HostDevice.launch
        self._geometries = itertools.cycle(GEOMETRIES)
        self._tape: CallTape | None = None
        monkeypatch.setattr(HostDevice, "launch", self._recordable(self._compare))
        for name in PRIMITIVES:
            monkeypatch.setattr(HostDevice, name, self._recordable(getattr(HostDevice, name)))
        monkeypatch.setattr(HostDevice, "record", lambda device: self._record())

    def _recordable(self, method: Callable[..., None]) -> Callable[..., None]:
        def call(*args: Any) -> None:
            if self._tape is None:
                method(*args)
            else:
                self._tape.calls.append(functools.partial(method, *args))

        return call

    @contextlib.contextmanager
    def _record(self) -> Iterator[CallTape]:
        self._tape = tape = CallTape()
        try:
            yield tape
        finally:
            self._tape = None

    def _compare(self, device: HostDevice, kernel: str, work: int, *args: Any) -> None:
        copies = copied(args)
        self._launch(device, kernel, work, *args)
        self._library.launch(kernel, *next(self._geometries), copies)
        parameters = self._library.kernels[kernel].signature.parameters
        written = [
            argument
            for parameter, argument in zip(parameters, args, strict=True)
            if parameter.is_pointer and not parameter.is_const
        ]
        for parameter, argument, copy in zip(parameters, args, copies, strict=True):
            if parameter.is_pointer:
                exact = not any(_overlap(argument, buffer) for buffer in written) or argument.dtype.kind != "f"
                what = f"{kernel}, emulated: '{parameter.name}'"
                assert_close(copy.owner, device.download(argument), what, Tolerance(0, 0) if exact else TOLERANCE)
        self.kernels.add(kernel)


class CallTape(Tape):
    """A tape whose replay makes the calls again, so that each launch is compared."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], None]] = []

    def replay(self) -> None:
        """Make every call in order."""
        for call in self.calls:
            call()

    def __len__(self) -> int:
        return len(self.calls)


def copied(args: tuple[Any, ...]) -> list[Any]:
    """Return `args` with copies of the buffers; what shares memory shares it in the copies too.

    A copy's owner is an array that shows it.
    """
    spans: list[tuple[int, int]] = []  # begin and end of memory that is one piece
    for begin, end in sorted((arg.pointer, arg.pointer + _bytes(arg)) for arg in args if isinstance(arg, Buffer)):
        if spans and begin < spans[-1][1]:
            begin, end = spans[-1][0], max(end, spans.pop()[1])
        spans.append((begin, end))
    memory = {begin: np.empty(end - begin, np.uint8) for begin, end in spans}

    def copy(arg: Any) -> Any:
        if not isinstance(arg, Buffer):
            return arg
        begin = max(begin for begin in memory if begin <= arg.pointer)
        view: NDArray[Any] = memory[begin][arg.pointer - begin :][: _bytes(arg)].view(arg.dtype)
        view[...] = arg.device.host_view(arg)
        return Buffer(NUMPY, arg.dtype, arg.size, view.ctypes.data, view)

    return [copy(arg) for arg in args]


def _overlap(one: Buffer, other: Buffer) -> bool:
    return one.pointer < other.pointer + _bytes(other) and other.pointer < one.pointer + _bytes(one)


def _bytes(buffer: Buffer) -> int:
    return buffer.size * buffer.dtype.itemsize

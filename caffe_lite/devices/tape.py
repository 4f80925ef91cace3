"""Programs: tapes, and the Python steps between them, in the order in which they run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from caffe_lite.devices.base import Device, Tape


class Program:
    """What one pass of a net does: launches recorded once, cut where a layer must run Python.

    >>> program = Program(device)
    >>> with program.recording():
    ...     program.step(load_batch)  # Python, at this point of each run
    ...     device.fill(buffer, 1)  # launches go to a tape
    >>> program.run()
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.launches = 0
        self._runs: list[Callable[[], None]] = []
        self._open: contextlib.ExitStack | None = None
        self._tape: Tape | None = None

    @contextlib.contextmanager
    def recording(self) -> Iterator[Program]:
        """Write all launches inside the `with` block to this program; an exception leaves the program empty."""
        try:
            self._start_tape()
            yield self
            self._end_tape()
        except BaseException:
            if self._open is not None:
                self._open.close()
                self._open = None
            self._runs.clear()
            raise

    def step(self, function: Callable[[], None]) -> None:
        """Call `function` at this point of each run (only while recording)."""
        self._end_tape()
        self._runs.append(function)
        self._start_tape()

    def run(self) -> None:
        """Run the tapes and the steps in order.  An exception of a step ends the run."""
        for run in self._runs:
            run()

    def _start_tape(self) -> None:
        self._open = contextlib.ExitStack()
        self._tape = self._open.enter_context(self.device.record())

    def _end_tape(self) -> None:
        assert self._open is not None and self._tape is not None
        self._open.close()
        self._open = None
        if len(self._tape):
            self._runs.append(self._tape.replay)
            self.launches += len(self._tape)

"""Turns SIGINT (Ctrl-C) and SIGHUP (the terminal is gone) into actions of a solver.

    with signals.handled(sigint="stop", sighup="snapshot") as action:
        solver.action = action
        solver.solve()

A handler only takes a note; the solver asks for it between two iterations, so that a snapshot is never half an update.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Literal, get_args

from caffe_lite.errors import UsageError

__all__ = ["Action", "handled"]

logger = logging.getLogger("caffe_lite")

Action = Literal["none", "stop", "snapshot"]


@contextlib.contextmanager
def handled(sigint: str = "stop", sighup: str = "snapshot") -> Iterator[Callable[[], Action]]:
    """Catch both signals inside the `with` block, and give a function that returns what was asked for meanwhile.

    The effects are ``none`` (the signal is ignored), ``stop`` and ``snapshot``.  The handlers that were installed
    before return at the end.  Python delivers signals to the main thread only: in another one nothing is installed, and
    the log says so.  Raises `UsageError` for an unknown effect.
    """
    effects = {"SIGHUP": _effect(sighup), "SIGINT": _effect(sigint)}  # asked in this order, as in the original
    received: set[str] = set()

    def note(number: int, frame: FrameType | None) -> None:
        received.add(signal.Signals(number).name)

    def action() -> Action:
        for name, effect in effects.items():
            if name in received:
                received.discard(name)
                return effect
        return "none"

    with _installed([name for name in effects if hasattr(signal, name)], note):  # Windows has no SIGHUP
        yield action


@contextlib.contextmanager
def _installed(names: list[str], handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        logger.warning("Signals are not handled: training does not run in the main thread.")
        yield
        return
    numbers = [signal.Signals[name] for name in names]
    previous = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in previous.items():
            # None: the old handler was not installed from Python, and cannot be from here.
            signal.signal(number, old if old is not None else signal.SIG_DFL)


def _effect(name: str) -> Action:
    if name not in get_args(Action):
        raise UsageError(f"unknown signal effect. Expected one of {', '.join(get_args(Action))}, received '{name}'.")
    return name  # type: ignore[return-value]

"""A progress bar below the log, when standard error is a terminal.

    3200/10000 [=========>                    ] 32%  112.3 iter/s  1:01 left

Without a terminal (a file, a pipe) there is the log only.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator

from caffe_lite.log import GlogHandler

__all__ = ["progress", "status_line"]

_SECONDS_BETWEEN_DRAWINGS = 0.1


@contextlib.contextmanager
def progress(handler: GlogHandler, start: int, total: int) -> Iterator[Callable[[int], None]]:
    """Give a function to call with the number of iterations done so far, of `total`; `start` were done before.

    While the `with` block runs the bar stays below the log that `handler` writes.  Without a terminal there is none.
    """
    if sys.stderr is None or not sys.stderr.isatty():
        yield lambda done: None
        return
    began = time.monotonic()
    drawn = began - _SECONDS_BETWEEN_DRAWINGS

    def show(done: int) -> None:
        nonlocal drawn
        now = time.monotonic()
        if now - drawn >= _SECONDS_BETWEEN_DRAWINGS:
            drawn = now
            handler.show_status(status_line(start, done, total, now - began, shutil.get_terminal_size().columns))

    try:
        yield show
    finally:
        handler.show_status("")


def status_line(start: int, done: int, total: int, seconds: float, columns: int) -> str:
    """Return the bar for `done` of `total` iterations after `seconds` for those since `start`, within `columns`."""
    rate = (done - start) / seconds if seconds > 0 else 0.0
    left = _clock((total - done) / rate) if rate > 0 else "?"
    share = min(done / total, 1.0) if total > 0 else 1.0
    count = f"{done}/{total}"
    figures = f"{share:4.0%}  {rate:.1f} iter/s  {left} left"
    # One column stays free: a character in the last one makes some terminals wrap, and the bar would climb.
    room = columns - len(count) - len(figures) - 5
    if room < 4:
        return f"{count} {figures}"[: max(columns - 1, 0)]
    filled = int(share * room)
    return f"{count} [{('=' * filled + '>' * (filled < room)).ljust(room)}]{figures}"


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"

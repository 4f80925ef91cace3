"""The log, in the format of the glog library that Caffe wrote with and that log parsers still read.

    I1124 08:58:40.747462 17963 solver.py:239] Iteration 20, loss = 0.938876

A letter for the severity, month and day, time, thread, source file and line, text.  A text of several lines gets one
prefix, as in glog.  Modules log to ``logging.getLogger("caffe_lite")``, which is silent below WARNING until
`init_log` is called (the command line does so first of all).
"""

from __future__ import annotations

import datetime
import errno
import logging
import os
import sys
import threading

__all__ = ["GlogFormatter", "GlogHandler", "init_log"]

_GLOG_LEVELS = (logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL)
_CLEAR_LINE = "\r\x1b[K"


class GlogFormatter(logging.Formatter):
    """Writes a record as glog would: one prefix, then the text with at most one final newline taken off."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (the name is logging's)
        """Return prefix and text of `record`, whose `message` has been filled in."""
        letter = "IWEF"[sum(record.levelno >= level for level in _GLOG_LEVELS[1:])]
        time = datetime.datetime.fromtimestamp(record.created).strftime("%m%d %H:%M:%S.%f")
        thread = threading.get_native_id()
        return f"{letter}{time} {thread:5d} {record.filename}:{record.lineno}] {record.message.removesuffix(chr(10))}"


class GlogHandler(logging.Handler):
    """Writes records to standard error, above a status line if there is one.

    It is the only writer to the terminal while a status line (a progress bar) is shown, so neither tears the other.
    """

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(GlogFormatter())
        self._status = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Write `record`.  A `BrokenPipeError` goes on to the caller: nobody reads any more, so the run may end."""
        try:
            text = self.format(record) + "\n"
            self._write(_CLEAR_LINE + text + self._status if self._status else text)
        except BrokenPipeError:
            raise
        except Exception:
            self.handleError(record)

    def show_status(self, text: str) -> None:
        """Keep `text` (one line, without a newline) below the log from now on; an empty text removes it."""
        self.acquire()
        try:
            self._status = text
            self._write(_CLEAR_LINE + text)
        finally:
            self.release()

    @staticmethod
    def _write(text: str) -> None:
        if sys.stderr is None:
            return
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            # The terminal is gone.  The hang-up signal says what is to become of the run; the log goes nowhere.
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, sys.stderr.fileno())
            os.close(nothing)


def init_log(level: int = logging.INFO) -> GlogHandler:
    """Send the log of caffe_lite, from `level` up, to standard error in glog's format; return the handler.

    `level` is one of logging's, or one of glog's as pycaffe's scripts pass them (0 INFO, 1 WARNING, 2 ERROR, 3 FATAL).
    The environment variable GLOG_minloglevel raises it.  Calling again changes the level of the one handler.
    """
    if 0 <= level < len(_GLOG_LEVELS):
        level = _GLOG_LEVELS[level]
    logger = logging.getLogger("caffe_lite")
    logger.setLevel(max(level, _level_from_environment()))
    for handler in logger.handlers:
        if isinstance(handler, GlogHandler):
            return handler
    handler = GlogHandler()
    logger.addHandler(handler)
    return handler


def _level_from_environment() -> int:
    """Return logging's level for GLOG_minloglevel; what is not a number counts as 0, as in glog."""
    try:
        level = int(os.environ.get("GLOG_minloglevel", "0"))  # noqa: SIM112 (the name is glog's)
    except ValueError:
        level = 0
    return _GLOG_LEVELS[min(max(level, 0), len(_GLOG_LEVELS) - 1)]

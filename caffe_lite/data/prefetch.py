"""A thread that keeps batches ready while the net computes."""

from __future__ import annotations

import collections
import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Generator
from typing import Generic, TypeVar

T = TypeVar("T")

Source = Callable[[int], Generator[T, None, None]]  # endless batches, from that of pass number `passes` on


class _Channel(Generic[T]):
    """What the thread and its reader share.  The thread knows only this, so that a forgotten prefetcher can go."""

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.ready: collections.deque[T] = collections.deque()
        self.error: BaseException | None = None
        self.stopped = False
        self.changed = threading.Condition()

    def put(self, batch: T) -> bool:
        """Hand over a batch, then wait until there is room for another.  False: nobody wants more."""
        with self.changed:
            self.ready.append(batch)
            self.changed.notify_all()
            self.changed.wait_for(lambda: self.stopped or len(self.ready) < self.depth)
            return not self.stopped

    def fail(self, error: BaseException) -> None:
        with self.changed:
            self.error = error
            self.changed.notify_all()

    def take(self) -> T:
        with self.changed:
            self.changed.wait_for(lambda: self.ready or self.error)
            if not self.ready and self.error:
                raise self.error
            self.changed.notify_all()
            return self.ready.popleft()

    def stop(self) -> None:
        with self.changed:
            self.stopped = True
            self.changed.notify_all()


class Prefetcher(Generic[T]):
    """Runs `source` in a thread of its own, up to `depth` batches ahead.

    The thread starts with the first `take`.  An error in `source` is raised by the `take` that would have received the
    batch, and by those after it; `seek` begins anew.  A forked process starts a thread of its own.
    """

    def __init__(self, source: Source[T], depth: int) -> None:
        self._source = source
        self._depth = max(depth, 1)
        self._passes = 0
        self._process = 0
        self._channel: _Channel[T] | None = None
        self._thread: threading.Thread | None = None
        self._finalizer: weakref.finalize[..., Prefetcher[T]] | None = None

    def take(self) -> T:
        """Return the next batch, waiting for it if need be.  Raises what `source` raised."""
        if self._channel is None or self._process != os.getpid():
            self._start()
        assert self._channel is not None
        batch = self._channel.take()
        self._passes += 1
        return batch

    def seek(self, passes: int) -> None:
        """Go on with the batch of pass number `passes`."""
        self.close()
        self._passes = passes

    def close(self) -> None:
        """Stop the thread and wait for its end.  A `take` after this starts it again."""
        if self._channel is not None and self._process == os.getpid():
            assert self._finalizer is not None and self._thread is not None
            self._finalizer()
            self._thread.join()
        self._channel = self._thread = self._finalizer = None

    def _start(self) -> None:
        channel = self._channel = _Channel(self._depth)
        self._process = os.getpid()
        self._finalizer = weakref.finalize(self, channel.stop)
        self._thread = threading.Thread(
            target=_produce, args=(self._source, self._passes, channel), name="caffe_lite prefetch", daemon=True
        )
        self._thread.start()


def _produce(source: Source[T], passes: int, channel: _Channel[T]) -> None:
    """The thread: pass batches on until the channel is stopped or the source fails."""
    try:
        with contextlib.closing(source(passes)) as batches:
            while channel.put(next(batches)):
                pass
    except BaseException as error:  # whatever it is, it must reach the thread that waits
        channel.fail(error)

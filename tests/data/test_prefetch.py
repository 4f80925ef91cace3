"""The prefetching thread: order, depth, errors, and its end."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator

import pytest

from caffe_lite.data.prefetch import Prefetcher


def counting(passes: int) -> Generator[int, None, None]:
    while True:
        yield passes
        passes += 1


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    gc.collect()
    wait_until(lambda: not prefetch_threads())


def prefetch_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "caffe_lite prefetch"]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_batches_come_in_order() -> None:
    prefetcher = Prefetcher(counting, 4)
    assert [prefetcher.take() for _ in range(20)] == list(range(20))
    prefetcher.close()


@pytest.mark.parametrize(("depth", "ahead"), [(4, 4), (1, 1), (0, 1)])
def test_the_thread_runs_exactly_depth_batches_ahead(depth: int, ahead: int) -> None:
    made = []

    def source(passes: int) -> Generator[int, None, None]:
        for batch in counting(passes):
            made.append(batch)
            yield batch

    prefetcher = Prefetcher(source, depth)
    prefetcher.take()
    wait_until(lambda: len(made) == 1 + ahead)
    time.sleep(0.02)
    assert len(made) == 1 + ahead
    prefetcher.close()


def test_no_thread_runs_before_the_first_take() -> None:
    prefetcher = Prefetcher(counting, 4)
    assert not prefetch_threads()
    prefetcher.close()


def test_seek_goes_on_at_that_pass() -> None:
    prefetcher = Prefetcher(counting, 4)
    prefetcher.seek(100)
    assert [prefetcher.take(), prefetcher.take()] == [100, 101]
    prefetcher.seek(7)
    assert prefetcher.take() == 7
    prefetcher.close()
    assert prefetcher.take() == 8  # closing does not lose the place
    prefetcher.close()


def test_an_error_reaches_the_take_whose_batch_it_spoiled() -> None:
    def source(passes: int) -> Generator[int, None, None]:
        yield from range(passes, 3)
        raise ValueError("the disk is gone")

    prefetcher = Prefetcher(source, 4)
    assert [prefetcher.take() for _ in range(3)] == [0, 1, 2]
    for _ in range(2):
        with pytest.raises(ValueError, match="the disk is gone"):
            prefetcher.take()
    prefetcher.seek(1)
    assert prefetcher.take() == 1
    prefetcher.close()


def test_close_ends_the_thread_and_the_source() -> None:
    ended = []

    def source(passes: int) -> Generator[int, None, None]:
        try:
            yield from counting(passes)
        finally:
            ended.append(threading.current_thread().name)

    prefetcher = Prefetcher(source, 2)
    prefetcher.take()
    prefetcher.close()
    assert ended == ["caffe_lite prefetch"]
    assert not prefetch_threads()


def test_a_forgotten_prefetcher_ends_its_thread() -> None:
    prefetcher = Prefetcher(counting, 2)
    prefetcher.take()
    del prefetcher  # `no_thread_is_left` waits for the end


def test_the_thread_does_not_keep_the_process_alive() -> None:
    prefetcher = Prefetcher(counting, 2)
    prefetcher.take()
    assert [thread.daemon for thread in prefetch_threads()] == [True]
    prefetcher.close()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_process_goes_on_by_itself() -> None:
    prefetcher = Prefetcher(counting, 4)
    assert [prefetcher.take(), prefetcher.take()] == [0, 1]
    child = os.fork()
    if not child:
        signal.alarm(5)
        same = [prefetcher.take() for _ in range(10)] == list(range(2, 12))
        prefetcher.close()
        os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert prefetcher.take() == 2
    prefetcher.close()

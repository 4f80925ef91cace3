"""SIGINT and SIGHUP as a solver's actions."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from caffe_lite.errors import UsageError
from caffe_lite.solvers import signals

from .conftest import FIXED, MakeSolver


@pytest.mark.parametrize("effect", ["none", "stop", "snapshot"])
@pytest.mark.parametrize("name", ["SIGINT", "SIGHUP"])
def test_a_signal_is_answered_once_with_its_effect(name: str, effect: str) -> None:
    with signals.handled(**{name.lower(): effect}) as action:
        assert action() == "none"
        signal.raise_signal(signal.Signals[name])
        assert action() == effect
        assert action() == "none"


def test_hang_up_is_answered_before_an_interrupt() -> None:
    with signals.handled() as action:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGHUP)
        assert [action(), action(), action()] == ["snapshot", "stop", "none"]


def test_the_old_handlers_return_even_after_an_error() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGHUP)]
    with pytest.raises(ZeroDivisionError), signals.handled():
        assert signal.getsignal(signal.SIGINT) is not before[0]
        raise ZeroDivisionError
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGHUP)] == before


def test_outside_the_main_thread_nothing_is_installed_and_the_log_says_so(log: Callable[[], list[str]]) -> None:
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def train() -> None:
        with signals.handled() as action:
            seen.append((signal.getsignal(signal.SIGINT), action()))

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert seen == [(before, "none")]
    assert log() == ["Signals are not handled: training does not run in the main thread."]


def test_an_unknown_effect_names_the_known_ones() -> None:
    with (
        pytest.raises(UsageError, match=r"Expected one of none, stop, snapshot, received 'pause'"),
        signals.handled("pause"),
    ):
        pass


def test_an_interrupted_solver_finishes_its_iteration_and_writes_a_snapshot(
    tmp_path: Path, make_solver: MakeSolver
) -> None:
    solver = make_solver(FIXED.replace("snapshot_after_train: false", f'snapshot_prefix: "{tmp_path}/s"'))
    solver.add_callback(lambda: solver.iter == 3 and signal.raise_signal(signal.SIGINT), lambda: None)
    with signals.handled() as action:
        solver.action = action
        solver.solve()
    assert solver.iter == 4
    assert (tmp_path / "s_iter_4.solverstate").exists()

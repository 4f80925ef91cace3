"""Training that is killed, repeated, or runs out of disk, in processes of its own: no byte of a snapshot differs."""

from __future__ import annotations

import signal
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest

from .small_lenet import write_files

TRAIN = ("-m", "caffe_lite", "train", "-solver=solver.prototxt")

# The command line with no room for a file of more than 500 bytes.
WITH_A_FULL_DISK = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
from caffe_lite.cli import main
sys.exit(main())
"""


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Two folders with the same net, solver and database."""
    made = [tmp_path / "a", tmp_path / "b"]
    for folder in made:
        folder.mkdir()
        write_files(folder)
    return made


def finish(process: Popen[str]) -> str:
    """Wait for the end of a training; return its log."""
    _, log = process.communicate(timeout=60)
    assert process.returncode == 0, log
    return log


def wait_for(process: Popen[str], text: str) -> None:
    assert process.stderr is not None
    assert any(text in line for line in process.stderr), f"the log ended before {text!r}"


def snapshots(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("s_iter_*")}


def test_a_killed_training_resumes_to_the_very_bytes_of_an_uninterrupted_one(folders: list[Path], start: Any) -> None:
    whole, killed = folders
    finish(start(*TRAIN, cwd=whole))
    process = start(*TRAIN, "-iterations=1000000", cwd=killed)  # it will not end by itself
    wait_for(process, "Snapshotting solver state to binary proto file s_iter_1000.solverstate")
    wait_for(process, "Iteration 1000")
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    expected = snapshots(whole)
    assert len(expected) == 8
    for path in killed.glob("s_iter_*"):
        if path.stem not in ("s_iter_500", "s_iter_1000"):
            path.unlink()
    log = finish(start(*TRAIN, "-snapshot=s_iter_1000.solverstate", cwd=killed))
    assert "Resuming from s_iter_1000.solverstate" in log
    assert snapshots(killed) == expected


def test_a_training_stopped_by_ctrl_c_goes_on_as_if_it_had_not_been(folders: list[Path], start: Any) -> None:
    whole, stopped = folders
    finish(start(*TRAIN, cwd=whole))
    process = start(*TRAIN, cwd=stopped)
    wait_for(process, "Iteration 200")
    process.send_signal(signal.SIGINT)
    assert "Optimization stopped early." in finish(process)
    state = max(stopped.glob("s_iter_*.solverstate"), key=lambda path: path.stat().st_mtime)
    finish(start(*TRAIN, f"-snapshot={state.name}", cwd=stopped))
    expected = snapshots(whole)
    assert {name: content for name, content in snapshots(stopped).items() if name in expected} == expected


def test_the_same_seed_gives_the_same_bytes(folders: list[Path], start: Any) -> None:
    for process in [start(*TRAIN, "-iterations=500", cwd=folder) for folder in folders]:
        finish(process)
    first, second = map(snapshots, folders)
    assert len(first) == 2
    assert first == second


def test_a_full_disk_ends_training_and_leaves_the_old_snapshot_whole(folders: list[Path], start: Any) -> None:
    folder = folders[0]
    finish(start(*TRAIN, "-iterations=500", cwd=folder))
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    process = start("-c", WITH_A_FULL_DISK, *TRAIN[2:], "-weights=s_iter_500.caffemodel", cwd=folder)
    _, log = process.communicate(timeout=60)
    assert process.returncode == 1
    message = "s_iter_500.caffemodel: cannot be written: File too large. The old file is unchanged."
    assert log.splitlines()[-1] == f"caffe-lite train: {message}"
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before

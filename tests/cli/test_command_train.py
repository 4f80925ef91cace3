import os
import re
import signal
from pathlib import Path

import pytest

from caffe_lite import prototxt
from caffe_lite.serialization import solverstate


def replace(path, old, new):
    text = Path(path).read_text()
    assert old in text
    Path(path).write_text(text.replace(old, new))


def test_train_logs_what_caffe_logs_and_writes_snapshots(folder, caffe_lite):
    result = caffe_lite("train", "-solver", "solver.prototxt")
    assert result.status == 0
    position = 0
    for text in ("] Use CPU.", "] Initializing solver from parameters:", "] Starting Optimization", "] Iteration 0, ",
                 "] Optimization Done."):  # fmt: skip
        position = result.err.index(text, position)
    assert (folder / "small_iter_10.caffemodel").is_file()
    assert solverstate.read("small_iter_10.solverstate").iter == 10


def test_without_a_terminal_there_is_nothing_but_the_log(folder, caffe_lite):
    result = caffe_lite("train", "-solver", "solver.prototxt")
    assert result.out == ""
    assert "\r" not in result.err


def test_iterations_override_max_iter(folder, caffe_lite):
    assert caffe_lite("train", "-solver=solver.prototxt", "-iterations=3").status == 0
    assert (folder / "small_iter_3.caffemodel").is_file()
    assert not (folder / "small_iter_10.caffemodel").exists()


def test_a_run_resumed_from_a_snapshot_ends_like_one_in_one_piece(folder, caffe_lite):
    caffe_lite("train", "-solver=solver.prototxt", "-iterations=4")
    assert caffe_lite("train", "-solver=solver.prototxt").status == 0
    whole = Path("small_iter_10.caffemodel").read_bytes()
    result = caffe_lite("train", "-solver=solver.prototxt", "-snapshot=small_iter_4.solverstate")
    assert result.status == 0
    assert "] Resuming from small_iter_4.solverstate" in result.err
    assert Path("small_iter_10.caffemodel").read_bytes() == whole


def test_weights_are_loaded_before_training(folder, caffe_lite):
    caffe_lite("train", "-solver=solver.prototxt")
    result = caffe_lite("train", "-solver=solver.prototxt", "-weights=small_iter_10.caffemodel", "-iterations=1")
    assert result.status == 0
    assert "] Finetuning from small_iter_10.caffemodel" in result.err
    first, finetuned = (float(re.search(r"Iteration 0 \(.*loss = (\S+)", log)[1]) for log in (
        caffe_lite("train", "-solver=solver.prototxt", "-iterations=1").err, result.err))  # fmt: skip
    assert finetuned < first / 2


def test_level_and_stage_pick_layers_of_the_train_net(folder, caffe_lite):
    replace("net.prototxt", 'name: "ip" type', 'name: "ip" include { min_level: 2 stage: "here" stage: "there" } type')
    result = caffe_lite("train", "-solver=solver.prototxt", "-iterations=1", "-level=2", "-stage=here,there")
    assert "level: 2" in result.err
    assert "] Creating Layer ip" in result.err


def test_the_solver_files_own_train_state_stays_without_flags(folder, caffe_lite):
    replace("solver.prototxt", "display: 2", 'display: 2 train_state { level: 7 stage: "mine" }')
    log = caffe_lite("train", "-solver=solver.prototxt", "-iterations=1", "-stage=more").err
    assert re.search(r'train_state \{\s+level: 7\s+stage: "mine"\s+stage: "more"\s+\}', log)


@pytest.mark.parametrize(("mode", "warned"), [("", False), ("solver_mode: CPU", False), ("solver_mode: GPU", True)])
def test_only_an_explicit_solver_mode_gpu_is_warned_of_and_trains_on_the_cpu(folder, caffe_lite, mode, warned):
    replace("solver.prototxt", "display: 2", f"display: 2 {mode}")
    result = caffe_lite("train", "-solver=solver.prototxt", "-iterations=1")
    assert result.status == 0
    assert "] Use CPU." in result.err
    warnings = [line for line in result.err.splitlines() if re.match(r"W\d{4} ", line)]
    assert len(warnings) == warned
    assert all(
        "solver.prototxt asks for solver_mode GPU; this version does not run nets on a GPU yet" in w for w in warnings
    )


def test_phase_test_is_warned_of_as_train_has_its_own_phase(folder, caffe_lite):
    result = caffe_lite("train", "-solver=solver.prototxt", "-iterations=1", "-phase=TEST")
    assert result.status == 0
    assert "-phase TEST has no effect on train" in result.err


@pytest.mark.parametrize(
    ("arguments", "status", "error"),
    [
        (["-snapshot=a.solverstate", "-weights=a.caffemodel"], 2, "Give a snapshot to resume training, or weights"),
        (["-snapshot=a.caffemodel"], 2, "-snapshot a.caffemodel: that is a file of weights. Expected a .solverstate."),
        (["-gpu=0"], 1, "-gpu 0: this version does not run nets on a GPU yet"),
        (["-snapshot=none.solverstate"], 1, "none.solverstate"),
        (["-weights=none.caffemodel"], 1, "none.caffemodel"),
        (["-snapshot=net.prototxt"], 1, "net.prototxt"),
        (["-sigint_effect=explode"], 2, "invalid choice: 'explode'"),
    ],
)
def test_what_cannot_be_is_one_line_and_a_status(folder, caffe_lite, arguments, status, error):
    result = caffe_lite("train", "-solver=solver.prototxt", *arguments)
    assert result.status == status
    last = result.err.splitlines()[-1]
    assert last.startswith("caffe-lite train: ")
    assert error in last


def test_a_missing_or_wrong_solver_file_is_one_line(folder, caffe_lite):
    result = caffe_lite("train", "-solver=none.prototxt")
    assert (result.status, result.err.count("\n")) == (1, 1)
    assert "none.prototxt" in result.err
    replace("solver.prototxt", "base_lr", "base_lrr")
    result = caffe_lite("train", "-solver=solver.prototxt")
    assert (result.status, result.err.count("\n")) == (1, 1)
    assert "base_lrr" in result.err and "Did you mean 'base_lr'?" in result.err


def test_stop_on_nan_ends_with_an_error(folder, caffe_lite):
    replace("net.prototxt", '"gaussian" std: 1', '"constant" value: 1e38')
    replace("solver.prototxt", "base_lr: 0.1", "base_lr: 1e10")
    result = caffe_lite("train", "-solver=solver.prototxt", "-stop_on_nan")
    assert result.status == 1
    assert re.search(r"caffe-lite train: Iteration \d: the loss is (nan|inf|-nan)", result.err)
    assert caffe_lite("train", "-solver=solver.prototxt", "-nostop_on_nan").status == 0


@pytest.fixture
def training(folder, start):
    """Start a training of many iterations in a process of its own, and wait until it is under way."""
    replace("solver.prototxt", "max_iter: 10", "max_iter: 100000000")
    replace("solver.prototxt", "display: 2", "display: 1000")
    replace("solver.prototxt", "test_iter: 2 test_interval: 5", "")

    def run(*flags):
        process = start("-m", "caffe_lite", "train", "-solver=solver.prototxt", *flags)
        wait_for(process, "Iteration 1000 ")
        return process

    return run


def wait_for(process, text):
    """Read the log up to a line that contains `text`."""
    for line in process.stderr:
        if text in line:
            return
    raise AssertionError(f"the log ended before {text!r}")


def snapshots():
    return sorted(path.name for path in Path().glob("small_iter_*"))


def test_ctrl_c_stops_after_a_snapshot(training):
    process = training()
    process.send_signal(signal.SIGINT)
    _, log = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "] Optimization stopped early." in log
    assert [Path(name).suffix for name in snapshots()] == [".caffemodel", ".solverstate"]


def test_a_hang_up_writes_a_snapshot_and_training_goes_on(training):
    process = training()
    process.send_signal(signal.SIGHUP)
    wait_for(process, "Snapshotting solver state")
    wait_for(process, "loss = ")
    assert process.poll() is None
    assert len(snapshots()) == 2


def test_training_outlives_its_terminal(folder, start):
    replace("solver.prototxt", "max_iter: 10", "max_iter: 20000")
    replace("solver.prototxt", "display: 2", "display: 1000")
    replace("solver.prototxt", "test_iter: 2 test_interval: 5", "")
    terminal, its_end = os.openpty()
    process = start("-m", "caffe_lite", "train", "-solver=solver.prototxt", stderr=its_end)
    os.close(its_end)
    log = b""
    while b"Iteration 1000 " not in log:
        log += os.read(terminal, 4096)
    assert b" iter/s" in log  # the bar is drawn, so there is something to fail
    os.close(terminal)
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=30) == 0
    assert len(snapshots()) == 4  # of the signal, and of the end
    assert Path("small_iter_20000.solverstate").exists()


def test_effects_may_be_swapped_and_none_ignores_the_signal(training):
    process = training("-sigint_effect=none", "-sighup_effect=stop")
    process.send_signal(signal.SIGINT)
    wait_for(process, "loss = ")
    assert snapshots() == []
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=30)
    assert process.returncode == 0
    assert len(snapshots()) == 2


def test_ctrl_c_may_snapshot_and_go_on(training):
    process = training("-sigint_effect=snapshot")
    process.send_signal(signal.SIGINT)
    wait_for(process, "Snapshotting solver state")
    wait_for(process, "loss = ")
    assert process.poll() is None


def test_a_terminal_gets_a_progress_bar(folder, caffe_lite, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    result = caffe_lite("train", "-solver=solver.prototxt")
    assert "10 [" in result.err and " iter/s" in result.err
    assert result.err.endswith("] Optimization Done.\n")


def test_signals_act_as_before_once_training_has_ended(folder, caffe_lite):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGHUP)
    caffe_lite("train", "-solver=solver.prototxt", "-iterations=1")
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGHUP)) == before


def test_the_solver_file_is_not_changed_by_flags(folder, caffe_lite):
    caffe_lite("train", "-solver=solver.prototxt", "-iterations=1")
    assert prototxt.read_solver("solver.prototxt").max_iter == 10

import importlib
import os
from pathlib import Path

import pytest

from caffe_lite import cli
from caffe_lite.errors import FileAccessError, WeightsError


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"], ["-help"], ["help"]])
def test_the_overview_lists_every_command(caffe_lite, arguments):
    result = caffe_lite(*arguments)
    assert result.status == 0
    for name in cli.COMMANDS:
        assert f"  {name} " in result.out


@pytest.mark.parametrize("spelling", [["help", "{}"], ["{}", "-h"], ["{}", "--help"]])
@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_a_help(caffe_lite, name, spelling):
    result = caffe_lite(*(word.format(name) for word in spelling))
    assert result.status == 0
    assert f"caffe-lite {name}" in result.out
    assert importlib.import_module(f"caffe_lite.cli.{name}").__doc__.split("\n")[0] in result.out


def test_every_command_is_a_module_and_every_module_a_command():
    helpers = {"__init__", "flags", "progress"}
    assert {path.stem for path in Path(cli.__file__).parent.glob("*.py")} - helpers == set(cli.COMMANDS)


@pytest.mark.parametrize("spelling", ["--version", "-version"])
def test_the_version_is_printed(caffe_lite, spelling):
    assert caffe_lite(spelling).out.startswith("caffe-lite ")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["trian"], "caffe-lite: unknown command 'trian'. Did you mean 'train'? Commands: train, test, time, "),
        (["help", "tset"], "caffe-lite: unknown command 'tset'. Did you mean 'test'?"),
        (["frobnicate"], "caffe-lite: unknown command 'frobnicate'. Commands: train,"),
        (["-solver", "x", "train"], "caffe-lite: the command comes before its flags. Received '-solver'."),
        (["train", "-solvr", "x"], "caffe-lite train: unknown flag '--solvr'. Did you mean '--solver'?"),
        (["train"], "caffe-lite train: Need a solver definition to train: -solver FILE."),
        (["test", "-model", "x"], "caffe-lite test: Need model weights to score: -weights FILE."),
        (["test"], "caffe-lite test: Need a model definition to score: -model FILE."),
        (["time"], "caffe-lite time: Need a model definition to time: -model FILE."),
        (["compare"], "caffe-lite compare: Need a model definition: -model FILE."),
        (["compare", "-model", "x"], "caffe-lite compare: Need the file with the reference blobs: -reference"),
        (["convert_mnist", "a"], "caffe-lite convert_mnist: the following arguments are required: LABELS, DB."),
        (["demo", "alexnet"], "caffe-lite demo: argument MODEL: invalid choice: 'alexnet'"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_status_2(caffe_lite, arguments, error):
    result = caffe_lite(*arguments)
    assert result.status == 2
    assert result.err.startswith(error)
    assert result.err.count("\n") == 1
    assert result.out == ""


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (WeightsError("x.caffemodel: it is empty"), 1, "caffe-lite train: x.caffemodel: it is empty\n"),
        (FileAccessError("lenet: it cannot be written"), 1, "caffe-lite train: lenet: it cannot be written\n"),
        (PermissionError(13, "Permission denied", "a.npz"), 1, "caffe-lite train: a.npz: Permission denied\n"),
        (OSError("the disk is gone"), 1, "caffe-lite train: the disk is gone\n"),
        (MemoryError(), 1, "caffe-lite train: there is not enough memory\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_an_error_is_one_line_and_a_status(caffe_lite, monkeypatch, error, status, text):
    def run(flags):
        raise error

    monkeypatch.setattr("caffe_lite.cli.train.run", run)
    result = caffe_lite("train")
    assert (result.status, result.err) == (status, text)


def test_importing_the_command_line_imports_nothing_heavy(start):
    code = """
import sys
import caffe_lite
before = set(sys.modules)
import caffe_lite.cli
heavy = ("numpy", "google", "lmdb", "caffe_lite.net", "caffe_lite.layers", "caffe_lite.devices", "caffe_lite.data")
print(*(name for name in set(sys.modules) - before if name.startswith(heavy)))
"""
    out, err = start("-c", code).communicate(timeout=60)
    assert (out, err) == ("\n", "")


def test_python_m_runs_the_command_line(start):
    process = start("-m", "caffe_lite", "help")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert out.startswith("Usage: caffe-lite COMMAND")


@pytest.mark.parametrize(("stream", "command"), [("stdout", "help"), ("stderr", "trian")])
def test_a_reader_that_goes_away_is_no_error(start, stream, command):
    read, write = os.pipe()
    os.close(read)
    process = start("-m", "caffe_lite", command, **{stream: write})
    os.close(write)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 141
    assert not out
    assert not err

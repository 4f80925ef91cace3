"""What a user gets wrong, through the command line: one sentence with its place, status 1, and nothing is lost."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import pytest

from caffe_lite.data import database

from .conftest import Result
from .small_lenet import write_files

Train = Callable[..., Result]

LOG_LINE = re.compile(r"[IWE]\d{4} ")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The present directory: a new folder with net.prototxt, solver.prototxt (10 iterations) and db."""
    write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    edit("solver.prototxt", "max_iter: 2000", "max_iter: 10")
    edit("solver.prototxt", "test_interval: 50", "test_interval: 5")
    return tmp_path


@pytest.fixture
def train(folder: Path, caffe_lite: Callable[..., Result]) -> Train:
    """Run ``train`` in `folder`."""
    return lambda *flags: caffe_lite("train", "-solver=solver.prototxt", *flags)


def edit(file: str, old: str, new: str) -> None:
    text = Path(file).read_text()
    assert old in text
    Path(file).write_text(text.replace(old, new, 1))


def complaint(result: Result) -> str:
    """Return the last line of a failed command, without the command's name."""
    assert result.status == 1, result.err
    assert "Traceback" not in result.err
    last = result.err.splitlines()[-1]
    assert last.startswith("caffe-lite train: "), last
    return last.removeprefix("caffe-lite train: ")


NET_MISTAKES = {
    "an unknown field": (
        "num_output: 4", "num_outptu: 4",
        r"net.prototxt:10: layer 'conv1' \(Convolution\): unknown field 'num_outptu' of ConvolutionParameter. "
        r"Did you mean 'num_output'\?",
    ),
    "an unknown layer type": (
        'type: "Convolution"', 'type: "Convolutoin"',
        r"net.prototxt:8: layer 'conv1' \(Convolutoin\): unknown layer type 'Convolutoin'. "
        r"Did you mean 'Convolution' or 'Deconvolution'\? Known types: AbsVal, Accuracy,",
    ),
    "an unknown bottom": (
        'bottom: "conv1"', 'bottom: "conv"',
        r"net.prototxt:12: layer 'pool1' \(Pooling\): unknown bottom 'conv'. "
        r"Blobs at this point: conv1, data, label. Did you mean 'conv1'\?",
    ),
    "a bottom that an excluded layer would make": (
        'name: "loss" type: "SoftmaxWithLoss" bottom: "ip1"', 'name: "loss" type: "SoftmaxWithLoss" bottom: "accuracy"',
        r"net.prototxt:20: layer 'loss' \(SoftmaxWithLoss\): unknown bottom 'accuracy'. .*"
        r"The net's state \(phase TRAIN\) excludes layer 'accuracy' \(Accuracy\), its maker.",
    ),
    "two layers that make one top": (
        'top: "ip1"', 'top: "conv1"',
        r"net.prototxt:15: layer 'ip1' \(InnerProduct\): layer 'conv1' \(Convolution\) makes top 'conv1' already. "
        r"Give this one another name.",
    ),
    "shapes that do not fit": (
        'bottom: "ip1" bottom: "label" top: "loss"', 'bottom: "ip1" bottom: "data" top: "loss"',
        r"net.prototxt:20: layer 'loss' \(SoftmaxWithLoss\): there must be one label for each prediction. Expected 8 "
        r"labels for predictions 'ip1' \(8, 3\) with 3 classes, received labels 'data_mnist_0_split_1' "
        r"\(8, 1, 10, 10\).",
    ),
    "a kernel larger than its padded input": (
        "kernel_size: 3", "kernel_size: 13 pad: 1",
        r"net.prototxt:8: layer 'conv1' \(Convolution\): the kernel is larger than its padded input .* spans 13, input "
        r"10 with pad 1 has 12 .* Use a smaller kernel, a larger pad or a larger input.",
    ),
    "a pooling kernel larger than its padded input": (
        "kernel_size: 2", "kernel_size: 12",
        r"net.prototxt:12: layer 'pool1' \(Pooling\): the kernel is larger than its padded input along height: kernel "
        r"12, input 8 with pad 0.",
    ),
    "a missing database": (
        'source: "db"', 'source: "none"',
        r"net.prototxt:3: layer 'mnist' \(Data\): none: no such database, seen from .*Create it first",
    ),
    "no database": (
        'source: "db"', "",
        r"net.prototxt:3: layer 'mnist' \(Data\): data_param: source is missing.",
    ),
    "a missing backend": (
        "backend: LMDB", "",
        r"net.prototxt:3: layer 'mnist' \(Data\): db is an LMDB. Write `backend: LMDB` "
        r".*without a `backend` Caffe takes LEVELDB",
    ),
}  # fmt: skip

SOLVER_MISTAKES = {
    "an unknown field": ("base_lr", "base_rl", r"solver.prototxt:4: unknown field 'base_rl' of SolverParameter."),
    "a field missing for its policy": (
        "power: 0.75", "",
        r"solver.prototxt: power is missing. lr_policy 'inv' needs it: rate = base_lr \* \(1 \+ gamma \* iter\)",
    ),
    "an unknown policy": ('"inv"', '"invers"', r"solver.prototxt: unknown lr_policy 'invers'. Did you mean 'inv'\?"),
    "no max_iter": ("max_iter: 10", "", r"solver.prototxt: max_iter is missing. Set it to the number of iterations"),
    "a net that is not there": ('"net.prototxt"', '"nett.prototxt"', r"nett.prototxt: no such file. Did you mean 'net"),
    "an unwritable snapshot prefix": (
        'snapshot_prefix: "s"', 'snapshot_prefix: "none/s"',
        r"snapshot prefix 'none/s' cannot be written: the folder 'none' does not exist. Create it with",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", NET_MISTAKES)
def test_a_mistake_in_the_net_is_told_with_its_place(mistake: str, train: Train) -> None:
    old, new, message = NET_MISTAKES[mistake]
    edit("net.prototxt", old, new)
    assert re.match(message, complaint(train()))


@pytest.mark.parametrize("mistake", SOLVER_MISTAKES)
def test_a_mistake_in_the_solver_is_told_before_training_starts(mistake: str, train: Train) -> None:
    old, new, message = SOLVER_MISTAKES[mistake]
    edit("solver.prototxt", old, new)
    result = train()
    assert re.match(message, complaint(result))
    assert "Iteration 0" not in result.err


# -- databases


def test_a_label_outside_the_classes_is_told_with_its_item_and_older_snapshots_stay(folder: Path, train: Train) -> None:
    shutil.rmtree("db")
    write_files(folder, labels=[0, 1, 2] * 7 + [7] + [0, 1, 2] * 8)
    edit("solver.prototxt", "snapshot: 500", "snapshot: 1")
    message = r"net.prototxt:20: layer 'loss' \(SoftmaxWithLoss\): label 7 of item 5 is no class. Expected 0 to 2 "
    assert re.match(message, complaint(train()))
    assert sorted(path.name for path in folder.glob("s_iter_*.solverstate")) == [
        "s_iter_1.solverstate",
        "s_iter_2.solverstate",
    ]


def fill(path: str, *values: bytes) -> None:
    """Make an LMDB of `values` under the keys k0, k1, ..."""
    with contextlib.closing(lmdb.open(path)) as environment, environment.begin(write=True) as transaction:
        for index, value in enumerate(values):
            transaction.put(b"k%d" % index, value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Path("bad").mkdir(), r"bad is not an LMDB. Expected data.mdb in it, found nothing."),
        (lambda: Path("bad").write_text("x"), r"bad is a file. Expected the folder of an LMDB, which holds data.mdb."),
        (lambda: fill("bad"), r"bad: the LMDB is empty. Expected at least one record."),
        (
            lambda: fill("bad", b"\x80\x04pickle"),
            r"bad: record 'k0': the value is not a Datum. Is this a database that",
        ),
        (lambda: fill("bad", b""), r"bad: record 'k0': the Datum holds no image. Received shape \(0, 0, 0\)"),
    ],
    ids=["a folder", "a file", "empty", "another program's", "empty values"],
)
def test_a_database_of_another_kind_is_told_apart(make: Callable[[], Any], message: str, train: Train) -> None:
    make()
    edit("net.prototxt", 'source: "db"', 'source: "bad"')
    assert re.match(rf"net.prototxt:3: layer 'mnist' \(Data\): {message}", complaint(train()))


def test_a_locked_database_is_told_and_not_waited_for(
    train: Train, start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "LOCK_PATIENCE", 0.05)
    lock = "import fcntl; f = open('db/lock.mdb', 'r+b'); fcntl.lockf(f, fcntl.LOCK_EX); print('locked', flush=True)"
    holder = start("-c", f"{lock}; import time; time.sleep(60)")
    assert holder.stdout.readline() == "locked\n"
    message = r"net.prototxt:3: layer 'mnist' \(Data\): db is locked by another process. Wait for it or end it."
    assert re.match(message, complaint(train()))


# -- weights


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda weights: weights[:200], r"w.caffemodel is cut off after 200 bytes: at least \d+ more belong to it."),
        (
            lambda weights: b"<!DOCTYPE html><html>",
            "w.caffemodel is not the weights of a net .* looks like an HTML page",
        ),
        (
            lambda weights: b"version https://git-lfs.github.com/spec/v1",
            "w.caffemodel is not .* like a Git LFS pointer",
        ),
        (
            lambda weights: b"",
            r"w.caffemodel is not the weights of a net \(.caffemodel\). It looks like an empty file.",
        ),
        (lambda weights: b'name: "net"', "w.caffemodel is not the weights of a net .* It looks like a text prototxt."),
        (
            lambda weights: Path("s_iter_1.solverstate").read_bytes(),
            "w.caffemodel is not .* like the state of a solver",
        ),
    ],
    ids=["truncated", "web page", "Git LFS pointer", "empty", "prototxt", "solverstate"],
)
def test_weights_of_another_kind_are_told_apart(content: Callable[[bytes], bytes], message: str, train: Train) -> None:
    train("-iterations=1")
    Path("w.caffemodel").write_bytes(content(Path("s_iter_1.caffemodel").read_bytes()))
    assert re.match(message, complaint(train("-weights=w.caffemodel")))


def test_weights_of_other_shapes_are_told_in_one_table(train: Train) -> None:
    train("-iterations=1")
    edit("net.prototxt", "num_output: 4", "num_output: 5")
    result = train("-weights=s_iter_1.caffemodel")
    assert result.status == 1
    assert result.err.endswith(
        "caffe-lite train: s_iter_1.caffemodel: the shapes of 3 params do not fit the net, nothing was copied.\n"
        "  layer  param  net           file\n"
        "  conv1  0      (5, 1, 3, 3)  (4, 1, 3, 3)\n"
        "  conv1  1      (5)           (4)\n"
        "  ip1    0      (3, 80)       (3, 64)\n"
        "To learn such a layer from scratch, give it another name in the net's prototxt.\n"
    )


def test_weights_that_match_no_layer_are_warned_of(train: Train) -> None:
    train("-iterations=1")
    edit("net.prototxt", 'name: "conv1"', 'name: "convolution"')
    edit("net.prototxt", 'name: "ip1"', 'name: "classifier"')
    result = train("-weights=s_iter_1.caffemodel", "-iterations=2")
    assert result.status == 0
    warnings = [line for line in result.err.splitlines() if line.startswith("W")]
    names = "Layers in the file: conv1, ip1. Layers in the net: convolution, classifier."
    assert all("no weights were copied" in line and line.endswith(names) for line in warnings)
    assert len(warnings) == 2  # for the train net and for the test net


# -- a loss that is not a number


def test_a_nan_loss_is_told_with_its_iteration_and_first_blob_and_ends_training_if_asked(train: Train) -> None:
    edit("solver.prototxt", "base_lr: 0.01", "base_lr: 1e36")
    result = train()
    assert result.status == 0
    warnings = [line for line in result.err.splitlines() if line.startswith("W")]
    message = (
        r"Iteration 1: the loss is nan. In forward order, (blob|param \d of layer) '\w+' .*holds \d+ NaN and \d+ Inf"
    )
    assert len(warnings) == 1 and re.search(message, warnings[0])
    assert Path("s_iter_10.caffemodel").exists()
    Path("s_iter_10.caffemodel").unlink()
    assert re.match(message, complaint(train("-stop_on_nan")))
    assert not Path("s_iter_10.caffemodel").exists()

import gzip
import shlex
import struct
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from caffe_lite import resources

MODEL = resources.path("models/lenet")


def write_idx(path, array):
    header = struct.pack(f">{1 + array.ndim}I", 2048 + array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes(), 1))


@pytest.fixture
def small_lenet(tmp_path, monkeypatch):
    """LeNet's folder with 100 images a set and a solver that tests two of them at a time."""
    model = tmp_path / "models"
    model.mkdir()
    for name in ("lenet_solver.prototxt", "lenet_train_test.prototxt"):
        text = (MODEL / name).read_text().replace("test_iter: 100", "test_iter: 2")
        (model / name).write_text(text.replace("batch_size: 100", "batch_size: 2"))
    random = np.random.default_rng(1)
    for name in ("train", "t10k"):
        write_idx(model / f"{name}-images-idx3-ubyte.gz", random.integers(0, 256, (100, 28, 28), np.uint8))
        write_idx(model / f"{name}-labels-idx1-ubyte.gz", random.integers(0, 10, 100, np.uint8))
    find = resources.path
    monkeypatch.setattr(resources, "path", lambda name: model if name == "models/lenet" else find(name))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return model


def commands(result):
    return [line[2:] for line in result.out.splitlines() if line.startswith("$ ")]


def test_the_demo_trains_tests_and_says_where_the_snapshots_are(small_lenet, caffe_lite):
    result = caffe_lite("demo", "lenet", "--iterations", 2)
    assert result.status == 0
    *_, accuracy, loss, snapshots = result.out.splitlines()
    assert 0 <= float(accuracy.removeprefix("Test accuracy: ")) <= 1
    assert float(loss.removeprefix("Test loss: ")) > 0
    model = Path("lenet/lenet_iter_2.caffemodel").resolve()
    assert snapshots == f"Snapshots: {model} and .solverstate"
    assert model.is_file()
    assert model.with_suffix(".solverstate").is_file()


def test_the_commands_printed_do_the_same_by_hand(small_lenet, caffe_lite, monkeypatch):
    steps = commands(caffe_lite("demo", "lenet", "--iterations=2", "--dir=with a space"))
    assert steps[0] == "mkdir -p 'with a space' && cd 'with a space'"
    Path("by hand").mkdir()
    monkeypatch.chdir("by hand")
    program, *files, target = shlex.split(steps[1])
    assert (program, target) == ("cp", ".")
    for file in files:
        Path(Path(file).name).write_bytes(Path(file).read_bytes())
    for step in steps[2:]:
        program, *arguments = shlex.split(step)
        assert program == "caffe-lite"
        assert caffe_lite(*arguments).status == 0
    names = {path.name for path in Path().iterdir()}
    assert names == {path.name for path in Path("../with a space").iterdir()}
    assert "lenet_iter_2.caffemodel" in names


def test_a_second_run_reuses_what_is_whole_and_keeps_what_was_edited(small_lenet, caffe_lite):
    caffe_lite("demo", "lenet", "--iterations=1")
    solver = Path("lenet/lenet_solver.prototxt")
    edited = solver.read_text().replace("display: 100", "display: 1")
    solver.write_text(edited)
    before = Path("lenet/mnist_train_lmdb/data.mdb").stat().st_mtime_ns
    result = caffe_lite("demo", "lenet", "--iterations=1")
    assert result.status == 0
    assert solver.read_text() == edited
    assert "# lenet_solver.prototxt is here already and not the bundled one; it stays as it is" in result.out
    assert "# mnist_train_lmdb is here already" in result.out
    assert Path("lenet/mnist_train_lmdb/data.mdb").stat().st_mtime_ns == before
    assert [step.split()[1] for step in commands(result)[1:]] == ["train", "test"]


def test_a_broken_database_is_made_again(small_lenet, caffe_lite):
    caffe_lite("demo", "lenet", "--iterations=1")
    Path("lenet/mnist_test_lmdb/data.mdb").write_bytes(b"")
    result = caffe_lite("demo", "lenet", "--iterations=1")
    assert result.status == 0
    assert [step.split()[-1] for step in commands(result) if "convert_mnist" in step] == ["--overwrite"]


def test_a_training_that_was_stopped_says_how_to_go_on(small_lenet, caffe_lite, monkeypatch):
    stopped = SimpleNamespace(iter=7, param=SimpleNamespace(snapshot_prefix="lenet", max_iter=10))
    monkeypatch.setattr("caffe_lite.cli.train.train", lambda flags: stopped)
    result = caffe_lite("demo", "lenet", "--iterations=10")
    assert result.status == 0
    assert "Training was stopped at iteration 7. To go on, in " in result.out
    assert commands(result)[-1] == (
        "caffe-lite train --solver=lenet_solver.prototxt --iterations=10 --snapshot=lenet_iter_7.solverstate"
    )


def test_the_present_folder_is_the_same_afterwards_also_after_an_error(small_lenet, caffe_lite):
    here = Path.cwd()
    (small_lenet / "train-images-idx3-ubyte.gz").write_bytes(b"\x1f\x8b")
    result = caffe_lite("demo", "lenet")
    assert result.status == 1
    assert result.err.startswith("caffe-lite demo: ")
    assert Path.cwd() == here


def test_a_folder_that_cannot_be_made_is_one_line(small_lenet, caffe_lite):
    Path("file").touch()
    result = caffe_lite("demo", "lenet", "--dir=file/below")
    assert (result.status, result.err) == (1, "caffe-lite demo: file/below: Not a directory\n")


def test_mnist_is_converted_by_hand(small_lenet, caffe_lite):
    from caffe_lite.data.database import open_reader

    files = [str(small_lenet / f"t10k-{kind}-ubyte.gz") for kind in ("images-idx3", "labels-idx1")]
    result = caffe_lite("convert_mnist", *files, "db")
    assert (result.status, result.out) == (0, "db: wrote 100 images\n")
    reader = open_reader("db")
    assert reader.records == 100
    reader.close()
    refused = caffe_lite("convert_mnist", *files, "db")
    assert refused.status == 2
    assert refused.err.startswith("caffe-lite convert_mnist: db is there already. Give --overwrite to replace it,")
    assert caffe_lite("convert_mnist", *files, "db", "-overwrite").status == 0

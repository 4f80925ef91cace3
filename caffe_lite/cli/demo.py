"""Train a bundled model from scratch: write its files into a folder, make its databases, train, test.

    caffe-lite demo lenet
    caffe-lite demo lenet --iterations 1000 --dir my_lenet

Every step is printed as the plain command it is; the commands do the same when they are typed by hand.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from caffe_lite.cli import convert_mnist, test, train
from caffe_lite.cli.flags import FlagParser, Flags, integer
from caffe_lite.errors import CaffeError

__all__ = ["add_flags", "run"]

SOLVER = "lenet_solver.prototxt"
NET = "lenet_train_test.prototxt"
DATABASES = {
    "mnist_train_lmdb": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "mnist_test_lmdb": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}


def add_flags(parser: FlagParser) -> None:
    """Declare the arguments of ``demo``."""
    parser.add_argument("model", metavar="MODEL", choices=["lenet"], help="the bundled model: lenet")
    parser.flag("iterations", "train for N iterations instead of the solver file's max_iter", integer(1), metavar="N")
    parser.flag("dir", "the folder to work in, made if need be (default: the model's name)", metavar="DIR")


def run(flags: Flags) -> int:
    """Run the demo; returns 0, also if training was stopped by a signal (after saying how to go on)."""
    from caffe_lite import resources

    model = resources.path(f"models/{flags.model}")
    with _working_in(flags.dir or flags.model):
        _copy_prototxts(model)
        for database, files in DATABASES.items():
            _make_database(database, *(model / file for file in files))
        return _train_and_test(flags.iterations)


@contextlib.contextmanager
def _working_in(folder: str) -> Iterator[None]:
    _show(f"mkdir -p {shlex.quote(folder)} && cd {shlex.quote(folder)}")
    before = Path.cwd()
    Path(folder).mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _copy_prototxts(model: Path) -> None:
    """Copy the model's prototxts here; one that is here already stays, in case it was edited."""
    files = sorted(model.glob("*.prototxt"))
    missing = [file for file in files if not Path(file.name).exists()]
    for file in missing:
        shutil.copyfile(file, file.name)
    if missing:
        _show(shlex.join(["cp", *map(str, missing), "."]))
    for file in files:
        if file.read_bytes() != Path(file.name).read_bytes():
            print(f"# {file.name} is here already and not the bundled one; it stays as it is")


def _make_database(database: str, images: Path, labels: Path) -> None:
    """Convert idx files to the LMDB `database`, unless it is there and whole."""
    if _is_whole(database, labels):
        print(f"# {database} is here already")
        return
    arguments = [str(images), str(labels), database]
    if os.path.lexists(database):
        arguments.append("--overwrite")
    convert_mnist.run(_command("convert_mnist", convert_mnist, arguments))


def _is_whole(database: str, labels: Path) -> bool:
    from caffe_lite.data.database import open_reader
    from caffe_lite.data.mnist import LABELS, read_idx

    try:
        reader = open_reader(database)
    except CaffeError:
        return False
    try:
        return reader.records == len(read_idx(labels, LABELS))
    finally:
        reader.close()


def _train_and_test(iterations: int | None) -> int:
    arguments = [f"--solver={SOLVER}"]
    if iterations:
        arguments.append(f"--iterations={iterations}")
    solver = train.train(_command("train", train, arguments))
    snapshot = f"{solver.param.snapshot_prefix}_iter_{solver.iter}"
    if solver.iter < solver.param.max_iter:
        print(f"Training was stopped at iteration {solver.iter}. To go on, in {Path.cwd()}:")
        _show(shlex.join(["caffe-lite", "train", *arguments, f"--snapshot={snapshot}.solverstate"]))
        return 0
    # 100 batches of 100 are the whole test set.
    arguments = [f"--model={NET}", f"--weights={snapshot}.caffemodel", "--iterations=100"]
    means = test.test(_command("test", test, arguments))
    for output, values in means.items():
        print(f"Test {output}: {values[0]:.4f}")
    print(f"Snapshots: {Path.cwd() / snapshot}.caffemodel and .solverstate")
    return 0


def _command(name: str, module: ModuleType, arguments: list[str]) -> Flags:
    """Print the command and return its flags, as the command line would parse them."""
    _show(shlex.join(["caffe-lite", name, *arguments]))
    parser = FlagParser(f"caffe-lite {name}", "")
    module.add_flags(parser)
    return parser.parse(arguments)


def _show(command: str) -> None:
    print(f"$ {command}", flush=True)

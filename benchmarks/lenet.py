"""LeNet on the CPU, side by side with PyTorch: python benchmarks/lenet.py [--rounds N] [--threads N]

A training iteration (batch 64; ours reads its batches from an LMDB, PyTorch's lie ready in memory as float tensors),
and a forward pass of one image.  Both sides start from the same weights and use the same number of threads.  Rounds
alternate between the sides; the table gives the median time of each side and the median of the rounds' ratios, which is
what counts on a shared machine.  Below it: what there is no peer for.  PyTorch (its CPU build is enough) is the only
requirement beyond the package's own.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

BATCH = 64
PAUSE = 0.02  # seconds


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30, help="alternations of each job")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    os.environ["CAFFE_LITE_NUM_THREADS"] = str(options.threads)

    import torch

    from caffe_lite.cli.device_query import cpu_model

    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        solver = make_solver(Path(folder))
        jobs = [
            ("training iteration, batch 64", *training_steps(solver), 10),
            ("inference, batch 1", *inference_steps(), 200),
        ]
        print(f"{cpu_model()}, {options.threads} threads, PyTorch {torch.__version__}\n")
        print("| job | caffe_lite | PyTorch | ratio (median of rounds) |")
        print("| --- | --- | --- | --- |")
        for name, ours, theirs, repeats in jobs:
            mine, peer = alternate(ours, theirs, options.rounds, repeats)
            ratio = statistics.median(a / b for a, b in zip(mine, peer, strict=True))
            print(f"| {name} | {statistics.median(mine):.3f} ms | {statistics.median(peer):.3f} ms | {ratio:.2f} |")
        solver.close()
    print_start_up(options.rounds)


def print_start_up(rounds: int) -> None:
    """Print the median times of importing the package and of building LeNet, and the memory that training took."""
    import caffe_lite as caffe
    from caffe_lite import resources
    from caffe_lite.devices import host_device

    peak = host_device().memory_info().peak
    code = "import time; start = time.perf_counter(); import caffe_lite; print(time.perf_counter() - start)"
    imports = [float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(rounds)]
    model, builds = resources.path("models/lenet/lenet.prototxt"), []
    for _ in range(rounds):
        start = time.perf_counter()
        caffe.Net(model, caffe.TEST)
        builds.append(time.perf_counter() - start)
    print("\n| | |\n| --- | --- |")
    print(f"| import caffe_lite | {statistics.median(imports) * 1e3:.0f} ms |")
    print(f"| LeNet parsed and built | {statistics.median(builds) * 1e3:.1f} ms |")
    print(f"| buffers allocated at most while training (batch 64, without a test net) | {peak / 2**20:.1f} MiB |")


def alternate(
    ours: Callable[[], object], theirs: Callable[[], object], rounds: int, repeats: int
) -> tuple[list[float], list[float]]:
    """Return the milliseconds of one call of each side, one figure a round.

    Before each turn a pause: both sides' idle threads spin for a while, and would take a core from the other side.
    """
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds + 2):
        for step, results in zip((ours, theirs), times, strict=True):
            time.sleep(PAUSE)
            start = time.perf_counter()
            for _ in range(repeats):
                step()
            results.append((time.perf_counter() - start) / repeats * 1e3)
    return times[0][2:], times[1][2:]  # the first two rounds warm up


def make_solver(folder: Path):
    """Return caffe_lite's solver for LeNet, reading the bundled MNIST from an LMDB in `folder`."""
    from caffe_lite import prototxt, resources
    from caffe_lite.data import mnist
    from caffe_lite.proto import caffe_pb2
    from caffe_lite.solvers import get_solver

    models = resources.path("models/lenet")
    mnist.convert(
        models / "train-images-idx3-ubyte.gz", models / "train-labels-idx1-ubyte.gz", folder / "mnist_train_lmdb"
    )
    param = prototxt.read_solver(models / "lenet_solver.prototxt")
    net, _ = prototxt.read_net(models / "lenet_train_test.prototxt")
    del net.layer[1]  # the test data
    net.layer[0].data_param.source = str(folder / "mnist_train_lmdb")
    for field in ("net", "test_iter", "test_interval", "display", "snapshot"):
        param.ClearField(field)
    param.train_net_param.CopyFrom(net)
    param.snapshot_prefix = str(folder / "lenet")
    param.solver_mode = caffe_pb2.SolverParameter.CPU
    param.random_seed = 1
    return get_solver(param)


def training_steps(solver) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return one training iteration of each side, starting from the same weights."""
    import torch

    model = torch_lenet(solver.net.params)
    settings = {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.0005}
    optimizer = torch.optim.SGD(model.parameters(), **settings)
    lose = torch.nn.CrossEntropyLoss()
    batches = []
    for _ in range(20):
        solver.net.run_forward()
        data, label = (np.array(solver.net.blobs[name].data) for name in ("data", "label"))
        batches.append((torch.from_numpy(data), torch.from_numpy(label.astype(np.int64))))
    state = {"next": 0}

    def theirs() -> None:
        data, label = batches[state["next"] % len(batches)]
        state["next"] += 1
        optimizer.zero_grad()
        lose(model(data), label).backward()
        optimizer.step()

    return lambda: solver.step(1), theirs


def inference_steps() -> tuple[Callable[[], object], Callable[[], object]]:
    """Return the forward pass of one random image through each side."""
    import torch

    import caffe_lite as caffe
    from caffe_lite import resources

    caffe.set_random_seed(1)
    net = caffe.Net(resources.path("models/lenet/lenet.prototxt"), caffe.TEST)
    net.blobs["data"].reshape(1, 1, 28, 28)
    image = np.random.default_rng(0).random((1, 1, 28, 28), np.float32)
    net.blobs["data"].data[...] = image
    model = torch_lenet(net.params).eval()
    tensor = torch.from_numpy(image)

    def theirs() -> None:
        with torch.inference_mode():
            torch.softmax(model(tensor), 1)

    return net.forward, theirs


def torch_lenet(params):
    """Return Caffe's LeNet as a PyTorch module, with the weights in `params`."""
    import torch
    from torch import nn

    model = nn.Sequential(
        nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10),
    )  # fmt: skip
    with torch.no_grad():
        blobs = [blob.data for name in ("conv1", "conv2", "ip1", "ip2") for blob in params[name]]
        for parameter, blob in zip(model.parameters(), blobs, strict=True):
            parameter.copy_(torch.from_numpy(np.array(blob)))
    return model


if __name__ == "__main__":
    main()

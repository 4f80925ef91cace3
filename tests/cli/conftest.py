"""A net that trains within milliseconds, its solver, and a way to run a command in them."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import caffe_lite as package
from caffe_lite.cli import main

WHERE = Path(package.__file__).resolve().parents[1]

NET = """
name: "small"
layer {
  name: "data" type: "DummyData" top: "data" top: "label"
  dummy_data_param {
    shape { dim: 8 dim: 6 } shape { dim: 8 }
    data_filler { type: "gaussian" std: 1 } data_filler { type: "constant" value: 1 }
  }
}
layer {
  name: "ip" type: "InnerProduct" bottom: "data" top: "ip"
  inner_product_param { num_output: 3 weight_filler { type: "xavier" } }
}
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
layer { name: "accuracy" type: "Accuracy" bottom: "ip" bottom: "label" top: "accuracy" include { phase: TEST } }
"""

SOLVER = """
net: "net.prototxt"
test_iter: 2 test_interval: 5
base_lr: 0.1 lr_policy: "fixed" momentum: 0.9
display: 2 max_iter: 10
snapshot_prefix: "small"
random_seed: 1
"""

DEPLOY = """
name: "deploy"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 5 } } }
layer {
  name: "ip" type: "InnerProduct" bottom: "data" top: "ip"
  inner_product_param {
    num_output: 3 weight_filler { type: "gaussian" std: 1 } bias_filler { type: "constant" value: 1 }
  }
}
layer { name: "relu" type: "ReLU" bottom: "ip" top: "ip" relu_param { negative_slope: 0.5 } }
layer { name: "prob" type: "Softmax" bottom: "ip" top: "prob" }
"""


@dataclasses.dataclass(frozen=True)
class Result:
    """What a command returned and wrote."""

    status: int
    out: str
    err: str


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The present directory: a new folder with net.prototxt, deploy.prototxt and solver.prototxt."""
    for name, text in (("net", NET), ("solver", SOLVER), ("deploy", DEPLOY)):
        (tmp_path / f"{name}.prototxt").write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def caffe_lite(capfd: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Run the command line in this process."""

    def run(*arguments: object) -> Result:
        capfd.readouterr()
        status = main([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return Result(status, captured.out, captured.err)

    return run


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a Python process that finds this caffe_lite, installed or not; it is killed at the end."""
    processes = []
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(WHERE), os.environ.get("PYTHONPATH", "")])}

    def start(*arguments: str, **streams: Any) -> subprocess.Popen[str]:
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
        processes.append(subprocess.Popen([sys.executable, *arguments], env=environment, text=True, **streams))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()

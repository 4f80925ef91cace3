"""The host kernels run clean under AddressSanitizer and UndefinedBehaviorSanitizer over all reference cases."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from caffe_lite import resources
from caffe_lite.devices import host_build

FLAGS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-O1", "-g")
LAYERS = Path(__file__).resolve().parents[1] / "layers"

# Reads one element behind a buffer that numpy allocated: what the sanitizer must see, or the other test proves nothing.
OVERRUN = """
import ctypes
from caffe_lite.devices import host_device
device = host_device()
source, target = device.alloc(1000), device.alloc(100000)
library = device._library
args = (ctypes.c_int64 * 3)(100000, source.pointer, target.pointer)
library.copy_launch(args)
"""


def runtime(name: str) -> str:
    """Return the path of a sanitizer's runtime library, or an empty string."""
    if not shutil.which("g++"):
        return ""
    path = subprocess.check_output(["g++", f"-print-file-name={name}"], text=True).strip()
    return path if Path(path).is_absolute() else ""


pytestmark = pytest.mark.skipif(not runtime("libasan.so"), reason="needs g++ with AddressSanitizer")


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """The environment in which caffe_lite uses host libraries that were built with the sanitizers."""
    folder = tmp_path_factory.mktemp("sanitized")
    host_build.build(resources.path("kernels"), "baseline", folder / "work", folder / "libhost_baseline.so", FLAGS)
    return {
        **os.environ,
        "CAFFE_LITE_HOST_LIBRARY": str(folder),
        "CAFFE_LITE_NUM_THREADS": "2",
        "LD_PRELOAD": runtime("libasan.so"),
        "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter's own
        "OPENBLAS_NUM_THREADS": "1",
    }


def test_all_layer_tests_run_clean(environment, tmp_path):
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "-k",
        "reference or original",
        LAYERS,
    ]
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-6000:]
    assert " passed" in result.stdout


def test_an_overrun_is_seen(environment, tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", OVERRUN], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode != 0
    assert "heap-buffer-overflow" in result.stderr

"""Every element and row kernel, through the CUDA branch of the dialect: emulated and on the host they agree.

The layers' reference cases and a small LeNet run on the host; each of their launches is made in the emulation too.
All of it runs once more under AddressSanitizer.
"""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from cli import small_lenet
from layers.harness import REFERENCE, assert_close, check_reference, random, run_layer

from caffe_lite import prototxt, resources, solvers
from caffe_lite.devices import ConvolutionGeometry, host_device, kernels, signature
from caffe_lite.net import Net
from caffe_lite.proto import caffe_pb2

from . import emulation
from .replay import Replay

ELSEWHERE = {"gemm_float32.cu"}  # test_gemm.py
PATHS = [path for path in sorted(resources.path("kernels").glob("*.cu")) if path.name not in ELSEWHERE]
HOST_PATHS = [path for path in PATHS if any(kernel.shape != "tile" for kernel in signature.parse(path))]
HOST_KERNELS = {
    name
    for name, kernel in kernels.all_kernels().items()
    if kernel.signature.shape != "tile" and kernel.signature.file not in ELSEWHERE
}
CASES = sorted(path.stem for path in REFERENCE.glob("*.prototxt"))

# num, channels, num_output, group, in, out, kernel, stride, pad, dilation
CONVOLUTIONS = {
    "2d": ConvolutionGeometry(2, 3, 4, 1, (7, 9), (4, 8), (3, 2), (2, 1), (1, 0), (1, 1)),
    "groups": ConvolutionGeometry(2, 4, 6, 2, (5, 6), (3, 4), (3, 3), (1, 1), (0, 0), (1, 1)),
    "dilation": ConvolutionGeometry(1, 2, 3, 1, (9, 8), (7, 4), (3, 2), (1, 2), (1, 1), (2, 3)),
    "1d": ConvolutionGeometry(3, 2, 2, 1, (11,), (5,), (4,), (2,), (1,), (1,)),
    "3d": ConvolutionGeometry(2, 2, 3, 1, (4, 5, 6), (4, 3, 3), (3, 3, 1), (1, 1, 2), (1, 0, 0), (1, 1, 1)),
}

# What no recorded case reaches: a layer, its bottoms and its phase.
SLOPES = "prelu_param { filler { type: 'gaussian' } }"
GAUSSIAN = "filler { type: 'gaussian' }"
EMBED = "embed_param { num_output: 3 input_dim: 5 weight_filler { type: 'gaussian' } }"
STOCHASTIC = "pooling_param { pool: STOCHASTIC kernel_size: 3 stride: 2 }"
LAYERS = {
    "BatchReindex": ("", [random(1, 5, 3), np.array([0, 2, 2, 4])], caffe_pb2.TRAIN),
    "Bias": (f"bias_param {{ {GAUSSIAN} }}", [random(1, 6, 5)], caffe_pb2.TRAIN),
    "Scale": (f"scale_param {{ {GAUSSIAN} bias_term: true }}", [random(1, 6, 5)], caffe_pb2.TRAIN),
    "Dropout": ("dropout_param { scale_train: false }", [random(1, 6, 5)], caffe_pb2.TEST),
    "Embed": (EMBED, [np.array([3, 0, 3, 4, 3])], caffe_pb2.TRAIN),
    "InfogainLoss": ("", [abs(random(1, 2, 3, 2, 2)), np.ones((2, 1, 2, 2)), random(2, 1, 1, 3, 3)], caffe_pb2.TRAIN),
    "Pooling TRAIN": (STOCHASTIC, [abs(random(1, 2, 3, 7, 6))], caffe_pb2.TRAIN),
    "Pooling TEST": (STOCHASTIC, [abs(random(1, 2, 3, 7, 6))], caffe_pb2.TEST),
    "PReLU": (SLOPES, [random(1, 6, 5)], caffe_pb2.TRAIN),
    "Reduction": ("reduction_param { operation: SUM }", [random(1, 300, 200)], caffe_pb2.TRAIN),
    "Tile": ("tile_param { tiles: 3 }", [random(1, 4, 1)], caffe_pb2.TRAIN),
}

compared: set[str] = set()


@pytest.fixture(scope="module")
def library(library_folder):
    return emulation.build(HOST_PATHS, library_folder)


@pytest.fixture
def replay(library, monkeypatch):
    replay = Replay(library, monkeypatch)
    yield replay
    compared.update(replay.kernels)


@pytest.mark.parametrize("case", CASES)
def test_launches_of_the_reference_cases_agree_with_the_host(replay, case):
    check_reference(case)


@pytest.mark.parametrize("solver_type", sorted(solvers.REGISTRY))
def test_launches_of_training_agree_with_the_host(replay, tmp_path, monkeypatch, solver_type):
    monkeypatch.chdir(tmp_path)
    small_lenet.write_files(tmp_path)
    param = prototxt.read_solver("solver.prototxt")
    param.type, param.clip_gradients = solver_type, 0.01
    if solver_type in ("AdaGrad", "RMSProp"):
        param.ClearField("momentum")  # which they refuse
    solvers.get_solver(param, "solver.prototxt").step(3)
    assert {"dropout_forward", "pool_max_backward", "transform_bytes"} <= replay.kernels


def test_launches_of_testing_agree_with_the_host(replay, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small_lenet.write_files(tmp_path)
    Net("net.prototxt", caffe_pb2.TEST).forward()
    assert "accuracy_forward" in replay.kernels


@pytest.mark.parametrize("name", LAYERS)
def test_launches_of_other_layers_agree_with_the_host(replay, name):
    options, bottoms, phase = LAYERS[name]
    run = run_layer(f'type: "{name.split()[0]}" {options}', bottoms, phase)
    if (name, phase) != ("Pooling TEST", caffe_pb2.TEST):  # which has no gradient
        run.backward()
    assert replay.kernels


@pytest.mark.parametrize("mean", [(1, 1), (12, 12)])
def test_launches_on_windows_agree_with_the_host(replay, mean):
    device, shape = host_device(), (3, 2, 9, *mean, 1 if mean[0] > 1 else 0)
    region = np.array([[0, 9, 0, 9], [2, 7, 3, 8], [4, 4, 0, 9]], np.int32)
    pixels = np.random.default_rng(1).integers(0, 256, 3 * 2 * 81).astype(np.uint8)
    arrays = [random(1, 2, *mean), region, pixels, np.full(pixels.size, np.nan, np.float32)]
    buffers = [device.alloc(array.size, array.dtype) for array in arrays]
    for buffer, array in zip(buffers, arrays, strict=True):
        device.upload(buffer, array)
    device.launch("transform_windows", 54, 54, shape, 0.5, *buffers)
    assert "transform_windows" in replay.kernels


@pytest.mark.parametrize("mean", [(1, 1), (9, 12)])
def test_launches_on_float_images_agree_with_the_host(replay, mean):
    device, shape = host_device(), (3, 2, 5, 9, *mean)
    size = 3 * 2 * 5 * 9
    place = np.array([[0, 0, 0], [4, 2, 1], [1, 3, 0]], np.int32)  # rows and columns where whole images are cropped
    arrays = [random(1, 2, *mean), place, random(2, size), np.full(size, np.nan, np.float32)]
    buffers = [device.alloc(array.size, array.dtype) for array in arrays]
    for buffer, array in zip(buffers, arrays, strict=True):
        device.upload(buffer, array)
    device.launch("transform_floats", 30, 30, shape, 0.5, *buffers)
    assert "transform_floats" in replay.kernels


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_direct_convolutions_agree_with_those_of_the_host(replay, name):
    geometry, device = CONVOLUTIONS[name], host_device()
    x, w, b, y = sizes(geometry)

    def buffer(seed, size):
        filled = device.alloc(size)
        device.upload(filled, random(seed, size))
        return filled

    bottom, weights, bias, top_diff = (buffer(seed, size) for seed, size in enumerate((x, w, b, y)))
    shape = direct_shape(geometry)
    for kernel, primitive, inputs, size, more in [
        ("forward", device.conv_forward, (bottom, weights, bias), y, [1]),
        ("backward_data", device.conv_backward_data, (weights, top_diff), x, []),
        ("backward_weights", device.conv_backward_weights, (bottom, top_diff), w, []),
    ]:
        expected, actual = buffer(9, size), buffer(9, size)  # weights are added to
        primitive(geometry, *inputs, expected)
        device.launch(f"direct_convolution_{kernel}", size, size, shape, *more, *inputs, actual)
        assert_close(device.download(actual), device.download(expected), kernel)


def sizes(geometry):
    """Return the elements of bottom, weights, bias and top."""
    volumes = [int(np.prod(axes)) for axes in (geometry.in_shape, geometry.kernel, geometry.out_shape)]
    bottom, top = geometry.num * geometry.channels, geometry.num * geometry.num_output
    weights = geometry.num_output * geometry.channels // geometry.group
    return bottom * volumes[0], weights * volumes[1], geometry.num_output, top * volumes[2]


def direct_shape(geometry):
    """Return the kernels' struct: three axes, those that are missing in front, of length 1."""
    shape = [geometry.num, geometry.channels, geometry.num_output, geometry.group]
    missing = 3 - len(geometry.kernel)
    for name in ("in_shape", "out_shape", "kernel", "stride", "pad", "dilation"):
        shape += [int(name != "pad")] * missing + list(getattr(geometry, name))
    return tuple(shape)


def test_no_kernel_of_the_host_is_left_out():
    """Runs last.  A new kernel needs a reference case, or a launch in this file."""
    if not compared:
        pytest.skip("the other tests of this file have not run")
    assert sorted(HOST_KERNELS - compared) == []


@pytest.mark.skipif(emulation.SANITIZE in os.environ, reason="runs in the other process")
def test_no_launch_leaves_its_buffers(library_folder):
    command = [sys.executable, "-m", "pytest", "-q", "-x", __file__]
    result = subprocess.run(command, env=emulation.sanitizer_environment(), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr

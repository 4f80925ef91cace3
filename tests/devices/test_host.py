"""The CPU as a device: memory, launches, tapes, primitives, workers."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from caffe_lite.devices import ConvolutionGeometry, HostDevice, Program, host_device, host_library
from caffe_lite.devices.host import check_sizes, default_threads
from caffe_lite.devices.host_library import INSTRUCTION_SETS
from caffe_lite.errors import DeviceError, KernelError, OutOfMemoryError


@pytest.fixture
def device():
    return host_device()


def uploaded(device, array):
    buffer = device.alloc(array.size, np.float32)
    device.upload(buffer, array)
    return buffer


# -- memory


def test_new_memory_is_zero_and_aligned_to_a_cache_line(device):
    for size in (1, 17, 100003):
        buffer = device.alloc(size)
        assert buffer.pointer % 64 == 0
        assert not device.download(buffer).any()


def test_a_view_shares_memory_with_its_buffer(device):
    buffer = device.alloc(10)
    device.upload(buffer.view(3, 2), np.array([5, 6]))
    assert device.download(buffer).tolist() == [0, 0, 0, 5, 6, 0, 0, 0, 0, 0]


def test_a_view_outside_its_buffer_is_an_error(device):
    with pytest.raises(ValueError, match=r"view \[8, 11\) does not lie in a buffer of 10 elements"):
        device.alloc(10).view(8, 3)


def test_memory_info_counts_what_lives(device):
    before = device.memory_info().allocated
    buffer = device.alloc(1 << 20)
    assert device.memory_info().allocated == before + (4 << 20)
    assert device.memory_info().peak >= before + (4 << 20)
    del buffer
    assert device.memory_info().allocated == before


def test_more_memory_than_there_is_says_how_much_was_asked_for(device):
    with pytest.raises(OutOfMemoryError, match="4611686018427387904 bytes are not to be had"):
        device.alloc(1 << 60)


# -- launches and tapes


@pytest.mark.parametrize("size", [1, 15, 16, 17, 33, 100003])
def test_every_element_is_written_once_however_the_work_is_divided(device, size):
    buffer = device.alloc(size, np.int32)
    for _ in range(3):
        device.launch("count_pass", size, size, buffer)
    assert (device.download(buffer) == 3).all()


def test_recording_writes_down_and_replay_runs(device):
    buffer = device.alloc(4)
    with device.record() as tape:
        device.fill(buffer, 2)
        device.gemm(False, False, 2, 2, 1, 1.0, buffer, buffer, 1.0, buffer)
    assert not device.download(buffer).any()
    assert len(tape) == 2
    tape.replay()
    assert device.download(buffer).tolist() == [6, 6, 6, 6]


def test_a_launch_over_nothing_is_no_launch(device):
    with device.record() as tape:
        device.fill(device.alloc(0), 1)
        device.gemm(False, False, 0, 3, 2, 1.0, device.alloc(0), device.alloc(6), 0.0, device.alloc(0))
    assert len(tape) == 0


def test_a_program_runs_tapes_and_steps_in_order(device):
    buffer, seen = device.alloc(1), []
    program = Program(device)
    with program.recording():
        device.fill(buffer, 1)
        program.step(lambda: seen.append(float(device.download(buffer)[0])))
        device.fill(buffer, 2)
        program.step(lambda: seen.append(float(device.download(buffer)[0])))
    program.run()
    program.run()
    assert seen == [1, 2, 1, 2]
    assert program.launches == 2


def test_an_error_while_recording_leaves_the_device_usable(device):
    program = Program(device)
    with pytest.raises(KernelError), program.recording():
        device.fill(device.alloc(1), 1)
        device.launch("no_such_kernel", 1)
    buffer = device.alloc(1)
    device.fill(buffer, 1)  # runs at once again
    assert device.download(buffer)[0] == 1
    program.run()  # and the program is empty


def test_threads_may_use_the_device_at_the_same_time(device):
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((200, 200), np.float32) for _ in range(2))
    wrong = []

    def multiply():
        c = device.alloc(200 * 200)
        left, right = uploaded(device, a), uploaded(device, b)
        for _ in range(50):
            device.gemm(False, False, 200, 200, 200, 1.0, left, right, 0.0, c)
            if not np.allclose(device.download(c).reshape(200, 200), a @ b, atol=1e-3):
                wrong.append(1)

    threads = [threading.Thread(target=multiply) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


FORK = """
import os, numpy
from caffe_lite.devices import HostDevice
device = HostDevice(threads=3)
buffer = device.alloc(1 << 20)
device.fill(buffer, 1)  # the workers have started
child = os.fork()
device.fill(buffer, 2 if child else 3)
assert (device.download(buffer) == (2 if child else 3)).all()
if child:
    assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_starts_its_own_workers(tmp_path):
    subprocess.run([sys.executable, "-W", "ignore", "-c", FORK], check=True, timeout=60, cwd=tmp_path)


def test_results_repeat_bit_for_bit(device):
    rng = np.random.default_rng(1)
    a, b = (uploaded(device, rng.standard_normal((300, 300), np.float32)) for _ in range(2))
    results = []
    for _ in range(5):
        c = device.alloc(300 * 300)
        device.gemm(False, True, 300, 300, 300, 1.0, a, b, 0.0, c)
        results.append(device.download(c).tobytes())
    assert len(set(results)) == 1


# -- choices at import


def test_an_instruction_set_that_is_none_lists_those_there_are():
    with pytest.raises(
        DeviceError, match=r"the instruction set 'sse9' is not one this processor has\. Expected one of"
    ):
        HostDevice("sse9")


def test_threads_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert default_threads() == 3
    monkeypatch.setenv("CAFFE_LITE_NUM_THREADS", "5")
    assert default_threads() == 5
    monkeypatch.setenv("CAFFE_LITE_NUM_THREADS", "many")
    with pytest.raises(DeviceError, match=r"must be a number of threads, 1 or more\. Received 'many'"):
        default_threads()
    monkeypatch.delenv("CAFFE_LITE_NUM_THREADS")
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert default_threads() == len(os.sched_getaffinity(0))


# -- primitives


def available():
    best = host_device()._library.host_instruction_set()
    return INSTRUCTION_SETS[: best + 1]


@pytest.mark.parametrize("instruction_set", available())
@pytest.mark.parametrize(
    ("m", "n", "k"),
    [(1, 1, 1), (1, 10, 500), (2, 5, 3), (7, 33, 19), (64, 500, 80), (250, 3, 64), (3, 250, 64), (9, 5, 9001)],
)
def test_gemm_equals_float64_for_all_transposes_betas_and_biases(instruction_set, m, n, k):
    device = HostDevice(instruction_set)
    rng = np.random.default_rng(m * n * k)
    c0, bias = rng.standard_normal((m, n)), rng.standard_normal(n)
    for transpose_a, transpose_b, beta, with_bias in itertools.product((False, True), (False, True), (0, 0.5), (0, 1)):
        a = rng.standard_normal((k, m) if transpose_a else (m, k))
        b = rng.standard_normal((n, k) if transpose_b else (k, n))
        c = uploaded(device, c0)
        bias_buffer = uploaded(device, bias) if with_bias else None
        device.gemm(
            transpose_a, transpose_b, m, n, k, 0.7, uploaded(device, a), uploaded(device, b), beta, c, bias_buffer
        )
        product = (a.T if transpose_a else a) @ (b.T if transpose_b else b)
        expected = 0.7 * product + beta * c0 + with_bias * bias
        np.testing.assert_allclose(device.download(c).reshape(m, n), expected, atol=1e-5 * k + 1e-5)


def convolve(bottom, weights, stride, pad, dilation, group):
    """Convolution from its definition, in float64, one kernel tap at a time."""
    axes = bottom.ndim - 2
    padded = np.pad(bottom, [(0, 0), (0, 0), *((p, p) for p in pad)])
    kernel = weights.shape[2:]
    out = [(padded.shape[2 + i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in range(axes)]
    channels, outputs = bottom.shape[1] // group, weights.shape[0] // group
    top = np.zeros((bottom.shape[0], weights.shape[0], *out))
    for g, tap in itertools.product(range(group), itertools.product(*map(range, kernel))):
        window = tuple(
            slice(t * d, t * d + s * (o - 1) + 1, s) for t, d, s, o in zip(tap, dilation, stride, out, strict=True)
        )
        seen = padded[(slice(None), slice(g * channels, (g + 1) * channels), *window)]
        chosen = weights[(slice(g * outputs, (g + 1) * outputs), slice(None), *tap)]
        top[:, g * outputs : (g + 1) * outputs] += np.einsum("nc...,mc->nm...", seen, chosen)
    return top


# num, channels, num_output, group, image, kernel, stride, pad, dilation
CONVOLUTIONS = [
    (3, 4, 6, 2, (7, 9), (3, 2), (2, 1), (1, 2), (1, 2)),
    (16, 1, 20, 1, (28, 28), (5, 5), (1, 1), (0, 0), (1, 1)),  # partial sums of weights
    (2, 3, 4, 1, (5, 6, 7), (2, 3, 2), (1, 2, 1), (1, 0, 1), (1, 1, 2)),
    (2, 3, 5, 1, (11,), (3,), (2,), (1,), (1,)),
    (1, 8, 16, 1, (5, 5), (1, 1), (1, 1), (0, 0), (1, 1)),  # the image is the columns
    (1, 16, 24, 1, (40, 41), (3, 3), (1, 1), (1, 1), (1, 1)),  # one image shared by all threads
    (2, 90, 400, 1, (9, 9), (3, 3), (2, 2), (1, 1), (1, 1)),  # many weights
    (4, 6, 6, 6, (9, 9), (3, 3), (1, 1), (4, 4), (1, 1)),  # depthwise, padding wider than the kernel
    (1, 2, 3, 1, (300, 200), (5, 5), (1, 1), (2, 2), (1, 1)),  # more columns than fit a block
]


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
@pytest.mark.parametrize("instruction_set", available())
def test_convolution_and_its_gradients_equal_the_definition(instruction_set, case):
    num, channels, num_output, group, image, kernel, stride, pad, dilation = case
    device = HostDevice(instruction_set)
    rng = np.random.default_rng(0)
    bottom = rng.standard_normal((num, channels, *image))
    weights = rng.standard_normal((num_output, channels // group, *kernel))
    bias = rng.standard_normal(num_output)
    expected = convolve(bottom, weights, stride, pad, dilation, group)
    geometry = ConvolutionGeometry(
        num, channels, num_output, group, image, expected.shape[2:], kernel, stride, pad, dilation
    )
    bottom_buffer, weights_buffer, top_buffer = (
        uploaded(device, bottom),
        uploaded(device, weights),
        device.alloc(expected.size),
    )
    device.conv_forward(geometry, bottom_buffer, weights_buffer, uploaded(device, bias), top_buffer)
    biased = expected + bias.reshape(-1, *[1] * len(image))
    np.testing.assert_allclose(device.download(top_buffer).reshape(expected.shape), biased, atol=2e-3)

    # Gradients are adjoints: <conv(v, w), d> = <v, backward_data(d)> and <conv(x, v), d> = <v, backward_weights(d)>.
    diff = rng.standard_normal(expected.shape)
    diff_buffer = uploaded(device, diff)
    bottom_diff, weight_diff = uploaded(device, np.full(bottom.size, 7)), uploaded(device, np.ones(weights.size))
    device.conv_backward_data(geometry, weights_buffer, diff_buffer, bottom_diff)
    device.conv_backward_weights(geometry, bottom_buffer, diff_buffer, weight_diff)
    for _ in range(3):
        direction = rng.standard_normal(bottom.shape)
        seen = np.vdot(direction, device.download(bottom_diff).astype(float).reshape(bottom.shape))
        meant = np.vdot(convolve(direction, weights, stride, pad, dilation, group), diff)
        assert seen == pytest.approx(meant, abs=1e-5 * np.sqrt(bottom.size * diff.size))
        direction = rng.standard_normal(weights.shape)
        seen = np.vdot(direction, device.download(weight_diff).astype(float).reshape(weights.shape) - 1)
        meant = np.vdot(convolve(bottom, direction, stride, pad, dilation, group), diff)
        assert seen == pytest.approx(meant, abs=1e-5 * np.sqrt(weights.size * diff.size))


def test_a_primitive_names_the_buffer_that_is_too_small(device):
    with pytest.raises(KernelError, match=r"gemm: 'b' must be float32 with 6 elements, received Buffer\(float32\[5\]"):
        device.gemm(False, False, 1, 3, 2, 1.0, device.alloc(2), device.alloc(5), 0.0, device.alloc(3))
    with pytest.raises(KernelError, match=r"conv: 'x' must be float32 with 1 elements, received Buffer\(int32"):
        check_sizes("conv", x=(device.alloc(1, np.int32), 1))


def test_a_convolution_over_too_many_axes_is_refused(device):
    ones = (1,) * 9
    geometry = ConvolutionGeometry(1, 1, 1, 1, ones, ones, ones, ones, (0,) * 9, ones)
    with pytest.raises(KernelError, match="a convolution has at most 8 spatial axes, received 9"):
        device.conv_forward(geometry, device.alloc(1), device.alloc(1), None, device.alloc(1))


def test_a_library_of_other_sources_is_refused(monkeypatch):
    monkeypatch.setattr(host_library, "fingerprint", lambda folder: "0" * 64)
    with pytest.raises(DeviceError, match=r"libhost_baseline\.so was built from other kernel sources than those in"):
        host_library._open("baseline")

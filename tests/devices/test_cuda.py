"""The CUDA device over the stand-in driver: memory, launches, tapes, convolutions, errors."""

from __future__ import annotations

import gc
import importlib.util
import itertools
import subprocess
import sys
import threading

import numpy as np
import pytest

from caffe_lite.devices import ConvolutionGeometry, Program, cuda, cuda_graph, host_device
from caffe_lite.devices.cuda import BLOCKS_PER_PROCESSOR, CudaDevice
from caffe_lite.devices.cuda_memory import STAGING_BYTES
from caffe_lite.devices.gemm_table import TF32X3, tile_plan
from caffe_lite.errors import DeviceError, KernelError, OutOfMemoryError


def uploaded(device, array):
    array = np.asarray(array, np.float32)
    buffer = device.alloc(array.size)
    device.upload(buffer, array)
    return buffer


# -- memory


@pytest.mark.parametrize("size", [0, 1, 17, 100003])
def test_new_memory_is_zero(gpu, size):
    assert gpu.download(gpu.alloc(size)).tolist() == [0] * size
    buffer = gpu.alloc(size)
    gpu.fill(buffer, 3)
    del buffer  # its memory is used again
    assert not gpu.download(gpu.alloc(size)).any()


def test_a_view_shares_memory_with_its_buffer(gpu):
    buffer = gpu.alloc(10)
    view = buffer.view(2, 8).view(1, 2)
    gpu.upload(view, np.array([5, 6]))
    assert gpu.download(buffer).tolist() == [0, 0, 0, 5, 6, 0, 0, 0, 0, 0]
    gpu.fill(view, 1)
    assert gpu.download(buffer).sum() == 2
    with pytest.raises(ValueError, match=r"view \[8, 11\) does not lie in a buffer of 10 elements"):
        buffer.view(8, 3)


def test_arrays_larger_than_the_staging_memory_arrive_whole(gpu):
    values = np.arange(STAGING_BYTES + 12345, dtype=np.int32)  # four times as many bytes
    buffer = gpu.alloc(values.size, np.int32)
    gpu.upload(buffer, values)
    np.testing.assert_array_equal(gpu.download(buffer), values)


def test_an_upload_converts_and_may_be_followed_by_a_change_of_its_array(gpu):
    array = np.array([[1.5, 2.5], [3.5, 4.5]])
    buffer = gpu.alloc(4)
    gpu.upload(buffer, array)
    array[...] = 0
    assert gpu.download(buffer).tolist() == [1.5, 2.5, 3.5, 4.5]
    with pytest.raises(ValueError, match="could not broadcast"):
        gpu.upload(buffer, np.zeros(3))


def test_memory_info_counts_what_lives(gpu):
    before = gpu.memory_info().allocated
    buffer = gpu.alloc(1 << 20)
    gpu.host_view(buffer)
    assert gpu.memory_info().allocated == before + (4 << 20)
    assert gpu.memory_info().peak >= before + (4 << 20)
    assert gpu.memory_info().total == 1 << 33
    del buffer
    assert gpu.memory_info().allocated == before


def test_freed_memory_of_the_same_size_is_used_again(gpu):
    pointer = gpu.alloc(54321).pointer
    assert gpu.alloc(54321).pointer == pointer


def test_too_much_memory_says_what_was_asked_for_and_what_there_is(gpu):
    with pytest.raises(
        OutOfMemoryError,
        match=r"the GPU's memory does not suffice: asked for 4611686018427387904 bytes, \d+ of 8589934592 are free\.",
    ):
        gpu.alloc(1 << 60)


def test_memory_that_is_kept_for_later_is_given_back_before_it_is_missed(gpu, machine, monkeypatch):
    del [gpu.alloc(1 << 20) for _ in range(2)][:]
    monkeypatch.setenv("FAKE_CUDA_MEMORY", str(machine.used() + (1 << 20)))
    buffer = gpu.alloc(2 << 20)
    assert not gpu.download(buffer).any()


# -- what Python sees


def test_what_is_written_into_a_host_view_reaches_the_next_launch(gpu):
    source, target = uploaded(gpu, np.arange(5)), gpu.alloc(5)
    gpu.host_view(source)[1] = 7
    gpu.copy(source, target)
    assert gpu.host_view(target).tolist() == [0, 7, 2, 3, 4]


def test_what_is_written_into_a_host_view_reaches_the_next_replay(gpu):
    source, target = uploaded(gpu, np.arange(3)), gpu.alloc(3)
    with gpu.record() as tape:
        gpu.copy(source, target)
    for value in (7, 8):
        gpu.host_view(source)[1] = value
        tape.replay()
        assert gpu.host_view(target).tolist() == [0, value, 2]


def test_views_of_parts_and_of_the_whole_see_each_other(gpu):
    whole = uploaded(gpu, np.arange(6))
    gpu.host_view(whole.view(1, 2))[0] = 10  # written before the whole is downloaded
    array = gpu.host_view(whole)
    assert array.tolist() == [0, 10, 2, 3, 4, 5]
    array[5] = 50
    assert gpu.host_view(whole.view(4, 2)).tolist() == [4, 50]
    assert gpu.download(whole).tolist() == [0, 10, 2, 3, 4, 50]


def test_a_launch_into_one_half_keeps_what_python_wrote_into_the_other(gpu):
    whole = gpu.alloc(4)
    gpu.host_view(whole)[...] = [1, 2, 3, 4]
    gpu.fill(whole.view(0, 2), 9)
    assert gpu.host_view(whole).tolist() == [9, 9, 3, 4]


def test_an_upload_is_newer_than_what_was_written_before(gpu):
    buffer, target = gpu.alloc(3), gpu.alloc(3)
    array = gpu.host_view(buffer)
    array[...] = 1
    gpu.upload(buffer, np.array([4, 5, 6]))
    assert array.tolist() == [4, 5, 6]
    gpu.copy(buffer, target)
    assert gpu.download(target).tolist() == [4, 5, 6]


# -- launches


@pytest.mark.parametrize("size", [1, 255, 256, 257, 100003])
def test_every_element_is_written_once_however_the_work_is_divided(gpu, machine, size):
    buffer = gpu.alloc(size, np.int32)
    gpu.launch("count_pass", size, size, buffer)
    assert (gpu.download(buffer) == 1).all()
    [(name, (blocks, *_))] = machine.launched
    assert name == "count_pass"
    assert blocks == min(-(-size // 256), 2 * BLOCKS_PER_PROCESSOR)  # the stand-in has two multiprocessors


@pytest.mark.parametrize(("channels", "spatial", "threads"), [(10, 1, 32), (7, 33, 256), (3, 500, 512)])
def test_a_row_kernel_has_a_block_a_row_and_threads_for_its_lanes(gpu, machine, channels, spatial, threads):
    top_diff = np.random.default_rng(0).standard_normal((7, channels, spatial))
    bias_diff = uploaded(gpu, np.ones(channels))
    gpu.launch("convolution_backward_bias", channels, channels, 7, spatial, uploaded(gpu, top_diff), bias_diff)
    np.testing.assert_allclose(gpu.download(bias_diff), 1 + top_diff.sum((0, 2)), atol=1e-4)
    assert machine.launched == [("convolution_backward_bias", (channels, 1, 1, threads, 1, 1, 0))]


def test_a_launch_over_nothing_is_no_launch(gpu, machine):
    with gpu.record() as tape:
        gpu.fill(gpu.alloc(0), 1)
    assert len(tape) == 0
    tape.replay()
    assert not machine.launched


def test_arguments_that_do_not_fit_are_refused_before_the_launch(gpu, machine):
    with pytest.raises(
        KernelError, match=r"kernels/device\.cu:\d+: kernel fill: argument 'out' must have SIZE\(n\) = 5"
    ):
        gpu.launch("fill", 5, 5, 1.0, gpu.alloc(4))
    with pytest.raises(
        KernelError, match=r"kernel fill: expected buffers on GPU 0 \(stand-in\), received Buffer\(float32"
    ):
        gpu.launch("fill", 4, 4, 1.0, host_device().alloc(4))
    with pytest.raises(KernelError, match=r"kernel gemv_rows is launched by its primitive only\."):
        args = (1, 1, 1, 1, 1, 1, 1, 1, 0), 1.0, 0.0, *(gpu.alloc(1) for _ in range(4))
        gpu.launch("gemv_rows", 1, *args)
    gpu.synchronize()
    assert not machine.launched


def test_results_repeat_bit_for_bit(gpu):
    top_diff = uploaded(gpu, np.random.default_rng(0).standard_normal(4 * 1000))
    sums = []
    for _ in range(5):
        bias_diff = gpu.alloc(1)
        gpu.launch("convolution_backward_bias", 1, 1, 4, 1000, top_diff, bias_diff)
        sums.append(gpu.download(bias_diff).tobytes())
    assert len(set(sums)) == 1


# -- tapes


def test_recording_writes_down_and_replay_runs(gpu):
    buffer, target = gpu.alloc(4), gpu.alloc(4)
    with gpu.record() as tape:
        gpu.fill(buffer, 2)
        gpu.copy(buffer, target)
        gpu.fill(buffer, 3)
    assert not gpu.download(buffer).any()
    assert len(tape) == 3
    tape.replay()
    gpu.fill(target.view(0, 1), 5)
    assert gpu.download(target).tolist() == [5, 2, 2, 2]
    tape.replay()
    assert gpu.download(target).tolist() == [2, 2, 2, 2]
    assert gpu.download(buffer).tolist() == [3, 3, 3, 3]


def test_a_tape_keeps_the_memory_that_it_writes_to(gpu):
    with gpu.record() as tape:
        gpu.fill(gpu.alloc(77777), 1)  # and nobody else holds the buffer
    other = gpu.alloc(77777)
    tape.replay()
    assert not gpu.download(other).any()


def test_memory_may_be_allocated_and_filled_while_a_tape_is_recorded(gpu):
    with gpu.record() as tape:
        source, target = uploaded(gpu, np.arange(4)), gpu.alloc(4)
        gpu.copy(source, target)
        gpu.host_view(source)[0] = 9
    tape.replay()
    assert gpu.download(target).tolist() == [9, 1, 2, 3]


def test_a_program_runs_tapes_and_steps_in_order(gpu):
    buffer, seen = gpu.alloc(1), []
    program = Program(gpu)
    with program.recording():
        gpu.fill(buffer, 1)
        program.step(lambda: seen.append(float(gpu.download(buffer)[0])))
        gpu.fill(buffer, 2)
        program.step(lambda: seen.append(float(gpu.host_view(buffer)[0])))
    program.run()
    program.run()
    assert seen == [1, 2, 1, 2]
    assert program.launches == 2


def test_an_error_while_recording_leaves_the_device_usable(gpu):
    program = Program(gpu)
    with pytest.raises(KernelError, match="there is no kernel 'no_such_kernel'"), program.recording():
        gpu.fill(gpu.alloc(1), 1)
        gpu.launch("no_such_kernel", 1)
    buffer = gpu.alloc(1)
    gpu.fill(buffer, 1)  # runs at once again
    assert gpu.download(buffer)[0] == 1
    program.run()  # and the program is empty


def test_a_graph_is_destroyed_with_its_tape(gpu, monkeypatch):
    with gpu.record() as tape:
        gpu.fill(gpu.alloc(1), 1)
    graph, destroyed, destroy = tape._graph, [], cuda_graph.Graph.destroy
    monkeypatch.setattr(cuda_graph.Graph, "destroy", lambda graph: destroyed.append(graph) or destroy(graph))
    del tape
    gc.collect()
    assert graph not in destroyed
    gpu.fill(gpu.alloc(1), 1)  # the next launch, whose thread has the context
    assert graph in destroyed
    assert not graph.handle


def test_threads_take_turns(gpu):
    wrong = []

    def work(value):
        buffer, target = gpu.alloc(1000), gpu.alloc(1000)
        for _ in range(20):
            gpu.fill(buffer, value)
            gpu.copy(buffer, target)
            if not (gpu.download(target) == value).all():
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(value,)) for value in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# -- matrix products


@pytest.mark.parametrize(("m", "n", "k"), [(1, 10, 50), (2, 5, 3), (50, 33, 19), (64, 3, 200), (3, 1, 500), (2, 3, 0)])
def test_gemm_equals_float64_for_all_transposes_betas_and_biases(gpu, m, n, k):
    rng = np.random.default_rng(m * n * k)
    c0, bias = rng.standard_normal((m, n)), rng.standard_normal(n)
    for transpose_a, transpose_b, beta, with_bias in itertools.product((False, True), (False, True), (0, 0.5), (0, 1)):
        a = rng.standard_normal((k, m) if transpose_a else (m, k))
        b = rng.standard_normal((n, k) if transpose_b else (k, n))
        c = uploaded(gpu, c0)
        gpu.gemm(
            *(transpose_a, transpose_b, m, n, k, 0.7, uploaded(gpu, a), uploaded(gpu, b), beta, c),
            uploaded(gpu, bias) if with_bias else None,
        )
        product = (a.T if transpose_a else a) @ (b.T if transpose_b else b)
        expected = 0.7 * product + beta * c0 + with_bias * bias
        np.testing.assert_allclose(gpu.download(c).reshape(m, n), expected, atol=1e-4)


def test_a_product_whose_k_is_divided_keeps_its_workspace_on_a_tape(gpu, machine):
    rng = np.random.default_rng(0)
    a, b, c = rng.standard_normal((32, 2000)), rng.standard_normal((2000, 32)), gpu.alloc(32 * 32)
    with gpu.record() as tape:
        gpu.gemm(False, False, 32, 32, 2000, 1.0, uploaded(gpu, a), uploaded(gpu, b), 0.0, c)
    others = [gpu.alloc(size * 32 * 32) for size in range(2, 65)]  # as large as any workspace
    tape.replay()
    np.testing.assert_allclose(gpu.download(c).reshape(32, 32), a @ b, atol=1e-3)
    assert [name for name, _ in machine.launched][1:] == ["gemm_split_k_reduce"]
    assert not any(gpu.download(other).any() for other in others)


def test_a_kernel_is_given_more_than_48_kib_of_shared_memory(gpu, machine, monkeypatch):
    monkeypatch.setattr(machine, "idle", {"gemm_tf32x3_nn"})  # tests/emulation runs it
    monkeypatch.setattr(cuda, "_plan", lambda gemm, *others: tile_plan(gemm, TF32X3, gemm.k, 2))
    gpu.gemm(False, False, 128, 128, 64, 1.0, gpu.alloc(128 * 64), gpu.alloc(64 * 128), 0.0, gpu.alloc(128 * 128))
    gpu.synchronize()
    assert machine.launched == [("gemm_tf32x3_nn", (1, 1, 1, TF32X3.threads, 1, 1, TF32X3.shared_bytes))]
    assert TF32X3.shared_bytes > 48 << 10


def test_a_product_names_the_buffer_that_is_too_small(gpu):
    with pytest.raises(
        KernelError, match=r"gemm: 'b' must be float32 with 6 elements, received Buffer\(float32\[5\] on G"
    ):
        gpu.gemm(False, False, 1, 3, 2, 1.0, gpu.alloc(2), gpu.alloc(5), 0.0, gpu.alloc(3))
    with pytest.raises(KernelError, match=r"kernel gemv_\w+: expected buffers on GPU 0 \(stand-in\), received Buffer"):
        gpu.gemm(False, False, 1, 3, 2, 1.0, gpu.alloc(2), host_device().alloc(6), 0.0, gpu.alloc(3))


# -- convolutions

# num, channels, num_output, group, image, kernel, stride, pad, dilation
CONVOLUTIONS = [
    (3, 4, 6, 2, (7, 9), (3, 2), (2, 1), (1, 2), (1, 2)),
    (2, 3, 4, 1, (5, 6, 7), (2, 3, 2), (1, 2, 1), (1, 0, 1), (1, 1, 2)),
    (2, 3, 5, 1, (11,), (3,), (2,), (1,), (1,)),
    (4, 6, 6, 6, (9, 9), (3, 3), (1, 1), (4, 4), (1, 1)),  # depthwise, padding wider than the kernel
    (1, 2, 3, 1, (5, 5), (2, 2), (3, 3), (0, 0), (1, 1)),  # positions that no window reaches
]


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_a_convolution_and_its_gradients_equal_the_hosts(gpu, case, with_bias):
    num, channels, num_output, group, image, kernel, stride, pad, dilation = case
    out = tuple(
        (i + 2 * p - d * (k - 1) - 1) // s + 1
        for i, k, s, p, d in zip(image, kernel, stride, pad, dilation, strict=True)
    )
    geometry = ConvolutionGeometry(num, channels, num_output, group, image, out, kernel, stride, pad, dilation)
    rng = np.random.default_rng(0)
    bottom, top_diff = rng.standard_normal((num, channels, *image)), rng.standard_normal((num, num_output, *out))
    weights, bias = rng.standard_normal((num_output, channels // group, *kernel)), rng.standard_normal(num_output)
    results = []
    for device in (host_device(), gpu):
        x, w, d = (uploaded(device, array) for array in (bottom, weights, top_diff))
        top, bottom_diff = uploaded(device, np.full(d.size, 7)), uploaded(device, np.full(x.size, 7))
        weight_diff = uploaded(device, np.ones(w.size))
        device.conv_forward(geometry, x, w, uploaded(device, bias) if with_bias else None, top)
        device.conv_backward_data(geometry, w, d, bottom_diff)
        device.conv_backward_weights(geometry, x, d, weight_diff)
        results.append([device.download(buffer) for buffer in (top, bottom_diff, weight_diff)])
    for expected, received in zip(*results, strict=True):
        np.testing.assert_allclose(received, expected, atol=1e-4)


def test_a_convolution_over_more_than_three_axes_is_refused(gpu):
    ones = (1,) * 4
    geometry = ConvolutionGeometry(1, 1, 1, 1, ones, ones, ones, ones, (0,) * 4, ones)
    with pytest.raises(KernelError, match="a convolution on a GPU has at most 3 spatial axes, received 4"):
        gpu.conv_forward(geometry, gpu.alloc(1), gpu.alloc(1), None, gpu.alloc(1))


# -- what goes wrong


def test_a_machine_without_a_gpu_is_told_to_use_the_cpu(gpu, monkeypatch):
    monkeypatch.setenv("FAKE_CUDA_GPUS", "0")
    with pytest.raises(DeviceError, match=r"finds no GPU that it can use \(.*no CUDA-capable device is detected\)"):
        CudaDevice()
    monkeypatch.setenv("FAKE_CUDA_GPUS", "1")
    CudaDevice()


@pytest.mark.parametrize(("count", "number", "expected"), [(1, 1, "0, the only one"), (2, -1, "0 to 1")])
def test_a_wrong_device_number_lists_the_right_ones(gpu, monkeypatch, count, number, expected):
    monkeypatch.setenv("FAKE_CUDA_GPUS", str(count))
    with pytest.raises(
        DeviceError, match=rf"there is no GPU {number}\. Expected {expected}\. See what nvidia-smi says"
    ):
        CudaDevice(number)


def test_an_architecture_that_is_too_old_is_named(gpu, monkeypatch):
    monkeypatch.setenv("FAKE_CUDA_CAPABILITY", "61")
    with pytest.raises(
        DeviceError, match=r"GPU 0 \(stand-in\) has compute capability 6\.1\. Expected 7\.5 to 12\.1\. Ch"
    ):
        CudaDevice()


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("No module named 'pycuda'", r"PyCUDA, which cannot be imported \(No module.*pip install 'caffe-lite\[cuda\]'"),
        (
            "libcuda.so.1: cannot open shared object file",
            r"no NVIDIA driver \(libcuda.so.1: cannot.*Install it, or use",
        ),
    ],
)
def test_what_cannot_be_imported_is_said_with_what_to_install(monkeypatch, missing, message):
    def fail(name):
        raise ImportError(missing)

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(DeviceError, match=message):
        CudaDevice()


def test_a_driver_that_is_older_than_the_compiler_is_to_be_updated(gpu, monkeypatch):
    device = CudaDevice()
    monkeypatch.setenv("FAKE_CUDA_CAPABILITY", "120")  # so that it does not take what was compiled for 7.5
    with pytest.raises(
        DeviceError,
        match=r"driver, made for CUDA \d+\.\d, cannot load .*nvcc \(CUDA [\d.]+\): .*no kernel image.* Update",
    ):
        device.fill(device.alloc(1), 1)


def test_a_kernel_that_fails_is_an_error_of_the_next_call_that_waits(gpu, machine, monkeypatch):
    monkeypatch.setattr(machine, "failing", "fill")
    gpu.fill(gpu.alloc(4), 1)
    with pytest.raises(DeviceError, match=r"GPU 0 \(stand-in\) has failed: .*unspecified launch failure\. Start again"):
        gpu.synchronize()


def test_waiting_for_each_launch_names_the_kernel_that_fails(gpu, machine, monkeypatch):
    monkeypatch.setenv("CAFFE_LITE_SYNC", "1")
    device = CudaDevice()
    monkeypatch.setattr(machine, "failing", "copy")
    source, target = device.alloc(4), device.alloc(4)
    with device.record() as tape:
        device.fill(source, 1)
        device.copy(source, target)
    for run in (lambda: device.copy(source, target), tape.replay):
        with pytest.raises(DeviceError, match=r"GPU 0 \(stand-in\): kernel copy has failed: .*launch failure\. Start"):
            run()
    assert device.download(source).tolist() == [1, 1, 1, 1]


def test_a_driver_that_refuses_a_graph_is_quoted(gpu, monkeypatch):
    with gpu._session, pytest.raises(DeviceError, match=r"\(cuStreamBeginCapture_v2\): operation not permitted when"):
        cuda_graph.Graph(type("DefaultStream", (), {"handle": 0}), lambda: None)


EXIT = """
import pathlib, sys
sys.path[:0] = {path!r}
from fake_cuda import fake_cuda
machine = fake_cuda.install(pathlib.Path({folder!r}))
from caffe_lite.devices.cuda import CudaDevice
device = CudaDevice()
buffer = device.alloc(5)
view = device.host_view(buffer)
"""


def test_python_ends_quietly_with_a_device_in_use(machine, tmp_path):
    code = EXIT.format(path=sys.path, folder=str(tmp_path))
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")

"""The emulation does what CUDA does, and shows each mistake that CUDA leaves undefined."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from caffe_lite import resources
from caffe_lite.errors import KernelError

from . import emulation
from .emulation import EmulationError

HERE = pathlib.Path(__file__).parent
SOURCES = [HERE / "features.cu", HERE / "mistakes.cu"]
SEEDS = range(1, 6)


@pytest.fixture(scope="module")
def features(library_folder):
    return emulation.build(SOURCES, library_folder)


@pytest.fixture(scope="module")
def mistakes(library_folder):
    return emulation.build(SOURCES, library_folder)


def normals(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# -- features


def test_threads_know_their_place_in_grid_and_block(features):
    grid, block = (3, 2, 4), (5, 3, 2)
    out = np.empty(24 * 30, np.int32)
    features.launch("indices", grid, block, [out.size, out])
    expected = [
        (bx * 10 + by) * 10 + bz + 1000 * ((x * 10 + y) * 10 + z)
        for bz in range(4) for by in range(2) for bx in range(3)
        for z in range(2) for y in range(3) for x in range(5)
    ]  # fmt: skip
    assert out.tolist() == expected


def test_a_barrier_separates_writing_and_reading_shared_arrays(features):
    x, out = normals(1, 7 * 64), np.empty(7 * 64, np.float32)
    features.launch("reverse", 7, 64, [x.size, x, out])
    np.testing.assert_array_equal(out.reshape(7, 64), x.reshape(7, 64)[:, ::-1])


def test_dynamic_shared_memory_has_the_size_of_the_launch(features):
    x, out = normals(1, 3 * 4 * 40), np.empty(3 * 4 * 40, np.float32)
    features.launch("reverse_dynamic", 3, 40, [x.size, x, out], shared_bytes=40 * 16)
    np.testing.assert_array_equal(out.reshape(3, 160), x.reshape(3, 160)[:, ::-1])
    with pytest.raises(EmulationError, match="the launch gives no dynamic shared memory"):
        features.launch("reverse_dynamic", 3, 40, [x.size, x, out])


def test_shuffles_take_from_the_lane_that_each_of_them_names(features):
    x = np.arange(64, dtype=np.int32) * 7
    out = np.empty((64, 5), np.int32)
    features.launch("shuffles", 1, 64, [64, x, out])
    lane = np.arange(64)
    first = lane // 32 * 32
    sources = [
        first + 5,
        lane ^ 3,
        np.where(lane % 32 < 28, lane + 4, lane),
        np.where(lane % 8 >= 2, lane - 2, lane),
        lane ^ 16,
    ]
    for column, source in enumerate(sources):
        np.testing.assert_array_equal(out[:, column], x[source])


def test_parts_of_a_warp_shuffle_on_their_own(features):
    x, out = np.arange(32, dtype=np.int32), np.empty(32, np.int32)
    features.launch("halves", 1, 32, [32, x, out])
    assert out.tolist() == [120] * 16 + [31] * 16


@pytest.mark.parametrize("positive", [[], [0, 5, 31], list(range(32))])
def test_votes_count_the_lanes_of_a_warp(features, positive):
    x, out = np.zeros(32, np.int32), np.zeros(3, np.uint32)
    x[positive] = 1
    features.launch("votes", 1, 32, [32, x, out])
    assert out.tolist() == [sum(1 << i for i in positive), bool(positive), len(positive) == 32]


def test_atomics_lose_nothing_between_blocks_on_several_os_threads(features):
    counters, total = np.zeros(3, np.int32), np.zeros(1, np.float32)
    features.launch("count_threads", 100, 48, [7, counters, total])
    assert counters.tolist() == [4800, 4799, 107]
    assert total[0] == 2400


@pytest.mark.parametrize("threads", [32, 96, 1024])
def test_the_reductions_of_the_dialect_combine_a_block(features, threads):
    x, out = normals(threads, threads) * 10, np.empty(4, np.float32)
    features.launch("reductions", 1, threads, [threads, x, out])
    np.testing.assert_allclose(out, [x.sum(dtype=float), x.max(), (x > 0).sum(), int(x.min())], rtol=1e-4, atol=1e-4)
    x[threads // 2] = np.nan
    features.launch("reductions", 1, threads, [threads, np.nan_to_num(x, nan=1e9), out])
    assert out[1] == np.float32(1e9)


@pytest.mark.parametrize("columns", [128, 125, 2])
@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_asynchronous_copies_arrive_in_groups_with_zeros_behind_the_edge(features, steps, columns):
    x, out = normals(steps, steps, 128), np.empty(128, np.float32)
    features.launch("pipeline", 1, 32, [steps, columns, x, out])
    expected = np.where(np.arange(128) < columns, x.astype(float).sum(0), 0)
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_mma_multiplies_tiles_of_tf32_in_their_fragment_layout(features):
    a, b = np.zeros((16, 24), np.float32), np.zeros((24, 8), np.float32)
    a[:] = np.random.default_rng(1).integers(-20, 20, a.shape)
    b[:] = np.random.default_rng(2).integers(-20, 20, b.shape)
    out = np.empty((16, 8), np.float32)
    features.launch("multiply", 1, 32, [24, 1, a, b, out])
    np.testing.assert_array_equal(out, a @ b)  # whole numbers: exact


def test_mma_reads_no_more_than_tf32_of_its_operands(features):
    a, b, out = np.zeros((16, 8), np.float32), np.zeros((8, 8), np.float32), np.empty((16, 8), np.float32)
    a[3, 5], b[5, 2] = 1 + 2**-10 + 2**-11 + 2**-20, 1
    features.launch("multiply", 1, 32, [8, 0, a, b, out])
    assert out[3, 2] == 1 + 2**-10
    features.launch("multiply", 1, 32, [8, 1, a, b, out])
    assert out[3, 2] == 1 + 2**-9
    assert np.count_nonzero(out) == 1


def test_mma_cuts_its_sums_off_where_a_float_ends(features):
    a, b, out = np.zeros((16, 16), np.float32), np.zeros((16, 8), np.float32), np.empty((16, 8), np.float32)
    a[0, 0], a[0, 8], b[:, 0] = 1, 2**-24 + 2**-25, 1
    features.launch("multiply", 1, 32, [16, 1, a, b, out])
    assert out[0, 0] == 1  # rounded it would be 1 + 2**-23


def test_rounding_to_tf32_is_to_nearest_with_ties_away_from_zero(features):
    step = 2.0**-10
    x = np.array([1, 1 + step, 1 + 0.49 * step, 1 + 0.5 * step, -1 - 1.5 * step, np.inf, -np.inf, 0], np.float32)
    bits = np.empty(8, np.uint32)
    features.launch("round_tf32", 1, 32, [8, x, bits])
    expected = np.array([1, 1 + step, 1, 1 + step, -1 - 2 * step, np.inf, -np.inf, 0], np.float32)
    np.testing.assert_array_equal(bits.view(np.float32), expected)
    features.launch("round_tf32", 1, 32, [1, np.array([np.nan], np.float32), bits])
    assert np.isnan(bits.view(np.float32)[0])


def order(library, seed, os_threads=1):
    library.seed, library.os_threads = seed, os_threads
    ticket = np.empty(20 * 32, np.int32)
    library.launch("tickets", 20, 32, [ticket.size, np.zeros(1, np.int32), ticket])
    library.os_threads = 2
    assert sorted(ticket) == list(range(640))
    return ticket


def test_blocks_and_threads_run_in_an_order_that_the_seed_decides(features):
    first = order(features, 1)
    np.testing.assert_array_equal(first, order(features, 1))
    assert (first != order(features, 2)).mean() > 0.9
    blocks, threads = first.reshape(20, 32)[:, 0] // 32, first.reshape(20, 32) % 32
    assert (np.diff(blocks) < 0).any()
    assert (np.diff(threads, axis=1) < 0).any()


# -- mistakes


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("kernel", "rounds"), [("no_barrier", 1), ("no_second_barrier", 2), ("no_syncwarp", 1), ("unwritten", 0)]
)
def test_a_missing_barrier_changes_the_result(mistakes, kernel, rounds, seed):
    mistakes.seed = seed
    x, out = normals(seed, max(rounds, 1), 64), np.empty((max(rounds, 1), 64), np.float32)
    mistakes.launch(kernel, 1, 64, [64, *([x] if rounds else []), out])
    right = x.reshape(-1, 32, 2)[..., ::-1].reshape(x.shape) if kernel == "no_syncwarp" else x[:, ::-1]
    wrong = out != right
    assert wrong.sum() > 10
    if rounds == 1:
        assert np.isnan(out[wrong]).all()  # read before anything was written


def test_one_warp_gets_ahead_of_the_others_where_nothing_holds_it(mistakes):
    x, wrong = np.ones(64, np.float32), 0
    for mistakes.seed in range(20):
        out = np.zeros(2, np.float32)
        mistakes.launch("one_warp_ahead", 1, 64, [64, x, out])
        wrong += out.tolist() != [64, 128]
    assert wrong >= 3


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kernel", ["no_wait", "no_commit", "no_barrier_after_wait", "copy_over_what_is_read"])
def test_asynchronous_copies_that_are_not_waited_for_change_the_result(mistakes, kernel, seed):
    mistakes.seed = seed
    x, out = normals(seed, 128), np.empty(128, np.float32)
    mistakes.launch(kernel, 1, 32, [128, x, out])
    assert np.isnan(out).sum() > 10


@pytest.mark.parametrize(
    ("kernel", "threads", "message"),
    [
        (
            "barrier_for_some",
            64,
            r"kernel barrier_for_some, seed \d+: block \([012], 0, 0\): not every thread gets there: "
            r"threads 0-31 wait at __syncthreads \(emulation/mistakes.cu:48\); threads 32-63 have returned",
        ),
        ("two_barriers", 4, r"threads 0, 2 wait at __syncthreads \(.*mistakes.cu:56\); threads 1, 3 wait at .*:54\)"),
        (
            "shuffle_for_some",
            32,
            r"0-15 wait at __shfl_xor_sync \(.*\) with mask 0xffffffff; threads 16-31 wait at __syncwarp",
        ),
        ("mask_without_self", 32, r"its mask does not name the thread itself at __shfl_sync"),
        ("large_array", 64, "more than 49152 bytes of shared arrays, with 'tile'"),
        ("trap", 64, r"thread \(\d+, 0, 0\): __trap"),
    ],
)
def test_divergence_is_an_error_that_names_kernel_block_threads_and_line(mistakes, kernel, threads, message):
    out = np.zeros(64, np.int32 if kernel in ("shuffle_for_some", "mask_without_self") else np.float32)
    for _ in SEEDS:
        with pytest.raises(EmulationError, match=message):
            mistakes.launch(kernel, 3, threads, [64, out])


def test_an_asynchronous_copy_must_be_aligned_and_go_to_shared_memory(mistakes):
    x, out = np.zeros(128, np.float32), np.zeros(256, np.float32)
    start = -out.ctypes.data % 16 // 4
    with pytest.raises(EmulationError, match=r"cp\.async of 16 bytes with an address that is no multiple of that"):
        mistakes.launch("misaligned_copy", 1, 32, [128, x, out])
    with pytest.raises(EmulationError, match=r"cp\.async to an address outside of the block's shared memory"):
        mistakes.launch("copy_to_global", 1, 32, [128, x, out[start : start + 128]])


def test_after_an_error_the_next_launch_runs(mistakes, features):
    test_divergence_is_an_error_that_names_kernel_block_threads_and_line(mistakes, "trap", 64, "__trap")
    out = np.ones(64, np.float32)
    mistakes.launch("trap", 1, 64, [64, out])


def test_launches_that_cuda_would_refuse_are_refused(features):
    x, out = np.zeros(128, np.float32), np.zeros(128, np.float32)
    for grid, block, shared, message in [
        (1, 128, 0, "a block of 128 threads; __launch_bounds__ says at most 64"),
        (1, (2048, 1), 0, "a block of 2048 x 1 x 1 threads; expected 1 to 1024"),
        ((1, 0), 64, 0, "a grid of 1 x 0 x 1 blocks"),
        (1, 64, 300000, "300000 bytes of shared memory; a block has at most 232448"),
    ]:
        with pytest.raises(EmulationError, match=message):
            features.launch("reverse", grid, block, [128, x, out], shared)
    with pytest.raises(KernelError, match=r"argument 'out' must have SIZE\(n\) = 128 elements"):
        features.launch("reverse", 2, 64, [128, x, out[:100]])


def test_a_kernel_that_does_not_compile_is_reported_at_its_own_line(library_folder, tmp_path):
    source = tmp_path / "wrong.cu"
    source.write_text('// A kernel.\nextern "C" __global__ void wrong(int n, float* x SIZE(n)) {\n  x[0] = y;\n}\n')
    with pytest.raises(EmulationError, match=r"exit code 1 of: g\+\+ .*\n(.*\n)*.*/wrong.cu:3:10: error: 'y'|‘y’"):
        emulation.build([source], library_folder)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
@pytest.mark.parametrize(("architecture", "has_instructions"), [("sm_75", False), ("sm_80", True)])
def test_nvcc_takes_the_same_calls_and_makes_instructions_of_them(tmp_path, architecture, has_instructions):
    dialect = resources.path("kernels/dialect.cuh").read_text().replace("#pragma once\n", "\n")
    features = (HERE / "features.cu").read_text()
    (tmp_path / "pasted.cu").write_text(f'#line 1 "dialect.cuh"\n{dialect}\n#line 1 "features.cu"\n{features}')
    options = ["-std=c++17", f"-arch={architecture}", "-Werror", "all-warnings"]
    command = ["nvcc", *options, "-ptx", "-o", "out.ptx", "pasted.cu"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    ptx = (tmp_path / "out.ptx").read_text()
    for instruction in [
        "cp.async.cg.shared.global",
        "cp.async.commit_group",
        "cp.async.wait_group",
        "cvt.rna.tf32.f32",
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32",
    ]:
        assert (instruction in ptx) == has_instructions, instruction


# -- under AddressSanitizer, in processes of their own

RUN_ONE = """
import pathlib, sys
import numpy as np
sys.path.insert(0, {tests!r})
from emulation import emulation
library = emulation.build([pathlib.Path(source) for source in {sources!r}], pathlib.Path({folder!r}))
library.launch({kernel!r}, 1, 64, [64, np.zeros(64, np.float32)], shared_bytes={shared})
"""


@pytest.mark.parametrize(
    ("kernel", "shared", "report"),
    [
        ("past_shared", 0, "heap-buffer-overflow"),
        ("past_inner_bound", 0, "index 64 out of bounds|index 127 out of bounds|index .* out of bounds for type"),
        ("past_dynamic", 256, "heap-buffer-overflow"),
        ("past_global", 0, "heap-buffer-overflow"),
        ("misaligned_vector", 0, "misaligned address"),
    ],
)
def test_the_sanitizers_find_accesses_outside_of_arrays(library_folder, kernel, shared, report):
    code = RUN_ONE.format(
        tests=str(HERE.parent),
        sources=[str(source) for source in SOURCES],
        folder=str(library_folder),
        kernel=kernel,
        shared=shared,
    )
    result = subprocess.run(
        [sys.executable, "-c", code], env=emulation.sanitizer_environment(), capture_output=True, text=True, check=False
    )
    assert result.returncode != 0
    assert re.search(report, result.stderr), result.stderr
    assert re.search(r"mistakes\.cu:\d+", result.stderr), result.stderr


@pytest.mark.skipif(emulation.SANITIZE in os.environ, reason="runs in the other process")
def test_what_is_right_stays_right_under_the_sanitizers(library_folder):
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-k",
        "not sanitizers and not compile and not nvcc",
        __file__,
    ]
    result = subprocess.run(command, env=emulation.sanitizer_environment(), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr

"""Every matrix-product kernel, run by the emulation, against numpy in float64."""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from caffe_lite import resources
from caffe_lite.devices import gemm_table
from caffe_lite.devices.gemm_table import LARGE, SMALL, TF32, TF32X3, VARIANTS, Gemm, plan, tile_plan

from . import emulation

TRANSPOSES = list(itertools.product((False, True), repeat=2))
CAPABILITIES = [(7, 5), (8, 0), (8, 6), (9, 0), (10, 0), (12, 0), (12, 1)]
MULTIPROCESSORS = 20
# m, n, k: each around the kernels' steps (8, 16) and tiles (32, 128) at least once.
SIZES = [
    *((1, 7, 16), (2, 1, 129), (7, 17, 1), (16, 16, 16), (17, 129, 7), (31, 33, 200), (32, 32, 8), (33, 200, 17)),
    *((127, 16, 129), (128, 128, 64), (129, 127, 33), (200, 7, 127), (129, 2, 128), (127, 31, 2), (16, 200, 128)),
]
WORDS = ("STAGES", "DEPTH", "TILE")  # of gemm_tensor.cu


@pytest.fixture(scope="module")
def library(library_folder):
    files = ("gemm_float32", "gemm_tensor", "gemv")
    paths = [resources.path(f"kernels/{file}.cu") for file in files]
    return emulation.build(paths, library_folder)


@dataclasses.dataclass
class Operands:
    """The arrays of one product.  `whole` is C with what lies between its rows."""

    a: np.ndarray
    b: np.ndarray
    bias: np.ndarray
    whole: np.ndarray
    gemm: Gemm

    def expected(self):
        """C in float64."""
        op_a, op_b = (x.astype(np.float64) for x in self.factors())
        c = self.gemm.alpha * (op_a @ op_b)
        if self.gemm.beta:
            c += self.gemm.beta * self.c().astype(np.float64)
        return c + self.bias if self.gemm.has_bias else c

    def factors(self):
        """op(A) and op(B), without padding."""
        gemm, (a, b) = self.gemm, (self.a, self.b)
        a = a[:, : gemm.m].T if gemm.transpose_a else a[:, : gemm.k]
        return a, b[:, : gemm.k].T if gemm.transpose_b else b[:, : gemm.n]

    def c(self):
        return self.whole[:, : self.gemm.n]


def operands(gemm, seed, draw, shift=0):
    """Return arrays for `gemm`, NaN between their rows, each beginning `shift` elements behind an aligned address."""
    gemm, rng = gemm.dense(), np.random.default_rng(seed)

    def matrix(rows, columns, ld):
        memory = np.full(rows * ld + 8, np.nan, np.float32)
        start = -memory.ctypes.data // 4 % 4 + shift
        array = memory[start : start + rows * ld].reshape(rows, ld)
        array[:, :columns] = draw(rng, (rows, columns))
        return array

    a = matrix(*((gemm.k, gemm.m) if gemm.transpose_a else (gemm.m, gemm.k)), gemm.lda)
    b = matrix(*((gemm.n, gemm.k) if gemm.transpose_b else (gemm.k, gemm.n)), gemm.ldb)
    whole = matrix(gemm.m, gemm.n if gemm.beta else 0, gemm.ldc)  # C is NaN where it must not be read
    return Operands(a, b, draw(rng, gemm.n).astype(np.float32), whole, gemm)


def whole_numbers(rng, shape):
    """So small that every kernel's every sum is exact, whatever its order."""
    return rng.integers(-4, 5, shape)


def normal(rng, shape):
    return rng.standard_normal(shape)


def positive(rng, shape):
    return abs(rng.standard_normal(shape))


def run(library, product_plan, x):
    """Run the launches on a copy of C, and return it."""
    c = x.whole.copy() if x.whole.ctypes.data % 16 == 0 else np.r_[np.float32(0), x.whole.reshape(-1)][1:]
    c = c.reshape(-1)
    buffers = {
        "a": x.a.reshape(-1),
        "b": x.b.reshape(-1),
        "bias": x.bias,
        "c": c,
        "workspace": np.full(product_plan.workspace, np.nan, np.float32),
    }
    for launch in product_plan.launches:
        library.launch(launch.kernel, launch.grid, launch.block, launch.arguments(buffers), launch.shared_bytes)
    c = c.reshape(x.gemm.m, x.gemm.ldc)
    np.testing.assert_array_equal(c[:, x.gemm.n :], x.whole[:, x.gemm.n :], "between the rows of C")
    return c[:, : x.gemm.n]


def forms(index, transpose_a, transpose_b, m, n, k):
    """Return one of several forms of a product: alpha, beta, bias, leading dimensions."""
    alpha, beta, has_bias = [(1, 0, False), (0.5, 2, True), (-1, 1, False), (2, 0, True)][index % 4]
    gemm = Gemm(transpose_a, transpose_b, m, n, k, alpha, beta, has_bias).dense()
    pad_a, pad_b, pad_c = [(0, 0, 0), (5, 3, 1), (-gemm.lda % 4, -gemm.ldb % 4, -gemm.ldc % 4)][index % 3]
    return dataclasses.replace(gemm, lda=gemm.lda + pad_a, ldb=gemm.ldb + pad_b, ldc=gemm.ldc + pad_c)


@pytest.mark.parametrize(("transpose_a", "transpose_b"), TRANSPOSES)
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_a_product_of_whole_numbers_is_exact(library, variant, transpose_a, transpose_b):
    for index, (m, n, k) in enumerate(SIZES):
        gemm = forms(index + transpose_a + 2 * transpose_b, transpose_a, transpose_b, m, n, k)
        x = operands(gemm, index, whole_numbers, shift=index % 2)
        part = k if index % 3 else 16
        np.testing.assert_array_equal(run(library, tile_plan(gemm, variant, part, MULTIPROCESSORS), x), x.expected())


@pytest.mark.parametrize(("transpose_a", "transpose_b"), TRANSPOSES)
@pytest.mark.parametrize("size", [1, 7, 31, 32, 33, 128, 200, 1031])
def test_a_product_with_a_vector_is_exact(library, size, transpose_a, transpose_b):
    for index, k in enumerate((1, 7, 31, 32, 64, 129, 1200)):
        for m, n in ((size, 1), (1, size)):
            gemm = forms(index + m, transpose_a, transpose_b, m, n, k)
            x = operands(gemm, index, whole_numbers, shift=index % 2)
            made = plan(gemm, (9, 0), MULTIPROCESSORS)
            assert made.launches[0].kernel in ("gemv_rows", "gemv_columns")
            np.testing.assert_array_equal(run(library, made, x), x.expected())


@pytest.mark.parametrize("k", [16, 100, 1000])
@pytest.mark.parametrize("draw", [normal, positive])
def test_tf32x3_is_as_accurate_as_float32(library, draw, k):
    x = operands(Gemm(False, True, 128, 128, k), k, draw)
    worst = {
        variant: np.abs(run(library, tile_plan(x.gemm, variant, k, MULTIPROCESSORS), x) - x.expected()).max()
        for variant in (LARGE, TF32X3, TF32)
    }
    assert worst[TF32X3] <= 2 * worst[LARGE]
    assert worst[TF32] > 20 * worst[LARGE], "the data would not show a lost term"


@pytest.mark.parametrize(
    ("variant", "of_a_product"), [(LARGE, 2**-24), (SMALL, 2**-24), (TF32X3, 2**-22), (TF32, 2**-10)]
)
def test_the_error_stays_within_its_bound(library, variant, of_a_product):
    k = 300
    x = operands(Gemm(True, False, 64, 48, k, alpha=3.0), 1, normal)
    op_a, op_b = (np.abs(factor).astype(np.float64) for factor in x.factors())
    error = np.abs(run(library, tile_plan(x.gemm, variant, k, MULTIPROCESSORS), x) - x.expected())
    assert (error <= (of_a_product + k * 2**-23) * 3.0 * (op_a @ op_b)).all()


@pytest.mark.parametrize("math", gemm_table.MATHS)
@pytest.mark.parametrize(
    "shape",
    [
        *((False, True, 64, 500, 800), (False, False, 64, 800, 500), (True, False, 500, 800, 64)),  # ip1
        *((False, True, 64, 10, 500), (False, False, 64, 500, 10), (True, False, 10, 500, 64)),  # ip2
        *((False, True, 1, 500, 800), (False, True, 1, 10, 500)),  # one image
    ],
    ids=str,
)
def test_lenets_products_as_the_table_plans_them(library, shape, math):
    x = operands(Gemm(*shape, has_bias=shape[1]), 1, normal)
    np.testing.assert_allclose(
        run(library, plan(x.gemm, (9, 0), 132, math), x),
        x.expected(),
        rtol=1e-4,
        atol=0.2 if math == "tf32" else 2e-4,  # of sums of 800 products
    )


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_a_result_repeats_bit_for_bit(library, variant):
    x = operands(Gemm(False, False, 150, 140, 130, beta=1.0), 1, normal)
    divided = tile_plan(x.gemm, variant, 32, MULTIPROCESSORS)
    first, second = run(library, divided, x), run(library, divided, x)  # each with other orders of blocks and threads
    assert first.tobytes() == second.tobytes()


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_nan_and_infinity_reach_their_row_and_no_other(library, variant):
    x = operands(Gemm(False, False, 40, 40, 40), 1, positive)
    x.a[3, 7], x.a[5, 39] = np.nan, np.inf
    c = run(library, tile_plan(x.gemm, variant, 40, MULTIPROCESSORS), x)
    assert np.isnan(c[3]).all()
    assert (np.isnan(c[5]) if variant is TF32X3 else np.isposinf(c[5])).all()
    assert np.isfinite(np.delete(c, (3, 5), axis=0)).all()


@pytest.mark.parametrize("m", [1, 3, 40])
def test_an_empty_sum_leaves_beta_c_and_bias(library, m):
    for transpose_a, transpose_b in TRANSPOSES:
        x = operands(Gemm(transpose_a, transpose_b, m, 5, 0, beta=3.0, has_bias=True), 1, whole_numbers)
        np.testing.assert_array_equal(run(library, plan(x.gemm, (8, 0), MULTIPROCESSORS), x), x.expected())


@pytest.mark.parametrize("capability", CAPABILITIES, ids=str)
@pytest.mark.parametrize("math", gemm_table.MATHS)
def test_every_plan_covers_its_product(capability, math):
    rng = np.random.default_rng(0)
    for _ in range(200):
        m, n, k = (int(2 ** rng.uniform(0, 13)) for _ in range(3))
        gemm = Gemm(bool(rng.integers(2)), bool(rng.integers(2)), m, n, k)
        made = plan(gemm, capability, 80, math)
        first = made.launches[0]
        splits, part = first.args[0][6:8]
        assert (splits - 1) * part < k <= splits * part
        assert splits == 1 or part % gemm_table.K_ALIGNMENT == 0
        assert first.grid[1] == splits
        assert made.workspace == (splits * m * n if splits > 1 else 0) <= gemm_table.MOST_WORKSPACE
        assert [launch.kernel for launch in made.launches[1:]] == ["gemm_split_k_reduce"] * (splits > 1)
        assert "tf32" not in first.kernel or (capability >= (8, 0) and k >= 16)
        assert math == "tf32" or not first.kernel.startswith("gemm_tf32_")


def test_the_table_prefers_what_it_was_made_to_prefer():
    def first(capability, *shape, math="float32"):
        return plan(Gemm(False, False, *shape), capability, 100, math).launches[0].kernel

    assert first((7, 5), 4096, 4096, 4096, math="tf32") == "gemm_float32_nn"
    assert first((8, 0), 4096, 4096, 4096) == first((9, 0), 4096, 4096, 4096) == "gemm_tf32x3_nn"
    assert first((8, 6), 4096, 4096, 4096) == first((12, 0), 4096, 4096, 4096) == "gemm_float32_nn"
    assert first((9, 0), 4096, 4096, 4096, math="tf32") == "gemm_tf32_nn"
    assert first((9, 0), 64, 10, 500) == "gemm_float32_small_nn"
    assert not plan(Gemm(False, False, 0, 5, 5), (9, 0), 100).launches
    assert len(plan(Gemm(False, False, 128, 128, 100_000), (9, 0), 100).launches) == 2


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_the_kernels_are_bound_to_the_launches_that_the_table_makes(variant):
    source = "".join(resources.path(f"kernels/{file}.cu").read_text() for file in ("gemm_float32", "gemm_tensor"))
    bounds = re.findall(rf"__launch_bounds__\((\d+), (\d+)\)\n{variant.name}_[nt][nt]\(", source)
    assert bounds == [(str(variant.threads), str(variant.blocks))] * 4
    if variant.shared_bytes:
        tensor = source[source.index("#define STAGES") - 200 :]
        stages, depth, tile = (int(re.search(rf"#define {name} (\d+)", tensor).group(1)) for name in WORDS)
        assert variant.shared_bytes == 2 * stages * tile * (depth + 4) * 4


@pytest.mark.skipif(emulation.SANITIZE in os.environ, reason="runs in the other process")
def test_every_access_lies_inside_its_buffer(library_folder):
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-k", "whole_numbers or empty_sum", __file__]
    result = subprocess.run(command, env=emulation.sanitizer_environment(), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr

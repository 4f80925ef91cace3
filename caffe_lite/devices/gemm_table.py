"""Which kernels compute a matrix product on a GPU, and how they are launched.

`plan` estimates the time of every variant that fits (tile size, tensor cores or not, parts of k) from a few numbers
about the architecture, and takes the shortest.  **These numbers are reasoned from published rates and the kernels' own
reads and writes; none has been measured on a GPU yet.**  They decide speed only: every variant is right for every
shape, except that the tensor cores need compute capability 8.0.

    variant              what it is for
    gemm_float32         large products; 128 x 128 tiles on the CUDA cores
    gemm_float32_small   products that have too few large tiles; 32 x 32 tiles
    gemm_tf32x3          math 'float32' where the tensor cores are more than three times as fast as the CUDA cores
    gemm_tf32            math 'tf32'
    gemv_rows, _columns  one row or one column
    gemm_split_k_reduce  behind any of them, where k was divided so that all multiprocessors have work

A kernel takes 16-byte accesses by itself where an operand's address and leading dimension allow them.  More than 48 KiB
of a launch's `shared_bytes` must be asked for before it (CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import NamedTuple, TypeVar

MATHS = ("float32", "tf32")
K_ALIGNMENT = 16  # a part of k is a multiple of it: of every kernel's step, and of a 16-byte access
SHORTEST_PART = 64  # elements of k in a part; shorter ones cost more in the reduction than they gain
MOST_PARTS = 64
MOST_WORKSPACE = 1 << 24  # elements
SHORTEST_TENSOR_K = 16  # below, tf32x3 is less accurate than float32, and memory decides the time anyway
LAUNCH = 4000  # cycles from one kernel's end to the next one's first result
BYTES = 16  # of global memory a multiprocessor moves in a cycle
REDUCE_THREADS = 256

# Multiply-adds a multiprocessor does in a cycle: on the CUDA cores, and in TF32 by mma.sync (which does not reach what
# the newer chips publish for their own instructions).  8.6, 8.9 and 12.0 are the GeForce chips; the workstation chips
# of the same number do twice as much TF32, which changes no choice.
RATES = {
    (7, 5): (64, 0),
    (8, 0): (64, 512),
    (8, 6): (128, 128),
    (8, 7): (128, 256),
    (8, 9): (128, 128),
    (9, 0): (128, 640),
    (10, 0): (128, 512),
    (10, 3): (128, 512),
    (11, 0): (128, 512),
    (12, 0): (128, 128),
    (12, 1): (128, 128),
}
LARGE_SHARED = {(8, 0), (8, 7), (9, 0), (10, 0), (10, 3), (11, 0)}  # two blocks of a tensor kernel fit a multiprocessor

Value = TypeVar("Value")


@dataclasses.dataclass(frozen=True)
class Launch:
    """One kernel's launch.

    `args` follow the kernel's parameters; where a buffer belongs stands its name: a, b, c, bias or workspace.
    """

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int
    args: tuple[str | float | tuple[int, ...], ...]

    def arguments(self, buffers: Mapping[str, Value]) -> list[Value | float | tuple[int, ...]]:
        """Return `args` with the buffers put in for their names."""
        return [buffers[arg] if isinstance(arg, str) else arg for arg in self.args]


@dataclasses.dataclass(frozen=True)
class Plan:
    """The launches of one product, in order, and the floats of workspace that they need (0 for none)."""

    launches: tuple[Launch, ...]
    workspace: int


@dataclasses.dataclass(frozen=True)
class Gemm:
    """One product: C (m x n) = alpha op(A) op(B) + beta C (+ bias), row-major.

    A leading dimension (`lda`, `ldb`, `ldc`) of 0 means that the matrix is dense.
    """

    transpose_a: bool
    transpose_b: bool
    m: int
    n: int
    k: int
    alpha: float = 1.0
    beta: float = 0.0
    has_bias: bool = False
    lda: int = 0
    ldb: int = 0
    ldc: int = 0

    def dense(self) -> Gemm:
        """Return the same product with every leading dimension filled in."""
        lda = self.lda or (self.m if self.transpose_a else self.k)
        ldb = self.ldb or (self.k if self.transpose_b else self.n)
        return dataclasses.replace(self, lda=lda, ldb=ldb, ldc=self.ldc or self.n)


@dataclasses.dataclass(frozen=True)
class Variant:
    """A tile kernel: `share` is the part of the units' rate that its own reads of shared memory leave it."""

    name: str
    tile: int
    threads: int
    step: int  # elements of k between two barriers
    latency: int  # cycles that one such step takes at least
    blocks: int  # of one multiprocessor at a time
    share: float
    shared_bytes: int = 0
    products: int = 0  # on the tensor cores, for one product; 0: on the CUDA cores


LARGE = Variant("gemm_float32", 128, 256, 8, 300, 2, 0.8)
SMALL = Variant("gemm_float32_small", 32, 64, 8, 200, 8, 0.4)
TF32X3 = Variant("gemm_tf32x3", 128, 256, 16, 200, 2, 0.8, 81920, 3)
TF32 = Variant("gemm_tf32", 128, 128, 16, 200, 2, 0.7, 81920, 1)
VARIANTS = (LARGE, SMALL, TF32X3, TF32)


def plan(gemm: Gemm, capability: tuple[int, int], multiprocessors: int, math: str = "float32") -> Plan:
    """Return the launches that compute `gemm`, none if C is empty.

    Args:
        gemm: the product.
        capability: the GPU's compute capability.
        multiprocessors: how many the GPU has.
        math: 'float32', or 'tf32' where the tensor cores may round each factor to TF32.
    """
    assert math in MATHS, f"math is one of {MATHS}, received {math!r}"
    gemm = gemm.dense()
    if gemm.m * gemm.n == 0:
        return Plan((), 0)
    if gemm.m == 1 or gemm.n == 1:
        return _vector_plan(gemm, multiprocessors)
    choices = [
        (_cycles(gemm, variant, part, capability, multiprocessors), order, variant, part)
        for order, variant in enumerate(_variants(gemm, capability, math))
        for part in _parts(gemm)
    ]
    _, _, variant, part = min(choices, key=lambda choice: choice[:2])
    return tile_plan(gemm, variant, part, multiprocessors)


def _variants(gemm: Gemm, capability: tuple[int, int], math: str) -> Iterator[Variant]:
    yield LARGE
    yield SMALL
    if capability >= (8, 0) and gemm.k >= SHORTEST_TENSOR_K:
        yield TF32X3
        if math == "tf32":
            yield TF32


def _parts(gemm: Gemm) -> Iterator[int]:
    """Yield lengths of a part of k, the whole first."""
    yield gemm.k
    seen = {gemm.k}
    wanted = 2
    while wanted <= MOST_PARTS:
        part = max(SHORTEST_PART, _up(gemm.k, wanted, K_ALIGNMENT))
        splits = -(-gemm.k // part)
        if part < gemm.k and part not in seen and splits * gemm.m * gemm.n <= MOST_WORKSPACE:
            seen.add(part)
            yield part
        wanted *= 2


def _up(size: int, parts: int, alignment: int) -> int:
    """Return the least multiple of `alignment` of which `parts` cover `size`."""
    return -(-size // (parts * alignment)) * alignment


def _cycles(gemm: Gemm, variant: Variant, part: int, capability: tuple[int, int], multiprocessors: int) -> float:
    """Return about how many cycles a product takes."""
    cores, tensor = _rates(capability)
    rate = (tensor / variant.products if variant.products else cores) * variant.share
    if variant.products and (gemm.lda % 4 or gemm.ldb % 4):
        rate *= 0.6 if variant.products == 1 else 0.9  # copies of 4 bytes are four times as many
    resident = variant.blocks if not variant.shared_bytes or capability in LARGE_SHARED else 1
    splits = _splits(gemm, part)
    blocks = -(-gemm.m // variant.tile) * -(-gemm.n // variant.tile) * splits
    waves = -(-blocks // (resident * multiprocessors))
    together = min(resident, -(-blocks // multiprocessors))
    step = max(together * variant.tile**2 * variant.step / rate, variant.latency)
    cycles = LAUNCH + waves * (-(-part // variant.step) + 2) * step  # two more: the first reads, and the writes
    if splits > 1:
        cycles += LAUNCH + (splits + 1) * gemm.m * gemm.n * 4 / (BYTES * multiprocessors)
    return cycles


def _rates(capability: tuple[int, int]) -> tuple[int, int]:
    """Return the rates of the newest known architecture that is not newer than `capability`."""
    known = [rates for architecture, rates in RATES.items() if architecture <= capability]
    return known[-1] if known else RATES[(7, 5)]


class _Ending(NamedTuple):
    """What the first kernel does with its sums."""

    alpha: float
    beta: float
    has_bias: int
    bias: str  # any buffer will do where none is read
    output: str


def _ending(gemm: Gemm, splits: int) -> _Ending:
    if splits > 1:  # the parts' sums as they are; gemm_split_k_reduce does the rest
        return _Ending(1.0, 0.0, 0, "workspace", "workspace")
    return _Ending(gemm.alpha, gemm.beta, int(gemm.has_bias), "bias" if gemm.has_bias else "c", "c")


def tile_plan(gemm: Gemm, variant: Variant, part: int, multiprocessors: int) -> Plan:
    """Return the launches of one variant, with parts of `part` elements of k each (`gemm.k` for no division)."""
    gemm = gemm.dense()
    m, n, splits, ending = gemm.m, gemm.n, _splits(gemm, part), _ending(gemm, _splits(gemm, part))
    name = f"{variant.name}_{'nt'[gemm.transpose_a]}{'nt'[gemm.transpose_b]}"
    grid = (-(-m // variant.tile) * -(-n // variant.tile), splits, 1)
    ldc = gemm.ldc if splits == 1 else n
    sizes = (m, n, gemm.k, gemm.lda, gemm.ldb, ldc, splits, part, ending.has_bias)
    args = (sizes, ending.alpha, ending.beta, "a", "b", ending.bias, ending.output)
    first = Launch(name, grid, (variant.threads, 1, 1), variant.shared_bytes, args)
    return _completed(first, gemm, splits, multiprocessors)


def _vector_plan(gemm: Gemm, multiprocessors: int) -> Plan:
    """Plan a product whose C is one row or one column."""
    if gemm.n == 1:  # C = op(A) b
        matrix, vector, outputs, ld, by_rows = "a", "b", gemm.m, gemm.lda, not gemm.transpose_a
        stride_x, stride_y, stride_bias = (1 if gemm.transpose_b else gemm.ldb), gemm.ldc, 0
    else:  # C's row = op(B) transposed times a
        matrix, vector, outputs, ld, by_rows = "b", "a", gemm.n, gemm.ldb, gemm.transpose_b
        stride_x, stride_y, stride_bias = (gemm.lda if gemm.transpose_a else 1), 1, 1
    part, blocks = gemm.k, -(-outputs // 32)
    if not by_rows and blocks < 2 * multiprocessors:
        wanted = min(MOST_PARTS, -(-2 * multiprocessors // blocks))
        part = min(gemm.k, max(4 * SHORTEST_PART, _up(gemm.k, wanted, K_ALIGNMENT)))
    splits, ending = _splits(gemm, part), _ending(gemm, _splits(gemm, part))
    sizes = (outputs, gemm.k, ld, stride_x, stride_y if splits == 1 else 1, stride_bias, splits, part, ending.has_bias)
    args = (sizes, ending.alpha, ending.beta, matrix, vector, ending.bias, ending.output)
    if by_rows:
        threads = min(256, max(32, _up(gemm.k, 4, 32)))  # four elements a thread, at least
        first = Launch("gemv_rows", (min(outputs, 1 << 20), 1, 1), (threads, 1, 1), 0, args)
    else:
        first = Launch("gemv_columns", (blocks, splits, 1), (256, 1, 1), 0, args)
    return _completed(first, gemm, splits, multiprocessors)


def _completed(first: Launch, gemm: Gemm, splits: int, multiprocessors: int) -> Plan:
    """Return the plan that begins with `first`."""
    if splits == 1:
        return Plan((first,), 0)
    blocks = min(-(-gemm.m * gemm.n // REDUCE_THREADS), 16 * multiprocessors)
    sizes = (gemm.m, gemm.n, gemm.k, gemm.lda, gemm.ldb, gemm.ldc, splits, 0, int(gemm.has_bias))
    args = (sizes, gemm.alpha, gemm.beta, "workspace", "bias" if gemm.has_bias else "c", "c")
    reduce = Launch("gemm_split_k_reduce", (blocks, 1, 1), (REDUCE_THREADS, 1, 1), 0, args)
    return Plan((first, reduce), splits * gemm.m * gemm.n)


def _splits(gemm: Gemm, part: int) -> int:
    return -(-gemm.k // part) if part else 1

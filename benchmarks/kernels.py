"""Each family of layers on the CPU, side by side with PyTorch: python benchmarks/kernels.py [NAME ...]

Times forward and backward of each entry of `ENTRIES` (those whose name or family contains a NAME) on 64 x 64 x 56 x 56
random floats, with the same number of threads on both sides, and prints a table in Markdown.  Calls alternate between
the sides; a ratio is the median of the ratios of neighbouring calls, which is what counts on a shared machine.  Before
it is timed, an entry's forward result must agree with PyTorch's.

PyTorch allocates a result at each call and gets pages from the system for it each time, which may cost more than the
operation.  `--keep-pages` tells the C library to keep them, which is the hardest comparison; the default is PyTorch as
everybody uses it.

An entry is a `LayerParameter` in text and a function of tensors: the bottoms, then the layer's params.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import os
import platform
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from google.protobuf import text_format
from lenet import alternate

SHAPE = (64, 64, 56, 56)
PIXELS = (64, 1, 56, 56)

Input = Callable[[np.random.Generator], np.ndarray]


def normal(*shape: int) -> Input:
    """An input of normally distributed numbers."""
    return lambda rng: rng.standard_normal(shape, np.float32)


def positive(*shape: int) -> Input:
    """An input of numbers from 0.1 to 2."""
    return lambda rng: (rng.random(shape, np.float32) * 1.9 + 0.1).astype(np.float32)


def whole(limit: int, *shape: int) -> Input:
    """An input of whole numbers below `limit`: labels or indices, which PyTorch gets as int64."""
    return lambda rng: rng.integers(0, limit, shape)


def probabilities(*shape: int) -> Input:
    """An input that sums to one over axis 1."""

    def make(rng: np.random.Generator) -> np.ndarray:
        values = rng.random(shape, np.float32) + np.float32(0.05)
        return values / values.sum(axis=1, keepdims=True)

    return make


@dataclasses.dataclass(frozen=True)
class Entry:
    """One row of the table."""

    family: str
    layer: str  # a LayerParameter in text, without name, bottoms and tops
    peer: Callable[..., Any]  # PyTorch's tensors in, tensor or tuple of tensors out
    bottoms: Sequence[Input] = (normal(*SHAPE),)
    tops: int = 1
    note: str = ""
    views: bool = False  # PyTorch's gradients are views of the top's; they are copied, as Caffe's blobs demand
    random: bool = False  # the results differ by design
    backward: bool = True
    tolerance: float = 1e-4

    @property
    def name(self) -> str:
        """The layer's type with its options, as short as they can be told."""
        return " ".join(self.layer.replace('type: "', "").replace('"', "").split())


def entries() -> list[Entry]:
    """Return the table.  PyTorch is imported here, after the number of threads is set."""
    import torch
    from torch.nn import functional

    blob, pixels = normal(*SHAPE), whole(64, *PIXELS)
    pair = (blob, normal(*SHAPE))
    channels = (1, -1, 1, 1)
    lrn = {"size": 5, "alpha": 0.5, "beta": 0.75, "k": 1.0}
    return [
        Entry("neuron", 'type: "ReLU"', torch.relu),
        Entry("neuron", 'type: "ReLU" relu_param { negative_slope: 0.1 }', lambda x: functional.leaky_relu(x, 0.1)),
        Entry("neuron", 'type: "ELU"', functional.elu),
        Entry("neuron", 'type: "Sigmoid"', torch.sigmoid),
        Entry("neuron", 'type: "TanH"', torch.tanh),
        Entry("neuron", 'type: "BNLL"', functional.softplus),
        Entry("neuron", 'type: "Swish"', functional.silu),
        Entry("neuron", 'type: "Dropout"', functional.dropout, random=True),
        Entry("prelu", 'type: "PReLU"', functional.prelu),
        Entry(
            "prelu",
            'type: "PReLU" prelu_param { channel_shared: true }',
            lambda x, a: functional.prelu(x, a.reshape(1)),
        ),
        Entry("elementary", 'type: "AbsVal"', torch.abs),
        Entry("elementary", 'type: "Power" power_param { power: 2.3 }', lambda x: x**2.3, [positive(*SHAPE)]),
        Entry("elementary", 'type: "Power" power_param { power: 2 }', torch.square),
        Entry("elementary", 'type: "Power" power_param { scale: 0.5 }', lambda x: x * 0.5),
        Entry("elementary", 'type: "Exp"', torch.exp),
        Entry("elementary", 'type: "Log"', torch.log, [positive(*SHAPE)]),
        Entry("elementary", 'type: "Threshold"', lambda x: (x > 0).float(), backward=False),
        Entry("elementary", 'type: "Clip" clip_param { min: -1 max: 1 }', lambda x: x.clamp(-1, 1)),
        Entry("softmax", 'type: "Softmax"', lambda x: torch.softmax(x, 1)),
        Entry("softmax", 'type: "Softmax" softmax_param { axis: 3 }', lambda x: torch.softmax(x, 3)),
        Entry("loss", 'type: "SoftmaxWithLoss"', lambda x, t: functional.cross_entropy(x, t[:, 0]), [blob, pixels]),
        Entry(
            "sigmoid_loss",
            'type: "SigmoidCrossEntropyLoss" loss_param { normalization: FULL }',
            functional.binary_cross_entropy_with_logits,
            [blob, whole(2, *SHAPE)],
        ),
        Entry(
            "distance_loss",
            'type: "EuclideanLoss"',
            lambda x, y: functional.mse_loss(x, y, reduction="sum") / 128,
            pair,
        ),
        Entry(
            "classification_loss",
            'type: "HingeLoss"',
            lambda x, t: functional.relu(1 + x - 2 * x * functional.one_hot(t.flatten(), 200704)).sum() / 64,
            [normal(64, 64 * 56 * 56), whole(64, 64)],
            tolerance=1e-3,
        ),
        Entry(
            "pooling",
            pooling("MAX", 2, 2),
            lambda x: functional.max_pool2d(x, 2, 2),
            note="backward gathers: each element is written once, each mask and diff read twice",
        ),
        Entry("pooling", pooling("MAX", 3, 2), lambda x: functional.max_pool2d(x, 3, 2, ceil_mode=True)),
        Entry("pooling", pooling("AVE", 2, 2), lambda x: functional.avg_pool2d(x, 2, 2)),
        Entry("pooling", pooling("AVE", 3, 2), lambda x: functional.avg_pool2d(x, 3, 2, ceil_mode=True)),
        Entry(
            "lrn",
            'type: "LRN" lrn_param { alpha: 0.5 beta: 0.75 }',
            lambda x: functional.local_response_norm(x, **lrn),
        ),
        Entry("normalization", 'type: "MVN"', functional.instance_norm, tolerance=1e-3),
        Entry(
            "normalization",
            'type: "BatchNorm" param { lr_mult: 0 } param { lr_mult: 0 } param { lr_mult: 0 }',
            lambda x, *statistics: functional.batch_norm(x, None, None, training=True),
            tolerance=1e-3,
        ),
        Entry(
            "scale",
            'type: "Scale" scale_param { bias_term: true filler { type: "gaussian" } }',
            lambda x, a, b: torch.addcmul(b.view(channels), x, a.view(channels)),
        ),
        Entry(
            "scale",
            'type: "Bias" bias_param { filler { type: "gaussian" } }',
            lambda x, b: x + b.view(channels),
            views=True,
        ),
        Entry("eltwise", 'type: "Eltwise"', torch.add, pair, views=True),
        Entry("eltwise", 'type: "Eltwise" eltwise_param { operation: PROD }', torch.mul, pair),
        Entry("eltwise", 'type: "Eltwise" eltwise_param { operation: MAX }', torch.maximum, pair),
        Entry("concat", 'type: "Concat"', lambda x, y: torch.cat((x, y), 1), pair, views=True),
        Entry("concat", 'type: "Slice"', lambda x: tuple(part.contiguous() for part in x.chunk(2, 1)), tops=2),
        Entry(
            "shape",
            'type: "Tile" tile_param { axis: 1 tiles: 2 }',
            lambda x: x.repeat(1, 2, 1, 1),
        ),
        Entry(
            "shape",
            'type: "Crop" crop_param { offset: 3 }',
            lambda x, y: x[:, :, 3:53, 3:53].contiguous(),
            [blob, normal(64, 64, 50, 50)],
        ),
        Entry(
            "reduction",
            'type: "Reduction"',
            torch.sum,
            views=True,
            tolerance=1.0,
            note="forward is one pass over memory on both sides",
        ),
        Entry(
            "reduction",
            'type: "Reduction" reduction_param { operation: SUMSQ axis: 1 }',
            lambda x: x.square().sum((1, 2, 3)),
        ),
        Entry(
            "select",
            'type: "ArgMax" argmax_param { axis: 1 }',
            lambda x: x.argmax(1, keepdim=True),
            backward=False,
        ),
        Entry("select", 'type: "BatchReindex"', lambda x, index: x[index], [blob, whole(64, 64)]),
        Entry(
            "embed",
            'type: "Embed" embed_param { num_output: 64 input_dim: 1000 bias_term: false '
            'weight_filler { type: "gaussian" } }',
            functional.embedding,
            [whole(1000, 64 * 56 * 56)],
        ),
        Entry(
            "im2col",
            'type: "Im2col" convolution_param { kernel_size: 3 pad: 1 }',
            lambda x: functional.unfold(x, 3, padding=1).view(16, 576, 56, 56),
            [normal(16, 64, 56, 56)],
        ),
        Entry(
            "inner_product",
            'type: "InnerProduct" inner_product_param { num_output: 64 weight_filler { type: "xavier" } }',
            lambda x, w, b: functional.linear(x.flatten(1), w, b),
            note="a matrix product on both sides: OpenBLAS here, MKL there",
            tolerance=1e-3,
        ),
        Entry(
            "convolution",
            'type: "Convolution" convolution_param { num_output: 64 kernel_size: 3 pad: 1 '
            'weight_filler { type: "xavier" } }',
            lambda x, w, b: functional.conv2d(x, w, b, padding=1),
            [normal(16, 64, 56, 56)],
            note="16 items; im2col and OpenBLAS here (four fifths of the time in its kernel), "
            "oneDNN's direct convolution there",
            tolerance=1e-3,
        ),
    ]


def pooling(operation: str, kernel: int, stride: int) -> str:
    """Return a pooling layer in text."""
    return f'type: "Pooling" pooling_param {{ pool: {operation} kernel_size: {kernel} stride: {stride} }}'


class Ours:
    """An entry's layer, with its passes recorded on tapes."""

    def __init__(self, entry: Entry, arrays: Sequence[np.ndarray]) -> None:
        from caffe_lite.blob import Blob
        from caffe_lite.devices import host_device
        from caffe_lite.layers import create
        from caffe_lite.proto import caffe_pb2

        device = host_device()
        self.layer = create(text_format.Parse(entry.layer, caffe_pb2.LayerParameter()), caffe_pb2.TRAIN, device)
        self.layer.passes = device.alloc(1, np.int32)
        self.bottom = [Blob(device, array.shape, f"bottom_{i}") for i, array in enumerate(arrays)]
        self.top = [Blob(device, (), f"top_{i}") for i in range(entry.tops)]
        for blob, array in zip(self.bottom, arrays, strict=True):
            blob.data[...] = array
        self.layer.setup(self.bottom, self.top)
        self.layer.reshape(self.bottom, self.top)
        with device.record() as forward:
            self.layer.forward(self.bottom, self.top)
        self.forward = forward.replay
        self.forward()
        if entry.backward:
            down = [array.dtype == np.float32 for array in arrays]
            with device.record() as backward:
                self.layer.backward(self.top, down, self.bottom)
            self.backward = backward.replay


class Theirs:
    """The same operation in PyTorch, from the same inputs and params."""

    def __init__(self, entry: Entry, arrays: Sequence[np.ndarray], ours: Ours) -> None:
        import torch

        self._torch, self._peer, self._views = torch, entry.peer, entry.views
        params = [np.array(blob.data) for blob in ours.layer.blobs]
        self._tensors = [torch.from_numpy(np.array(array)) for array in [*arrays, *params]]
        if entry.family == "sigmoid_loss":  # its targets are probabilities
            self._tensors = [tensor.float() for tensor in self._tensors]
        self.forward()
        if entry.backward:
            self._wanted = [tensor for tensor in self._tensors if tensor.is_floating_point()]
            for tensor in self._wanted:
                tensor.requires_grad_()
            result = self._peer(*self._tensors)
            self._results = result if isinstance(result, tuple) else (result,)
            self._diffs = [torch.from_numpy(np.array(blob.diff)).reshape(r.shape) for blob, r in self._tops(ours)]

    def _tops(self, ours: Ours) -> list[tuple[Any, Any]]:
        return list(zip(ours.top, self._results, strict=True))

    def forward(self) -> Any:
        """Compute the result."""
        with self._torch.no_grad():
            return self._peer(*self._tensors)

    def backward(self) -> Any:
        """Compute the gradients of all inputs and params."""
        gradients = self._torch.autograd.grad(
            self._results, self._wanted, self._diffs, retain_graph=True, allow_unused=True
        )
        if self._views:
            gradients = [gradient.clone(memory_format=self._torch.contiguous_format) for gradient in gradients]
        return gradients


def check(entry: Entry, ours: Ours, theirs: Theirs) -> None:
    """Raise unless both sides compute the same."""
    if entry.random:
        return
    result = theirs.forward()
    for blob, tensor in zip(ours.top, result if isinstance(result, tuple) else (result,), strict=True):
        expected = tensor.numpy().reshape(blob.shape)
        np.testing.assert_allclose(blob.data, expected, rtol=entry.tolerance, atol=entry.tolerance, err_msg=entry.name)


def row(entry: Entry, rounds: int) -> tuple[str, list[float]]:
    """Time one entry; return its line of the table and its ratios."""
    rng = np.random.default_rng(1)
    arrays = [make(rng) for make in entry.bottoms]
    ours = Ours(entry, arrays)
    for blob in ours.top:
        blob.diff[...] = 1 if ours.layer.is_loss else rng.standard_normal(blob.shape, np.float32)
    theirs = Theirs(entry, arrays, ours)
    check(entry, ours, theirs)
    cells, ratios = [], []
    for name in ("forward", "backward") if entry.backward else ("forward",):
        mine, peer = alternate(getattr(ours, name), getattr(theirs, name), rounds, 1)
        ratios.append(statistics.median(a / b for a, b in zip(mine, peer, strict=True)))
        cells.append(f"{statistics.median(mine):.1f} | {statistics.median(peer):.1f} | {ratios[-1]:.2f}")
    cells += [" | | "] * (2 - len(cells))
    note = "; ".join(filter(None, [entry.note, "PyTorch's gradients are views, copied here" * entry.views]))
    return f"| {entry.family} | {entry.name} | {' | '.join(cells)} | {note} |", ratios


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="parts of the names or families to time; all by default")
    parser.add_argument("--rounds", type=int, default=15, help="alternations of each job")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--keep-pages", action="store_true", help="let the C library keep freed memory")
    options = parser.parse_args()
    os.environ["CAFFE_LITE_NUM_THREADS"] = str(options.threads)
    if options.keep_pages:
        keep_pages()
    import torch

    from caffe_lite.layers import layer_type_list

    torch.set_num_threads(options.threads)
    known = layer_type_list()
    print(f"{platform.processor() or platform.machine()}, {options.threads} threads, PyTorch {torch.__version__}\n")
    print("| family | layer | forward ms | PyTorch ms | ratio | backward ms | PyTorch ms | ratio | note |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    every: list[float] = []
    for entry in entries():
        chosen = not options.names or any(name in f"{entry.family} {entry.name}" for name in options.names)
        if chosen and entry.name.split()[0] in known:
            line, ratios = row(entry, options.rounds)
            every += ratios
            print(line, flush=True)
    if every:
        print(f"\nMedian of the {len(every)} ratios {statistics.median(every):.2f}, largest {max(every):.2f}.")


def keep_pages() -> None:
    """Make glibc take memory from the heap only, and never give it back to the system."""
    libc = ctypes.CDLL(None)
    trim_threshold, mmap_max = -1, -4
    libc.mallopt(mmap_max, 0)
    libc.mallopt(trim_threshold, 2**31 - 1)


if __name__ == "__main__":
    main()

"""Compare a net's blobs with reference blobs, or write such a reference.

    caffe-lite compare -model net.prototxt -weights net.caffemodel -reference blobs.npz
    caffe-lite compare -dump -model net.prototxt -weights net.caffemodel -reference blobs.npz

A reference is a NumPy .npz file with these arrays; docs/compare.md has a script that writes one in an original Caffe.

    input:NAME   what to put into the net's input NAME before the pass
    blob:NAME    the data of blob NAME after the forward pass
    diff:NAME    optional: the diff of blob NAME after the backward pass
    phase        optional: 0 TRAIN, 1 TEST

A blob agrees if its shape is the same and max|a - b| <= atol + rtol * max|b|, b being the reference.
"""

from __future__ import annotations

import dataclasses
import io
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caffe_lite.cli.flags import FlagParser, Flags, comma_list, integer, require
from caffe_lite.errors import DataError, MissingFileError, UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from caffe_lite.net import Net

    Arrays = dict[str, NDArray[Any]]

__all__ = ["Comparison", "add_flags", "compare_arrays", "run"]


def add_flags(parser: FlagParser) -> None:
    """Declare the flags of ``compare``."""
    parser.flag("model", "the model definition (prototxt)", metavar="FILE")
    parser.flag("weights", "the weights, separated by commas", comma_list, metavar="FILES")
    parser.flag("reference", "the reference blobs (.npz): read, or written with -dump", metavar="FILE")
    parser.flag("rtol", "tolerance relative to a blob's largest value (default 1e-4)", float, default=1e-4)
    parser.flag("atol", "absolute tolerance (default 1e-5)", float, default=1e-5)
    parser.flag("phase", "the net's phase (default: the reference's, else TEST)", choices=("TRAIN", "TEST"))
    parser.flag("level", "the net's level (default 0)", integer(), default=0, metavar="N")
    parser.flag("stage", "stages of the net, separated by commas", comma_list, metavar="NAMES")
    parser.switch("dump", "run the net and write the reference instead of comparing")
    parser.flag("inputs", "with -dump: take the input:NAME arrays of this .npz, not random numbers", metavar="FILE")
    parser.flag("seed", "with -dump: the seed of the random inputs (default 1)", integer(0), default=1, metavar="N")
    parser.switch("diffs", "with -dump: run backward too, and write the diffs")


def run(flags: Flags) -> int:
    """Compare (0 if all blobs agree, else 1) or dump (0) as `flags` say."""
    require(flags.model, "a model definition: -model FILE")
    require(flags.reference, "the file with the reference blobs: -reference FILE.npz")
    return _dump(flags) if flags.dump else _compare(flags)


def _compare(flags: Flags) -> int:
    reference = _read(flags.reference)
    net = _build(flags, reference.pop("phase", None))
    _set_inputs(net, reference, flags.reference)
    backward = any(key.startswith("diff:") for key in reference)
    computed = _blobs_after_a_pass(net, backward)
    # A reference may leave out diffs (of blobs that no gradient reaches), never blobs.
    keys = [key for key in computed if key.startswith("blob:") or key in reference]
    keys += [key for key in reference if key not in computed and not key.startswith("input:")]
    results = [compare_arrays(key, computed.get(key), reference.get(key), flags.rtol, flags.atol) for key in keys]
    return _report(results, f"rtol {flags.rtol:g}, atol {flags.atol:g}")


def _dump(flags: Flags) -> int:
    import numpy as np

    from caffe_lite.serialization.files import write_atomically

    if not flags.reference.endswith(".npz"):
        raise UsageError(f"-dump writes {flags.reference}: expected a name that ends in .npz.")
    net = _build(flags, None)
    if flags.inputs:
        _set_inputs(net, _read(flags.inputs), flags.inputs)
    else:
        random = np.random.RandomState(flags.seed)
        for name in net.inputs:
            net.blobs[name].data[...] = random.uniform(-1, 1, net.blobs[name].shape)
    arrays: dict[str, Any] = {f"input:{name}": net.blobs[name].data.copy() for name in net.inputs}
    arrays |= _blobs_after_a_pass(net, flags.diffs)
    content = io.BytesIO()
    np.savez(content, phase=np.int64(net.phase), **arrays)
    write_atomically(flags.reference, content.getvalue())
    print(f"{flags.reference}: wrote {len(net.inputs)} inputs and {len(net.blobs)} blobs")
    return 0


def _build(flags: Flags, phase: NDArray[Any] | None) -> Net:
    """Return the net with its weights, in the phase the flags ask for, else in `phase`, else TEST."""
    from caffe_lite.net import Net
    from caffe_lite.proto import caffe_pb2

    default = caffe_pb2.TEST if phase is None else int(phase)
    number = caffe_pb2.Phase.Value(flags.phase) if flags.phase else default
    net = Net(flags.model, number, level=flags.level, stages=flags.stage)
    if net.params:
        require(flags.weights, "the weights the net runs with: -weights FILE")
    for weights in flags.weights or []:
        net.copy_from(weights)
    return net


def _read(path: str) -> Arrays:
    """Return the arrays of the .npz file `path`.  Raises `MissingFileError`, or `DataError` if it is no such file."""
    import numpy as np

    if not Path(path).exists():
        raise MissingFileError(f"{path}: there is no such file")
    with Path(path).open("rb") as file:
        is_archive = zipfile.is_zipfile(file)
    if not is_archive:
        raise DataError(f"{path}: not an .npz file of NumPy, or one that is cut short.")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: np.asarray(archive[key]) for key in archive.files}
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: an array in it cannot be read: {error}") from error
    if not any(key.startswith(("blob:", "input:")) for key in arrays):
        raise DataError(
            f"{path}: no reference blobs. Expected arrays named 'input:NAME' and 'blob:NAME', found {_names(arrays)}."
        )
    for key, array in arrays.items():
        if array.dtype.kind not in "biuf":  # a member that is no array comes as bytes
            raise DataError(f"{path}: '{key}' holds {array.dtype}, not numbers.")
    if arrays.get("phase", np.int64(0)).tolist() not in (0, 1):
        raise DataError(f"{path}: phase must be 0 (TRAIN) or 1 (TEST). Received {arrays['phase'].tolist()}.")
    return arrays


def _set_inputs(net: Net, arrays: Arrays, path: str) -> None:
    """Reshape the net's inputs to those in `arrays` and fill them.  Raises `DataError` if the names differ."""
    inputs = {key.removeprefix("input:"): array for key, array in arrays.items() if key.startswith("input:")}
    if set(inputs) != set(net.inputs):
        raise DataError(
            f"{path}: its inputs are not the net's. Expected {_names(net.inputs)}, received {_names(inputs)}."
        )
    for name, array in inputs.items():
        net.blobs[name].reshape(*array.shape)
    net.reshape()
    for name, array in inputs.items():
        net.blobs[name].data[...] = array


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in sorted(names)) or "none"


def _blobs_after_a_pass(net: Net, backward: bool) -> Arrays:
    net.run_forward()
    arrays = {f"blob:{name}": blob.data.copy() for name, blob in net.blobs.items()}
    if backward:
        net.run_backward()
        arrays |= {f"diff:{name}": blob.diff.copy() for name, blob in net.blobs.items()}
    return arrays


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How one blob fared: `absolute` and `relative` are the largest errors, None where there was nothing to compare."""

    key: str
    shape: tuple[int, ...]
    absolute: float | None
    relative: float | None
    verdict: str

    @property
    def agrees(self) -> bool:
        """Whether the blob passed."""
        return self.verdict == "pass"


def compare_arrays(
    key: str, computed: NDArray[Any] | None, expected: NDArray[Any] | None, rtol: float, atol: float
) -> Comparison:
    """Compare what the net `computed` with what the reference has for `key`; None where one of them has no such blob.

    The absolute error is max|a - b|, the relative one max|a - b| / max|b|.  Values that are not finite agree if they
    are the same (NaN with NaN); else the error is infinite.
    """
    import numpy as np

    if expected is None:
        assert computed is not None
        return Comparison(key, computed.shape, None, None, "FAIL: extra, the reference has no such blob")
    if computed is None:
        return Comparison(key, expected.shape, None, None, "FAIL: missing, the net has no such blob")
    if computed.shape != expected.shape:
        return Comparison(key, computed.shape, None, None, f"FAIL: the reference's shape is {_shape(expected.shape)}")
    a, b = computed.astype(np.float64), expected.astype(np.float64)
    with np.errstate(invalid="ignore"):
        error = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0, np.nan_to_num(np.abs(a - b), True, np.inf, np.inf))
    absolute = float(error.max(initial=0))
    scale = float(np.abs(b[np.isfinite(b)]).max(initial=0))
    relative = absolute / scale if scale else (np.inf if absolute else 0.0)
    return Comparison(key, a.shape, absolute, relative, "pass" if absolute <= atol + rtol * scale else "FAIL")


def _report(results: list[Comparison], tolerance: str) -> int:
    """Print one line for each result and one for all; return the exit status."""
    width = max((len(result.key) for result in results), default=0)
    print(f"{'blob':{width}}  {'shape':>16}  {'absolute':>9}  {'relative':>9}")
    for result in results:
        absolute, relative = ("-" if x is None else f"{x:.2e}" for x in (result.absolute, result.relative))
        shape = _shape(result.shape)
        print(f"{result.key:{width}}  {shape:>16}  {absolute:>9}  {relative:>9}  {result.verdict}")
    failed = sum(not result.agrees for result in results)
    print(f"{failed} of {len(results)} blobs differ" if failed else f"all {len(results)} blobs agree", f"({tolerance})")
    return 1 if failed else 0


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"

import re
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import caffe_lite as package
from caffe_lite.cli import compare
from caffe_lite.cli.compare import compare_arrays
from caffe_lite.cli.flags import FlagParser
from caffe_lite.net import Net
from caffe_lite.proto import caffe_pb2

PAGE = Path(__file__).parents[2] / "docs" / "compare.md"
FLAGS = ("-model=deploy.prototxt", "-weights=deploy.caffemodel", "-reference=blobs.npz")


@pytest.fixture
def reference(folder, caffe_lite):
    """blobs.npz of deploy.prototxt with deploy.caffemodel, and its arrays; `save` writes changed ones."""
    Net("deploy.prototxt", caffe_pb2.TEST).save("deploy.caffemodel")
    result = caffe_lite("compare", "-dump", "-diffs", *FLAGS)
    assert (result.status, result.err) == (0, "")
    assert result.out == "blobs.npz: wrote 1 inputs and 3 blobs\n"
    with np.load("blobs.npz") as file:
        return dict(file)


def verdicts(result):
    """Return {key: verdict} of the table."""
    rows = (line.split(maxsplit=4) for line in result.out.splitlines()[1:-1])
    return {key: verdict for key, _, _, _, verdict in rows}


def test_a_dump_agrees_with_the_net_that_made_it(reference, caffe_lite):
    assert sorted(reference) == [
        "blob:data", "blob:ip", "blob:prob", "diff:data", "diff:ip", "diff:prob", "input:data", "phase"]  # fmt: skip
    result = caffe_lite("compare", *FLAGS)
    assert result.status == 0
    assert set(verdicts(result).values()) == {"pass"}
    assert result.out.endswith("all 6 blobs agree (rtol 0.0001, atol 1e-05)\n")


def test_a_dump_holds_seeded_inputs_and_the_blobs_they_give(reference, caffe_lite):
    expected = np.random.RandomState(1).uniform(-1, 1, (2, 5)).astype(np.float32)
    np.testing.assert_array_equal(reference["input:data"], expected)
    net = Net("deploy.prototxt", "deploy.caffemodel", caffe_pb2.TEST)
    weights, bias = (blob.data.astype(np.float64) for blob in net.params["ip"])
    ip = expected @ weights.T + bias
    ip = np.where(ip > 0, ip, 0.5 * ip)
    np.testing.assert_allclose(reference["blob:ip"], ip, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(reference["blob:prob"], np.exp(ip) / np.exp(ip).sum(1, keepdims=True), rtol=1e-5)


def test_another_seed_gives_other_inputs_and_given_inputs_are_kept(reference, caffe_lite):
    caffe_lite("compare", "-dump", "-seed=2", *FLAGS)
    with np.load("blobs.npz") as file:
        other = file["input:data"]
    assert np.abs(other - reference["input:data"]).min() > 0
    np.savez("given.npz", **{"input:data": np.arange(15.0).reshape(3, 5)})
    caffe_lite("compare", "-dump", "-inputs=given.npz", *FLAGS)
    with np.load("blobs.npz") as file:
        np.testing.assert_array_equal(file["input:data"], np.arange(15.0).reshape(3, 5))
        assert file["blob:prob"].shape == (3, 3)
    assert caffe_lite("compare", *FLAGS).status == 0


def test_one_wrong_value_fails_its_blob_only(reference, caffe_lite):
    reference["blob:prob"][1, 2] += 0.01
    np.savez("blobs.npz", **reference)
    result = caffe_lite("compare", *FLAGS)
    assert result.status == 1
    assert [key for key, verdict in verdicts(result).items() if verdict != "pass"] == ["blob:prob"]
    assert re.search(r"blob:prob +2x3 +1\.00e-02 +\S+  FAIL\n", result.out)
    assert "\n1 of 6 blobs differ" in result.out
    assert caffe_lite("compare", *FLAGS, "-atol=0.02").status == 0
    assert caffe_lite("compare", *FLAGS, "-rtol=0.1").status == 0


def test_a_wrong_diff_fails(reference, caffe_lite):
    reference["diff:ip"][0, 0] += 1
    np.savez("blobs.npz", **reference)
    assert verdicts(caffe_lite("compare", *FLAGS))["diff:ip"] == "FAIL"


def test_missing_extra_and_misshapen_blobs_are_failures_that_say_so(reference, caffe_lite):
    reference["blob:conv9"] = np.zeros((1, 2))
    reference["diff:conv9"] = np.zeros((1, 2))
    reference["blob:ip"] = reference["blob:ip"].reshape(3, 2)
    del reference["blob:prob"], reference["diff:prob"]
    np.savez("blobs.npz", **reference)
    result = caffe_lite("compare", *FLAGS)
    assert result.status == 1
    assert verdicts(result) == {
        "blob:data": "pass",
        "blob:ip": "FAIL: the reference's shape is 3x2",
        "blob:prob": "FAIL: extra, the reference has no such blob",
        "diff:data": "pass",
        "diff:ip": "pass",
        "blob:conv9": "FAIL: missing, the net has no such blob",
        "diff:conv9": "FAIL: missing, the net has no such blob",
    }


def test_without_diffs_in_the_reference_nothing_runs_backward(reference, caffe_lite):
    np.savez("blobs.npz", **{key: array for key, array in reference.items() if not key.startswith("diff:")})
    assert list(verdicts(caffe_lite("compare", *FLAGS))) == ["blob:data", "blob:ip", "blob:prob"]


def test_the_phase_is_the_references_unless_asked_otherwise(folder, caffe_lite):
    Net("net.prototxt", caffe_pb2.TEST).save("net.caffemodel")
    flags = ("-model=net.prototxt", "-weights=net.caffemodel", "-reference=blobs.npz", "-rtol=1e9")
    caffe_lite("compare", "-dump", "-phase=TRAIN", *flags)
    assert "blob:accuracy" not in verdicts(caffe_lite("compare", *flags))
    assert "blob:accuracy" in verdicts(caffe_lite("compare", "-phase=TEST", *flags))


def spoil(path):
    """Change one bit of the first array."""
    content = bytearray(Path(path).read_bytes())
    content[content.index(b"\x93NUMPY") + 130] ^= 1
    Path(path).write_bytes(content)


def add_text(path):
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("readme.txt", "made by hand")


@pytest.mark.parametrize(
    ("change", "status", "error"),
    [
        (lambda arrays: Path("blobs.npz").unlink(), 1, "blobs.npz: there is no such file"),
        (lambda arrays: Path("blobs.npz").write_text("hello"), 1, "blobs.npz: not an .npz file of NumPy"),
        (lambda arrays: Path("blobs.npz").write_bytes(Path("blobs.npz").read_bytes()[:300]), 1, "not an .npz file"),
        (lambda arrays: (np.save("x.npy", np.zeros(3)), Path("x.npy").rename("blobs.npz")), 1, "not an .npz file"),
        (lambda arrays: spoil("blobs.npz"), 1, "blobs.npz: an array in it cannot be read: Bad CRC-32"),
        (lambda arrays: add_text("blobs.npz"), 1, "'readme.txt' holds |S"),
        (lambda arrays: np.savez("blobs.npz", a=np.zeros(1)), 1, "no reference blobs. Expected arrays named 'input:NA"),
        (lambda arrays: np.savez("blobs.npz", a=np.array([{}])), 1, "an array in it cannot be read: Object arrays"),
        (lambda arrays: arrays.pop("input:data"), 1, "its inputs are not the net's. Expected 'data', received none."),
        (lambda arrays: arrays.update({"input:x": np.zeros(1)}), 1, "Expected 'data', received 'data', 'x'."),
        (lambda arrays: arrays.update({"input:data": np.zeros((2, 2))}), 1, "deploy.prototxt"),
        (lambda arrays: arrays.update({"input:data": np.array(["a"])}), 1, "not numbers"),
        (lambda arrays: arrays.update({"blob:ip": np.array(["a"])}), 1, "not numbers"),
        (lambda arrays: arrays.update({"phase": np.zeros(2)}), 1, "phase"),
        (lambda arrays: arrays.update({"phase": np.int64(7)}), 1, "phase"),
    ],
)
def test_an_unusable_reference_is_one_line_and_status_1(reference, caffe_lite, change, status, error):
    before = dict(reference)
    change(reference)
    if set(before) != set(reference) or any(before[key] is not reference[key] for key in before):
        np.savez("blobs.npz", **reference)
    result = caffe_lite("compare", *FLAGS)
    assert result.status == status
    assert result.err.count("\n") == 1
    assert result.err.count("blobs.npz") <= 1
    assert result.err.startswith("caffe-lite compare: ") and error in result.err


def test_a_dump_goes_to_an_npz_only_so_that_mixed_up_flags_cost_nothing(reference, caffe_lite):
    before = Path("deploy.caffemodel").read_bytes()
    result = caffe_lite("compare", "-dump", *FLAGS[:2], "-reference=deploy.caffemodel")
    assert result.status == 2
    assert "-dump writes deploy.caffemodel: expected a name that ends in .npz." in result.err
    assert Path("deploy.caffemodel").read_bytes() == before


def test_weights_are_needed_where_the_net_has_params(reference, caffe_lite):
    result = caffe_lite("compare", "-model=deploy.prototxt", "-reference=blobs.npz")
    assert result.status == 2
    assert "Need the weights the net runs with: -weights FILE." in result.err


def test_values_that_are_not_finite_agree_only_with_the_same():
    nan, inf = np.nan, np.inf
    for a, b, agrees in (
        ([nan], [nan], True), ([inf], [inf], True), ([inf], [-inf], False), ([nan], [1.0], False),
        ([1.0], [nan], False), ([inf], [1.0], False), ([1.0, nan], [1.0, nan], True),
    ):  # fmt: skip
        result = compare_arrays("x", np.array(a), np.array(b), 1e-4, 1e-5)
        assert result.agrees is agrees, (a, b)
        assert agrees or result.absolute == inf


def test_errors_are_relative_to_the_references_largest_value():
    result = compare_arrays("x", np.array([1.0, -8.5]), np.array([1.25, -8.0]), 0.0, 0.5)
    assert (result.absolute, result.relative, result.agrees) == (0.5, 0.0625, True)
    assert not compare_arrays("x", np.array([1.0]), np.array([2.0]), 0.49, 0.0).agrees
    assert compare_arrays("x", np.array([1.0]), np.array([0.0]), 1.0, 0.0).relative == np.inf
    assert compare_arrays("x", np.zeros((0, 3)), np.zeros((0, 3)), 0.0, 0.0).agrees


def test_the_pages_script_writes_a_reference_inside_pycaffe(reference, caffe_lite, monkeypatch):
    """caffe_lite stands for the original here: the script uses nothing but pycaffe's own calls."""
    script, diffs = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(script.splitlines()) <= 22
    monkeypatch.setitem(sys.modules, "caffe", package)
    for code, expected in ((script, 3), (script.replace("np.savez", diffs + "np.savez"), 6)):
        monkeypatch.setattr(sys, "argv", ["dump_blobs.py", "deploy.prototxt", "deploy.caffemodel", "script.npz"])
        exec(compile(code, "dump_blobs.py", "exec"), {"__name__": "__main__"})
        with np.load("script.npz") as file:
            for key in file.files:
                np.testing.assert_array_equal(file[key], reference[key])
        result = caffe_lite("compare", *FLAGS[:2], "-reference=script.npz")
        assert result.status == 0
        assert f"all {expected} blobs agree" in result.out


def test_the_pages_flags_and_keys_are_the_commands_own():
    page = PAGE.read_text(encoding="utf-8")
    parser = FlagParser("caffe-lite compare", "")
    compare.add_flags(parser)
    flags = set(re.findall(r"[ `](-[a-z]+)\b", page))
    assert {"-model", "-rtol", "-dump"} <= flags
    assert all(f"-{flag}" in parser.format_help() for flag in flags)
    for key in ("input:NAME", "blob:NAME", "diff:NAME"):
        assert f"`{key}`" in page
        assert key in compare.__doc__

"""HDF5Data and HDF5Output: rows across files, shuffling, streaming, what is written, and complaints."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from nets import build, input_layer, layer
from reference import recipe

from caffe_lite.data import hdf5
from caffe_lite.errors import CaffeError, DataError, FileAccessError, MissingFileError, NetError, ShapeError
from caffe_lite.net import Net
from caffe_lite.solvers import get_solver

SIZES = (4, 1, 7)  # rows of the three files


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Go to a folder with three files; row i of all is i in ``label``, and i, i + 0.25, ... in ``data``."""
    monkeypatch.chdir(tmp_path)
    start = 0
    for number, size in enumerate(SIZES):
        rows = np.arange(start, start + size)
        write(f"{number}.h5", data=rows.reshape(-1, 1, 1) + np.arange(6).reshape(2, 3) / 4, label=rows)
        start += size
    Path("list.txt").write_text("0.h5 1.h5\n\n2.h5\n")
    return tmp_path


@pytest.fixture
def open_net(folder: Path) -> Iterator[Any]:
    """Give a function that builds a net of an HDF5Data layer; it is closed at the end."""
    nets: list[Net] = []

    def open_net(batch_size: int, options: str = "", tops: str = "data label", seed: int = 1, more: str = "") -> Net:
        param = f'hdf5_data_param {{ source: "list.txt" batch_size: {batch_size} {options} }} {more}'
        nets.append(build(layer("d", "HDF5Data", tops=tops, more=param), seed))
        return nets[-1]

    yield open_net
    for net in nets:
        net.close()


def write(name: str, **datasets: Any) -> None:
    with h5py.File(name, "w") as file:
        for dataset, values in datasets.items():
            file[dataset] = values


def rows(net: Net, passes: int) -> list[int]:
    """Return the labels of the next passes, after a look at the data that go with them."""
    seen: list[int] = []
    for _ in range(passes):
        tops = net.forward()
        np.testing.assert_array_equal(tops["data"][:, 1, 2], tops["label"] + 1.25)
        seen += map(int, tops["label"])
    return seen


# -- reading


def test_the_original_learns_the_same_from_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """30 iterations of batches of 16 from 80 rows: six times around the end."""
    monkeypatch.chdir(Path(__file__).resolve().parents[1] / "reference" / "training" / "solvers")
    solver = get_solver("sgd_fixed.prototxt")
    for name, blobs in solver.net.params.items():
        for index, blob in enumerate(blobs):
            blob.data[...] = recipe.weight(name, index, blob.shape)
    losses = []
    for _ in range(30):
        solver.step(1)
        losses.append(float(solver.net.blobs["loss"].data))
    with np.load("sgd_fixed.npz") as recorded:
        np.testing.assert_allclose(losses, recorded["loss"][:30], rtol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 4, 5, 12, 17, 30])
@pytest.mark.parametrize("in_memory", [0, hdf5.IN_MEMORY])
def test_batches_go_on_across_files_and_around_the_end(
    open_net: Any, batch_size: int, in_memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hdf5, "IN_MEMORY", in_memory)
    net = open_net(batch_size)
    assert net.blobs["data"].shape == (batch_size, 2, 3)
    assert net.blobs["label"].shape == (batch_size,)
    assert rows(net, 5) == [number % 12 for number in range(5 * batch_size)]


@pytest.mark.parametrize("in_memory", [0, hdf5.IN_MEMORY])
def test_shuffle_permutes_files_and_the_rows_within_them(
    open_net: Any, in_memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hdf5, "IN_MEMORY", in_memory)
    seen = rows(open_net(6, "shuffle: true"), 40)
    epochs = [seen[start : start + 12] for start in range(0, 240, 12)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    files = [[(row >= 4) + (row >= 5) for row in epoch] for epoch in epochs]
    assert all(sum(a != b for a, b in itertools.pairwise(order)) == 2 for order in files)  # files do not mix
    assert len({str(order) for order in files}) == 6
    assert len({str(epoch) for epoch in epochs}) == 20
    assert rows(open_net(6, "shuffle: true"), 40) == seen
    assert rows(open_net(6, "shuffle: true", seed=2), 40) != seen


def test_one_file_is_shuffled_anew_each_time(open_net: Any) -> None:
    Path("list.txt").write_text("2.h5")
    seen = rows(open_net(7, "shuffle: true"), 3)
    epochs = [seen[start : start + 7] for start in (0, 7, 14)]
    assert all(sorted(epoch) == list(range(5, 12)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


@pytest.mark.parametrize("options", ["", "shuffle: true"])
@pytest.mark.parametrize("passes", [0, 1, 2, 3, 9])
def test_seek_finds_the_row(open_net: Any, options: str, passes: int) -> None:
    seen = rows(open_net(5, options), 12)
    net = open_net(5, options)
    net.seek(passes)
    assert rows(net, 3) == seen[5 * passes : 5 * passes + 15]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4", "int8", "uint8", "int32", "uint64"])
def test_floats_and_integers_of_any_size_become_float32(open_net: Any, dtype: str) -> None:
    values = np.array([[0, 1, 100], [3, 4, 5]], dtype)
    write("0.h5", x=values)
    Path("list.txt").write_text("0.h5")
    np.testing.assert_array_equal(open_net(2, tops="x").forward()["x"], values.astype(np.float32))


def test_the_tops_choose_the_datasets(open_net: Any) -> None:
    write("0.h5", a=[[1.0]], b=np.ones((1, 2, 1, 1, 1, 3)), c=[5], d=["text"])
    Path("list.txt").write_text("0.h5")
    net = open_net(3, tops="c b")
    assert (net.blobs["c"].shape, net.blobs["b"].shape) == ((3,), (3, 2, 1, 1, 1, 3))
    assert (net.forward()["c"] == 5).all()


def test_a_file_larger_than_the_limit_is_streamed(open_net: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdf5, "IN_MEMORY", 100)
    read: list[int] = []
    original = hdf5._File._read_all
    monkeypatch.setattr(hdf5._File, "_read_all", lambda self, *args: (read.append(len(args[0])), original(self, *args)))
    assert rows(open_net(3), 4) == list(range(12))
    assert max(read) == 3


def test_compressed_and_chunked_datasets_are_read(open_net: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.arange(30.0).reshape(10, 3)
    with h5py.File("0.h5", "w") as file:
        file.create_dataset("x", data=values, chunks=(4, 2), compression="gzip")
    Path("list.txt").write_text("0.h5")
    for limit in (0, hdf5.IN_MEMORY):
        monkeypatch.setattr(hdf5, "IN_MEMORY", limit)
        np.testing.assert_array_equal(open_net(10, tops="x").forward()["x"], values)


# -- complaints about what is read


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        ("0.h5\nnowhere.h5", MissingFileError, "list.txt:2: nowhere.h5: no such HDF5 file"),
        ("", DataError, "list.txt: the list names no HDF5 file"),
        ("list.txt", DataError, "list.txt:1: list.txt is not an HDF5 file. It begins with b'list.txt'"),
        (".", FileAccessError, "list.txt:1: . cannot be read"),
        ("lacks.h5", DataError, "lacks.h5 has no dataset 'label', as the layer's top .* Did you mean 'labels'"),
        ("group.h5", DataError, "group.h5 has no dataset 'label', as the layer's top is called. It has data"),
        ("text.h5", DataError, "text.h5: dataset 'label' has elements of type object. Expected floats or integers"),
        ("bool.h5", DataError, "bool.h5: dataset 'label' has elements of type bool"),
        ("scalar.h5", DataError, "scalar.h5: dataset 'label' is a scalar"),
        ("uneven.h5", DataError, r"uneven.h5: datasets 'data' and 'label' differ in axis 0.* \(2, 2, 3\) and \(3,\)"),
        ("empty.h5", DataError, r"empty.h5: dataset 'data' has no rows. Received shape \(0, 2, 3\)"),
    ],
)
def test_files_that_cannot_be_used_are_found_when_the_net_is_built(
    open_net: Any, files: str, error: type[CaffeError], message: str
) -> None:
    data = np.zeros((2, 2, 3))
    write("lacks.h5", data=data, labels=[1, 2])
    write("group.h5", data=data)
    with h5py.File("group.h5", "a") as file:
        file.create_group("label")
        del file["label"]
    write("text.h5", data=data, label=["a", "b"])
    write("bool.h5", data=data, label=[True, False])
    write("scalar.h5", data=data, label=1.0)
    write("uneven.h5", data=data, label=[1, 2, 3])
    write("empty.h5", data=data[:0], label=np.zeros(0))
    Path("list.txt").write_text(files)
    with pytest.raises(error, match=rf"layer 'd' \(HDF5Data\): .*{message}"):
        open_net(2)


def test_a_group_is_no_dataset(open_net: Any) -> None:
    with h5py.File("0.h5", "a") as file:
        file.create_group("group")
    with pytest.raises(DataError, match=r"0.h5 has no dataset 'group'"):
        open_net(2, tops="data group")


def test_a_later_file_of_another_shape_names_itself_and_the_dataset(open_net: Any) -> None:
    write("1.h5", data=np.zeros((3, 2, 4)), label=np.zeros(3))
    net = open_net(2)
    rows(net, 2)
    for _ in range(2):
        with pytest.raises(
            DataError,
            match=r"list.txt:1: 1.h5: the rows of dataset 'data' .* Expected shape \(2, 3\), received \(2, 4\)",
        ):
            net.forward()


def test_a_damaged_dataset_names_file_and_dataset(open_net: Any) -> None:
    with h5py.File("0.h5", "w") as file:
        file["label"] = np.arange(400)
        file.create_dataset("data", data=np.random.default_rng(0).random((400, 2, 3)), chunks=True, compression="gzip")
        at = file["data"].id.get_chunk_info(0).byte_offset
    with open("0.h5", "r+b") as raw:  # noqa: PTH123
        raw.seek(at)
        raw.write(bytes(64))
    Path("list.txt").write_text("0.h5")
    with pytest.raises(DataError, match=r"0.h5: dataset 'data' cannot be read"):
        open_net(2).forward()


def test_a_truncated_file_is_an_error(open_net: Any) -> None:
    content = Path("2.h5").read_bytes()
    Path("2.h5").write_bytes(content[: len(content) // 2])
    Path("list.txt").write_text("2.h5")
    with pytest.raises(DataError, match=r"list.txt:1: 2.h5 cannot be opened: .*truncated"):
        open_net(2)


def test_a_missing_list_is_a_missing_file(open_net: Any) -> None:
    Path("list.txt").unlink()
    with pytest.raises(MissingFileError, match=r"list.txt: no such list of HDF5 files"):
        open_net(2)


def test_transform_param_is_refused(open_net: Any) -> None:
    with pytest.raises(NetError, match=r"HDF5Data does not transform data. Remove transform_param"):
        open_net(2, more="transform_param { scale: 2 }")


def test_the_missing_batch_size_is_an_error(open_net: Any) -> None:
    with pytest.raises(NetError, match="hdf5_data_param: batch_size is missing"):
        open_net(0)


def test_h5py_missing_names_the_command(open_net: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(
        DataError, match=r"HDF5 needs the library h5py. Install it with: pip install 'caffe-lite\[hdf5\]'"
    ):
        open_net(2)


# -- writing


def output_net(data: tuple[int, ...] = (2, 3), label: tuple[int, ...] = (2,), file_name: str = "out.h5") -> Net:
    param = f'hdf5_output_param {{ file_name: "{file_name}" }}'
    double = layer("twice", "Power", "x", "y", "power_param { scale: 2 }")
    return build(input_layer(x=data, label=label) + double + layer("o", "HDF5Output", "y label", more=param))


def test_output_writes_what_the_layers_before_it_computed_with_four_axes(folder: Path) -> None:
    net = output_net()
    x, label = np.arange(6, dtype=np.float32).reshape(2, 3), np.float32([7, 8])
    net.forward(x=x, label=label)
    with h5py.File("out.h5") as file:
        assert sorted(file) == ["data", "label"]
        assert file["data"].dtype == file["label"].dtype == np.float32
        np.testing.assert_array_equal(file["data"], 2 * x.reshape(2, 3, 1, 1))
        np.testing.assert_array_equal(file["label"], label.reshape(2, 1, 1, 1))


def test_output_adds_the_rows_of_each_pass_and_of_batches_of_another_size(folder: Path) -> None:
    net = output_net()
    for number in range(3):
        net.forward(x=np.full((2 + number, 3), number), label=np.full(2 + number, -number))
    with h5py.File("out.h5") as file:
        np.testing.assert_array_equal(file["data"][:, 2, 0, 0], 2 * np.repeat([0, 1, 2], [2, 3, 4]))
        np.testing.assert_array_equal(file["label"][:, 0, 0, 0], -np.repeat([0, 1, 2], [2, 3, 4]))


def test_output_replaces_an_existing_file_when_the_net_is_built(folder: Path) -> None:
    write("out.h5", old=[1])
    output_net()
    with h5py.File("out.h5") as file:
        assert not list(file)


def test_what_output_wrote_data_reads(folder: Path, open_net: Any) -> None:
    net = output_net((5, 2, 3), (5,))
    x = np.random.default_rng(0).standard_normal((5, 2, 3)).astype(np.float32)
    net.forward(x=x, label=np.arange(5))
    Path("list.txt").write_text("out.h5")
    tops = open_net(5).forward()
    np.testing.assert_array_equal(tops["data"], 2 * x[..., np.newaxis])
    np.testing.assert_array_equal(tops["label"].ravel(), np.arange(5))


def test_output_does_not_stand_in_the_way_of_a_gradient(folder: Path) -> None:
    param = 'hdf5_output_param { file_name: "out.h5" }'
    loss = layer("twice", "Power", "x", "y", "power_param { scale: 2 } loss_weight: 1")
    net = build("force_backward: true " + input_layer(x=(2, 3)) + loss + layer("o", "HDF5Output", "x x", more=param))
    net.forward()
    assert (net.backward()["x"] == 2).all()


@pytest.mark.parametrize(
    ("data", "label", "message"),
    [
        ((2, 3), (3,), r"differ in axis 0.* Received 'y' \(2, 3\) and 'label' \(3,\). Check"),
        ((2, 1, 1, 1, 3), (2,), r"a bottom has too many axes. Expected at most 4, received 'y' \(2, 1, 1, 1, 3\)"),
    ],
)
def test_bottoms_that_do_not_fit_are_an_error(
    folder: Path, data: tuple[int, ...], label: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ShapeError, match=rf"layer 'o' \(HDF5Output\): .*{message}"):
        output_net(data, label)


def test_rows_that_change_their_shape_are_an_error(folder: Path) -> None:
    net = output_net()
    net.forward()
    with pytest.raises(DataError, match=r"out.h5: the rows of bottom 'y' have changed .*\(3, 1, 1\).*received \(4, 1"):
        net.forward(x=np.zeros((2, 4)), label=np.zeros(2))


def test_output_without_a_file_name_is_an_error(folder: Path) -> None:
    with pytest.raises(NetError, match="hdf5_output_param: file_name is missing"):
        output_net(file_name="")


def test_a_place_that_cannot_be_written_is_an_access_error(folder: Path) -> None:
    with pytest.raises(FileAccessError, match=r"layer 'o' \(HDF5Output\): nowhere/out.h5 cannot be written"):
        output_net(file_name="nowhere/out.h5")


def test_one_bottom_is_an_error(folder: Path) -> None:
    with pytest.raises(NetError, match=r"wrong number of bottoms. Expected 2, received 1"):
        build(input_layer(x=(2,)) + layer("o", "HDF5Output", "x"))

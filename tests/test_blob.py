"""Blob: shapes, lazy memory, sharing."""

from __future__ import annotations

import numpy as np
import pytest
from nets import allocated

from caffe_lite.blob import Blob
from caffe_lite.devices import host_device
from caffe_lite.errors import ShapeError


def blob(*shape: int, name: str = "x") -> Blob:
    return Blob(host_device(), shape, name)


def watched(*shape: int) -> tuple[Blob, list[int]]:
    calls: list[int] = []
    watched_blob = blob(*shape)
    watched_blob.watch = lambda: calls.append(1)
    return watched_blob, calls


def test_a_new_blob_is_zero_float32_of_its_shape() -> None:
    x = blob(2, 3)
    assert (x.shape, x.count) == ((2, 3), 6)
    for array in (x.data, x.diff):
        assert array.shape == (2, 3)
        assert array.dtype == np.float32
        assert not array.any()


def test_data_shows_and_writes_the_memory_that_kernels_use() -> None:
    x = blob(2, 3)
    x.data[1] = 5
    x.device.fill(x.data_buffer.view(0, 3), 2)
    np.testing.assert_array_equal(x.data, [[2, 2, 2], [5, 5, 5]])


def test_a_blob_without_axes_holds_one_element() -> None:
    x = blob()
    x.data[...] = 3
    assert (x.count, float(x.data)) == (1, 3.0)


def test_memory_is_allocated_when_it_is_first_used() -> None:
    before = allocated()
    x = blob(1000)
    x.reshape(2000)
    assert allocated() == before
    assert x.data.size == 2000
    assert allocated() == before + 8000
    assert not x.has_diff
    assert x.diff.size == 2000
    assert x.has_diff


@pytest.mark.parametrize("shape", [(3, 2), ((3, 2),), ([3, 2],), (np.array([3, 2]),)])
def test_reshape_takes_lengths_or_one_sequence(shape: tuple[object, ...]) -> None:
    x = blob(2, 3)
    x.reshape(*shape)  # type: ignore[arg-type]
    assert x.shape == (3, 2)


def test_reshape_keeps_the_content_while_it_fits() -> None:
    x = blob(2, 3)
    x.data[...] = np.arange(6).reshape(2, 3)
    x.reshape(2, 2)
    np.testing.assert_array_equal(x.data, [[0, 1], [2, 3]])
    assert x.data_buffer.size == 4
    x.reshape(6)
    np.testing.assert_array_equal(x.data, np.arange(6))


def test_reshape_to_more_elements_gives_zeroed_memory() -> None:
    x = blob(2)
    x.data[...] = 7
    x.reshape(5)
    np.testing.assert_array_equal(x.data, np.zeros(5))


def test_a_negative_length_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"blob 'x' cannot have a negative length\. Received shape \(2, -1\)"):
        blob(2).reshape(2, -1)


def test_too_many_elements_are_refused_before_anything_is_allocated() -> None:
    with pytest.raises(ShapeError, match=r"blob 'x' is too large.*\(65536, 65536\), that is 4294967296"):
        blob(2).reshape(65536, 65536)


def test_too_many_axes_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"too many axes\. Expected at most 32, received 33"):
        blob(*[1] * 33)


def test_a_failed_reshape_leaves_the_blob_as_it_was() -> None:
    x = blob(2, 3)
    with pytest.raises(ShapeError):
        x.reshape(-1)
    assert x.shape == (2, 3)


def test_shared_data_is_one_memory_and_allocates_none() -> None:
    a, b = blob(2, 3), blob(6)
    b.share_data(a)
    b.data[...] = np.arange(6)
    np.testing.assert_array_equal(a.data, [[0, 1, 2], [3, 4, 5]])
    b.diff[...] = 1
    assert not a.diff.any()


def test_shared_diff_is_one_memory() -> None:
    a, b = blob(4), blob(4)
    b.share_diff(a)
    b.diff[...] = 3
    assert (a.diff == 3).all()


@pytest.mark.parametrize("what", ["data", "diff"])
def test_blobs_of_different_counts_do_not_share(what: str) -> None:
    a, b = blob(4, name="a"), blob(5, name="b")
    with pytest.raises(ShapeError, match=rf"'b' cannot share the {what} of blob 'a'.*Expected 5.*received 4"):
        getattr(b, f"share_{what}")(a)


def test_a_blob_that_outgrows_shared_memory_leaves_it() -> None:
    a, b = blob(4), blob(4)
    b.share_data(a)
    b.reshape(8)
    b.data[...] = 1
    assert not a.data.any()


def test_watch_hears_of_new_shapes_and_new_memory_only() -> None:
    x, calls = watched(4)
    x.data[...] = 1
    x.reshape(4)
    assert not calls
    x.reshape(2, 2)
    other = blob(4)
    x.share_data(other)
    x.share_data(other)
    x.share_diff(other)
    assert len(calls) == 3


def test_legacy_accessors_count_missing_axes_as_one() -> None:
    x = blob(2, 3)
    assert (x.num, x.channels, x.height, x.width) == (2, 3, 1, 1)


def test_legacy_accessors_refuse_more_than_four_axes() -> None:
    with pytest.raises(ShapeError, match=r"at most 4 axes\. Received .x. \(1, 2, 3, 4, 5\)"):
        _ = blob(1, 2, 3, 4, 5).height


def test_a_message_names_blob_and_shape() -> None:
    assert f"{blob(2, 3, name='conv1')}" == "'conv1' (2, 3)"
    assert f"{blob(2, 3, name='')}" == "(2, 3)"


def test_repr_names_blob_and_shape() -> None:
    assert repr(blob(2, 3, name="conv1")) == "<Blob 'conv1' (2, 3)>"
    assert repr(blob(2, 3, name="")) == "<Blob (2, 3)>"

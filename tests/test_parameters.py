"""Parameters: the flat buffers, and params shared by name."""

from __future__ import annotations

import logging
import re

import numpy as np
import pytest
from nets import MLP, allocated, build, input_layer, layer

from caffe_lite.errors import NetError, ShapeError
from caffe_lite.parameters import ROW

IP = "inner_product_param {{ num_output: {} bias_term: false weight_filler {{ type: 'gaussian' }} }} "


def shared(first: str = "", second: str = "", outputs: tuple[int, int] = (6, 6), width: int = 6) -> str:
    """Return two inner products without bias, one after the other, whose weights are called 'w'."""
    return (
        input_layer(x=(4, width))
        + layer("a", "InnerProduct", "x", "y", IP.format(outputs[0]) + f"param {{ name: 'w' {first} }}")
        + layer("b", "InnerProduct", "y", "z", IP.format(outputs[1]) + f"param {{ name: 'w' {second} }} loss_weight: 1")
    )


def test_params_lie_in_one_buffer_each_at_the_start_of_a_row() -> None:
    parameters = build(MLP).parameters
    assert parameters.names == ["ip1/0", "ip1/1", "ip2/0", "ip2/1"]
    assert parameters.offsets == [0, ROW, 2 * ROW, 3 * ROW]
    assert parameters.rows == 4
    assert parameters.row_owner.dtype == np.int32
    assert parameters.row_owner.tolist() == [0, 1, 2, 3]


def test_a_param_of_more_than_a_row_owns_several() -> None:
    net = build(input_layer(x=(2, 100)) + layer("ip", "InnerProduct", "x", "y", IP.format(7)))
    assert net.parameters.row_owner.tolist() == [0, 0, 0]


@pytest.mark.parametrize("what", ["data", "diff"])
def test_a_params_blob_is_a_view_into_the_flat_buffer(what: str) -> None:
    net = build(MLP)
    flat = net.device.host_view(getattr(net.parameters, what))
    flat[...] = np.arange(flat.size)
    for blob, offset in zip(net.parameters.blobs, net.parameters.offsets, strict=True):
        np.testing.assert_array_equal(getattr(blob, what).ravel(), np.arange(offset, offset + blob.count))


def test_the_gaps_between_params_are_zero() -> None:
    net = build(MLP)
    net.forward(x=np.ones((4, 6)), label=np.zeros(4))
    net.run_backward()
    for buffer in (net.parameters.data, net.parameters.diff):
        flat = net.device.download(buffer)
        for blob, offset in zip(net.parameters.blobs, net.parameters.offsets, strict=True):
            flat[offset : offset + blob.count] = 0
        assert not flat.any()


def test_the_flat_diff_is_allocated_when_it_is_first_used() -> None:
    net = build(MLP)
    before = allocated()
    net.clear_param_diffs()
    assert allocated() == before + 4 * 4 * ROW


def test_clearing_sets_all_params_diffs_to_zero() -> None:
    net = build(MLP)
    for blob in net.parameters.blobs:
        blob.diff[...] = 1
    net.clear_param_diffs()
    assert not any(blob.diff.any() for blob in net.parameters.blobs)


def test_a_net_without_params_has_nothing_to_clear() -> None:
    net = build(input_layer(x=(2,)))
    net.clear_param_diffs()
    assert net.parameters.rows == 0


def test_mults_come_from_the_param_entries_and_are_one_without() -> None:
    text = MLP.replace('top: "ip1"\n', 'top: "ip1" param { lr_mult: 2 decay_mult: 0 } param { lr_mult: 0 }\n')
    parameters = build(text).parameters
    assert parameters.lr_mults == [2, 0, 1, 1]
    assert parameters.decay_mults == [0, 1, 1, 1]


def test_a_param_keeps_its_place_but_may_change_its_shape() -> None:
    weights = build(MLP).params["ip1"][0]
    weights.reshape(30)
    assert weights.shape == (30,)
    with pytest.raises(ShapeError, match="the param 'ip1/0' cannot grow from 30 to 31 elements"):
        weights.reshape(31)


# -- sharing by name


def test_params_of_one_name_are_one_param(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "caffe_lite"):
        net = build(shared())
    assert "Sharing parameters 'w' owned by layer 'a', param index 0" in caplog.messages
    assert len(net.parameters.blobs) == 1
    assert [param.learnable for param in net.parameters.all] == [0, 0]
    net.params["a"][0].data[...] = 3
    assert (net.params["b"][0].data == 3).all()


def test_the_gradients_of_a_shared_param_add_up() -> None:
    one, two = build(shared()), build(shared().replace("'w'", "''"))
    two.params["b"][0].data[...] = two.params["a"][0].data
    one.params["a"][0].data[...] = two.params["a"][0].data
    for net in (one, two):
        net.forward(x=np.linspace(-1, 1, 24).reshape(4, 6))
        net.run_backward()
    both = two.params["a"][0].diff + two.params["b"][0].diff
    np.testing.assert_allclose(one.params["a"][0].diff, both, rtol=1e-5, atol=1e-6)


def test_strict_sharing_refuses_another_shape() -> None:
    message = (
        "layer 'b' (InnerProduct): param 0 cannot share 'w' of layer 'a': the shape (share_mode STRICT) differs. "
        "Expected (6, 3), received (6, 6)."
    )
    with pytest.raises(ShapeError, match=re.escape(message)):
        build(shared(width=3))


def test_permissive_sharing_asks_for_the_same_count_only() -> None:
    net = build(shared(second="share_mode: PERMISSIVE", outputs=(2, 9), width=9))
    assert [net.params[name][0].shape for name in "ab"] == [(2, 9), (9, 2)]
    net.params["a"][0].data[...] = np.arange(18).reshape(2, 9)
    np.testing.assert_array_equal(net.params["b"][0].data, np.arange(18).reshape(9, 2))


def test_permissive_sharing_refuses_another_count() -> None:
    with pytest.raises(ShapeError, match=r"the element count \(share_mode PERMISSIVE\) differs"):
        build(shared(second="share_mode: PERMISSIVE", outputs=(2, 9), width=3))


@pytest.mark.parametrize("field", ["lr_mult", "decay_mult"])
def test_sharers_may_leave_a_mult_to_each_other_but_not_contradict(field: str) -> None:
    for first, second in [(f"{field}: 3", ""), ("", f"{field}: 3"), (f"{field}: 3", f"{field}: 3")]:
        assert getattr(build(shared(first, second)).parameters, field + "s") == [3]
    message = f"param 0 shares 'w' with another {field}. Expected 3 as in the layers before, received 2."
    with pytest.raises(NetError, match=re.escape(message)):
        build(shared(f"{field}: 3", f"{field}: 2"))

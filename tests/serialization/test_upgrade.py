"""Old nets and solvers become what the original's upgrade tools make of them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format

from caffe_lite.errors import NetError, SolverError
from caffe_lite.proto import caffe_pb2
from caffe_lite.serialization import upgrade

FILES = Path(__file__).resolve().parents[1] / "reference" / "files"


def net_of(text: str) -> Any:
    return text_format.Parse(text, caffe_pb2.NetParameter())


def upgraded(text: str) -> Any:
    net_param = net_of(text)
    assert upgrade.upgrade_net(net_param)
    return net_param


# -- the original's results


@pytest.mark.parametrize("name", ["upgrade_v0", "upgrade_v1"])
def test_an_old_net_becomes_what_the_originals_tool_made_of_it(name: str) -> None:
    expected = net_of((FILES / f"{name}_after.prototxt").read_text())
    assert upgraded((FILES / f"{name}.prototxt").read_text()) == expected
    assert not upgrade.upgrade_net(expected)


def test_an_old_solver_becomes_what_the_originals_tool_made_of_it() -> None:
    before, after = (
        text_format.Parse((FILES / f"upgrade_solver{suffix}.prototxt").read_text(), caffe_pb2.SolverParameter())
        for suffix in ("", "_after")
    )
    assert upgrade.upgrade_solver(before)
    assert before == after
    assert not upgrade.upgrade_solver(after)


# -- V0


def v0(options: str, type_name: str) -> Any:
    return upgraded(f"layers {{ layer {{ name: 'l' type: '{type_name}' {options} }} top: 't' }}").layer[0]


def layer_of(text: str) -> Any:
    return text_format.Parse("name: 'l' top: 't' " + text, caffe_pb2.LayerParameter())


@pytest.mark.parametrize(
    ("type_name", "options", "expected"),
    [
        (
            "conv",
            "num_output: 2 biasterm: false pad: 1 kernelsize: 3 group: 2 stride: 4",
            "type: 'Convolution' convolution_param"
            " { num_output: 2 bias_term: false pad: 1 kernel_size: 3 group: 2 stride: 4 }",
        ),
        (
            "pool",
            "pool: STOCHASTIC pad: 1 kernelsize: 3 stride: 2",
            "type: 'Pooling' pooling_param { pool: STOCHASTIC pad: 1 kernel_size: 3 stride: 2 }",
        ),
        (
            "innerproduct",
            "num_output: 5 biasterm: true weight_filler { std: 1 } bias_filler { value: 2 }",
            "type: 'InnerProduct' inner_product_param"
            " { num_output: 5 bias_term: true weight_filler { std: 1 } bias_filler { value: 2 } }",
        ),
        (
            "lrn",
            "local_size: 3 alpha: 2 beta: 0.5 k: 4",
            "type: 'LRN' lrn_param { local_size: 3 alpha: 2 beta: 0.5 k: 4 }",
        ),
        (
            "data",
            "source: 's' batchsize: 2 rand_skip: 3 scale: 0.5 meanfile: 'm' cropsize: 7 mirror: true",
            "type: 'Data' data_param { source: 's' batch_size: 2 rand_skip: 3 }"
            " transform_param { scale: 0.5 mean_file: 'm' crop_size: 7 mirror: true }",
        ),
        (
            "images",
            "source: 's' batchsize: 2 rand_skip: 3 shuffle_images: true new_height: 4 new_width: 5",
            "type: 'ImageData' image_data_param"
            " { source: 's' batch_size: 2 rand_skip: 3 shuffle: true new_height: 4 new_width: 5 }",
        ),
        (
            "window_data",
            "source: 's' batchsize: 2 det_fg_threshold: 0.1 det_bg_threshold: 0.2 det_fg_fraction: 0.3"
            " det_context_pad: 4 det_crop_mode: 'square'",
            "type: 'WindowData' window_data_param { source: 's' batch_size: 2 fg_threshold: 0.1 bg_threshold: 0.2"
            " fg_fraction: 0.3 context_pad: 4 crop_mode: 'square' }",
        ),
        ("hdf5_data", "source: 's' batchsize: 2", "type: 'HDF5Data' hdf5_data_param { source: 's' batch_size: 2 }"),
        (
            "hdf5_output",
            "hdf5_output_param { file_name: 'f' }",
            "type: 'HDF5Output' hdf5_output_param { file_name: 'f' }",
        ),
        ("infogain_loss", "source: 's'", "type: 'InfogainLoss' infogain_loss_param { source: 's' }"),
        ("concat", "concat_dim: 0", "type: 'Concat' concat_param { concat_dim: 0 }"),
        ("dropout", "dropout_ratio: 0.3", "type: 'Dropout' dropout_param { dropout_ratio: 0.3 }"),
        (
            "relu",
            "blobs { data: 1 } blobs_lr: 1 blobs_lr: 2 weight_decay: 3",
            "type: 'ReLU' blobs { data: 1 } param { lr_mult: 1 decay_mult: 3 } param { lr_mult: 2 }",
        ),
    ],
)
def test_every_v0_option_finds_its_place(type_name: str, options: str, expected: str) -> None:
    assert v0(options, type_name) == layer_of(expected)


def test_the_table_of_v0_options_covers_the_schema() -> None:
    elsewhere = {"name", "type", "blobs", "blobs_lr", "weight_decay", "hdf5_output_param"}
    dropped = {"new_num", "new_channels"}  # of a Reshape layer that never had a V1 form
    fields = {field.name for field in caffe_pb2.V0LayerParameter.DESCRIPTOR.fields}
    assert fields - elsewhere - dropped == upgrade.V0_OPTIONS.keys() | upgrade.V0_TRANSFORM_OPTIONS.keys()


@pytest.mark.parametrize(
    ("option", "name"), [("kernelsize: 3", "kernelsize"), ("hdf5_output_param { file_name: 'f' }", "hdf5_output_param")]
)
def test_an_option_that_a_v0_layer_type_does_not_have_is_dropped_with_an_error_in_the_log(
    option: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert v0(option, "relu") == layer_of("type: 'ReLU'")
    assert [record.message for record in caplog.records if record.levelno == logging.ERROR] == [
        f"Unknown parameter {name} for layer type relu",
        "Warning: had one or more problems upgrading V0NetParameter to NetParameter (see above); continuing anyway.",
    ]


def test_v0_nets_keep_name_inputs_and_force_backward_and_nothing_else() -> None:
    net_param = upgraded(
        "name: 'n' force_backward: true debug_info: true input: 'data' input_dim: [1, 2, 3, 4]"
        " layers { layer { name: 'l' type: 'relu' } bottom: 'data' top: 't' }"
    )
    assert (net_param.name, net_param.force_backward) == ("n", True)
    assert [layer.name for layer in net_param.layer] == ["input", "l"]
    assert not net_param.HasField("debug_info")


PADDED = """
input: 'data'
layers {{ layer {{ name: 'pad' type: 'padding' pad: 3 }} bottom: 'data' top: 'padded' {more} }}
layers {{ layer {{ name: 'user' type: '{user}' }} bottom: 'padded' {bottoms} top: 'top' }}
"""


@pytest.mark.parametrize(("user", "pad"), [("conv", [3]), ("pool", 3)])
def test_a_padding_layer_becomes_the_pad_of_the_next(user: str, pad: object) -> None:
    (layer,) = upgraded(PADDED.format(user=user, more="", bottoms="")).layer
    assert list(layer.bottom) == ["data"]
    assert pad == (list(layer.convolution_param.pad) if user == "conv" else layer.pooling_param.pad)


def test_a_padding_layer_before_another_type_is_an_error() -> None:
    with pytest.raises(
        NetError, match=r"padding layer 'pad' feeds layer 'user' of type 'relu'. Expected a conv or pool"
    ):
        upgraded(PADDED.format(user="relu", more="", bottoms=""))


@pytest.mark.parametrize(
    ("more", "bottoms", "received"),
    [
        ("bottom: 'data'", "", "2 and 1 bottoms, 1 tops"),
        ("top: 'second'", "", "1 and 1 bottoms, 2 tops"),
        ("", "bottom: 'data'", "1 and 2 bottoms, 1 tops"),
    ],
)
def test_a_padding_layer_with_more_than_one_bottom_or_top_is_an_error(more: str, bottoms: str, received: str) -> None:
    with pytest.raises(NetError, match=rf"padding layer 'pad' and layer 'user' must have one .* Received {received}"):
        upgraded(PADDED.format(user="conv", more=more, bottoms=bottoms))


def test_a_v0_bottom_that_no_layer_makes_is_an_error() -> None:
    with pytest.raises(NetError, match=r"layer 'l': no layer before it makes its bottom 'x'"):
        upgraded("layers { layer { name: 'l' type: 'relu' } bottom: 'x' }")


def test_an_unknown_v0_layer_type_is_an_error_with_the_known_types() -> None:
    with pytest.raises(NetError, match=r"unknown V0 layer type 'fancy'. Known types: accuracy, bnll, .*, window_data"):
        v0("", "fancy")


# -- V1


@pytest.mark.parametrize("name", caffe_pb2.V1LayerParameter.LayerType.keys())
def test_every_v1_type_gets_the_name_of_today(name: str) -> None:
    words = name.replace("_", "").lower()
    layer_type = upgraded(f"layers {{ type: {name} }}").layer[0].type
    assert layer_type.lower() == {"none": "", "softmaxloss": "softmaxwithloss"}.get(words, words)


@pytest.mark.parametrize(
    ("name", "layer_type"),
    [
        ("ABSVAL", "AbsVal"),
        ("ARGMAX", "ArgMax"),
        ("BNLL", "BNLL"),
        ("HDF5_DATA", "HDF5Data"),
        ("IM2COL", "Im2col"),
        ("INFOGAIN_LOSS", "InfogainLoss"),
        ("LRN", "LRN"),
        ("MVN", "MVN"),
        ("RELU", "ReLU"),
        ("SIGMOID_CROSS_ENTROPY_LOSS", "SigmoidCrossEntropyLoss"),
        ("TANH", "TanH"),
    ],
)
def test_types_are_spelt_as_the_registry_spells_them(name: str, layer_type: str) -> None:
    assert upgraded(f"layers {{ type: {name} }}").layer[0].type == layer_type


def test_every_v1_field_has_a_place() -> None:
    special = {"type", "layer", *upgrade.V1_PARAM_SPECS}
    today = caffe_pb2.LayerParameter.DESCRIPTOR.fields_by_name
    for field in caffe_pb2.V1LayerParameter.DESCRIPTOR.fields:
        assert field.name in special or today[field.name].message_type == field.message_type, field.name


def test_a_net_with_both_formats_is_an_error() -> None:
    with pytest.raises(NetError, match=r"the net has both 'layer' and 'layers' fields"):
        upgraded("layers { type: RELU } layer { type: 'ReLU' }")


def test_transformation_fields_move_and_the_messages_exist_on_all_data_layers() -> None:
    net_param = upgraded(
        "layers { type: IMAGE_DATA image_data_param { source: 's' scale: 2 crop_size: 3 } }"
        "layers { type: WINDOW_DATA window_data_param { mirror: true mean_file: 'm' } }"
        "layers { type: DATA } layers { type: RELU }"
    )
    assert net_param == net_of(
        "layer { type: 'ImageData' image_data_param { source: 's' } transform_param { scale: 2 crop_size: 3 } }"
        "layer { type: 'WindowData' window_data_param {} transform_param { mirror: true mean_file: 'm' } }"
        "layer { type: 'Data' data_param {} transform_param {} } layer { type: 'ReLU' }"
    )


# -- inputs and batch norm


@pytest.mark.parametrize(
    "shapes",
    ["input_dim: [1, 2, 3, 4, 5, 6, 7, 8]", "input_shape { dim: [1, 2, 3, 4] } input_shape { dim: [5, 6, 7, 8] }"],
)
def test_inputs_become_an_input_layer_before_all_others(shapes: str) -> None:
    net_param = upgraded(f"input: 'a' input: 'b' {shapes} layer {{ name: 'l' }}")
    assert net_param == net_of(
        "layer { name: 'input' type: 'Input' top: 'a' top: 'b'"
        " input_param { shape { dim: [1, 2, 3, 4] } shape { dim: [5, 6, 7, 8] } } } layer { name: 'l' }"
    )


def test_inputs_without_shapes_are_dropped() -> None:
    assert upgraded("input: 'a' layer { name: 'l' }") == net_of("layer { name: 'l' }")


@pytest.mark.parametrize("dims", ["input_dim: [1, 2, 3, 4]", "input_dim: [1, 2, 3, 4, 5]", "input_shape { dim: 1 }"])
def test_inputs_with_too_few_dimensions_are_an_error(dims: str) -> None:
    with pytest.raises(NetError, match=r"the net's 2 inputs need an input_shape or four input_dims each. Received \d"):
        upgraded(f"input: 'a' input: 'b' {dims}")


def test_the_solver_is_kept_from_the_statistics_of_batch_norm() -> None:
    net_param = upgraded(
        "layer { type: 'BatchNorm' param { lr_mult: 1 name: 'x' } param {} param { decay_mult: 2 } }"
        "layer { type: 'BatchNorm' param { lr_mult: 1 } }"
    )
    assert net_param == net_of(
        "layer { type: 'BatchNorm' param { lr_mult: 0 decay_mult: 0 name: 'x' }"
        " param { lr_mult: 0 decay_mult: 0 } param { lr_mult: 0 decay_mult: 0 } }"
        "layer { type: 'BatchNorm' param { lr_mult: 1 } }"
    )


# -- the log, and solvers


def test_the_log_says_what_was_upgraded_and_where(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "caffe_lite")
    upgrade.upgrade_net(net_of("input: 'a' input_dim: [1, 2, 3, 4] layers { type: RELU }"), "net.prototxt")
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("INFO", "Attempting to upgrade input file specified using deprecated V1LayerParameter: net.prototxt"),
        ("INFO", "Successfully upgraded file specified using deprecated V1LayerParameter"),
        ("INFO", "Attempting to upgrade input file specified using deprecated input fields: net.prototxt"),
        ("INFO", "Successfully upgraded file specified using deprecated input fields."),
        ("WARNING", "Note that future Caffe releases will only support input layers and not input fields."),
    ]


def test_a_net_of_today_is_left_alone_and_nothing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "caffe_lite")
    net_param = net_of("name: 'n' layer { name: 'l' type: 'ReLU' }")
    assert not upgrade.upgrade_net(net_param)
    assert net_param == net_of("name: 'n' layer { name: 'l' type: 'ReLU' }")
    assert not caplog.messages


@pytest.mark.parametrize("name", caffe_pb2.SolverParameter.SolverType.keys())
def test_every_solver_type_gets_the_name_of_today(name: str) -> None:
    solver_param = caffe_pb2.SolverParameter(solver_type=name)
    assert upgrade.upgrade_solver(solver_param)
    assert solver_param.type.upper() == name


def test_a_solver_with_both_types_is_an_error() -> None:
    with pytest.raises(SolverError, match=r"the solver has both solver_type and type. Expected one of them"):
        upgrade.upgrade_solver(caffe_pb2.SolverParameter(solver_type="ADAM", type="Adam"))

"""Reading prototxt files: what is accepted, where layers begin, and what is said about each mistake."""

import os
import pathlib
import re

import pytest

from caffe_lite import prototxt
from caffe_lite.errors import CaffeError, FileAccessError, MissingFileError, NetError, PrototxtError, SolverError
from caffe_lite.proto import caffe_pb2
from caffe_lite.prototxt_diagnosis import explain

CONVOLUTION = """name: "net"
layer {
  name: "conv1"
  type: "Convolution"
  convolution_param {
    num_output: 20
  }
}
"""


def parsed(text):
    net = caffe_pb2.NetParameter()
    return net, prototxt.parse(text, net, "net.prototxt")


def mistake(text, message=None):
    with pytest.raises(PrototxtError) as caught:
        prototxt.parse(text, caffe_pb2.NetParameter() if message is None else message, "net.prototxt")
    return str(caught.value)


def write(folder, content, name="net.prototxt"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# --- where layers begin -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (CONVOLUTION, [2]),
        ('layer { name: "a" } layer { name: "b" }\nlayer { name: "c" }', [1, 1, 2]),
        ("layer: {\n}\nlayer <\n>\nlayer\n\n{\n}", [1, 3, 5]),
        ('# layer {\nlayer { # layer {\n name: "layer {" top: \'}"}\' }\n\nlayer {}', [2, 5]),
        ("layer: [{\n}, {\n},\n{ }]\nlayer {}", [1, 2, 4, 5]),
        ('layers { layer { name: "a" } }\nlayers {}', [1, 2]),
        ('state { stage: "layer" }\r\n\r\nlayer { param { name: "layer" } }\r\nlayer {}\r\n', [3, 4]),
        ('name: "\\"{"\nlayer # comment\n{ }', [2]),
        ("# nothing", []),
    ],
)
def test_source_tells_the_line_of_each_layer(text, lines):
    net, source = parsed(text)
    assert source.layer_lines == lines
    assert len(lines) == len(net.layer) + len(net.layers)
    assert [source.line(i) for i in range(len(lines))] == lines


def test_lines_follow_the_layers_through_an_upgrade(tmp_path):
    text = (
        'name: "old"\ninput: "data"\ninput_dim: [1, 1, 4, 4]\nlayers {\n name: "r" type: RELU bottom: "data" top: "r"'
    )
    net, source = prototxt.read_net(write(tmp_path, text + '\n}\nlayers { name: "s" type: SILENCE bottom: "r" }'))
    assert [layer.type for layer in net.layer] == ["Input", "ReLU", "Silence"]
    assert [source.line(i) for i in range(3)] == [2, 4, 7]


def test_lines_follow_v0_layers_whose_padding_layer_is_dropped(tmp_path):
    layers = [
        'layers { layer { name: "data" type: "data" source: "x" batchsize: 1 } top: "data" top: "label" }',
        'layers { layer { name: "pad1" type: "padding" pad: 2 } bottom: "data" top: "pad1" }',
        'layers { layer { name: "conv1" type: "conv" num_output: 2 kernelsize: 3 } bottom: "pad1" top: "conv1" }',
    ]
    net, source = prototxt.read_net(write(tmp_path, "\n".join(layers)))
    assert [(layer.name, source.line(i)) for i, layer in enumerate(net.layer)] == [("data", 1), ("conv1", 3)]
    assert list(net.layer[1].convolution_param.pad) == [2]


# --- what is accepted -------------------------------------------------------------------------------------------------


def test_every_spelling_of_the_text_format_is_read():
    net, _ = parsed(
        """layer: <
          name: 'a' "b"; type: "Eltwise",
          loss_weight: [1, .5, 2.f, 1e-3], propagate_down: True
          eltwise_param { operation: 0 coeff: -1 }
        >"""
    )
    layer = net.layer[0]
    assert layer.name == "ab"
    assert list(layer.loss_weight) == pytest.approx([1, 0.5, 2, 0.001])
    assert layer.eltwise_param.operation == caffe_pb2.EltwiseParameter.PROD


def test_a_byte_order_mark_and_foreign_bytes_in_comments_do_no_harm(tmp_path):
    net, source = prototxt.read_net(write(tmp_path, b"\xef\xbb\xbf# caf\xe9\n" + CONVOLUTION.encode()))
    assert net.layer[0].convolution_param.num_output == 20
    assert source.line(0) == 3


def test_a_solver_is_read_and_its_old_type_upgraded(tmp_path):
    solver = prototxt.read_solver(write(tmp_path, 'base_lr: 0.1\nsolver_type: NESTEROV\nnet: "x"'))
    assert (solver.type, solver.net) == ("Nesterov", "x")


# --- mistakes in the text ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (
            "num_output",
            "num_outputs",
            "6: layer 'conv1' (Convolution): unknown field 'num_outputs' of ConvolutionParameter. Did you "
            "mean 'num_output'?",
        ),
        (
            "20",
            "abc",
            "6: layer 'conv1' (Convolution): field 'num_output' takes a whole number from 0 to 4294967295, "
            "received 'abc'.",
        ),
        (
            "20",
            "-1",
            "6: layer 'conv1' (Convolution): field 'num_output' takes a whole number from 0 to 4294967295, "
            "received '-1'.",
        ),
        (
            "20",
            "20 num_output: 3",
            "6: layer 'conv1' (Convolution): field 'num_output' of ConvolutionParameter is given twice, on "
            "line 6. Keep one.",
        ),
        (
            "20\n",
            '20\n bottom: "x"\n',
            "7: layer 'conv1' (Convolution): unknown field 'bottom' of ConvolutionParameter. It belongs to "
            "LayerParameter: close 'convolution_param', opened on line 5, before it.",
        ),
        ("  }\n}", "  }", "8: layer 'conv1' (Convolution): 'layer', opened on line 2, is not closed by '}'."),
        ("  }\n}", "  }\n}\n}", "9: '}' closes nothing. Remove it, or look for a missing '{' above."),
        (
            "  }\n}",
            "  }\nlayer { }",
            "8: layer 'conv1' (Convolution): unknown field 'layer' of LayerParameter. It belongs to "
            "NetParameter: close 'layer', opened on line 2, before it.",
        ),
        (
            '"Convolution"',
            "Convolution",
            "4: layer 'conv1': field 'type' takes a string in quotes, received 'Convolution'.",
        ),
        ('"Convolution"', '"Convolution', "4: layer 'conv1': the string of 'type' has no closing quote on its line."),
        ('name: "conv1"', 'name "conv1"', "3: layer: expected ':' after 'name', received \"conv1\"."),
        (
            "param {",
            "param: 3",
            "5: layer 'conv1' (Convolution): expected '{' after 'convolution_param', received '3'.",
        ),
        (
            "  convolution_param {\n    num_output: 20\n  }",
            "  num_output: 20",
            "5: layer 'conv1' (Convolution): unknown field 'num_output' of LayerParameter. Put it inside "
            "'convolution_param'.",
        ),
        (
            "num_output: 20",
            "pad: [1, 2 3]",
            "6: layer 'conv1' (Convolution): expected ',' or ']' in the list of 'pad', received '3'.",
        ),
        (
            "num_output: 20",
            "bias_term: yes",
            "6: layer 'conv1' (Convolution): field 'bias_term' takes true or false, received 'yes'.",
        ),
        (
            "num_output: 20",
            "weight_filler { std: 1,5 }",
            "6: layer 'conv1' (Convolution): unknown field '5' of FillerParameter. Known fields: type, "
            "value, min, max, mean, std, sparse, variance_norm.",
        ),
        (
            "num_output: 20",
            "weight_filler { std: x }",
            "6: layer 'conv1' (Convolution): field 'std' takes a number, received 'x'.",
        ),
        (
            "num_output: 20",
            "engine: CUDN",
            "6: layer 'conv1' (Convolution): unknown value 'CUDN' of 'engine' (Engine). Did you mean "
            "'CUDNN'? Known values: DEFAULT, CAFFE, CUDNN.",
        ),
        (
            "num_output: 20",
            'engine: "CUDNN"',
            "6: layer 'conv1' (Convolution): field 'engine' takes a name without quotes. Write CUDNN.",
        ),
        (
            "num_output: 20",
            "engine: 7",
            "6: layer 'conv1' (Convolution): unknown value '7' of 'engine' (Engine). Known values: DEFAULT, "
            "CAFFE, CUDNN.",
        ),
        ("layer {", "// first\nlayer {", "2: '//' does not begin a comment. Use '#'."),
        ("layer {", "layer { [x]: 1", "2: layer: expected the name of a field of LayerParameter, received '['."),
        ("  name", "  names", "3: layer: unknown field 'names' of LayerParameter. Did you mean 'name'?"),
        ('"conv1"', '"\udce9"', "3: layer: the string of 'name' is not UTF-8. Save the file as UTF-8."),
    ],
)
def test_a_mistake_is_located_and_explained(before, after, expected):
    assert mistake(CONVOLUTION.replace(before, after, 1)) == f"net.prototxt:{expected}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            'layers {\n name: "a"\n type: CONVOLUTON }',
            "3: layer 'a': unknown value 'CONVOLUTON' of 'type' (LayerType). Did you mean 'CONVOLUTION'",
        ),
        (
            'layers { name: "a" type: "ReLU" }',
            "1: layer 'a': 'layers' is the old form of a layer, whose types are names like CONVOLUTION. "
            "Write 'layer {' for",
        ),
        (
            "layers { type: RELU relu_params { } }",
            "1: layer (RELU): unknown field 'relu_params' of V1LayerParameter. Did you mean 'relu_param'",
        ),
        (
            'layers { layer { name: "a" kernel: 3 } }',
            "1: layer 'a': unknown field 'kernel' of V0LayerParameter. Did you mean 'kernelsize'",
        ),
        (
            'layer { name: "p" kernel_size: 3 }',
            "1: layer 'p': unknown field 'kernel_size' of LayerParameter. Put it inside 'convolution_param' "
            "or 'pooling_param'.",
        ),
        (
            "base_lr: 0.1",
            "1: unknown field 'base_lr' of NetParameter. It belongs to SolverParameter: this looks like a "
            "solver, not a net.",
        ),
    ],
)
def test_a_mistake_in_old_or_misplaced_forms_is_explained(text, expected):
    assert mistake(text).startswith(f"net.prototxt:{expected}")


def test_a_net_in_place_of_a_solver_is_recognized():
    message = mistake(CONVOLUTION, caffe_pb2.SolverParameter())
    assert message.endswith("It belongs to NetParameter: this looks like a net, not a solver.")


def test_a_field_given_twice_names_both_lines():
    assert "given twice, on lines 2 and 3. Keep one." in mistake(
        'base_lr: 1\nnet: "a"\nnet: "b"', caffe_pb2.SolverParameter()
    )


def test_a_missing_required_field_is_reported_with_its_layer():
    text = CONVOLUTION + 'layer {\n name: "c" type: "Clip"\n clip_param { min: 0 }\n}'
    assert mistake(text) == "net.prototxt:9: layer 'c': clip_param lacks the required field 'max'."
    message = mistake(f"net_param {{ {text} }}", caffe_pb2.SolverParameter())
    assert message == "net.prototxt: net_param.layer[1].clip_param lacks the required field 'max'."


def test_a_mistake_that_only_protobuf_sees_keeps_its_words(monkeypatch):
    monkeypatch.setattr(prototxt, "explain", lambda text, descriptor, path: None)
    assert re.match(r"net\.prototxt:6: .*num_outputs", mistake(CONVOLUTION.replace("num_output", "num_outputs")))


def test_octal_and_hexadecimal_numbers_are_valued_as_protobuf_does():
    net, _ = parsed("layer { convolution_param { num_output: 0x10 pad: 010 } }")
    assert (net.layer[0].convolution_param.num_output, list(net.layer[0].convolution_param.pad)) == (16, [8])
    assert "takes a whole number" in mistake("layer { concat_param { axis: 0x80000000 } }")
    assert "takes a whole number" in mistake("layer { concat_param { axis: 099 } }")
    octal = "layer { exp_param { base: 010 } }"  # refused as a float by newer protobufs only
    assert "'base' takes a number, received '010'" in str(explain(octal, caffe_pb2.NetParameter.DESCRIPTOR, "net"))


# --- files that are no prototxt ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "an empty file"),
        (b" \n\t", "an empty file"),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "a Git LFS pointer that stands for the real file; `git lfs pull`",
        ),
        (b"\n<!DOCTYPE html><html>", "an HTML page, as a failed download leaves it"),
        (b"\xef\xbb\xbf<HTML>", "an HTML page, as a failed download leaves it"),
        (b"<?xml version='1.0'?>", "an XML file"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        (b"\x89PNG", "a PNG image"),
        (b"PK\x03\x04", "a zip archive (an .npz or a PyTorch file is one, too); unpack it first"),
        (b"\x1f\x8b\x08", "a gzip archive; unpack it first"),
        ("name".encode("utf-16"), "text in UTF-16; save it as UTF-8"),
        (b"\x0a\x05LeNet\xa2\x06\x00", "weights (a binary .caffemodel), not text"),
        (b"\x00\x01", "a binary file, not text"),
    ],
)
def test_a_file_of_another_kind_is_recognized(tmp_path, content, expected):
    path = write(tmp_path, content)
    for read in (prototxt.read_net, prototxt.read_solver):
        with pytest.raises(PrototxtError) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}: this is {expected}")
        assert str(caught.value).endswith(". Expected a prototxt.")


def test_a_byte_that_is_not_text_is_named_where_it_stands(tmp_path):
    path = write(tmp_path, b"name: 'x'\n\xdc\x7f")
    with pytest.raises(PrototxtError) as caught:
        prototxt.read_net(path)
    assert str(caught.value) == f"{path}:2: the byte 0xdc is not text. Expected a prototxt; is this a binary file?"


def test_the_weights_of_a_net_are_recognized(tmp_path):
    net, _ = parsed(CONVOLUTION)
    net.layer[0].blobs.add(data=[1.0, 2.0])
    with pytest.raises(PrototxtError, match=r"this is weights \(a binary \.caffemodel\), not text"):
        prototxt.read_net(write(tmp_path, net.SerializeToString(), "lenet.caffemodel"))


def test_a_missing_file_comes_with_what_is_there(tmp_path, monkeypatch):
    write(tmp_path, CONVOLUTION, "lenet.prototxt")
    with pytest.raises(MissingFileError, match=r"lenets\.prototxt: no such file\. Did you mean 'lenet\.prototxt'\?$"):
        prototxt.read_net(tmp_path / "lenets.prototxt")
    with pytest.raises(MissingFileError, match=r"no such file\. '.*' holds lenet\.prototxt\.$"):
        prototxt.read_net(tmp_path / "train.txt")
    (tmp_path / "models").mkdir()
    with pytest.raises(MissingFileError, match=r"'.*models' holds no \.prototxt file\.$"):
        prototxt.read_net(tmp_path / "models" / "x.prototxt")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingFileError) as caught:
        prototxt.read_net("model/a/x.prototxt")
    assert str(caught.value) == (
        "model/a/x.prototxt: no such file. '.' has no folder 'model'. Did you mean 'models'? "
        f"Relative paths begin at the current folder, {tmp_path}."
    )


def test_a_folder_that_must_not_be_listed_does_not_hide_that_a_file_is_missing(tmp_path, monkeypatch):
    def refuse(folder):
        raise PermissionError

    monkeypatch.setattr(pathlib.Path, "iterdir", refuse)
    with pytest.raises(MissingFileError, match=r"x\.prototxt: no such file\."):
        prototxt.read_net(tmp_path / "x.prototxt")


def test_a_folder_is_not_read(tmp_path):
    with pytest.raises(FileAccessError, match=r"a folder\. Expected a prototxt file\. It holds no \.prototxt file\."):
        prototxt.read_net(tmp_path)
    write(tmp_path, CONVOLUTION, "b.prototxt")
    with pytest.raises(FileAccessError, match=r"It holds b\.prototxt\."):
        prototxt.read_net(tmp_path)


def test_a_file_that_cannot_be_read_is_said_to_be_so(tmp_path):
    path = write(tmp_path, CONVOLUTION)
    with pytest.raises(FileAccessError, match=r"net\.prototxt/x: cannot be read: Not a directory\."):
        prototxt.read_net(path / "x")


def test_an_impossible_upgrade_names_the_file(tmp_path):
    path = write(tmp_path, 'layers { layer { name: "a" type: "nonsense" } }')
    with pytest.raises(NetError, match=re.escape(f"{path}: ")):
        prototxt.read_net(path)
    path = write(tmp_path, 'type: "SGD" solver_type: SGD')
    with pytest.raises(SolverError, match=re.escape(f"{path}: ")):
        prototxt.read_solver(path)


def test_errors_are_caffe_errors_and_paths_may_be_strings(tmp_path):
    path = os.fspath(write(tmp_path, "layer {"))
    with pytest.raises(CaffeError, match=r"'layer', opened on line 1, is not closed"):
        prototxt.read_net(path)

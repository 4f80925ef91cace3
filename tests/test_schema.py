"""The schema: proto/caffe.proto, the compiled caffe.desc and the classes of caffe_pb2."""

import copy
import csv
import itertools
import pathlib
import pickle
import re
import runpy

import pytest
from google.protobuf import descriptor_pool, text_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto

from caffe_lite import resources
from caffe_lite.proto import caffe_pb2
from caffe_lite.prototxt_diagnosis import is_repeated

HERE = pathlib.Path(__file__).resolve().parent
TABLE = HERE / "reference" / "caffe_fields.tsv"
COMPILE = HERE.parent / "proto" / "compile.py"  # a tool of the repository, not installed
SCALARS = {
    name.removeprefix("TYPE_").lower(): number
    for name, number in vars(FieldDescriptor).items()
    if name.startswith("TYPE_") and name not in ("TYPE_MESSAGE", "TYPE_ENUM", "TYPE_GROUP")
}


def rows(enums):
    with TABLE.open(newline="") as file:
        return [row for row in csv.DictReader(file, delimiter="\t") if row["message"].startswith("enum ") == enums]


def found(name):
    return caffe_pb2.DESCRIPTOR.pool.FindMessageTypeByName(f"caffe.{name}")


def compiled():
    return FileDescriptorProto.FromString(resources.path("proto/caffe.desc").read_bytes())


def test_every_field_of_caffe_has_its_number_label_type_and_default():
    for row in rows(enums=False):
        field = found(row["message"]).fields_by_name[row["field"]]
        assert field.number == int(row["number"]), row
        assert is_repeated(field) == (row["label"] == "repeated"), row
        kind = field.message_type or field.enum_type
        if kind is None:
            assert field.type == SCALARS[row["type"]], row
        else:
            assert kind.full_name == f"caffe.{row['type']}", row
        assert field.has_default_value == (row["default"] != ""), row
        if row["default"]:
            assert field.default_value == default_of(field, row["default"]), row


def default_of(field, text):
    if field.enum_type is not None:
        return field.enum_type.values_by_name[text].number
    if field.type == FieldDescriptor.TYPE_BOOL:
        return {"true": True, "false": False}[text]
    if field.type == FieldDescriptor.TYPE_STRING:
        return text
    return pytest.approx(float(text), rel=1e-6)  # a float field holds its default in single precision


def test_every_enum_value_of_caffe_has_its_number():
    for row in rows(enums=True):
        enum = caffe_pb2.DESCRIPTOR.pool.FindEnumTypeByName("caffe." + row["message"].removeprefix("enum "))
        assert enum.values_by_name[row["field"]].number == int(row["number"]), row


def test_the_same_fields_are_packed_and_required_as_in_caffe():
    packed = {
        f"{message.name}.{field.name}"
        for message in compiled().message_type
        for field in message.field
        if field.options.packed
    }
    assert packed == {f"{row['message']}.{row['field']}" for row in rows(enums=False) if row["options"] == "packed"}
    with pytest.raises(Exception, match="min,max"):
        caffe_pb2.ClipParameter().SerializeToString()


@pytest.mark.parametrize(
    ("message", "field", "number"),
    [
        ("LayerParameter", "annotated_data_param", 200),
        ("LayerParameter", "multibox_loss_param", 201),
        ("LayerParameter", "permute_param", 202),
        ("LayerParameter", "prior_box_param", 203),
        ("LayerParameter", "detection_output_param", 204),
        ("LayerParameter", "detection_evaluate_param", 205),
        ("LayerParameter", "norm_param", 206),
        ("LayerParameter", "video_data_param", 207),
        ("LayerParameter", "detectnet_groundtruth_param", 6801),
        ("LayerParameter", "detectnet_augmentation_param", 6802),
        ("LayerParameter", "roi_pooling_param", 8266711),
        ("LayerParameter", "smooth_l1_loss_param", 8266712),
        ("DropoutParameter", "scale_train", 2),
        ("BlobProto", "raw_data_type", 10),
        ("BlobProto", "raw_diff_type", 11),
        ("BlobProto", "raw_data", 12),
        ("BlobProto", "raw_diff", 13),
        ("TransformationParameter", "expand_param", 14),
        ("SolverState", "minimum_loss", 5),
        ("DetectNetGroundTruthParameter.ClassMapping", "dst", 2),
    ],
)
def test_fields_of_the_forks_have_the_numbers_of_their_files(message, field, number):
    assert found(message).fields_by_name[field].number == number


def test_the_compiled_schema_is_that_of_the_proto_file():
    pytest.importorskip("grpc_tools", reason="grpcio-tools compiles the schema")
    compile_schema = runpy.run_path(str(COMPILE))["compile_schema"]
    assert FileDescriptorProto.FromString(compile_schema()) == compiled(), "run python proto/compile.py"


def test_a_proto_file_with_a_mistake_is_not_compiled(tmp_path):
    pytest.importorskip("grpc_tools", reason="grpcio-tools compiles the schema")
    compile_schema = runpy.run_path(str(COMPILE))["compile_schema"]
    wrong = tmp_path / "wrong.proto"
    wrong.write_text('syntax = "proto2"; message A { optional unknown x = 1; }')
    with pytest.raises(ValueError, match=r"wrong\.proto: protoc does not accept it"):
        compile_schema(wrong)


def test_every_message_field_and_enum_value_is_commented():
    lines = resources.path("proto/caffe.proto").read_text().splitlines()
    declaration = re.compile(r"\s*(optional|repeated|required|message|enum) |\s+\w+ = \d+;")
    for before, line in itertools.pairwise(lines):
        if declaration.match(line):
            assert "//" in line or before.lstrip().startswith("//"), f"no comment: {line}"
        assert len(line) <= 120, line


def test_the_schema_stays_out_of_the_default_pool():
    with pytest.raises(KeyError):
        descriptor_pool.Default().FindMessageTypeByName("caffe.NetParameter")


def test_the_module_offers_what_a_generated_one_would():
    assert (caffe_pb2.TRAIN, caffe_pb2.TEST, caffe_pb2.FLOAT16) == (0, 1, 2)
    assert caffe_pb2.Phase.Name(1) == "TEST"
    assert caffe_pb2.Phase.Value("TRAIN") == 0
    assert caffe_pb2.SolverParameter.ADAM == 5
    assert caffe_pb2.SolverParameter.SolverType.Name(0) == "SGD"
    assert caffe_pb2.V1LayerParameter.LayerType.Value("CONVOLUTION") == 4
    assert caffe_pb2.LayerParameter.DESCRIPTOR.fields_by_name["relu_param"].message_type.name == "ReLUParameter"
    assert isinstance(caffe_pb2.NetParameter().layer.add(), caffe_pb2.LayerParameter)
    with pytest.raises(AttributeError, match=r"caffe_lite\.proto\.caffe_pb2' has no attribute 'LayersParameter'"):
        caffe_pb2.LayersParameter  # noqa: B018


def test_messages_survive_text_bytes_copy_and_pickle():
    net = caffe_pb2.NetParameter()
    text_format.Merge('name: "n" layer { name: "r" type: "ReLU" include { phase: TEST } }', net)
    assert net.layer[0].include[0].phase == caffe_pb2.TEST
    assert text_format.Parse(text_format.MessageToString(net), caffe_pb2.NetParameter()) == net
    assert caffe_pb2.NetParameter.FromString(net.SerializeToString()) == net
    assert copy.deepcopy(net) == net
    assert pickle.loads(pickle.dumps(net)) == net

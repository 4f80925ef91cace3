"""Compile caffe.proto to caffe.desc, the serialized FileDescriptorProto that caffe_lite.proto loads.

Run it after every change of caffe.proto (grpcio-tools is needed for that, and for nothing else):

    python proto/compile.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parent


def compile_schema(source: Path = FOLDER / "caffe.proto") -> bytes:
    """Return the serialized FileDescriptorProto of `source`, without comments and line numbers.

    Raises ValueError if protoc rejects the file; protoc prints the reason on standard error.
    """
    from google.protobuf.descriptor_pb2 import FileDescriptorSet
    from grpc_tools import protoc

    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "set.desc"
        arguments = ["protoc", f"--proto_path={source.parent}", f"--descriptor_set_out={output}", source.name]
        if protoc.main(arguments) != 0:
            raise ValueError(f"{source.name}: protoc does not accept it.")
        (file,) = FileDescriptorSet.FromString(output.read_bytes()).file
    return file.SerializeToString(deterministic=True)


if __name__ == "__main__":
    (FOLDER / "caffe.desc").write_bytes(compile_schema())

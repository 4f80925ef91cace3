"""Reads nets and solvers from prototxt files, strictly, and remembers where each layer begins.

A mistake is a `PrototxtError` that names file, line and layer; what is no prototxt at all (weights, a web page, a
Git LFS pointer) is recognized before it is parsed.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf import text_format

from caffe_lite.errors import CaffeError, FileAccessError, MissingFileError, PrototxtError, suggest
from caffe_lite.proto import caffe_pb2
from caffe_lite.prototxt_diagnosis import explain
from caffe_lite.serialization.files import foreign

# What the scan for layers needs to see: words and braces, and, so as not to be misled by them, strings and comments.
SCAN = re.compile(r"""#[^\n]*|"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'|[A-Za-z_]\w*|[{}<>]""")
LAYER_FIELDS = ("layer", "layers")
INPUT_FIELDS = ("input", "input_dim", "input_shape")

CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1f]")


@dataclass
class Source:
    """Where the layers of a net message stand in its file."""

    path: str
    layer_lines: list[int] = field(default_factory=list)
    input_line: int = 1  # where the net's first `input`, `input_dim` or `input_shape` stands

    def line(self, i: int) -> int:
        """Return the line, counted from 1, on which layer `i` of the message begins."""
        return self.layer_lines[i]


def parse(text: str, message: Any, path: str) -> Source:
    """Merge `text` into the empty `message` and return where its layers begin.

    `path` is the file's name for error messages. Raises PrototxtError for whatever the schema does not allow.
    """
    try:
        text_format.Parse(text, message)
    except (text_format.ParseError, UnicodeEncodeError) as error:
        explained = explain(text, message.DESCRIPTOR, path)
        line = error.GetLine() if isinstance(error, text_format.ParseError) else None
        raise explained or PrototxtError(f"{path}:{line or 1}: {error}") from None
    source = Source(path, *_scan(text))
    if not message.IsInitialized():
        raise _lacks_required(message, source)
    return source


def read_net(path: str | os.PathLike[str]) -> tuple[Any, Source]:
    """Read a net (NetParameter) and bring it to the current form; V0 and V1 layers and `input` fields are upgraded.

    Raises MissingFileError, FileAccessError, PrototxtError, or NetError if the upgrade is impossible.
    """
    from caffe_lite.serialization.upgrade import upgrade_net

    net = caffe_pb2.NetParameter()
    source = parse(_read_text(path), net, os.fspath(path))
    names = [layer.name or layer.layer.name for layer in net.layers] or [layer.name for layer in net.layer]
    try:
        upgraded = upgrade_net(net, source.path)
    except CaffeError as error:
        raise error.located(source.path) from None
    if upgraded:
        source.layer_lines = _realigned(source, names, [layer.name for layer in net.layer])
    return net, source


def read_solver(path: str | os.PathLike[str]) -> Any:
    """Read solver settings (SolverParameter), with `solver_type` brought to `type`.

    Raises MissingFileError, FileAccessError, PrototxtError, or SolverError if it has both.
    """
    from caffe_lite.serialization.upgrade import upgrade_solver

    solver = caffe_pb2.SolverParameter()
    parse(_read_text(path), solver, os.fspath(path))
    try:
        upgrade_solver(solver, os.fspath(path))
    except CaffeError as error:
        raise error.located(os.fspath(path)) from None
    return solver


def _read_text(path: str | os.PathLike[str]) -> str:
    """Return the text of a prototxt. Bytes that are not UTF-8 become surrogates: in a comment they do no harm."""
    name = os.fspath(path)
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise _missing(Path(path)) from None
    except IsADirectoryError:
        files = sorted(entry.name for entry in Path(path).glob("*.prototxt"))[:5]
        holds = f"It holds {', '.join(files)}." if files else "It holds no .prototxt file."
        raise FileAccessError(f"{name}: a folder. Expected a prototxt file. {holds}") from None
    except OSError as error:
        raise FileAccessError(f"{name}: cannot be read: {error.strerror}.") from None
    _check_kind(name, content)
    return content.decode("utf-8-sig", errors="surrogateescape")


def _check_kind(name: str, content: bytes) -> None:
    """Raise PrototxtError if `content` is not text, or text of another kind."""
    kind = foreign(content)
    if kind is None and CONTROL.search(content[:4096]):
        # A net's binary form begins with its name (field 1: byte 10) or with a layer.
        weights = name.endswith(".caffemodel") or content[0] == 10
        kind = "weights (a binary .caffemodel), not text" if weights else "a binary file, not text"
    if kind is not None:
        raise PrototxtError(f"{name}: this is {kind}. Expected a prototxt.")


def _missing(path: Path) -> MissingFileError:
    """Return the error for a file that is not there, with what is there instead."""
    folder = path.parent
    where = "" if path.is_absolute() else f" Relative paths begin at the current folder, {Path.cwd()}."
    if not folder.is_dir():
        while not folder.is_dir():
            folder = folder.parent
        beside = [entry.name for entry in _entries(folder) if entry.is_dir()]
        wanted = path.relative_to(folder).parts[0]
        sentence = f"'{folder}' has no folder '{wanted}'. {suggest(wanted, beside)}"
    else:
        files = [entry.name for entry in _entries(folder) if entry.is_file()]
        prototxts = [name for name in files if name.endswith(".prototxt")][:5]
        holds = f"'{folder}' holds {', '.join(prototxts)}." if prototxts else f"'{folder}' holds no .prototxt file."
        alike = [name for name in files if Path(name).suffix == path.suffix]
        sentence = suggest(path.name, alike) or holds
    return MissingFileError(f"{path}: no such file. {sentence.strip()}{where}")


def _entries(folder: Path) -> list[Path]:
    """Return what is in a folder, sorted; nothing if the folder must not be listed."""
    try:
        return sorted(folder.iterdir())
    except PermissionError:
        return []


def _lacks_required(message: Any, source: Source) -> PrototxtError:
    """Return the error for the first required field that is absent; its path reads like ``layer[3].clip_param.min``."""
    place = message.FindInitializationErrors()[0]
    owner, _, name = place.rpartition(".")
    layer = re.match(r"(layers?)\[(\d+)\]\.?", owner)
    if not layer:
        return PrototxtError(f"{source.path}: {owner or 'the message'} lacks the required field '{name}'.")
    index = int(layer.group(2))
    named = f"layer '{getattr(message, layer.group(1))[index].name}'"
    inside = owner[layer.end() :] or "it"
    return PrototxtError(f"{source.path}:{source.line(index)}: {named}: {inside} lacks the required field '{name}'.")


def _scan(text: str) -> tuple[list[int], int]:
    """Return the lines on which the outermost layers begin, and that of the first input field.

    A net has either `layer` or `layers`; the upgrade refuses one that has both.
    """
    lines: dict[str, list[int]] = {name: [] for name in LAYER_FIELDS}
    input_line = 1
    depth = 0
    word, begin = "", None  # the last word of the outermost level, and where it begins
    line, counted = 1, 0  # `line` is the line of offset `counted`
    for match in SCAN.finditer(text):
        token = match.group()
        if token in ("{", "<"):
            if depth == 0 and word in LAYER_FIELDS:
                # In `layer: [{ ... }, { ... }]` one word opens several layers: from the second on, the brace counts.
                at = match.start() if begin is None else begin
                line += text.count("\n", counted, at)
                counted, begin = at, None
                lines[word].append(line)
            depth += 1
        elif token in ("}", ">"):
            depth -= 1
        elif depth == 0 and token[0] not in "#\"'":
            word, begin = token, match.start()
            if word in INPUT_FIELDS and input_line == 1:
                input_line = 1 + text.count("\n", 0, begin)
    return lines["layers"] or lines["layer"], input_line


def _realigned(source: Source, before: list[str], after: list[str]) -> list[int]:
    """Return the lines of a net's layers after an upgrade, which keeps their order, but drops and inserts some.

    An inserted layer stands for the input fields, and gets their line.
    """
    lines = []
    position = 0
    for name in after:
        if name in before[position:]:
            position = before.index(name, position)
            lines.append(source.layer_lines[position])
            position += 1
        else:
            lines.append(source.input_line)
    return lines

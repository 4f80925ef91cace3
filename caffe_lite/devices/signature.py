"""Reads the signatures of kernels from their ``.cu`` source.

A kernel is ``extern "C" __global__ void name(parameters)``.  Every pointer parameter ends in ``SIZE(elements)``, an
expression over the scalar parameters; a struct of ints is defined in the same file.  The signatures serve the launch
checks of every device, and the build of the host library.  Standard library only: the build runs before anything is
installed.
"""

from __future__ import annotations

import ast
import collections
import dataclasses
import hashlib
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any

# C type -> (code in `struct`, numpy dtype)
TYPES = {
    "int": ("i", "int32"),
    "unsigned": ("I", "uint32"),
    "unsigned char": ("B", "uint8"),
    "long long": ("q", "int64"),
    "float": ("f", "float32"),
    "double": ("d", "float64"),
}

KERNEL = re.compile(r'extern\s+"C"\s+__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s+)?(\w+)\s*\(')
STRUCT = re.compile(r"struct\s+(\w+)\s*\{([^}]*)\}\s*;")
PARAMETER = re.compile(r"^(const\s+)?([\w ]+?)(?:\s*(\*)\s*|\s+)(?:__restrict__\s+)?(\w+)$")


class SignatureError(ValueError):
    """A kernel that does not follow the dialect."""


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One parameter of a kernel; `size` (pointers only) is the C expression for the least number of elements."""

    name: str
    type: str
    is_pointer: bool = False
    is_const: bool = False
    size: str = ""
    fields: tuple[str, ...] = ()  # of a struct of ints

    @property
    def declaration(self) -> str:
        """The parameter as a member of a C struct."""
        return f"{'const ' if self.is_const else ''}{self.type}{'*' if self.is_pointer else ''} {self.name}"


@dataclasses.dataclass(frozen=True)
class Signature:
    """A kernel: where it stands, its shape (``element``, ``row`` or ``tile``) and its parameters."""

    name: str
    file: str
    line: int
    shape: str
    parameters: tuple[Parameter, ...]

    @property
    def format(self) -> str:
        """The parameters' layout for `struct.pack`, as the C compiler lays them out."""
        return "@" + "".join(_code(parameter) for parameter in self.parameters)

    def sizes(self) -> Callable[..., tuple[int, ...]]:
        """Return a function of all arguments that gives the least size of each pointer, in order."""
        # A C name may be a Python keyword, hence the underscore.
        arguments = ", ".join(f"{parameter.name}_" for parameter in self.parameters)
        sizes = "".join(f"{_python(p.size, self)}, " for p in self.parameters if p.is_pointer)
        structs = {
            parameter.name: collections.namedtuple(parameter.type, parameter.fields)
            for parameter in self.parameters
            if parameter.fields
        }
        wrap = "".join(f"{name}_ = struct_{name}(*{name}_); " for name in structs)
        code = f"def sizes({arguments}):\n    {wrap}return ({sizes})\n"
        scope: dict[str, Any] = {f"struct_{name}": struct for name, struct in structs.items()}
        exec(code, scope)  # built from whitelisted syntax of our own kernels only, see _python
        return scope["sizes"]  # type: ignore[no-any-return]


def parse(path: pathlib.Path) -> list[Signature]:
    """Return the signatures of all kernels in a ``.cu`` file.  Raises `SignatureError`."""
    text = _without_comments(path.read_text(encoding="utf-8"))
    structs = {name: _struct_fields(body) for name, body in STRUCT.findall(text)}
    return list(_kernels(path.name, text, structs))


def fingerprint(folder: pathlib.Path) -> str:
    """Return a hash of all kernel sources in `folder`: a library that was built from others must not be called."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.suffix in (".cu", ".cuh", ".cpp", ".h")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _kernels(file: str, text: str, structs: dict[str, tuple[str, ...]]) -> Iterator[Signature]:
    for match in KERNEL.finditer(text):
        name = match.group(1)
        end = _closing(text, match.end() - 1)
        line = text.count("\n", 0, match.start()) + 1
        body = text[end : _closing(text, text.index("{", end))]
        shape = "element" if "ELEMENT_LOOP" in body else "row" if "ROW_LOOP" in body else "tile"
        try:
            parameters = tuple(_parameter(part, structs) for part in _split(text[match.end() : end - 1]))
        except SignatureError as error:
            raise SignatureError(f"kernels/{file}:{line}: kernel {name}: {error}") from None
        yield Signature(name, file, line, shape, parameters)


def _without_comments(text: str) -> str:
    """Blank out comments, keeping the line numbers."""
    text = re.sub(r"/\*.*?\*/", lambda match: "\n" * match.group().count("\n"), text, flags=re.DOTALL)
    return re.sub(r"//[^\n]*", "", text)


def _struct_fields(body: str) -> tuple[str, ...]:
    fields: list[str] = []
    for declaration in filter(None, (part.strip() for part in body.split(";"))):
        if not declaration.startswith("int "):
            return ()  # not a struct of ints, so not a parameter type
        fields += [name.strip() for name in declaration[4:].split(",")]
    return tuple(fields)


def _closing(text: str, start: int) -> int:
    """Return the position behind the bracket that closes the one at `start`."""
    pairs = {"(": ")", "{": "}"}
    opening, closing = text[start], pairs[text[start]]
    depth = 0
    for position in range(start, len(text)):
        depth += (text[position] == opening) - (text[position] == closing)
        if depth == 0:
            return position + 1
    raise SignatureError(f"'{opening}' is never closed")


def _split(text: str) -> list[str]:
    """Split a parameter list at its outer commas."""
    parts, depth, start = [], 0, 0
    for position, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if character == "," and depth == 0:
            parts.append(text[start:position])
            start = position + 1
    return [" ".join(part.split()) for part in [*parts, text[start:]]]


def _parameter(text: str, structs: dict[str, tuple[str, ...]]) -> Parameter:
    declaration, _, size = text.partition(" SIZE(")
    match = PARAMETER.match(declaration.strip())
    if match is None:
        raise SignatureError(f"cannot read the parameter '{text}'")
    const, type_name, pointer, name = match.groups()
    if type_name not in TYPES and not structs.get(type_name):
        known = ", ".join([*TYPES, *(name for name, fields in structs.items() if fields)])
        raise SignatureError(f"parameter '{name}' has the type '{type_name}'. Expected one of {known}.")
    if bool(pointer) != bool(size):
        raise SignatureError(f"parameter '{name}': a pointer ends in SIZE(elements), nothing else does")
    fields = structs.get(type_name, ())
    return Parameter(name, type_name, bool(pointer), bool(const), size.removesuffix(")"), fields)


def _code(parameter: Parameter) -> str:
    if parameter.is_pointer:
        return "P"
    return f"{len(parameter.fields)}i" if parameter.fields else TYPES[parameter.type][0]


def _python(expression: str, signature: Signature) -> str:
    """Return a SIZE expression as Python, having checked that it is plain integer arithmetic on known names."""
    scalars = {parameter.name for parameter in signature.parameters if not parameter.is_pointer}
    tree = ast.parse(expression.replace("/", "//"), mode="eval")
    allowed = (ast.Expression, ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.FloorDiv, ast.Constant, ast.Attribute)
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in scalars:
            node.id += "_"
            continue
        if not isinstance(node, (*allowed, ast.Load)):
            raise SignatureError(
                f"kernels/{signature.file}:{signature.line}: kernel {signature.name}: SIZE({expression}) is more than "
                f"integer arithmetic on {', '.join(sorted(scalars))}"
            )
    return ast.unparse(tree)

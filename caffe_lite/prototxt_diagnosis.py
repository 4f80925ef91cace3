"""Says what is wrong with a prototxt that protobuf refuses, in terms of the schema.

protobuf knows the line of a mistake, but neither the layer around it nor what was meant. So a refused text is walked
once more, by the grammar of the text format and the descriptors of the schema, up to its first mistake:

    message := { name [":"] value [","|";"] }
    value   := number | word | string { string } | "{" message "}" | "<" message ">" | "[" value { "," value } "]"

Only texts with a mistake come here, so speed does not matter.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from google.protobuf.descriptor import FieldDescriptor

from caffe_lite.errors import PrototxtError, suggest

TOKEN = re.compile(
    r"""(?P<space>\s+|\#[^\n]*)
      | (?P<string>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')
      | (?P<word>[-+.\w]+)
      | (?P<mark>//|.)""",
    re.VERBOSE,
)
INTEGER = re.compile(r"-?(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)")
FLOAT = re.compile(r"-?(?!0\d)((\d+\.?\d*|\.\d+)([eE][-+]?\d+)?[fF]?|inf(inity)?|nan)", re.IGNORECASE)
BOOLEANS = ("true", "false", "True", "False", "t", "f", "1", "0")
CLOSING = {"{": "}", "<": ">"}
LAYERS = ("LayerParameter", "V1LayerParameter", "V0LayerParameter")
INTEGER_RANGE = {
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
}


class Token(NamedTuple):
    """A piece of the text; `kind` is "string", "word", "mark", or "end" once the text is over."""

    kind: str
    text: str
    line: int

    def __str__(self) -> str:
        return {"end": "the end of the file", "string": self.text}.get(self.kind, f"'{self.text}'")


@dataclass
class Frame:
    """A message that has been opened and is not closed yet."""

    descriptor: Any
    name: str  # of the field that holds it
    line: int
    lines: dict[str, int] = field(default_factory=dict)  # where each optional field was given
    strings: dict[str, str] = field(default_factory=dict)  # the values of `name` and `type`


def explain(text: str, descriptor: Any, path: str) -> PrototxtError | None:
    """Return the error for the first mistake in `text`, a message of `descriptor`; None if none is found."""
    try:
        _Walk(text, path).message(descriptor, Token("word", "", 1), closing=None)
    except PrototxtError as error:
        return error
    return None


def tokens(text: str) -> Iterator[Token]:
    """Yield the tokens of a prototxt without spaces and comments, and one of kind "end" after them."""
    line = 1
    for match in TOKEN.finditer(text):
        if match.lastgroup != "space":
            yield Token(str(match.lastgroup), match.group(), line)
        line += match.group().count("\n")
    yield Token("end", "", line)


def is_repeated(described: Any) -> bool:
    """Return whether a field descriptor is of a repeated field; protobuf 4 and 7 have no common name for it."""
    if hasattr(described, "is_repeated"):
        return bool(described.is_repeated)
    return bool(described.label == FieldDescriptor.LABEL_REPEATED)


class _Walk:
    """One pass over a text; raises PrototxtError at the first mistake."""

    def __init__(self, text: str, path: str) -> None:
        self.path = path
        self.tokens = tokens(text)
        self.token = next(self.tokens)
        self.stack: list[Frame] = []

    # --- the grammar -------------------------------------------------------------------------------------------------

    def take(self) -> Token:
        taken = self.token
        if taken.kind != "end":
            self.token = next(self.tokens)
        return taken

    def take_mark(self, *marks: str) -> Token | None:
        return self.take() if self.token.kind == "mark" and self.token.text in marks else None

    def message(self, descriptor: Any, name: Token, closing: str | None) -> None:
        self.stack.append(Frame(descriptor, name.text, name.line))
        while not (closing and self.take_mark(closing)):
            token = self.take()
            if token.kind == "end" and closing is None:
                return
            if token.kind != "word":
                raise self.misplaced(token, closing)
            self.field(token)
        self.stack.pop()

    def field(self, name: Token) -> None:
        frame = self.stack[-1]
        described = frame.descriptor.fields_by_name.get(name.text)
        if described is None:
            raise self.unknown_field(name)
        if not self.take_mark(":") and described.message_type is None:
            raise self.error(name, f"expected ':' after '{name.text}', received {self.token}")
        if is_repeated(described):
            if self.take_mark("["):
                self.elements(described, name)
            else:
                self.value(described, name)
        elif name.text in frame.lines:
            first = frame.lines[name.text]
            where = f"on lines {first} and {name.line}" if first != name.line else f"on line {first}"
            twice = f"field '{name.text}' of {frame.descriptor.name} is given twice, {where}"
            raise self.error(name, twice, "Keep one.")
        else:
            frame.lines[name.text] = name.line
            self.value(described, name)
        self.take_mark(",", ";")

    def elements(self, described: Any, name: Token) -> None:
        while not self.take_mark("]"):
            self.value(described, name)
            if not self.take_mark(",") and self.token.text != "]":
                raise self.error(self.token, f"expected ',' or ']' in the list of '{name.text}', received {self.token}")

    def value(self, described: Any, name: Token) -> None:
        token = self.take()
        if described.message_type is not None:
            if token.kind != "mark" or token.text not in CLOSING:
                raise self.error(name, f"expected '{{' after '{name.text}', received {token}")
            self.message(described.message_type, name, CLOSING[token.text])
        elif described.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES):
            self.string(described, token)
        else:
            self.scalar(described, token)

    def string(self, described: Any, token: Token) -> None:
        if token.kind != "string":
            if token.text in "\"'" and token.kind == "mark":
                raise self.error(token, f"the string of '{described.name}' has no closing quote on its line")
            raise self.error(token, f"field '{described.name}' takes a string in quotes, received {token}")
        if not token.text.isprintable() and any("\udc80" <= letter <= "\udcff" for letter in token.text):
            raise self.error(token, f"the string of '{described.name}' is not UTF-8", "Save the file as UTF-8.")
        if described.name in ("name", "type"):
            self.stack[-1].strings[described.name] = token.text[1:-1]
        while self.token.kind == "string":  # neighbouring strings are one
            self.take()

    def scalar(self, described: Any, token: Token) -> None:
        if described.enum_type is not None:
            self.enum(described, token)
            return
        if described.type in INTEGER_RANGE:
            low, high = INTEGER_RANGE[described.type]
            expected = f"a whole number from {low} to {high}"
            fits = INTEGER.fullmatch(token.text) is not None and low <= _integer(token.text) <= high
        elif described.type == FieldDescriptor.TYPE_BOOL:
            expected, fits = "true or false", token.text in BOOLEANS
        else:
            expected, fits = "a number", FLOAT.fullmatch(token.text) is not None
        if not fits:
            raise self.error(token, f"field '{described.name}' takes {expected}, received {token}")

    def enum(self, described: Any, token: Token) -> None:
        enum = described.enum_type
        if token.kind == "word" and token.text in enum.values_by_name:
            if described.name == "type":
                self.stack[-1].strings["type"] = token.text
            return
        if INTEGER.fullmatch(token.text) and _integer(token.text) in enum.values_by_number:
            return
        bare = token.text.strip("\"'")
        if token.kind == "string" and bare in enum.values_by_name:
            raise self.error(token, f"field '{described.name}' takes a name without quotes", f"Write {bare}.")
        if token.kind == "string" and enum.full_name == "caffe.V1LayerParameter.LayerType":
            hint = f"Write 'layer {{' for 'layers {{' to use the type {token}."
            raise self.error(token, "'layers' is the old form of a layer, whose types are names like CONVOLUTION", hint)
        near = suggest(bare, enum.values_by_name)
        known = f"Known values: {', '.join(enum.values_by_name)}." if len(enum.values) <= 12 or not near else ""
        unknown = f"unknown value {token} of '{described.name}' ({enum.name})"
        raise self.error(token, unknown, f"{near} {known}".strip())

    # --- what to say -------------------------------------------------------------------------------------------------

    def error(self, token: Token, sentence: str, hint: str = "") -> PrototxtError:
        return PrototxtError(f"{self.path}:{token.line}: {self.layer()}{sentence}. {hint}".rstrip())

    def layer(self) -> str:
        """Return the layer around, as far as it has been read: ``layer 'conv1' (Convolution): ``."""
        frames = [frame for frame in self.stack if frame.descriptor.name in LAYERS]
        strings = {key: value for frame in frames for key, value in frame.strings.items()}
        name = f" '{strings['name']}'" if "name" in strings else ""
        kind = f" ({strings['type']})" if "type" in strings else ""
        return f"layer{name}{kind}: " if frames else ""

    def misplaced(self, token: Token, closing: str | None) -> PrototxtError:
        if token.kind == "end":
            opened = self.stack[-1]
            return self.error(token, f"'{opened.name}', opened on line {opened.line}, is not closed by '{closing}'")
        if "\udc80" <= token.text <= "\udcff":  # what decoding made of a byte that is not UTF-8
            byte = ord(token.text) - 0xDC00
            return self.error(
                token, f"the byte 0x{byte:02x} is not text", "Expected a prototxt; is this a binary file?"
            )
        if token.text == "//":
            return self.error(token, "'//' does not begin a comment", "Use '#'.")
        if closing is None and token.text in ("}", ">"):
            return self.error(token, f"'{token.text}' closes nothing", "Remove it, or look for a missing '{' above.")
        return self.error(token, f"expected the name of a field of {self.stack[-1].descriptor.name}, received {token}")

    def unknown_field(self, name: Token) -> PrototxtError:
        frame = self.stack[-1]
        sentence = f"unknown field '{name.text}' of {frame.descriptor.name}"
        return self.error(name, sentence, self.enclosing(name.text) or self.inside(name.text) or self.near(name.text))

    def enclosing(self, name: str) -> str:
        """Return a hint if a message around the innermost one has the field: then a brace is missing before it."""
        inner = self.stack[-1]
        for frame in reversed(self.stack[:-1]):
            if name in frame.descriptor.fields_by_name:
                owner = frame.descriptor.name
                return f"It belongs to {owner}: close '{inner.name}', opened on line {inner.line}, before it."
        return ""

    def inside(self, name: str) -> str:
        """Return a hint if the field belongs one message further in, or if the file is of the other kind."""
        descriptor = self.stack[-1].descriptor
        kinds = descriptor.file.message_types_by_name
        if descriptor.name == "NetParameter" and name in kinds["SolverParameter"].fields_by_name:
            return "It belongs to SolverParameter: this looks like a solver, not a net."
        if descriptor.name == "SolverParameter" and name in kinds["NetParameter"].fields_by_name:
            return "It belongs to NetParameter: this looks like a net, not a solver."
        children = [f for f in descriptor.fields if f.message_type and name in f.message_type.fields_by_name]
        own = [f for f in children if _family(f.name) == self.stack[-1].strings.get("type", "").lower()]
        names = [f"'{child.name}'" for child in own or children]
        return f"Put it inside {' or '.join(names)}." if 0 < len(names) < 6 else ""

    def near(self, name: str) -> str:
        fields = self.stack[-1].descriptor.fields_by_name
        known = f"Known fields: {', '.join(fields)}." if len(fields) <= 12 else ""
        return suggest(name, fields) or known


def _integer(text: str) -> int:
    """Return the value of an integer literal: decimal, 0x for hexadecimal, a leading 0 for octal."""
    digits = text.lstrip("-")
    base = 16 if digits[:2] in ("0x", "0X") else 8 if digits.startswith("0") else 10
    value = int(digits, base)
    return -value if text.startswith("-") else value


def _family(field_name: str) -> str:
    """Return the layer type, in lower case, that a field like ``inner_product_param`` is named after."""
    return field_name.removesuffix("_param").replace("_", "")

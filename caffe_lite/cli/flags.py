"""Flags in every spelling that gflags took in Caffe's tools, on top of argparse.

    -solver x    --solver x    -solver=x    --solver=x
    -stop_on_nan    --nostop_on_nan    -stop_on_nan=false

Abbreviations are not taken, as in gflags; an unknown flag names its nearest relatives.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from caffe_lite.errors import DeviceError, UsageError, suggest

__all__ = ["FlagParser", "Flags", "comma_list", "integer", "refuse_gpu", "require"]

Flags = argparse.Namespace

_SPELLING = re.compile(r"--?([A-Za-z][\w-]+)(=.*)?", re.DOTALL)
_BOOLEANS = dict.fromkeys(("true", "t", "yes", "y", "1"), True) | dict.fromkeys(("false", "f", "no", "n", "0"), False)


class FlagParser(argparse.ArgumentParser):
    """The flags of one command.  `parse` raises `UsageError` where argparse would end the process."""

    def __init__(self, program: str, description: str) -> None:
        super().__init__(program, description=description, allow_abbrev=False, add_help=False)
        self.formatter_class = argparse.RawDescriptionHelpFormatter
        self._names: list[str] = []
        self._switches: list[str] = []

    def flag(self, name: str, help_text: str, kind: Callable[[str], Any] = str, **options: Any) -> None:
        """Declare a flag that takes a value; `options` are argparse's (default, choices, metavar)."""
        self._names.append(name)
        self.add_argument(f"--{name}", type=kind, help=help_text.replace("%", "%%"), **options)

    def switch(self, name: str, help_text: str) -> None:
        """Declare a flag that is true or false, and false unless given."""
        self._names.append(name)
        self._switches.append(name)
        text = help_text.replace("%", "%%")
        self.add_argument(f"--{name}", f"--no{name}", action=_Switch, dest=name, nargs=0, default=False, help=text)

    def parse(self, arguments: Sequence[str]) -> Flags:
        """Return the flags set by `arguments`.  Raises `UsageError`."""
        flags, rest = self.parse_known_args([self._canonical(argument) for argument in arguments])
        if rest:
            raise UsageError(self._complaint(rest[0]))
        return flags

    def error(self, message: str) -> NoReturn:
        """Raise `UsageError` with argparse's sentence."""
        raise UsageError(f"{message}. `{self.prog} -h` lists the flags.")

    def _canonical(self, argument: str) -> str:
        """Return `argument` with two dashes and, for a switch, its value in the name: --dump or --nodump."""
        match = _SPELLING.fullmatch(argument)
        if not match:
            return argument
        name, value = match[1].replace("-", "_"), match[2] or ""
        if name not in self._switches or not value:
            return f"--{name}{value}"
        if value[1:].lower() not in _BOOLEANS:
            raise UsageError(f"--{name} is true or false. Received '{value[1:]}'.")
        return f"--{name}" if _BOOLEANS[value[1:].lower()] else f"--no{name}"

    def _complaint(self, argument: str) -> str:
        match = _SPELLING.fullmatch(argument)
        if not match:
            return f"unexpected argument '{argument}'. `{self.prog} -h` shows how it is used."
        flag = f"--{match[1]}"
        near = suggest(flag, [f"--{name}" for name in self._names])
        return " ".join(filter(None, [f"unknown flag '{flag}'.", near, f"`{self.prog} -h` lists the flags."]))


class _Switch(argparse.Action):
    """Stores true for ``--name`` and false for ``--noname``."""

    def __call__(self, parser: object, namespace: Flags, values: object, option: str | None = None) -> None:
        setattr(namespace, self.dest, option == f"--{self.dest}")


def integer(least: int = -(2**31)) -> Callable[[str], int]:
    """Return a flag's type: integers of `least` or more that fit Caffe's int32."""
    most = 2**31 - 1

    def parse(word: str) -> int:
        try:
            number = int(word)
        except ValueError:
            number = least - 1
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"expected an integer from {least} to {most}, received '{word}'")
        return number

    return parse


def comma_list(word: str) -> list[str]:
    """Return the parts of `word` between commas, empty ones left out (a flag's type)."""
    return [part for part in word.split(",") if part]


def require(value: object, what: str) -> None:
    """Raise `UsageError` unless a flag was given; `what` completes "Need ..."."""
    if not value:
        raise UsageError(f"Need {what}.")


def refuse_gpu(gpu: str | None) -> None:
    """Raise `DeviceError` if GPUs were asked for."""
    if gpu:
        raise DeviceError(f"-gpu {gpu}: this version does not run nets on a GPU yet; leave -gpu out to run on the CPU.")

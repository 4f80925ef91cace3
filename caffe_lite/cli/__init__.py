"""The command `caffe-lite`: finds the command asked for, runs it, and turns errors into one line and an exit status.

Each command is a module of this package with two functions: ``add_flags(parser)`` declares its flags, and
``run(flags) -> int`` does the work and returns the exit status.  A command's module is imported only when it is asked
for, and imports numpy, the devices and the like only when it runs.

Exit status: 0 done, 1 it failed, 2 the command line is wrong, 130 interrupted (Ctrl-C outside training), 141 nobody
reads the output any more.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from caffe_lite._version import __version__
from caffe_lite.cli.flags import FlagParser
from caffe_lite.errors import CaffeError, UsageError, suggest
from caffe_lite.log import init_log

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "train": "train or finetune a model",
    "test": "score a model",
    "time": "measure a model's forward and backward passes, layer by layer",
    "device_query": "show what there is to compute on",
    "compare": "compare a net's blobs with reference blobs, or write such blobs",
    "convert_mnist": "turn MNIST's idx files into an LMDB",
    "demo": "train a bundled model from scratch with one command",
}


_HELP = ("-h", "-help", "--help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``caffe-lite`` with the arguments `argv` (without the program's name; default: those of this process).

    Returns the exit status.  Nothing a user can hand in makes it raise.
    """
    try:
        status = _run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        _forget_closed_outputs()
        return 141


def _run(arguments: list[str]) -> int:
    """Dispatch, and turn errors into one line and a status."""
    program = " ".join(["caffe-lite", *(name for name in arguments[:1] if name in COMMANDS)])
    try:
        return _dispatch(arguments)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        raise
    except UsageError as error:
        return _fail(program, str(error), 2)
    except CaffeError as error:
        return _fail(program, str(error), 1)
    except OSError as error:
        return _fail(program, f"{error.filename}: {error.strerror}" if error.filename else str(error), 1)
    except MemoryError as error:
        return _fail(program, str(error) or "there is not enough memory", 1)


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in _HELP:
        print(_overview())
        return 0
    name, *rest = arguments
    if name in ("-version", "--version"):
        print(f"caffe-lite {__version__}")
        return 0
    if name == "help":
        return _help(rest)
    module = _command(name)
    if any(argument in _HELP for argument in rest):
        return _help([name])
    flags = _parser(name, module).parse(rest)
    init_log(logging.WARNING)
    return int(module.run(flags))


def _help(names: list[str]) -> int:
    if not names:
        print(_overview())
    for name in names:
        _parser(name, _command(name)).print_help()
    return 0


def _command(name: str) -> ModuleType:
    """Import the module of command `name`; raises `UsageError` if there is none."""
    if name.startswith("-"):
        raise UsageError(f"the command comes before its flags. Received '{name}'. Commands: {', '.join(COMMANDS)}.")
    if name not in COMMANDS:
        known = f"Commands: {', '.join(COMMANDS)}."
        raise UsageError(" ".join(filter(None, [f"unknown command '{name}'.", suggest(name, COMMANDS), known])))
    return importlib.import_module(f"{__name__}.{name}")


def _parser(name: str, module: ModuleType) -> FlagParser:
    parser = FlagParser(f"caffe-lite {name}", module.__doc__ or "")
    module.add_flags(parser)
    return parser


def _overview() -> str:
    lines = ["Usage: caffe-lite COMMAND [flags]", "", "Commands:"]
    lines += [f"  {name:15}{what}" for name, what in COMMANDS.items()]
    lines += ["", "caffe-lite help COMMAND lists a command's flags; caffe-lite --version prints the version."]
    return "\n".join(lines)


def _fail(program: str, message: str, status: int) -> int:
    print(f"{program}: {message}", file=sys.stderr)
    return status


def _forget_closed_outputs() -> None:
    """Point the outputs that nobody reads at nothing, so that Python's own flush at exit stays quiet."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            os.dup2(nothing, stream.fileno())
    os.close(nothing)

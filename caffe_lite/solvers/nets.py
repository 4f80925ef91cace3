"""Which nets a solver trains and tests: the fields of ``SolverParameter`` that name them, in Caffe's order.

One train net comes from ``net``, ``net_param``, ``train_net`` or ``train_net_param``.  Test nets come from
``test_net_param``, then ``test_net``; for what is left of ``test_iter`` the net of ``net_param`` or ``net`` is built
again.  A net's state is the solver's default (the phase), with the net's own ``state`` over it, and ``train_state`` or
``test_state`` over both.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, NamedTuple

from caffe_lite import prototxt
from caffe_lite.errors import SolverError
from caffe_lite.net import Net
from caffe_lite.proto import caffe_pb2

__all__ = ["build_test_nets", "build_train_net", "check", "locate"]

logger = logging.getLogger("caffe_lite")

TRAIN_FIELDS = ("net", "net_param", "train_net", "train_net_param")


class Definition(NamedTuple):
    """A net's definition: in a file, or in the solver's message."""

    field: str
    value: Any

    def describe(self) -> str:
        """Return where the definition is, in the words of Caffe's log."""
        return f"{self.field} file: {self.value}" if isinstance(self.value, str) else self.field

    def build(self, state: Any, override: Any, solver_file: str) -> Net:
        """Build the net in `state`, with the net's own state over it, and `override` over both."""
        if isinstance(self.value, str):
            net_param, source = prototxt.read_net(locate(self.value, solver_file))
        else:
            net_param, source = self.value, None
        state.MergeFrom(net_param.state)
        if override is not None:
            state.MergeFrom(override)
        return Net.from_param(net_param, state, source)


def check(param: Any) -> None:
    """Raise `SolverError` unless exactly one train net is given and the test fields belong together."""
    given = [field for field in TRAIN_FIELDS if param.HasField(field)]
    if len(given) != 1:
        received = " and ".join(given) if given else "none"
        raise SolverError(f"a solver trains one net. Expected one of {', '.join(TRAIN_FIELDS)}, received {received}.")
    iterations, nets = len(param.test_iter), len(param.test_net_param) + len(param.test_net)
    generic = param.HasField("net") or param.HasField("net_param")
    if iterations < nets or (iterations > nets and not generic):
        least = "at least " if generic else ""
        raise SolverError(f"test_iter must be given for each test net. Expected {least}{nets}, received {iterations}.")
    if any(count < 1 for count in param.test_iter):
        raise SolverError(f"test_iter must be at least 1. Received {', '.join(map(str, param.test_iter))}.")
    if len(param.test_state) not in (0, iterations):
        raise SolverError(
            "test_state must be given once for each test net, or not at all. "
            f"Expected {iterations}, received {len(param.test_state)}."
        )
    if param.test_interval > 0 and not iterations:
        logger.warning("test_interval is set, but test_iter is missing: there is no test net, and nothing is tested.")
    if iterations and param.test_interval <= 0:
        raise SolverError(
            f"test_interval must be more than 0 where there are test nets. Received {param.test_interval}. "
            "Set it, or remove test_iter."
        )


def build_train_net(param: Any, solver_file: str) -> Net:
    """Build the net to train, with the solver's ``weights``.  Raises what reading and building a net raises."""
    field = next(field for field in TRAIN_FIELDS if param.HasField(field))
    definition = Definition(field, getattr(param, field))
    if isinstance(definition.value, str):
        logger.info("Creating training net from %s", definition.describe())
    else:
        logger.info("Creating training net specified in %s.", definition.describe())
    override = param.train_state if param.HasField("train_state") else None
    net = definition.build(caffe_pb2.NetState(phase=caffe_pb2.TRAIN), override, solver_file)
    _load_weights(net, param, solver_file)
    if not net.loss_tops:
        logger.warning("The training net has no loss: nothing will be learnt.")
    return net


def build_test_nets(param: Any, solver_file: str) -> list[Net]:
    """Build the nets to test, with the solver's ``weights``.  Raises what reading and building a net raises."""
    definitions = [Definition("test_net_param", value) for value in param.test_net_param]
    definitions += [Definition("test_net", value) for value in param.test_net]
    generic = "net_param" if param.HasField("net_param") else "net"
    definitions += [Definition(generic, getattr(param, generic))] * (len(param.test_iter) - len(definitions))
    nets = []
    for index, definition in enumerate(definitions):
        logger.info("Creating test net (#%d) specified by %s", index, definition.describe())
        override = param.test_state[index] if param.test_state else None
        net = definition.build(caffe_pb2.NetState(phase=caffe_pb2.TEST), override, solver_file)
        net.debug_info = param.debug_info
        _load_weights(net, param, solver_file)
        nets.append(net)
    return nets


def locate(path: str, beside: str) -> str:
    """Return where the file `path` is: in the working directory as Caffe has it, else in the folder of file `beside`.

    In that folder the whole path is tried, then only the name.  A file found nowhere stays `path`; reading it raises.
    """
    if not beside or Path(path).exists():
        return path
    folder = Path(beside).parent
    for candidate in (folder / path, folder / Path(path).name):
        if candidate.exists():
            logger.info("%s is not there from the working directory; using %s, beside %s", path, candidate, beside)
            return str(candidate)
    return path


def _load_weights(net: Net, param: Any, solver_file: str) -> None:
    for path in (part.strip() for files in param.weights for part in files.split(",")):
        logger.info("Finetuning from %s", path)
        net.copy_from(locate(path, solver_file))

"""The passes that turn a ``NetParameter`` into the net that runs: filtering, splits, and who needs a gradient.

Each pass is a function of messages alone; nothing is allocated.  `filter_net` and `insert_splits` also return
`origins`, the index each resulting layer had in the message they were given; their argument `where` gives the place of
a layer of that message for errors, as ``net.prototxt:42: layer 'pool1' (Pooling)``.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from google.protobuf import text_format

from caffe_lite.errors import NetError, suggest

logger = logging.getLogger("caffe_lite")

PHASE_NAMES = ("TRAIN", "TEST")

Where = Callable[[int], str]


def describe_layer(layer: Any) -> str:
    """Return how messages call the layer of a ``LayerParameter``: "layer 'pool1' (Pooling)"."""
    return f"layer '{layer.name}' ({layer.type})"


def text_of(message: Any) -> str:
    """Return `message` as Caffe's log prints it: ``lr_mult: 1`` where Python's protobuf writes ``lr_mult: 1.0``."""
    return re.sub(r"(: -?\d+)\.0$", r"\1", text_format.MessageToString(message), flags=re.MULTILINE)


# -- filtering by NetState


def filter_net(param: Any, where: Where | None = None) -> tuple[Any, list[int], list[int]]:
    """Leave out the layers whose include and exclude rules do not admit ``param.state``.

    Returns the new ``NetParameter``, the origins of its layers and the indices of the excluded ones.
    Raises `NetError` for a layer with both include and exclude rules.
    """
    where = where or (lambda index: describe_layer(param.layer[index]))
    filtered = type(param)()
    filtered.CopyFrom(param)
    del filtered.layer[:]
    origins: list[int] = []
    excluded: list[int] = []
    for index, layer in enumerate(param.layer):
        if layer.include and layer.exclude:
            raise NetError(f"{where(index)}: give either include rules or exclude rules, not both.")
        if _is_included(layer, param.state):
            filtered.layer.add().CopyFrom(layer)
            origins.append(index)
        else:
            excluded.append(index)
    return filtered, origins, excluded


def _is_included(layer: Any, state: Any) -> bool:
    if layer.include:
        return any(_meets(state, rule, layer.name) for rule in layer.include)
    return not any(_meets(state, rule, layer.name) for rule in layer.exclude)


def _meets(state: Any, rule: Any, layer_name: str) -> bool:
    reason = _violation(state, rule)
    if reason:
        logger.info("The NetState %s specified by a rule in layer %s", reason, layer_name)
    return not reason


def _violation(state: Any, rule: Any) -> str:
    """Return how `state` breaks `rule` in the words of Caffe's log, or an empty string."""
    if rule.HasField("phase") and rule.phase != state.phase:
        return f"phase ({state.phase}) differed from the phase ({rule.phase})"
    if rule.HasField("min_level") and state.level < rule.min_level:
        return f"level ({state.level}) is above the min_level ({rule.min_level})"
    if rule.HasField("max_level") and state.level > rule.max_level:
        return f"level ({state.level}) is above the max_level ({rule.max_level})"
    for stage in rule.stage:
        if stage not in state.stage:
            return f"did not contain stage '{stage}'"
    for stage in rule.not_stage:
        if stage in state.stage:
            return f"contained a not_stage '{stage}'"
    return ""


def describe_state(state: Any) -> str:
    """Return a ``NetState`` in words: "phase TEST, level 1, stage 'deploy'"."""
    words = [f"phase {PHASE_NAMES[state.phase]}"]
    if state.level:
        words.append(f"level {state.level}")
    words += [f"stage '{stage}'" for stage in state.stage if stage]
    return ", ".join(words)


# -- splits


@dataclasses.dataclass
class _Top:
    """One blob as one layer leaves it: an in-place layer makes a new `_Top` of the same blob."""

    layer: int
    index: int
    loss_weight: float = 0.0
    readers: list[int] = dataclasses.field(default_factory=list)  # layers that have it as a bottom, one entry each
    handed_out: int = 0  # split tops already given to readers

    @property
    def uses(self) -> int:
        """A loss weight uses a top as a reader does."""
        return len(self.readers) + (self.loss_weight != 0)


def insert_splits(
    param: Any,
    is_loss: Callable[[str], bool] = lambda layer_type: False,
    excluded: Sequence[Any] = (),
    where: Where | None = None,
) -> tuple[Any, list[int]]:
    """Put a Split layer behind each top with more than one use, named as Caffe names it: ``ip2_ip2_0_split``.

    `is_loss` says whether a layer type has loss weight 1 by default, `excluded` are the layers `filter_net` left out
    (for messages).  Returns the new ``NetParameter`` and the origins of its layers; a Split has its maker's origin.
    Raises `NetError` for a bottom that no earlier layer makes, for a top that two layers make, and for an in-place
    layer whose bottom has other uses.
    """
    where = where or (lambda index: describe_layer(param.layer[index]))
    bottoms, tops = _connect(param, excluded, where)
    split = type(param)()
    split.CopyFrom(param)
    del split.layer[:]
    origins: list[int] = []
    for index, layer in enumerate(param.layer):
        copied = split.layer.add()
        copied.CopyFrom(layer)
        origins.append(index)
        for position, top in enumerate(bottoms[index]):
            if top.uses > 1:
                maker = param.layer[top.layer].name
                copied.bottom[position] = split_name(layer.bottom[position], maker, top.index, top.handed_out)
                top.handed_out += 1
        for position, top in enumerate(tops[index]):
            if top.uses > 1:
                _configure_split(split.layer.add(), layer, position, top)
                origins.append(index)
                if top.loss_weight:
                    _move_loss_weight(copied, position, is_loss(layer.type))
                    top.handed_out = 1
    return split, origins


def split_name(blob: str, layer: str, top_index: int, split_index: int | None = None) -> str:
    """Return the name of a Split layer, or of its top `split_index`."""
    name = f"{blob}_{layer}_{top_index}_split"
    return name if split_index is None else f"{name}_{split_index}"


def _connect(param: Any, excluded: Sequence[Any], where: Where) -> tuple[list[list[_Top]], list[list[_Top]]]:
    """Return, for each layer, the tops that its bottoms read and the tops that it makes."""
    current: dict[str, _Top] = {}
    bottoms: list[list[_Top]] = []
    tops: list[list[_Top]] = []
    for index, layer in enumerate(param.layer):
        for name in layer.bottom:
            if name not in current:
                raise NetError(f"{where(index)}: {_unknown_bottom(param, name, current, excluded)}")
            current[name].readers.append(index)
        bottoms.append([current[name] for name in layer.bottom])
        tops.append([])
        for position, name in enumerate(layer.top):
            in_place = position < len(layer.bottom) and layer.bottom[position] == name
            if name in current and not (in_place and current[name].layer != index):
                first = describe_layer(param.layer[current[name].layer])
                raise NetError(f"{where(index)}: {first} makes top '{name}' already. Give this one another name.")
            weight = layer.loss_weight[position] if position < len(layer.loss_weight) else 0.0
            current[name] = _Top(index, position, weight)
            tops[index].append(current[name])
    for index, layer in enumerate(param.layer):
        for name, top in zip(layer.bottom, bottoms[index], strict=True):
            if name in layer.top and top.uses > 1:
                raise NetError(f"{where(index)}: {_in_place_conflict(param, index, name, top)}")
    return bottoms, tops


def _unknown_bottom(param: Any, name: str, current: Iterable[str], excluded: Sequence[Any]) -> str:
    known = sorted(current)
    words = [f"unknown bottom '{name}'."]
    words.append(f"Blobs at this point: {', '.join(known)}." if known else "No layer before this one makes a blob.")
    for layer in excluded:
        if name in layer.top:
            words.append(
                f"The net's state ({describe_state(param.state)}) excludes {describe_layer(layer)}, its maker."
            )
    for layer in param.layer:
        if name in layer.top:
            words.append(f"Its maker, {describe_layer(layer)}, comes later.")
    hint = suggest(name, known)
    return " ".join([*words, hint] if hint else words)


def _in_place_conflict(param: Any, index: int, name: str, top: _Top) -> str:
    users = [describe_layer(param.layer[reader]) for reader in top.readers if reader != index]
    if top.loss_weight:
        users.append(f"the loss_weight of {describe_layer(param.layer[top.layer])}")
    reason = f"{' and '.join(users)} needs it too" if users else "the layer reads it twice"
    return f"cannot overwrite blob '{name}' in place: {reason}. Give the top another name."


def _configure_split(split: Any, maker: Any, position: int, top: _Top) -> None:
    blob = maker.top[position]
    split.bottom.append(blob)
    split.name = split_name(blob, maker.name, position)
    split.type = "Split"
    split.top.extend(split_name(blob, maker.name, position, use) for use in range(top.uses))
    if top.loss_weight:
        split.loss_weight.extend([top.loss_weight, *[0.0] * (top.uses - 1)])


def _move_loss_weight(layer: Any, position: int, is_loss: bool) -> None:
    """Take from `layer` the loss weight that its Split now carries.

    Caffe clears all the layer's loss weights, which loses those of its other tops and lets a loss layer count again
    with its default of 1.  Here the others stay, and a loss layer keeps an explicit 0.
    """
    layer.loss_weight[position] = 0.0
    if not any(layer.loss_weight) and not is_loss:
        layer.ClearField("loss_weight")


# -- who needs a gradient


@dataclasses.dataclass(frozen=True)
class Wiring:
    """What `plan_backward` must know of a layer.  Blobs are numbered through the net; an in-place top is its bottom."""

    bottoms: Sequence[int]
    tops: Sequence[int]
    propagate_down: Sequence[bool] = ()  # from the prototxt: empty, or one a bottom
    learns: bool = False  # whether any of its params has an lr_mult other than 0
    loss: bool = False  # whether any of its tops has a loss weight
    allow_force: Sequence[bool] = ()  # for each bottom, whether force_backward applies


@dataclasses.dataclass
class BackwardPlan:
    """For each layer, whether its backward runs, and for which of its bottoms."""

    layers: list[bool]
    bottoms: list[list[bool]]


def plan_backward(wiring: Sequence[Wiring]) -> BackwardPlan:
    """Decide whose backward runs: a layer between a param that learns and a loss.

    First forwards: a blob needs a gradient if its maker learns or reads a blob that needs one (``propagate_down``
    replaces that answer for a layer's bottoms).  Then backwards: what no loss depends on, and what lies behind
    bottoms that take no gradient, is dropped.
    """
    plan = _needs_forwards(wiring)
    _drop_what_no_loss_reaches(wiring, plan)
    return plan


def force_backward(wiring: Sequence[Wiring], plan: BackwardPlan) -> None:
    """Let every layer of `plan` run backward, to all bottoms that allow it: the net's ``force_backward``."""
    plan.layers = [True] * len(wiring)
    plan.bottoms = [
        [need or allow for need, allow in zip(needs, layer.allow_force, strict=True)]
        for needs, layer in zip(plan.bottoms, wiring, strict=True)
    ]


def _needs_forwards(wiring: Sequence[Wiring]) -> BackwardPlan:
    blobs: set[int] = set()
    plan = BackwardPlan([], [])
    for layer in wiring:
        reads = [bottom in blobs for bottom in layer.bottoms]
        need = layer.learns or any(reads)
        if need:
            blobs.update(layer.tops)
        plan.layers.append(need)
        plan.bottoms.append(list(layer.propagate_down) or reads)
    return plan


def _drop_what_no_loss_reaches(wiring: Sequence[Wiring], plan: BackwardPlan) -> None:
    under_loss: set[int] = set()
    stopped: set[int] = set()  # blobs whose reader passes no gradient down
    for index in range(len(wiring) - 1, -1, -1):
        layer = wiring[index]
        contributes = layer.loss or any(top in under_loss for top in layer.tops)
        if not contributes or all(top in stopped for top in layer.tops):
            plan.layers[index] = False
            plan.bottoms[index] = [False] * len(layer.bottoms)
        if contributes:
            under_loss.update(layer.bottoms)
        stopped.update(bottom for bottom, need in zip(layer.bottoms, plan.bottoms[index], strict=True) if not need)

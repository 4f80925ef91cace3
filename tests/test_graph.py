"""The passes over NetParameter: filtering, splits, who needs a gradient."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from google.protobuf import text_format
from nets import TEST, TRAIN, layer, parse

from caffe_lite import graph
from caffe_lite.errors import NetError
from caffe_lite.graph import Wiring

RULED = layer("always", "Silence") + "layer { name: 'ruled' type: 'Silence' %s }"


def kept(rules: str, **state: Any) -> bool:
    filtered, origins, excluded = graph.filter_net(parse(RULED % rules, **state))
    assert len(origins) == len(filtered.layer)
    assert sorted(origins + excluded) == [0, 1]
    return len(filtered.layer) == 2


@pytest.mark.parametrize(
    ("rules", "state", "expected"),
    [
        ("", {"phase": TEST}, True),
        ("include { phase: TEST }", {"phase": TEST}, True),
        ("include { phase: TEST }", {"phase": TRAIN}, False),
        ("exclude { phase: TEST }", {"phase": TEST}, False),
        ("exclude { phase: TEST }", {"phase": TRAIN}, True),
        ("include { min_level: 2 }", {"level": 1}, False),
        ("include { min_level: 2 }", {"level": 2}, True),
        ("include { max_level: 2 }", {"level": 3}, False),
        ("include { max_level: 2 }", {"level": 2}, True),
        ("include { min_level: 2 max_level: 4 }", {"level": 3}, True),
        ("include { stage: 'a' stage: 'b' }", {"stage": ["a"]}, False),
        ("include { stage: 'a' stage: 'b' }", {"stage": ["b", "a", "c"]}, True),
        ("include { not_stage: 'a' }", {"stage": ["a"]}, False),
        ("include { not_stage: 'a' }", {"stage": ["b"]}, True),
        ("include { stage: 'a' } include { phase: TEST }", {"phase": TEST}, True),
        ("exclude { stage: 'a' } exclude { phase: TEST }", {"phase": TEST}, False),
        ("exclude { stage: 'a' phase: TEST }", {"phase": TEST}, True),
    ],
)
def test_rules_admit_a_layer_as_in_caffe(rules: str, state: dict[str, Any], expected: bool) -> None:
    assert kept(rules, **state) == expected


def test_include_and_exclude_rules_together_are_refused() -> None:
    with pytest.raises(NetError, match=r"layer 'ruled' \(Silence\): give either include rules or exclude rules, not"):
        kept("include { phase: TEST } exclude { stage: 'a' }")


@pytest.mark.parametrize(
    ("rule", "state", "line"),
    [
        ("phase: TEST", {}, "phase (0) differed from the phase (1)"),
        ("min_level: 2", {}, "level (0) is above the min_level (2)"),
        ("max_level: 2", {"level": 3}, "level (3) is above the max_level (2)"),
        ("stage: 'a'", {}, "did not contain stage 'a'"),
        ("not_stage: 'a'", {"stage": ["a"]}, "contained a not_stage 'a'"),
    ],
)
def test_the_log_says_which_rule_was_broken(
    rule: str, state: dict[str, Any], line: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "caffe_lite"):
        kept(f"include {{ {rule} }}", **state)
    assert caplog.messages == [f"The NetState {line} specified by a rule in layer ruled"]


def test_filtering_leaves_the_message_as_it_was() -> None:
    param = parse(RULED % "include { phase: TEST }")
    graph.filter_net(param)
    assert len(param.layer) == 2


# -- splits


def split(text: str, **options: Any) -> Any:
    return graph.insert_splits(parse(text), **options)[0]


def summary(param: Any) -> list[str]:
    return [f"{one.name}: {' '.join(one.bottom)} -> {' '.join(one.top)}" for one in param.layer]


DATA = layer("data", "Input", tops="data label")


def test_a_net_without_shared_tops_stays_as_it_is() -> None:
    param = parse(DATA + layer("ip", "InnerProduct", "data", "ip") + layer("loss", "SoftmaxWithLoss", "ip label"))
    assert graph.insert_splits(param)[0] == param


def test_splits_have_caffes_names_and_stand_behind_the_maker() -> None:
    text = DATA + layer("ip1", "InnerProduct", "data", "ip1") + layer("relu1", "ReLU", "ip1", "ip1")
    text += layer("a", "Silence", "ip1 label") + layer("b", "Silence", "ip1 label") + layer("c", "Silence", "ip1")
    param, origins = graph.insert_splits(parse(text))
    assert summary(param) == [
        "data:  -> data label",
        "label_data_1_split: label -> label_data_1_split_0 label_data_1_split_1",
        "ip1: data -> ip1",
        "relu1: ip1 -> ip1",
        "ip1_relu1_0_split: ip1 -> ip1_relu1_0_split_0 ip1_relu1_0_split_1 ip1_relu1_0_split_2",
        "a: ip1_relu1_0_split_0 label_data_1_split_0 -> ",
        "b: ip1_relu1_0_split_1 label_data_1_split_1 -> ",
        "c: ip1_relu1_0_split_2 -> ",
    ]
    assert origins == [0, 0, 1, 2, 2, 3, 4, 5]
    assert param.layer[4].type == "Split"


def test_a_layer_that_reads_a_blob_twice_gets_two_split_tops() -> None:
    assert summary(split(DATA + layer("s", "Silence", "data data")))[1:] == [
        "data_data_0_split: data -> data_data_0_split_0 data_data_0_split_1",
        "s: data_data_0_split_0 data_data_0_split_1 -> ",
    ]


def test_two_tops_of_one_layer_are_split_apart() -> None:
    text = DATA + layer("a", "Silence", "data label") + layer("b", "Silence", "data label")
    assert summary(split(text))[1:3] == [
        "data_data_0_split: data -> data_data_0_split_0 data_data_0_split_1",
        "label_data_1_split: label -> label_data_1_split_0 label_data_1_split_1",
    ]


LOSSY = DATA + layer("ip", "InnerProduct", "data", "ip", "loss_weight: 2.5") + layer("s", "Silence", "ip")


def test_a_loss_weight_counts_as_a_use_and_moves_to_the_first_split_top() -> None:
    param = split(LOSSY)
    assert summary(param)[1:] == [
        "ip: data -> ip",
        "ip_ip_0_split: ip -> ip_ip_0_split_0 ip_ip_0_split_1",
        "s: ip_ip_0_split_1 -> ",
    ]
    assert not param.layer[1].loss_weight
    assert list(param.layer[2].loss_weight) == [2.5, 0.0]


def test_the_loss_weights_of_other_tops_stay() -> None:
    text = DATA + layer("two", "Custom", "data", "a b", "loss_weight: 2 loss_weight: 3") + layer("s", "Silence", "a")
    assert list(split(text).layer[1].loss_weight) == [0.0, 3.0]


def test_a_loss_layer_whose_weight_moved_does_not_fall_back_to_its_default() -> None:
    param = split(LOSSY, is_loss=lambda layer_type: layer_type == "InnerProduct")
    assert list(param.layer[1].loss_weight) == [0.0]


def test_inserting_splits_twice_changes_nothing_more() -> None:
    once = split(DATA + layer("a", "Silence", "data") + layer("b", "Silence", "data"))
    assert split(text_format.MessageToString(once)) == once


# -- wrong graphs


def error_of(text: str, **options: Any) -> str:
    with pytest.raises(NetError) as caught:
        split(text, **options)
    return str(caught.value)


def test_an_unknown_bottom_names_the_blobs_there_are_and_the_nearest() -> None:
    assert error_of(DATA + layer("ip", "InnerProduct", "dta", "ip")) == (
        "layer 'ip' (InnerProduct): unknown bottom 'dta'. Blobs at this point: data, label. Did you mean 'data'?"
    )


def test_an_unknown_bottom_of_the_first_layer_says_that_there_are_no_blobs() -> None:
    assert "unknown bottom 'x'. No layer before this one makes a blob." in error_of(layer("ip", "ReLU", "x", "ip"))


def test_an_unknown_bottom_names_the_excluded_layer_that_would_make_it() -> None:
    excluded = parse(layer("eval", "Input", tops="truth")).layer
    message = error_of(DATA + layer("s", "Silence", "truth"), excluded=excluded)
    assert "The net's state (phase TRAIN) excludes layer 'eval' (Input), its maker." in message


def test_an_unknown_bottom_names_the_layer_that_makes_it_later() -> None:
    message = error_of(layer("s", "Silence", "data") + DATA)
    assert "Its maker, layer 'data' (Input), comes later." in message


def test_a_top_of_two_layers_names_both() -> None:
    assert error_of(DATA + layer("again", "Input", tops="data")) == (
        "layer 'again' (Input): layer 'data' (Input) makes top 'data' already. Give this one another name."
    )


def test_a_top_named_twice_by_one_layer_is_refused() -> None:
    assert "layer 'twice' (Input) makes top 'x' already" in error_of(layer("twice", "Input", tops="x x"))


def test_a_blob_with_another_reader_is_not_overwritten_in_place() -> None:
    text = DATA + layer("s", "Silence", "data") + layer("relu", "ReLU", "data", "data")
    assert error_of(text) == (
        "layer 'relu' (ReLU): cannot overwrite blob 'data' in place: layer 's' (Silence) needs it too. "
        "Give the top another name."
    )


def test_a_blob_with_a_loss_weight_is_not_overwritten_in_place() -> None:
    text = DATA + layer("ip", "InnerProduct", "data", "ip", "loss_weight: 1") + layer("relu", "ReLU", "ip", "ip")
    assert "in place: the loss_weight of layer 'ip' (InnerProduct) needs it too" in error_of(text)


def test_a_layer_that_reads_a_blob_twice_does_not_overwrite_it() -> None:
    assert "in place: the layer reads it twice" in error_of(DATA + layer("a", "Eltwise", "data data", "data"))


def test_where_gives_the_place_in_errors() -> None:
    message = error_of(layer("s", "Silence", "data"), where=lambda index: f"net.prototxt:{index + 7}")
    assert message.startswith("net.prototxt:7: unknown bottom")


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({}, "phase TRAIN"),
        ({"phase": TEST, "level": 2, "stage": ["", "deploy"]}, "phase TEST, level 2, stage 'deploy'"),
    ],
)
def test_a_state_in_words(state: dict[str, Any], words: str) -> None:
    assert graph.describe_state(parse("", **state).state) == words


# -- who needs a gradient: data 0 -> ip1 1 -> ip2 2 -> loss 3


CHAIN = [
    Wiring([], [0]),
    Wiring([0], [1], learns=True, allow_force=[True]),
    Wiring([1], [2], learns=True, allow_force=[True]),
    Wiring([2], [3], loss=True, allow_force=[True]),
]


def changed(index: int, wiring: Wiring) -> list[Wiring]:
    return [*CHAIN[:index], wiring, *CHAIN[index + 1 :]]


def test_gradients_flow_from_the_loss_to_the_first_layer_that_learns() -> None:
    plan = graph.plan_backward(CHAIN)
    assert plan.layers == [False, True, True, True]
    assert plan.bottoms == [[], [False], [True], [True]]


def test_layers_before_the_first_that_learns_do_not_run_backward() -> None:
    plan = graph.plan_backward(changed(1, Wiring([0], [1])))
    assert plan.layers == [False, False, True, True]
    assert plan.bottoms == [[], [False], [False], [True]]


def test_nothing_runs_backward_without_a_loss() -> None:
    plan = graph.plan_backward(changed(3, Wiring([2], [3])))
    assert plan.layers == [False] * 4
    assert plan.bottoms == [[], [False], [False], [False]]


def test_propagate_down_false_stops_the_gradient_there() -> None:
    plan = graph.plan_backward(changed(2, Wiring([1], [2], propagate_down=[False], learns=True)))
    assert plan.layers == [False, False, True, True]
    assert plan.bottoms == [[], [False], [False], [True]]


def test_propagate_down_true_asks_for_a_gradient_that_no_param_needs() -> None:
    plan = graph.plan_backward(changed(1, Wiring([0], [1], propagate_down=[True], learns=True)))
    assert plan.bottoms == [[], [True], [True], [True]]


def test_a_branch_that_leads_to_no_loss_is_dropped() -> None:
    # ip2's bottom is split: one half goes on to the loss, the other to a layer that learns for nothing.
    wiring = [
        Wiring([], [0]),
        Wiring([0], [1], learns=True),
        Wiring([1], [2, 3]),
        Wiring([2], [4], learns=True),
        Wiring([3], [5], loss=True),
    ]
    plan = graph.plan_backward(wiring)
    assert plan.layers == [False, True, True, False, True]
    assert plan.bottoms[3] == [False]


def test_an_in_place_layer_passes_the_gradient_on() -> None:
    wiring = [Wiring([], [0]), Wiring([0], [1], learns=True), Wiring([1], [1]), Wiring([1], [2], loss=True)]
    assert graph.plan_backward(wiring).layers == [False, True, True, True]


def test_force_backward_reaches_every_bottom_that_allows_it() -> None:
    wiring = [Wiring([], [0, 1]), Wiring([0], [2], allow_force=[True]), Wiring([2, 1], [3], allow_force=[True, False])]
    plan = graph.plan_backward(wiring)
    graph.force_backward(wiring, plan)
    assert plan.layers == [True, True, True]
    assert plan.bottoms == [[], [True], [True, False]]

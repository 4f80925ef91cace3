"""What a log parser of 2016 reads: iteration, learning rate, outputs of the train and the test net, times."""

from __future__ import annotations

import datetime
import re
from pathlib import Path

RECORDED = Path(__file__).parents[1] / "reference" / "logs" / "lenet_caffe_train.log"

ITERATION = re.compile(r"Iteration (\d+)")
TRAIN_OUTPUT = re.compile(r"Train net output #(\d+): (\S+) = ([\.\deE+-]+)")
TEST_OUTPUT = re.compile(r"Test net output #(\d+): (\S+) = ([\.\deE+-]+)")
LEARNING_RATE = re.compile(r"lr = ([-+]?[0-9]*\.?[0-9]+([eE]?[-+]?[0-9]+)?)")


def parse(log):
    """Return {iteration: {name: value}} of the train and of the test net, {iteration: rate}, and the start time."""
    train, test, rates, start, iteration = {}, {}, {}, None, None
    for line in log.splitlines():
        if "Solving" in line:
            start = moment(line)
        if match := ITERATION.search(line):
            iteration = int(match[1])
        if iteration is None:
            continue
        moment(line)
        if match := LEARNING_RATE.search(line):
            rates[iteration] = float(match[1])
        for rows, pattern in ((train, TRAIN_OUTPUT), (test, TEST_OUTPUT)):
            if match := pattern.search(line):
                rows.setdefault(iteration, {})[match[2]] = float(match[3])
    return train, test, rates, start


def moment(line):
    """Return the time of a line the way the parsers of that time cut it out."""
    words = line.split()
    hour, minute, second = words[1].split(":")
    second, microsecond = second.split(".")
    month, day = int(words[0][1:3]), int(words[0][3:])
    return datetime.datetime(2016, month, day, int(hour), int(minute), int(second), int(microsecond))


def test_the_recorded_log_of_the_original_is_parsed():
    train, test, rates, start = parse(RECORDED.read_text())
    assert train[20] == {"loss": 0.938876}
    assert test[200] == {"accuracy": 0.926, "loss": 0.246602}
    assert rates[180] == 0.00986709
    assert list(train) == list(rates) == list(range(0, 200, 20))
    assert list(test) == [0, 100, 200]
    assert start.date() == datetime.date(2016, 11, 24)


def test_our_log_is_parsed_alike(folder, caffe_lite):
    train, test, rates, start = parse(caffe_lite("train", "-solver=solver.prototxt").err)
    assert list(train) == list(rates) == [0, 2, 4, 6, 8]
    assert set(rates.values()) == {0.1}
    assert list(test) == [0, 5, 10]
    assert all(set(outputs) == {"loss"} for outputs in train.values())
    assert all(set(outputs) == {"accuracy", "loss"} for outputs in test.values())
    assert test[10]["accuracy"] == 1
    assert train[8]["loss"] < train[0]["loss"]
    assert start is not None


def test_our_lines_differ_from_the_originals_in_source_places_only(folder, caffe_lite):
    """Every kind of line of the original's training loop appears in ours with the same words."""
    words = [
        r"Iteration \d+ \(\S+ iter/s, \S+s/\d+ iters\), loss = \S+$",
        r"    Train net output #\d: loss = \S+ \(\* 1 = \S+ loss\)$",
        r"Iteration \d+, lr = \S+$",
        r"Iteration \d+, Testing net \(#0\)$",
        r"    Test net output #0: accuracy = \S+$",
        r"    Test net output #1: loss = \S+ \(\* 1 = \S+ loss\)$",
        r"Snapshotting to binary proto file \S+_iter_\d+.caffemodel$",
        r"Snapshotting solver state to binary proto file \S+_iter_\d+.solverstate$",
        r"Iteration \d+, loss = \S+$",
        r"Optimization Done.$",
    ]
    for log in (RECORDED.read_text(), caffe_lite("train", "-solver=solver.prototxt").err):
        for pattern in words:
            assert re.search(r"^I\d{4} \d\d:\d\d:\d\d\.\d{6} +\d+ \S+:\d+\] " + pattern, log, re.MULTILINE), pattern

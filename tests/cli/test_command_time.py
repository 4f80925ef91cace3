import re


def test_time_prints_the_lines_of_the_original(folder, caffe_lite):
    result = caffe_lite("time", "-model=net.prototxt", "-iterations=2")
    assert result.status == 0
    number = r"\d+(\.\d+)?(e-\d+)?"
    patterns = [
        r"Use CPU\.",
        r"Performing Forward",
        rf"Initial loss: {number}",
        r"Performing Backward",
        r"\*\*\* Benchmark begins \*\*\*",
        r"Testing for 2 iterations\.",
        rf"Iteration: 1 forward-backward time: {number} ms\.",
        rf"Iteration: 2 forward-backward time: {number} ms\.",
        r"Average time per layer: ",
        rf"      data\tforward: {number} ms\.",
        rf"      data\tbackward: {number} ms\.",
        rf"        ip\tforward: {number} ms\.",
        rf"        ip\tbackward: {number} ms\.",
        rf"      loss\tforward: {number} ms\.",
        rf"      loss\tbackward: {number} ms\.",
        rf"Average Forward pass: {number} ms\.",
        rf"Average Backward pass: {number} ms\.",
        rf"Average Forward-Backward: {number} ms\.",
        rf"Total Time: {number} ms\.",
        r"\*\*\* Benchmark ends \*\*\*",
    ]
    position = 0
    for pattern in patterns:
        match = re.compile(rf"^I.*\] {pattern}$", re.MULTILINE).search(result.err, position)
        assert match, pattern
        position = match.end()


def test_the_net_timed_is_the_train_net_unless_asked_otherwise(folder, caffe_lite):
    assert "accuracy\tforward" not in caffe_lite("time", "-model=net.prototxt", "-iterations=1").err
    assert "accuracy\tforward" in caffe_lite("time", "-model=net.prototxt", "-iterations=1", "-phase=TEST").err


def test_a_net_with_inputs_is_timed_on_what_they_hold(folder, caffe_lite):
    assert "prob\tforward" in caffe_lite("time", "-model=deploy.prototxt", "-iterations=1").err


def test_the_average_is_the_sum_of_both_directions(folder, caffe_lite):
    log = caffe_lite("time", "-model=net.prototxt", "-iterations=3").err
    figures = {name: float(re.search(rf"{name}: (\S+) ms", log)[1]) for name in (
        "Average Forward pass", "Average Backward pass", "Average Forward-Backward", "Total Time")}  # fmt: skip
    forward, backward, both, total = figures.values()
    assert abs(forward + backward - both) < 1e-4 * both
    assert abs(total - 3 * both) < 1e-4 * total


def test_what_cannot_be_timed_is_one_line_and_status_1(folder, caffe_lite):
    for flags, error in (("-model=none.prototxt", "none.prototxt"), ("-model=net.prototxt -gpu=0", "-gpu 0")):
        result = caffe_lite("time", *flags.split())
        assert result.status == 1
        assert result.err.splitlines()[-1].startswith("caffe-lite time: ")
        assert error in result.err.splitlines()[-1]

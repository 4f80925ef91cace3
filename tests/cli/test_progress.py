import logging
import sys

import pytest

from caffe_lite.cli.progress import progress, status_line
from caffe_lite.log import GlogHandler


class Terminal:
    """A standard error that says it is a terminal and keeps what is written."""

    def __init__(self):
        self.text = ""

    def isatty(self):
        return True

    def write(self, text):
        self.text += text

    def flush(self):
        pass


def test_the_line_shows_count_share_rate_and_time_left():
    line = "3200/10000 [===========>                        ] 32%  100.0 iter/s  1:08 left"
    assert status_line(0, 3200, 10000, 32.0, 80) == line


@pytest.mark.parametrize("columns", [0, 1, 10, 20, 40, 50, 80, 200])
@pytest.mark.parametrize("done", [0, 1, 5000, 10000])
def test_the_line_leaves_the_last_column_free(columns, done):
    assert len(status_line(0, done, 10000, 10.0, columns)) <= max(columns - 1, 0)


def test_the_rate_counts_from_where_training_was_resumed():
    assert "10.0 iter/s  0:50 left" in status_line(400, 500, 1000, 10.0, 80)


def test_long_times_show_hours():
    assert "2:46:40 left" in status_line(0, 1, 10001, 1.0, 80)


def test_before_the_first_iteration_the_time_left_is_unknown():
    assert "0.0 iter/s  ? left" in status_line(0, 0, 10, 0.0, 80)
    assert "100%" in status_line(0, 0, 0, 0.0, 80)


def test_a_full_bar_has_no_tip():
    line = status_line(0, 10, 10, 1.0, 80)
    assert ">" not in line and "100%" in line


def test_on_a_terminal_the_bar_stays_below_the_log_and_goes_at_the_end(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    handler = GlogHandler()
    with progress(handler, 0, 100) as show:
        show(1)
        show(2)  # too soon after the first to be drawn
        handler.handle(logging.LogRecord("caffe_lite", logging.INFO, "a.py", 1, "a line", (), None))
    writes = terminal.text.split("\r\x1b[K")[1:]
    assert [write.split(" ")[0] for write in writes[:1]] == ["1/100"]
    assert "a line\n1/100" in writes[1]
    assert writes[2:] == [""]


def test_the_bar_goes_when_an_error_ends_the_work(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with pytest.raises(ValueError, match="stop"), progress(GlogHandler(), 0, 100) as show:
        show(1)
        raise ValueError("stop")
    assert terminal.text.endswith("\r\x1b[K")


def test_without_a_terminal_there_is_no_bar(capsys):
    with progress(GlogHandler(), 0, 100) as show:
        show(1)
    assert capsys.readouterr().err == ""


def test_without_standard_error_there_is_no_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    with progress(GlogHandler(), 0, 100) as show:
        show(1)

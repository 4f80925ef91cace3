import logging
import re
import threading

import pytest

from caffe_lite.log import GlogFormatter, GlogHandler, init_log

GLOG = re.compile(r"([IWEF])(\d{4}) (\d\d:\d\d:\d\d\.\d{6}) +(\d+) (\S+):(\d+)\] (.*)\n?", re.DOTALL)


@pytest.fixture
def logger(monkeypatch):
    """The logger of caffe_lite without handlers; what a test adds is taken away again."""
    logger = logging.getLogger("caffe_lite")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "propagate", False)
    monkeypatch.delenv("GLOG_minloglevel", raising=False)
    level = logger.level
    yield logger
    logger.setLevel(level)


@pytest.mark.parametrize(
    ("level", "letter"),
    [(logging.DEBUG, "I"), (logging.INFO, "I"), (logging.WARNING, "W"), (logging.ERROR, "E"), (logging.CRITICAL, "F")],
)
def test_a_line_has_glogs_severity_date_time_thread_file_and_line(level, letter):
    record = logging.LogRecord("caffe_lite", level, "/some/where/solver.py", 239, "Iteration %d", (20,), None)
    match = GLOG.fullmatch(GlogFormatter().format(record))
    assert match
    assert match[1] == letter
    assert int(match[4]) == threading.get_native_id()
    assert match.groups()[4:] == ("solver.py", "239", "Iteration 20")


def test_the_time_is_that_of_the_record_with_microseconds():
    record = logging.LogRecord("caffe_lite", logging.INFO, "a.py", 1, "text", (), None)
    record.created = 1000000000.25
    assert ".250000 " in GlogFormatter().format(record)


def test_a_text_of_several_lines_has_one_prefix_and_one_final_newline(logger, capsys):
    init_log()
    logger.info('Initializing:\nname: "x"\n')
    logger.info("next")
    lines = capsys.readouterr().err.splitlines()
    assert [bool(GLOG.fullmatch(line)) for line in lines] == [True, False, True]
    assert lines[1] == 'name: "x"'


def test_an_exception_is_written_below_its_line(logger, capsys):
    init_log()
    try:
        raise ValueError("the reason")
    except ValueError:
        logger.exception("it failed")
    assert "ValueError: the reason" in capsys.readouterr().err


def test_init_log_twice_writes_each_line_once(logger, capsys):
    assert init_log() is init_log()
    logger.info("once")
    assert capsys.readouterr().err.count("once") == 1


@pytest.mark.parametrize(("level", "shown"), [(0, "IWE"), (1, "WE"), (2, "E"), (3, ""), (logging.WARNING, "WE")])
def test_init_log_takes_levels_of_glog_and_of_logging(logger, capsys, level, shown):
    init_log(level)
    logger.info("text")
    logger.warning("text")
    logger.error("text")
    assert "".join(line[0] for line in capsys.readouterr().err.splitlines()) == shown


@pytest.mark.parametrize(("minimum", "shown"), [("0", "IW"), ("1", "W"), ("2", ""), ("9", ""), ("", "IW"), ("x", "IW")])
def test_glog_minloglevel_silences_what_is_below_it(logger, capsys, monkeypatch, minimum, shown):
    monkeypatch.setenv("GLOG_minloglevel", minimum)
    init_log()
    logger.info("text")
    logger.warning("text")
    assert "".join(line[0] for line in capsys.readouterr().err.splitlines()) == shown


def test_a_status_line_stays_below_the_log_and_can_be_removed(logger, capsys):
    handler = init_log()
    handler.show_status("10%")
    logger.info("text")
    handler.show_status("")
    shown, logged, removed = capsys.readouterr().err.split("\r\x1b[K")[1:]
    assert shown == "10%"
    line, status = logged.split("\n")
    assert GLOG.fullmatch(line)
    assert status == "10%"
    assert removed == ""


def test_a_closed_pipe_ends_the_caller_and_other_failures_do_not(logger, monkeypatch, capsys):
    handler = init_log()
    monkeypatch.setattr(handler, "_write", _raising(BrokenPipeError()))
    with pytest.raises(BrokenPipeError):
        logger.info("text")
    monkeypatch.setattr(handler, "_write", _raising(OSError("no space left")))
    logger.info("text")
    assert "no space left" in capsys.readouterr().err


def test_without_standard_error_nothing_is_written(logger, monkeypatch):
    failures = []
    monkeypatch.setattr(GlogHandler, "handleError", lambda *record: failures.append(record))
    init_log()
    monkeypatch.setattr("sys.stderr", None)
    logger.info("text")
    assert failures == []


def test_the_handler_follows_a_replaced_standard_error(logger, capsys):
    assert isinstance(init_log(), GlogHandler)
    logger.info("text")
    assert capsys.readouterr().err.endswith("text\n")


def _raising(error):
    def write(text):
        raise error

    return write

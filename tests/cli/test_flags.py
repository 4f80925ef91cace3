import pytest

from caffe_lite.cli.flags import FlagParser, comma_list, integer, refuse_gpu, require
from caffe_lite.errors import DeviceError, UsageError


@pytest.fixture
def parser():
    parser = FlagParser("caffe-lite train", "")
    parser.flag("solver", "a file")
    parser.flag("level", "a number", integer(), default=0)
    parser.flag("iterations", "a count", integer(1), default=50)
    parser.flag("weights", "files", comma_list)
    parser.flag("sigint_effect", "what to do", choices=("stop", "none"))
    parser.switch("stop_on_nan", "whether to stop")
    return parser


@pytest.mark.parametrize("spelling", ["-solver x", "--solver x", "-solver=x", "--solver=x"])
def test_a_value_is_taken_in_all_spellings_of_gflags(parser, spelling):
    assert parser.parse(spelling.split()).solver == "x"


@pytest.mark.parametrize("word", ["", "=true", "=1", "=t", "=yes", "=Y", "=TRUE"])
@pytest.mark.parametrize("dashes", ["-", "--"])
def test_a_switch_is_turned_on_in_all_spellings_of_gflags(parser, dashes, word):
    assert parser.parse([f"{dashes}stop_on_nan{word}"]).stop_on_nan is True


@pytest.mark.parametrize("spelling", ["-nostop_on_nan", "--nostop_on_nan", "-stop_on_nan=false", "--stop_on_nan=0"])
def test_a_switch_is_turned_off_in_all_spellings_of_gflags(parser, spelling):
    assert parser.parse(["-stop_on_nan", spelling]).stop_on_nan is False


def test_a_switch_leaves_the_next_argument_alone(parser):
    flags = parser.parse(["-stop_on_nan", "-solver", "x"])
    assert (flags.stop_on_nan, flags.solver) == (True, "x")


def test_dashes_stand_for_underscores(parser):
    flags = parser.parse(["--sigint-effect=none", "--stop-on-nan"])
    assert (flags.sigint_effect, flags.stop_on_nan) == ("none", True)


def test_defaults_hold_for_what_is_not_given(parser):
    flags = parser.parse([])
    assert (flags.solver, flags.level, flags.iterations, flags.stop_on_nan) == (None, 0, 50, False)


def test_the_last_of_a_repeated_flag_counts(parser):
    assert parser.parse(["-solver", "a", "-solver=b"]).solver == "b"


def test_a_value_may_be_negative_empty_or_contain_an_equals_sign(parser):
    flags = parser.parse(["-level", "-1", "-solver=a=b"])
    assert (flags.level, flags.solver) == (-1, "a=b")
    assert parser.parse(["-solver="]).solver == ""


def test_a_comma_list_drops_empty_parts(parser):
    assert parser.parse(["-weights", "a,b,"]).weights == ["a", "b"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["-solvr", "x"], r"unknown flag '--solvr'. Did you mean '--solver'\? `caffe-lite train -h` lists the flags"),
        (["-sol", "x"], r"unknown flag '--sol'"),
        (["-zzz"], r"unknown flag '--zzz'. `caffe-lite"),
        (["-stop_on_nan", "true"], r"unexpected argument 'true'. `caffe-lite train -h` shows how"),
        (["-stop_on_nan=maybe"], r"--stop_on_nan is true or false. Received 'maybe'"),
        (["-solver"], r"--solver: expected one argument"),
        (["-level", "x"], r"--level: expected an integer from -2147483648 to 2147483647, received 'x'"),
        (["-iterations", "0"], r"--iterations: expected an integer from 1 to 2147483647, received '0'"),
        (["-iterations", "9999999999"], r"--iterations: expected an integer from 1 to 2147483647, received '99999"),
        (["-solver_x"], r"unknown flag '--solver_x'"),
        (["-sigint_effect", "halt"], r"--sigint_effect: invalid choice: 'halt'"),
    ],
)
def test_a_wrong_flag_is_a_usage_error_that_names_it(parser, arguments, text):
    with pytest.raises(UsageError, match=text):
        parser.parse(arguments)


def test_require_says_what_is_missing():
    with pytest.raises(UsageError, match=r"Need a solver definition: -solver FILE\."):
        require(None, "a solver definition: -solver FILE")
    require("x", "nothing")


def test_a_gpu_is_refused_as_this_version_has_none():
    with pytest.raises(DeviceError, match="-gpu 0: this version does not run nets on a GPU yet"):
        refuse_gpu("0")
    refuse_gpu(None)
    refuse_gpu("")

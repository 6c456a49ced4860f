"""Of two values of one flag none is dropped in silence."""

import argparse

import pytest

from data_preprocessing import cli as data_cli
from modelzoo import cli, verbs
from modelzoo.config.arguments import Parser, count, integer, nonnegative_float, positive_int, share, sparsity
from modelzoo.config.errors import UserError
from modelzoo.config.loading import yaml12

RUN = ["-p", "a.yaml", "-m", "plan"]


@pytest.mark.parametrize("more,words", [
    (["-m", "train"], "-m/--mode: given twice, as plan and as train; give it once"),
    (["--max_steps", "3", "--max_steps=4"], "--max_steps: given twice, as 3 and as 4"),
    (["--set", "a.b=1", "--set", "a.b=2"], "--set: a.b is given twice"),
])  # fmt: skip
def test_a_second_value_is_refused(more, words):
    with pytest.raises(UserError) as e:
        cli.parser().parse_args([*RUN, *more])
    assert words in str(e.value)


def test_the_same_value_and_another_parse_are_no_second_value():
    parser = cli.parser()
    assert parser.parse_args([*RUN, "-m", "plan", "--seed", "1", "--seed", "1"]).seed == 1
    assert parser.parse_args([*RUN, "--seed", "2"]).seed == 2
    assert parser.parse_args([*RUN, "--set", "a=1", "--set", "b=1", "--set", "a=1"]).overrides == ["a=1", "b=1", "a=1"]


def test_flags_of_many_values_take_all():
    assert cli.parser().parse_args([*RUN, "--mount_dirs", "a", "b", "--mount_dirs", "c"]).mount_dirs == ["a", "b", "c"]
    parser = Parser()
    verbs.VERBS["prompt-search"].arguments(parser)
    words = ["run", "--task", "t", "--templates", "a", "--templates", "b", "c"]
    assert parser.parse_args(words).templates == ["a", "b", "c"]


def test_a_default_is_no_value_that_was_given():
    parser = Parser()
    parser.add_argument("--n", type=count, default=2)
    parser.add_argument("place", nargs="?", default="x")
    assert parser.parse_args(["--n", "2", "y"]).n == 2
    with pytest.raises(UserError, match="--n: given twice, as 2 and as 3"):
        parser.parse_args(["--n", "2", "--n", "3"])


@pytest.mark.parametrize(
    "parser,words,flag",
    [
        (cli.parser, [*RUN, "-o", ""], "-o/--model_dir"),
        (cli.parser, [*RUN, "--checkpoint_path="], "--checkpoint_path"),  # which began from nothing, in silence
        (cli.parser, [*RUN, "--tasks", ""], "--tasks"),
        (cli.parser, [*RUN, "--mount_dirs", "a", ""], "--mount_dirs"),
        (data_cli.parser, ["pubmed", "--input", "", "--output", "o"], "--input"),
        (data_cli.parser, ["pubmed", "--input", "i", "--output", ""], "--output"),
    ],
)
def test_an_empty_word_is_refused_and_not_taken_for_a_flag_that_is_not_there(parser, words, flag):
    with pytest.raises(UserError, match=f"^{flag}: is empty; a shell's variable that is not set gives that"):
        parser().parse_args(words)


def test_a_prompt_may_be_empty():
    parser = Parser()
    verbs.VERBS["generate"].arguments(parser)
    assert parser.parse_args(["run", "--prompt", ""]).prompt == [""]


WRITTEN = [  # as people write numbers, as Python does, and as neither does
    "5", "+5", "007", "0x10", "0o7", "0.5", ".5", "1e3", "1E-2", "1_000", "1,000", "1_0.5", "0,75", " 5", "5 ", "5\n",
    "\u0663", "\u00b2", "nan", "inf", ".inf", ".nan", "1e999", "0b1", "5j", "75%", "true", "~", "--", "9" * 30,
    "9" * 5000,
]  # fmt: skip


@pytest.mark.parametrize("text", WRITTEN, ids=ascii)
def test_a_number_on_a_command_line_is_what_it_is_in_a_config(text):
    try:
        value = yaml12.parse(f"a:\n  [{text}]" if text.strip() == text else f"a: '{text}'", "f").data["a"]
        value = value[0] if isinstance(value, list) and len(value) == 1 else value
    except UserError:
        value = None
    for parse, kinds in ((count, (int,)), (nonnegative_float, (int, float))):
        wanted = value if type(value) in kinds and 0 <= value < 2**63 else None
        try:
            assert parse(text) == wanted and type(parse(text)) is kinds[-1]
        except argparse.ArgumentTypeError:
            assert wanted is None


@pytest.mark.parametrize("parse,text,words", [
    (count, "1_000", "takes an integer, got '1_000'; write 1000"),
    (positive_int, "1e3", "takes an integer, got '1e3'; write 1000"),
    (positive_int, "1.5", "takes an integer, got '1.5'"),
    (positive_int, "9" * 30, f"must be at most {2**63 - 1}, got {'9' * 30}"),
    (integer(1, 256), "257", "must be at most 256, got 257"),
    (share, "0,75", "takes a share of 1, got '0,75'; write 0.75"),
    (share, "75%", "takes a share of 1, got '75%'; write 0.75"),
    (sparsity, "100%", "must be below 1, got 1.0"),
    (nonnegative_float, ".inf", "takes a finite number, got '.inf'"),
])  # fmt: skip
def test_a_number_that_is_refused_comes_with_how_to_write_it(parse, text, words):
    with pytest.raises(argparse.ArgumentTypeError) as e:
        parse(text)
    assert str(e.value) == words


def test_a_sparsity_may_be_in_percent_as_in_a_config():
    assert sparsity("75%") == sparsity("0.75") == 0.75


def test_every_number_of_every_command_line_is_read_by_these_rules():
    """No flag is left to `int` or `float`, which take 1_000."""
    tops = [cli.parser(), data_cli.parser()]
    for verb in verbs.VERBS.values():
        verb.arguments(top := Parser())
        tops.append(top)
    while tops:
        for action in tops.pop()._actions:
            if isinstance(action, argparse._SubParsersAction):
                tops += action.choices.values()
            else:
                assert action.type not in (int, float, complex), action.option_strings

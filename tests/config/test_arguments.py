"""Of two values of one flag none is dropped in silence."""

import pytest

from data_preprocessing import cli as data_cli
from modelzoo import cli, verbs
from modelzoo.config.arguments import Parser
from modelzoo.config.errors import UserError

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
    parser.add_argument("--n", type=int, default=2)
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

"""What a person types for a command line means what its full form means."""

import argparse

import pytest

from data_preprocessing import cli as data_cli
from modelzoo import cli, modes, verbs
from modelzoo.config.errors import UserError
from modelzoo.words import DATA_VERBS, complete_words


@pytest.mark.parametrize(
    "typed,full",
    [
        ("plan a.yaml", "-m plan -p a.yaml"),
        ("cpu train a.yaml -o x", "CPU -m train -p a.yaml -o x"),
        ("a.yml evaluate", "-p a.yml -m evaluate"),
        ("train -p a.yaml", "-m train -p a.yaml"),
        ("AUTO -p a.yaml -m plan", "auto -p a.yaml -m plan"),
        ("-p a.yaml -m plan cpu", "-p a.yaml -m plan cpu"),
        ("generate train", "generate train"),
        ("", ""),
    ],
)
def test_a_short_form_is_the_full_one(typed, full):
    assert complete_words(typed.split()) == full.split()
    assert complete_words(full.split()) == full.split()


@pytest.mark.parametrize("name", [*modes.MODES, *verbs.VERBS])
def test_a_slip_in_a_leading_word_is_named(name, capsys):
    slip = f"{name[:-1]}{name[-1] * 2}x"
    assert cli.main([slip, "a.yaml"]) == 2
    assert capsys.readouterr().err == f"error: {slip}: is no mode, verb, device or config; did you mean '{name}'?\n"


def test_verbs_of_the_other_program_are_answered_with_it():
    other = next(a for a in data_cli.parser()._actions if isinstance(a, argparse._SubParsersAction)).choices
    assert set(DATA_VERBS) == set(other) - set(verbs.VERBS)
    with pytest.raises(UserError, match="inspect: is a verb of python -m data_preprocessing"):
        complete_words(["inspect", "shards"])


def test_a_word_like_no_other_is_refused():
    with pytest.raises(UserError, match="qqqq: is no mode, verb, device or config; see --help"):
        complete_words(["qqqq"])

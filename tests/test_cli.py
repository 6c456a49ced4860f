"""The command line: flags to overrides, one line and exit code 2 for what a user can mend, and no torch for a plan."""

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from modelzoo import cli, modes, verbs
from modelzoo.config import arguments
from modelzoo.config.errors import UserError
from modelzoo.config.loading.load import load
from modelzoo.config.trainer import Config

REPO = Path(__file__).resolve().parents[1]
S75 = str(REPO / "configs" / "quickstart" / "s75.yaml")


def run(*args: str, cwd=REPO) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(REPO / "run.py"), *args], cwd=cwd, capture_output=True, text=True, timeout=120
    )


def refused(capsys, *args: str) -> str:
    """The one line on stderr of a call that ends with exit code 2, nothing on stdout."""
    try:
        code = cli.main(list(args))
    except SystemExit as e:  # argparse
        code = e.code
    out, err = capsys.readouterr()
    assert code == 2 and out == "" and "Traceback" not in err
    return err


# --- torch stays out


@pytest.mark.parametrize(
    "argv", [["-p", S75, "-m", "plan"], ["--help"], ["-p", S75, "-m", "plan", "--set", "trainer.init.sead=1"]]
)
def test_plan_and_help_and_errors_import_no_torch(argv):
    code = f"""
import sys
from modelzoo.cli import main
try:
    main({argv!r})
except SystemExit:
    pass
heavy = [m for m in ("torch", "numpy", "h5py", "transformers") if m in sys.modules]
assert not heavy, heavy
print("light")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("light\n")


# --- exit codes, as a shell sees them


def test_a_plan_ends_as_the_run_would(tmp_path):
    """Whole, and then with what would stop the run: here, the data that nobody has made yet."""
    done = run("-p", S75, "-m", "plan", cwd=tmp_path)
    assert "3,145,728 under masks, 786,432 of them live" in done.stdout and done.returncode == 2
    places = [line.removeprefix("error: ").partition(":")[0] for line in done.stderr.splitlines()]
    assert places[-2:] == ["./data/quickstart/train", "./data/quickstart/val"]


def test_a_missing_config_ends_with_2_and_one_line(tmp_path):
    done = run("-p", "configs/quickstart/s57.yaml", "-m", "plan")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: configs/quickstart/s57.yaml: no such config file; did you mean configs/quickstart/s75.yaml?\n"
    )


def test_an_unknown_flag_ends_with_2_and_names_it():
    done = run("-p", S75, "-m", "plan", "--max_step=3")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--max_step" in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr


def test_a_flag_of_another_mode_is_no_silence():
    done = run("-p", S75, "-m", "plan", "--tasks", "pubmedqa")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: --tasks does nothing with -m plan; it is for -m score\n"


def test_training_without_data_ends_with_2_and_writes_nothing(tmp_path):
    done = run("CPU", "-p", S75, "-m", "train", "-o", str(tmp_path / "run"), cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "data/quickstart/train" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_it_runs_from_anywhere(tmp_path):
    assert "3,145,728 under masks" in run("-p", S75, "-m", "plan", cwd=tmp_path).stdout


# --- messages


@pytest.mark.parametrize(
    "args,words",
    [
        (("-p", S75, "-m", "plan", "--set", "trainer.init.sead=1"), "did you mean 'seed'?"),
        (("-p", S75, "-m", "plan", "--set", "trainer.init.seed"), "write key=value"),
        (("-p", S75, "-m", "plan", "--set", "trainer.init.seed=x"), "takes an integer, got 'x'"),
        (("-p", S75, "-m", "plan", "--max_steps", "0"), "must be above 0, got 0"),
        (("-p", S75, "-m", "plan", "--eval_frequency", "often"), "eval_frequency"),
        (("-p", S75, "-m", "plan", "--set", "trainer.init.sparsity.sparsity=0.9999"), "passes max_sparsity"),
        (("-p", S75, "-m", "plan", "--set", "trainer.init.sparsity.param_filter=['*q_proj*']"), "names look like"),
        (("-p", "nowhere.yaml", "-m", "plan"), "nowhere.yaml: no such config file"),
        (("-p", str(REPO), "-m", "plan"), "is a folder"),
        (("-p", S75, "-m", "train", "--load_checkpoint_states", "model,optimiser"), "unknown 'optimiser'"),
        (("-p", S75, "-m", "train", "--validate_only", "--compile_only"), "exclude each other"),
        (("-p", S75), "-m"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)  # fmt: skip
def test_what_a_user_can_mend_is_one_line(capsys, args, words):
    err = refused(capsys, *args)
    assert err.startswith("error: ") and err.count("\n") == 1 and words in err


def test_a_runs_folder_in_place_of_its_config_is_named(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("trainer: {}\n", encoding="utf-8")
    for args in (["eval", str(tmp_path)], ["-p", str(tmp_path), "-m", "eval"]):
        assert cli.main(args) == 2
        assert f"{tmp_path}/config.yaml" in capsys.readouterr().err


def test_several_problems_are_several_lines(capsys):
    err = refused(
        capsys, "-p", S75, "-m", "plan", "--set", "trainer.init.sead=1", "--set", "trainer.init.loop.max_stepz=1"
    )
    assert [line.startswith("error: --set ") for line in err.splitlines()] == [True, True]


@pytest.mark.parametrize(
    "args,flag",
    [
        (("-p", S75, "-m", "plan", "--max_step=3"), "--max_step"),
        (("-p", S75, "-m", "plan", "--max_steps", "many"), "--max_steps"),
        (("-p", S75, "-m", "play"), "play"),
        (("TPU", "-p", S75, "-m", "plan"), "TPU"),
        (("-m", "plan"), "--params"),
        ((), "--params"),
    ],
)
def test_what_argparse_refuses_is_named_in_its_last_line(capsys, args, flag):
    assert flag in refused(capsys, *args).splitlines()[-1]


# --- modes: one table


def given(flag: str) -> list[str]:
    """A flag with a value that it takes."""
    action = next(a for a in cli.parser()._actions if a.dest == flag)
    if action.nargs == 0:
        return [action.option_strings[-1]]
    value = action.choices[0] if action.choices else "0/1" if flag == "share" else "1"
    return [action.option_strings[-1], value]


FLAGS = [a.dest for a in cli.parser()._actions if a.option_strings and a.dest not in modes.ALWAYS]


@pytest.mark.parametrize("mode", modes.MODES)
def test_a_mode_takes_its_flags_and_refuses_all_others(capsys, mode):
    for flag in FLAGS:
        argv = ["-p", "nowhere.yaml", "-m", mode, *given(flag)]
        err = refused(capsys, *argv)
        assert err.count("\n") == 1
        if flag in modes.MODES[mode].flags:
            assert "nowhere.yaml" in err, (mode, flag)
        else:
            takers = ", ".join(m for m, x in modes.MODES.items() if flag in x.flags)
            assert err == f"error: {given(flag)[0]} does nothing with -m {mode}; it is for -m {takers}\n"


def test_the_table_of_modes_names_flags_of_the_parser_and_all_of_them():
    named = {flag for mode in modes.MODES.values() for flag in mode.flags}
    assert named == set(FLAGS)


def test_help_lists_every_mode_and_verb_with_an_example_that_parses(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    text = capsys.readouterr().out
    for name, mode in modes.MODES.items():
        assert f"  {name} " in text and mode.about in text and f"python run.py {mode.example}" in text
        parsed = cli.parser().parse_args(mode.example.split())
        cli._settle_mode(parsed, cli.parser())
        assert parsed.mode == name
    for name, verb in verbs.VERBS.items():
        assert f"  {name} " in text and verb.about in text
        with pytest.raises(SystemExit):
            cli.main([name, "--help"])
        shown = capsys.readouterr().out
        assert verb.example in shown and f"python run.py {name} " in verb.example


def test_an_old_name_of_a_mode_is_reported(capsys):
    args = cli.parser().parse_args(["-p", S75, "-m", "evaluate", "--tasks", "x"])
    cli._settle_mode(args, cli.parser())
    assert args.mode == "score"
    assert capsys.readouterr().err == "note       -m evaluate is now written -m score\n"
    assert "did you mean 'score'" in refused(capsys, "-p", S75, "-m", "scor")


# --- numbers


def numbers(parser) -> list[str]:
    """The flags of a parser that take a number."""
    assert not [a.dest for a in parser._actions if a.type in (int, float)]
    checked = arguments.count.__code__  # of what the module makes: positive_int, share, integer(low, high), ...
    return [a.option_strings[-1] for a in parser._actions if getattr(a.type, "__code__", None) is checked]


@pytest.mark.parametrize("value", ["-1", "x", "1e400", "nan", "-0.5", ""])
def test_numbers_are_checked_where_they_are_given(capsys, value):
    from data_preprocessing import cli as data

    for flag in numbers(cli.parser()):
        err = refused(capsys, "-p", S75, "-m", "score", flag, value)
        assert err.startswith(f"error: {flag}: ") and err.count("\n") == 1
    for name, verb in verbs.VERBS.items():
        parser = arguments.Parser(prog=name)
        verb.arguments(parser)
        for flag in numbers(parser):
            err = refused(capsys, name, flag, value)
            assert err.startswith(f"error: {flag}: ") and err.count("\n") == 1
    seen = 0
    for name, parser in data.parser()._subparsers._group_actions[0].choices.items():
        for flag in numbers(parser):
            assert data.main([name, flag, value]) == 2
            err = capsys.readouterr().err
            assert err.startswith(f"error: {flag}: ") and err.count("\n") == 1
            seen += 1
    assert seen > 20


@pytest.mark.parametrize(
    "kind,good,bad",
    [
        ("positive_int", {"1": 1, "12": 12}, ["0", "-1", "1.0", "1e3"]),
        ("count", {"0": 0, "7": 7}, ["-1", "0.5"]),
        ("positive_float", {"0.5": 0.5, "3": 3.0}, ["0", "-1", "inf", "nan"]),
        ("share", {"0": 0.0, "0.25": 0.25}, ["1", "-0.1", "nan"]),
    ],
)
def test_kinds_of_numbers(kind, good, bad):
    parse = getattr(arguments, kind)
    assert {text: parse(text) for text in good} == good
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError):
            parse(text)


# --- flags to overrides


def config(*args: str) -> Config:
    return load(S75, Config, cli.overrides(cli.parser().parse_args(["-p", S75, "-m", "plan", *args])))


def test_flags_set_their_keys():
    init = config(
        "--max_steps", "7", "--eval_steps", "3", "--eval_frequency", "0.25", "--seed", "9", "--logging", "DEBUG",
        "--num_csx", "2", "--num_workers_per_csx", "4", "--job_labels", "a=b", "c=d", "--job_priority", "p1",
        "--job_time_sec", "60", "--mount_dirs", "/x", "--python_paths", "/y", "/z", "--mgmt_address", "host:1",
        "--credentials_path", "/c", "--compile_dir", "/d", "--disable_version_check",
    ).trainer.init  # fmt: skip
    loop, backend = init.loop, init.backend
    assert (loop.max_steps, loop.eval_steps, loop.eval_frequency) == (7, 3, 0.25)
    assert (init.seed, init.logging.log_level) == (9, "debug")
    assert (backend.num_csx, backend.num_workers_per_csx, backend.job_labels) == (2, 4, ("a=b", "c=d"))
    assert (backend.job_priority, backend.job_time_sec, backend.mount_dirs) == ("p1", 60, ("/x",))
    assert (backend.python_paths, backend.mgmt_address) == (("/y", "/z"), "host:1")
    assert (backend.credentials_path, backend.compile_dir, backend.disable_version_check) == ("/c", "/d", True)


def test_no_flags_leave_the_config_alone():
    assert config() == load(S75, Config)


@pytest.mark.parametrize("flag", ["max_steps", "num_steps", "num_epochs"])
def test_a_length_on_the_command_line_replaces_the_configs(flag):
    loop = config(f"--{flag}", "5").trainer.init.loop
    given = {k: getattr(loop, k) for k in ("max_steps", "num_steps", "num_epochs")}
    assert given == {**dict.fromkeys(given), flag: 5}


def test_counts_of_steps_stay_counts():
    assert config("--eval_frequency", "5").trainer.init.loop.eval_frequency == 5
    assert type(config("--eval_frequency", "1").trainer.init.loop.eval_frequency) is int
    assert type(config("--eval_frequency", "1.0").trainer.init.loop.eval_frequency) is float


def test_set_wins_over_flags():
    assert config("--seed", "3", "--set", "trainer.init.seed=4").trainer.init.seed == 4


def test_checkpoint_states():
    assert cli.states("all") == ("model", "optimizer", "sparsity", "grad_scaler", "dataloader", "global_step")
    assert cli.states("model, sparsity") == ("model", "sparsity")
    with pytest.raises(UserError, match="unknown 'modle'"):
        cli.states("modle")

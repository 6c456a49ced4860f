"""`run.py compare` says what runs differ in and draws their curves."""

from modelzoo.study.compare import compare_runs


def test_compare_says_and_draws_it(runs, tmp_path, capsys):
    compare_runs([str(runs / n) for n in ("dense-seed1", "s75-seed1")], str(tmp_path / "c.svg"))
    printed = capsys.readouterr().out
    assert "init.sparsity.0.sparsity.value" in printed and "s75-seed1: validation loss less dense-seed1's: " in printed
    assert printed.count(" at 12") == 1 and (tmp_path / "c.svg").stat().st_size > 1000

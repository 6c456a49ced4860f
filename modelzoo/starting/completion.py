"""`run.py completion SHELL`: a line for a shell's start-up file that completes modes, verbs, devices and flags."""

from modelzoo import modes
from modelzoo.config.arguments import DEVICES


def write_completion(shell: str, verbs: list[str]) -> str:
    """The line for bash or zsh; file names are completed as ever."""
    flags = {f"--{flag}" for mode in modes.MODES.values() for flag in mode.flags}
    words = " ".join([*DEVICES, *modes.MODES, *verbs, "--help", "--params", "--mode", "--set", *sorted(flags)])
    line = f'complete -o default -W "{words}" mediswift run.py ./run.py'
    return f"autoload -U +X bashcompinit && bashcompinit\n{line}" if shell == "zsh" else line

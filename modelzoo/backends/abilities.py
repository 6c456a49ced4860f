"""What a kind of device can do. No torch, so that a command is refused before anything slow is imported."""

from typing import NamedTuple


class Abilities(NamedTuple):
    """Every kind trains; what else it does."""

    evaluates: bool  # runs a model outside of training steps: validation, scores, `-m bench`'s steps by themselves
    lowers: bool  # turns a step into a program of its own, which can be looked at and compiled without training


ABILITIES = {
    "CPU": Abilities(evaluates=True, lowers=False),
    "GPU": Abilities(evaluates=True, lowers=False),
    "CSX": Abilities(evaluates=False, lowers=True),
}

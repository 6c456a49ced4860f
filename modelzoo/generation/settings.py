"""How texts are written: greedily or by chance, how many and how long. No torch: refused before it is imported."""

import os
from typing import NamedTuple

from modelzoo.config.errors import UserError


class Settings(NamedTuple):
    """How to write.

    Attributes:
        max_new_tokens: of each text.
        samples: texts for each prompt.
        temperature: what scores are divided by; 0 takes the likeliest token.
        top_k: draw among so many likeliest tokens. top_p: among the likeliest that reach this share together.
        repetition_penalty: what scores of tokens already there are divided by (arXiv 1909.05858); 1 changes nothing.
        stops: texts that end a text; they are not part of it.
        seed: of the draws. A text follows from it, the prompt and the sample's number, whatever else is written.
    """

    max_new_tokens: int = 128
    samples: int = 1
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0
    stops: tuple[str, ...] = ()
    seed: int = 0

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


def choose_settings(
    max_new_tokens: int,
    samples: int = 1,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    repetition_penalty: float = 1.0,
    stops: tuple[str, ...] = (),
    seed: int | None = None,
) -> Settings:
    """Settings from the flags of a command line; None: not given. A flag that only draws take makes for draws.

    Raises:
        UserError: flags that have no effect together, or an empty stop.
    """
    given = {"--top_k": top_k, "--top_p": top_p, "--samples": samples if samples > 1 else None, "--seed": seed}
    if temperature is None:
        draws = any(given[flag] is not None for flag in ("--top_k", "--top_p", "--samples"))
        temperature = 1.0 if draws else 0.0
    if temperature == 0 and (idle := next((flag for flag, value in given.items() if value is not None), None)):
        raise UserError(f"{idle}: does nothing where the likeliest token is taken; add --temperature 0.8, or remove it")
    if "" in stops:
        raise UserError("--stop: is empty; give the text that ends a text")
    return Settings(max_new_tokens, samples, temperature, top_k, top_p, repetition_penalty, stops, seed or 0)


def require_model(path: str) -> None:
    """Refuse a model that is not there, before torch is waited for.

    Raises:
        UserError: says what may be named.
    """
    if not os.path.exists(path):
        raise UserError(f"{path}: no such run; name a run folder, a step folder, a .mdl or an exported folder")

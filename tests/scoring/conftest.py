"""The small world of tests/evaluation_world.py."""

from tests.evaluation_world import tokenizer, words, world  # noqa: F401

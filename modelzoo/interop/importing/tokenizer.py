"""The tokenizer that an imported model comes with: read, held to the model's vocabulary, and written next to it."""

from typing import NamedTuple

from modelzoo.config.errors import UserError
from modelzoo.config.trainer import Config
from modelzoo.data import tokenizer
from modelzoo.data.bos import find_bos
from modelzoo.data.tokenizer_files import find_vocabulary, list_places, tokenizer_in
from modelzoo.data.tokenizer_kinds import explain_folder


class Taken(NamedTuple):
    """A model's tokenizer.

    Attributes:
        text: of its tokenizer.json; None where the folder has none that is read.
        bos: the token in front of each text, where it has one. lines: about it, for the user.
    """

    text: str | None
    bos: int | None
    lines: list[str]


def take_tokenizer(source: str, vocab_size: int) -> Taken:
    """The tokenizer of a model's folder.

    Raises:
        UserError: it is damaged, needs a package, or has ids that the model has no row for.
    """
    if not find_vocabulary([source]):
        return Taken(None, None, [f"no tokenizer was taken: {explain_folder(source) or 'the folder has none'}"])
    text = tokenizer.read_tokenizer(source)
    backend = tokenizer.parse_tokenizer(text, source)
    size = tokenizer.vocabulary_size(backend)
    tokenizer.check_vocabulary(source, size, vocab_size)
    lines = []
    if size < vocab_size:
        much = "; is it this model's?" if size < 0.9 * vocab_size else ""
        lines.append(f"the tokenizer has {size:,} ids, the model {vocab_size:,} rows: the last are no token{much}")
    if tokenizer.find_end_of_text(backend) is None:
        lines.append(
            f"the tokenizer has no end of text ({', '.join(tokenizer.END_OF_TEXT)}): generate and score need one"
        )
    bos, notes = find_bos(source, backend)
    if bos is not None:
        lines.append(
            f"each text begins with {backend.id_to_token(bos)!r} in generate, score and fine-tuning, as by its "
            f"tokenizer (model.bos_token_id: {bos}); shards of data_preprocessing have none"
        )
    return Taken(text, bos, [*lines, *(f"the tokenizer's {note}" for note in notes)])


def compare_with_data(text: str, config: Config) -> list[str]:
    """A line where the config's training data was made with another tokenizer than `text`, a tokenizer.json."""
    path = tokenizer_in(list_places(config))
    if path is None:
        return []
    try:
        data = tokenizer.parse_tokenizer(tokenizer.read_tokenizer(path), path)
    except UserError as e:
        return [f"the data's tokenizer cannot be compared: {e}"]
    which = tokenizer.compare_vocabularies(data, tokenizer.parse_tokenizer(text, "the model's"))
    if which is None:
        return []
    return [f"{path}: the training data was made with another tokenizer than this model's ({which})"]

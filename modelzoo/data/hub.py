"""Names of the Hugging Face hub where a path is wanted: the command that gets the folder. Nothing is fetched here."""

import re

_NAME = re.compile(r"(?:[A-Za-z0-9][\w.-]{0,95}/)?[A-Za-z0-9][\w.-]{0,95}")
_FILE = re.compile(r"\.(json|ya?ml|mdl|model|txt|safetensors|bin|pth?|bpe|gguf|h5)$")
_OWNERS = {"gpt2": "openai-community", "distilgpt2": "distilbert", "biogpt": "microsoft", "BioMedLM": "stanford-crfm"}
MODEL = ("*.json", "*.safetensors", "*.txt", "*.model")
TOKENIZER = ("*token*", "vocab*", "merges.txt")


def explain_missing(path: str, wanted: str, files: tuple[str, ...]) -> str:
    """A message that nothing is at `path`, where `wanted` is asked for; with the command, if it may be a hub's name.

    Args:
        files: what is needed of the hub's folder, as patterns.
    """
    text = f"{path}: no such file or folder; wanted is {wanted}"
    if _NAME.fullmatch(path) and not _FILE.search(path) and ".." not in path:
        name = path if "/" in path else f"{_find_owner(path)}{path}"
        patterns = " ".join(f"--include '{pattern}'" for pattern in files)
        folder = name.rpartition("/")[2]
        text += (
            f". For the model {name} of the Hugging Face hub: hf download {name} {patterns} --local-dir {folder} "
            f"(pip install huggingface_hub), and name {folder}"
        )
    return text


def _find_owner(name: str) -> str:
    """OWNER/ of a name from before the hub had owners, where it is known."""
    known = name if name in _OWNERS else "gpt2" if re.fullmatch(r"gpt2-(medium|large|xl)", name) else None
    return f"{_OWNERS[known]}/" if known else ""

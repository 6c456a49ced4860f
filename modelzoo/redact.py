"""Secrets taken out of what is stored, printed or sent: command lines, configs, messages. Imports nothing of ours.

A secret is known by its name (`token`, `wandb_api_key`, `password: x`), by its place (a URL's user part, an
Authorization header) or by its form (keys of Hugging Face, GitHub, AWS and others). Names that hold one of those words
and mean something else (`num_memory_tokens`, `eos_token`) stay.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

HIDDEN = "***"
_WORDS = r"token|password|passwd|passphrase|pwd|secret|credentials?|authorization|auth|bearer|cookie|signature"
_KEYS = r"(?:api|access|private|secret|account|signing|encryption|session)[_-]?key(?:[_-]?id)?|apikey"
_SECRET_NAME = re.compile(rf"(?:^|[_.-])(?:{_WORDS}|{_KEYS})$", re.IGNORECASE)
_TOKENS_OF_TEXT = re.compile(  # a tokenizer's, not a service's
    r"(?:^|[_.-])(?:eos|bos|pad|unk|sep|cls|mask|eod|eot|sot|fim|prefix|middle|suffix|start|end|special|separator"
    r"|prompt|image|label|space|text|per|each|a|one|next|last|first)[_-]token$",
    re.IGNORECASE,
)
_NAMED = re.compile(  # name=value and name: value, as in --set, a URL's query, JSON and YAML
    r"""(?P<name>[A-Za-z][\w.-]{0,200})(?P<quote>["']?)(?P<between>\s{0,4}[=:]\s{0,4})"""
    r"""(?P<value>"[^"]{0,4096}"|'[^']{0,4096}'|\{[^{}]{0,4096}\}|\[[^\[\]]{0,4096}\]|(?:(?:Bearer|Basic|Token)\s)?[^\s,;&}\])"']{1,4096})"""
)
_FLAG = re.compile(r"^--?(?P<name>[A-Za-z][\w.-]{0,200})$")
_FLAG_IN_TEXT = re.compile(r"""(?<!\S)(?P<flag>--?(?P<name>[A-Za-z][\w.-]{0,200})\s)(?P<value>[^\s-]\S{0,4095})""")
_USER = re.compile(  # a password may hold @, ? and #, as people type them
    r"(?P<scheme>\b[A-Za-z][A-Za-z0-9+.-]{0,20}://)(?:[^\s/@:?#]{0,1000}:[^\s/]{0,1000}|[^\s/@:?#]{1,1000})@"
)
_QUERY = re.compile(r"(?P<name>[?&](?:sig|key|code)=)[^\s&#\"']{8,4096}")  # of signed URLs
_PEM = re.compile(r"(?P<head>-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----)[^-]{0,16384}(?P<end>-----END|$)")
_HEADER = re.compile(r"\b(?P<scheme>Bearer|Basic)\s(?P<value>[A-Za-z0-9._~+/=-]{8,4096})")
_CLUSTER = re.compile(  # --set of a key in the backend section (or runconfig, as it was called), and the flags for it
    r"(?P<flag>(?<!\S)--(?:set[\s=]['\"]?(?=[^=\s]{0,300}\b(?:backend|runconfig)\b|[^=\s]{0,300}=\S{0,4096}\bbackend\b)"
    r"[^=\s]{0,300}=|(?:mgmt_address|credentials_path|job_labels|mount_dirs|python_paths|compile_dir)[\s=]))"
    r"(?:(?!\s--?[A-Za-z]).){0,4096}",
    re.DOTALL,
)
_NOTHING = ("", "null", "none", "true", "false")  # values that are no secret, whatever their name
_FORMS = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,100}|gh[pousr]_[A-Za-z0-9]{16,255}|github_pat_\w{16,255}|glpat-[\w-]{16,100}"
    r"|sk-[A-Za-z0-9_-]{16,255}|(?:AKIA|ASIA)[A-Z0-9]{16}|AIza[\w-]{30,60}|xox[abprs]-[A-Za-z0-9-]{10,255}"
    r"|eyJ[\w-]{8,2048}\.eyJ[\w-]{8,4096}\.[\w-]{8,1024})(?![A-Za-z0-9])"
)


def is_secret(name: str) -> bool:
    """Whether a key, flag or variable of this name holds a secret, by its last words."""
    return bool(_SECRET_NAME.search(name)) and not _TOKENS_OF_TEXT.search(name)


def redact_text(text: str) -> str:
    """`text` with `***` in place of each secret; everything else as it was."""

    def hide_flag(m: re.Match) -> str:
        return f"{m['flag']}{HIDDEN}" if is_secret(m["name"]) else m[0]

    text = _PEM.sub(lambda m: f"{m['head']}{HIDDEN}{m['end']}", text)
    text = _USER.sub(lambda m: f"{m['scheme']}{HIDDEN}@", text)
    text = _QUERY.sub(lambda m: f"{m['name']}{HIDDEN}", text)
    text = _FLAG_IN_TEXT.sub(hide_flag, _redact_named(text))
    return _FORMS.sub(HIDDEN, _HEADER.sub(lambda m: f"{m['scheme']} {HIDDEN}", text))


def _redact_named(text: str) -> str:
    """`text` without the values of secret names; what is nested in the value of another name is looked at too."""
    parts, at = [], 0
    while m := _NAMED.search(text, at):
        if is_secret(m["name"]) and m["value"].strip("\"'").lower() not in _NOTHING:
            q = m["value"][0] if m["value"][0] in "\"'" else ""
            parts.append(f"{text[at : m.start('value')]}{q}{HIDDEN}{q}")
            at = m.end()
        else:
            parts.append(text[at : m.start("value")])
            at = m.start("value")
    return "".join(parts) + text[at:]


def redact_words(words: Sequence[str]) -> list[str]:
    """A command line, word by word; a word that follows a flag like `--token` is hidden too."""
    found, hide_next = [], False
    for word in words:
        flag = _FLAG.match(word)
        name, equals, value = word.partition("=")
        if equals and is_secret(name):  # all of it, spaces too
            found.append(f"{name}={HIDDEN}" if value.lower() not in _NOTHING else word)
        else:
            found.append(HIDDEN if hide_next and not flag else redact_text(word))
        hide_next = bool(flag) and is_secret(flag["name"])
    return found


def redact_values(value: Any, name: str = "") -> Any:
    """A copy of nested mappings and lists with `***` in place of secrets, by their keys and by their form."""
    if isinstance(value, Mapping):
        return {redact_text(k) if isinstance(k, str) else k: redact_values(v, str(k)) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [redact_values(v, name) for v in value]
    if isinstance(value, str):
        return HIDDEN if value.lower() not in _NOTHING and is_secret(name) else redact_text(value)
    if isinstance(value, int | float) and not isinstance(value, bool) and is_secret(name):
        return value if name.lower().endswith("token") else HIDDEN  # a token that is a number is a tokenizer's
    return value


def hide_cluster(command: str) -> str:
    """A command line, as text, without what it says of a cluster (the backend section): for files that are published.

    Secrets are hidden too. A value ends at the next flag.
    """
    return redact_text(_CLUSTER.sub(lambda m: f"{m['flag']}{HIDDEN}", command))

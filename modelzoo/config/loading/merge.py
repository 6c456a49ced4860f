"""One value over another, for `extends:` and `--set` alike: what stays, what is replaced, and the note about it."""

from modelzoo.config.loading.explain import format_value
from modelzoo.config.loading.yaml12 import Document, Mark, Note, Path


def merge(base: object, child: object) -> object:
    """`child` over `base`: mappings merge key by key, anything else replaces.

    `{AdamW: ...}` and `{SGD: ...}` name one choice each (capitalised keys): the same choice merges, another replaces.
    A bare name stands for the choice without settings, so `AdamW` over `{AdamW: ...}` changes nothing. A `type`
    names a choice as well: `{type: cubic, ...}` replaces `{type: linear, ...}`.
    """
    base, child = _choices(base, child)
    if (pair := _as_mergeable(base, child)) is None:
        return child
    old, new = pair
    return {**old, **{k: merge(old[k], v) if k in old else v for k, v in new.items()}}


def replaced(base: object, child: object, path: Path = ()) -> list[tuple[Path, object, object]]:
    """The paths whose value in `base` does not survive the merge, nor what is below it; with both values."""
    base, child = _choices(base, child)
    if (pair := _as_mergeable(base, child)) is None:
        return [(path, base, child)]
    old, new = pair
    return [r for k, v in new.items() if k in old for r in replaced(old[k], v, (*path, k))]


def put_over(doc: Document, child: object, mark: Mark | Document, at: Path = ()) -> object:
    """`child` over what `doc` holds at `at`, as `merge`; what is replaced loses its marks, and what is lost is noted.

    Args:
        mark: where the child was written: one place, or the document whose marks say it.
    """
    base = doc.data
    for part in at:
        base = base[part]
    for path, before, after in replaced(base, child, at):
        lost = _settings(before)
        if lost and after is not None and _settings(after) != lost:
            where = mark if isinstance(mark, Mark) else mark.mark(path)
            what = _name(after) or format_value(after)
            text = f"{where}: {'.'.join(map(str, path))}: {what} takes the place of {_name(before) or 'a mapping'}"
            doc.notes.append(Note("changed", f"{text} ({doc.mark(path)}), whose settings go: {', '.join(lost)}"))
        doc.forget(path)
    return merge(base, child)


def is_choice(value: object) -> bool:
    """Whether a value names a class to configure: `AdamW`, or `{AdamW: ...}`."""
    if isinstance(value, dict) and len(value) == 1:
        (value,) = value
    return isinstance(value, str) and value[:1].isupper()


def _choices(base: object, child: object) -> tuple[object, object]:
    """Both as mappings where both name a class, one of them with settings."""
    if is_choice(base) and is_choice(child) and (isinstance(base, dict) or isinstance(child, dict)):
        return _spelt_out(base), _spelt_out(child)
    return base, child


def _spelt_out(value: object) -> object:
    return {k: {} if v is None else v for k, v in value.items()} if isinstance(value, dict) else {value: {}}


def _as_mergeable(base: object, child: object) -> tuple[dict, dict] | None:
    """Both, where they are mappings that merge key by key; None where `child` replaces `base`."""
    if not (isinstance(base, dict) and isinstance(child, dict)):
        return None
    if base.keys() != child.keys() and is_choice(base) and is_choice(child):
        return None
    kinds = {x["type"].lower() for x in (base, child) if isinstance(x.get("type"), str)}
    return (base, child) if len(kinds) < 2 else None


def _name(value: object) -> str | None:
    """The class that a value names, if it does."""
    if not is_choice(value):
        return None
    return str(next(iter(value)) if isinstance(value, dict) else value)


def _settings(value: object) -> list[str]:
    """The keys that a mapping (of a class: its settings) holds."""
    if isinstance(value, dict) and is_choice(value):
        value = next(iter(value.values()))
    return list(value) if isinstance(value, dict) else []

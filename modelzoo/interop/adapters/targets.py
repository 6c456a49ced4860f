"""Which modules an adapter's config names, by PEFT's rules, held to those that its tensors are of. No torch."""

import re
from collections.abc import Collection

from modelzoo.config.errors import UserError

Named = str | list[str] | None
ALL = "all-linear"
_LAYER = re.compile(r"\.([0-9]{1,6})\.")


def check_targets(
    path: str,
    target: Named,
    exclude: Named,
    layers: int | list[int] | None,
    held: Collection[str],
    known: Collection[str],
) -> None:
    """Refuse a config that names other modules than its tensors are of.

    Args:
        path: of the config. target, exclude, layers: its target_modules, exclude_modules and layers_to_transform.
        held: modules that have tensors. known: those of the model that may have some.

    Raises:
        UserError: names a module, and what the config has.
    """
    if target is None or any(isinstance(x, str) and _is_intricate(x) for x in (target, exclude)):
        return
    try:
        named = {m for m in known if _names(target, m) and not (exclude and _names(exclude, m)) and _in(layers, m)}
    except re.error as e:
        raise UserError(f"{path}: target_modules or exclude_modules: is no regular expression ({e})") from None
    shown = f"target_modules {target if isinstance(target, str) else '[' + ', '.join(target) + ']'}"[:200]
    if others := sorted(set(held) - named):
        raise UserError(f"{path}: {shown} does not name {others[0]}, of which adapter_model.safetensors holds LoRA")
    if lacking := sorted(named.difference(held)):
        raise UserError(f"{path}: {shown} names {lacking[0]}, of which adapter_model.safetensors holds no LoRA")


def _names(names: str | list[str], module: str) -> bool:
    if isinstance(names, str):
        return names == ALL or re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names)


def _in(layers: int | list[int] | None, module: str) -> bool:
    found = _LAYER.search(module)
    return layers is None or (found is not None and int(found[1]) in (layers if isinstance(layers, list) else [layers]))


def _is_intricate(pattern: str) -> bool:
    """Whether a pattern of whoever made the file might take for ever: then the tensors alone say what there is."""
    return len(pattern) > 200 or len(re.findall(r"[*+?{]", pattern)) > 3 or re.search(r"\)[*+?{]", pattern) is not None

"""What `plan --devices N` says of several devices: memory of each, what they send, what fits a card. No torch."""

from modelzoo.backends.batch_shares import check_shares
from modelzoo.backends.select import lowers
from modelzoo.config.errors import UserError
from modelzoo.config.trainer import Config, Init
from modelzoo.models.shapes import frozen, list_with_adapters
from modelzoo.planning.memory import Layout, Rows, count_item, count_memory, share_rows
from modelzoo.planning.plan import Plan, find_kind, find_layout
from modelzoo.planning.stored import count_stored
from modelzoo.planning.traffic import (
    count_gathered,
    count_replica_bytes,
    count_sent,
    count_shard_bytes,
    find_dense_step,
    name_asking,
)
from modelzoo.progress import format_size

CARDS = (24, 40, 80)  # GiB
USABLE = 0.9  # of a card: the rest is the driver's, and what is too scattered to use
MODES = ("none", "attention", "layer")  # of activation_checkpointing, by how much backward computes again


def describe_devices(config: Config, p: Plan, target: str, devices: int) -> list[str]:
    """Lines about `devices` devices: replicas, and shards where there are several.

    Raises:
        UserError: the batch cannot be shared out, or the devices are CS-2s.
    """
    init, fit = config.trainer.init, config.trainer.fit
    if lowers(target):
        raise UserError("--devices: the number of CS-2 systems is --num_csx; processes are for GPU and CPU")
    if fit is None:
        raise UserError("--devices: this config has no trainer.fit, so there is no batch to share out")
    if devices > 1 and init.backend.parallel == "shard":
        check_shares(init.backend)
    kind = find_kind(init, target)
    kind = "GPU" if lowers(kind) else kind  # which the processes fall back to
    replicas = find_layout(config, kind, devices)
    rows, batch = share_rows(config, replicas), fit.train_dataloader.batch_size
    how = f"exact, over {replicas.slices} slices of each batch" if replicas.slices else "fast"
    one = devices == 1 and not replicas.slices
    lines = [
        f"devices    {devices} x {kind}: {rows.device} of {batch} rows each, {_describe_cut(rows)}; "
        + ("sums as they come" if one else f"sums {how}")
    ]
    layouts = {"replicas": replicas}
    if devices > 1:
        layouts["shards"] = find_layout(config, kind, devices, sharded=True)
        asked = init.backend.parallel
        sends = {"replicas": _count_replicas(init, p, replicas), "shards": _count_shards(config, layouts["shards"])}
        for name, sent in sends.items():
            mine = "as the config asks: " if name.startswith(asked[:5]) else ""
            each = count_memory(config, p.context, layouts[name])
            needs = ", ".join(f"{k} {format_size(v)}" for k, v in each.items() if v)
            lines += [
                f"{name:10} {mine}each device needs {format_size(sum(each.values()))}: {needs}",
                f"           and sends {sent}",
            ]
    if kind == "GPU":
        lines += _describe_cards(config, p.context, layouts)
    return lines


def _describe_cut(rows: Rows) -> str:
    return "all at once" if rows.times == 1 else f"{rows.at_once} at once"


def _count_replicas(init: Init, p: Plan, layout: Layout) -> str:
    exact, dense = layout.slices is not None, find_dense_step(init, p.steps)

    def sent(step: int) -> str:
        return format_size(count_replica_bytes(count_sent(init, step), layout.devices, exact))

    usual = next(s for s in range(1, 3) if s != dense)
    times = layout.devices.bit_length() - 1 if exact else f"2 x {layout.devices - 1}/{layout.devices}"
    values = f"{format_size(4 * count_sent(init, usual))} of gradients"
    alone = ", the live weights alone" if init.sparsity else ""
    more = f"; {sent(dense)} on {name_asking(init)} update steps" if dense else ""
    return f"{sent(usual)} a step: {times} x {values}{alone}{more}"


def _count_shards(config: Config, layout: Layout) -> str:
    init = config.trainer.init
    (layers, rest), rows = count_gathered(init, count_item(init, layout.kind)), share_rows(config, layout)
    times = f"{rows.times} x " if rows.times > 1 else ""
    parts = f"2 x {format_size(layers)} of layers + {format_size(rest)} of other weights"
    share = f"{layout.devices - 1}/{layout.devices}"
    gradients = f"{format_size(4 * _count_trained(init))} of gradients"
    return f"{format_size(count_shards(config, layout))} a step: {times}{share} x ({parts} + {gradients})"


def count_shards(config: Config, layout: Layout) -> int:
    """Bytes that each shard sends in a step."""
    init = config.trainer.init
    (layers, rest), times = count_gathered(init, count_item(init, layout.kind)), share_rows(config, layout).times
    return count_shard_bytes(layers, rest, _count_trained(init), layout.devices, times)


def _count_trained(init: Init) -> int:
    """Values of gradients: those of live blocks alone where these are stored alone."""
    shapes, off, (gone, _) = list_with_adapters(init), frozen(init), count_stored(init, ("packed",))
    return sum(s.numel for n, s in shapes.items() if n not in off) - (0 if init.base_frozen else gone)


def _describe_cards(config: Config, msl: int, layouts: dict[str, Layout]) -> list[str]:
    lines = []
    for card in CARDS:
        texts = []
        for name, layout in layouts.items():
            found = fit_card(config, msl, layout, card)
            sizes = ", ".join(f"{mode} {n}" for mode, n in found.items() if n)
            texts.append(f"{name if len(layouts) > 1 else 'rows at once'}: {sizes or 'does not fit'}")
        lines.append(f"{'cards' if card == CARDS[0] else '':10} {card} GB  {'; '.join(texts)}")
    with_rows = "rows at once, " if len(layouts) > 1 else ""
    return [*lines, f"           ({with_rows}by activation_checkpointing: trainer.init.backend; micro_batch_size)"]


def fit_card(config: Config, msl: int, layout: Layout, card: int) -> dict[str, int]:
    """The most rows at once that fit a card of `card` GiB, by activation_checkpointing; 0: not even one.

    Rows halve from all that a device has (of a slice, where sums are exact) as long as they divide.
    """
    fit = config.trainer.fit
    assert fit is not None
    most = fit.train_dataloader.batch_size // (layout.slices or layout.devices)
    sizes = [most // n for n in range(1, most + 1) if most % n == 0]
    room = USABLE * card * 2**30
    return {
        mode: next((n for n in sizes if sum(count_memory(config, msl, layout, n, mode).values()) <= room), 0)
        for mode in MODES
    }

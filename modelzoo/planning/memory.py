"""Memory of each device that trains, in bytes, from the config and the data's manifests. No torch."""

from typing import NamedTuple

from modelzoo.backends import arithmetic
from modelzoo.config.trainer import Config, Init
from modelzoo.data.manifest import is_padded
from modelzoo.kernels.limits import (
    SCORED_ROWS,
    WIDTHS,
    count_graphs,
    count_head_rows,
    find_longest_plain,
    pays_to_capture,
)
from modelzoo.models.shapes import GLU, frozen, list_with_adapters
from modelzoo.planning.stored import (
    changes_masks,
    count_explored,
    count_indices,
    count_live,
    count_stored,
    find_largest,
    group_sizes,
)
from modelzoo.planning.traffic import count_gathered, count_masked, count_sent, find_dense_step, is_packed
from modelzoo.planning.updates import count_update
from modelzoo.sparsity.select import block_of
from modelzoo.training.runs.length import count_micro_batches, total_steps

DENSE = "dense gradients (update steps)"


class Layout(NamedTuple):
    """Devices that train a run together.

    Attributes:
        kind: CPU, GPU or CSX.
        slices: of each batch, where sums are exact.
        sharded: whether each device has a share of the weights instead of all.
    """

    kind: str
    devices: int = 1
    slices: int | None = None
    sharded: bool = False


class Rows(NamedTuple):
    """Rows of a batch: of each device, those that it computes at once, and how often it does so in a step."""

    device: int
    at_once: int
    times: int


def share_rows(config: Config, layout: Layout) -> Rows:
    """A batch's rows as the training step cuts them; none without training data."""
    fit = config.trainer.fit
    if fit is None:
        return Rows(0, 0, 0)
    batch, parts = fit.train_dataloader.batch_size, count_micro_batches(config)
    groups = layout.slices or layout.devices
    size = batch // groups
    at_once = -(-size // -(-parts // groups))
    return Rows(batch // layout.devices, at_once, groups // layout.devices * -(-size // at_once))


def count_memory(
    config: Config, msl: int, layout: Layout, rows: int | None = None, mode: str | None = None
) -> dict[str, int]:
    """Bytes of a training run on one of the devices, when most weights live. Of activations and work an estimate.

    Args:
        msl: tokens of a row.
        rows: at once; default: the config's. mode: of activation_checkpointing; default: the config's.
    """
    init, shapes, steps = config.trainer.init, list_with_adapters(config.trainer.init), total_steps(config) or 0
    off = frozen(init)
    total, trained = (sum(s.numel for n, s in shapes.items() if n not in out) for out in (frozenset(), off))
    moments = 2 if init.optimizer is None or init.optimizer.name != "SGD" else bool(init.optimizer.value.momentum)
    gone, masks = count_stored(init, ("packed",), steps)
    linear = max(sum(s.numel for s in shapes.values() if s.kind == "linear") - gone, 0)
    kept = trained if init.base_frozen else trained - gone
    whole = count_indices(init, ("packed",), steps) + count_explored(init)
    share = layout.devices if layout.sharded else 1
    times = 2 if rows is not None else share_rows(config, layout).times
    rows = share_rows(config, layout).at_once if rows is None else rows
    mode = mode or init.backend.activation_checkpointing
    activations, work = count_activations(init, layout.kind, rows, msl, mode, linear, steps)
    if layout.kind == "GPU" and layout.devices == times == 1:  # activations go as gradients come
        work = max(work - 4 * kept, 0)
    copied = 4 * find_largest(init, ("packed",))  # by a checkpoint on a GPU: one weight at a time, whole
    in_layer = linear / init.model.num_hidden_layers
    graphs = _takes_graphs(init, layout, mode) and pays_to_capture(in_layer, rows * msl)
    if layout.kind == "GPU" and not graphs:  # when activations are gone, which graphs keep
        work = max(work, copied - activations)
    dense, late = _count_dense_gradients(init, layout, times > 2 ** _count_waiting(layout))
    room = 0 if graphs and _changes_whole(init) else activations + work  # free once backward has ended
    return {
        "weights": 4 * (total - gone) // share,
        "gradients": 4 * kept // share,
        "optimizer": 4 * moments * kept // share,
        "masks": (masks - whole) // share + whole,
        "sums": _count_sums(init, kept, layout, steps),
        "activations (estimate)": activations,
        "work (estimate)": work,
        "captured graphs": 4 * kept * (_count_widths(config, msl, 4 * kept) - 1) + copied if graphs else 0,
        "validation (estimate)": count_validation(config, layout.kind, msl, linear) if graphs else 0,
        DENSE: dense + max(late - room, 0),
        "mask updates": max(count_update(init, layout.kind, steps) - max(room - late, 0), 0),
    }


def _takes_graphs(init: Init, layout: Layout, mode: str) -> bool:
    """Whether `backends.local` captures a run's micro-batches: what a step takes stays in their memory from then on.

    A loss scale in float16 may be dynamic.
    """
    alone = layout.kind == "GPU" and layout.devices == 1 and not layout.sharded and layout.slices is None
    half = arithmetic.expect_arithmetic(layout.kind, init.precision).dtype == "float16"
    return alone and mode == "none" and not half and init.backend.cuda_graphs


def _changes_whole(init: Init) -> bool:
    """Whether masks of weights that are stored whole change: graphs stay then; for packed ones they are given up."""
    changing = [group for group, sizes in group_sizes(init) if changes_masks(init, group, sizes)]
    return any(not (group.may_pack and group.storage == "packed") for group in changing)


def _count_widths(config: Config, msl: int, gradients: int) -> int:
    """Graphs that begin a step's gradients, each of which has its own: one of each width that batches are cut to."""
    fit = config.trainer.fit
    if fit is None or not is_padded(fit.train_dataloader, msl):
        return 1
    return max(1, min(count_graphs(gradients), -(-msl // WIDTHS)))


def count_validation(config: Config, kind: str, msl: int, linear: int) -> int:
    """What forward takes at most at once of a batch of validation, next to the weights. An estimate.

    Args:
        linear: as in `count_activations`.
    """
    trainer, m, item = config.trainer, config.trainer.init.model, count_item(config.trainer.init, kind)
    sizes = [v.batch_size for v in trainer.fit.val_dataloader] if trainer.fit else []
    if trainer.finetune is not None:
        sizes = [trainer.finetune.eval_batch_size]
    if not (tokens := max(sizes, default=0) * msl):
        return 0
    hidden = 4 * tokens * m.hidden_size
    layer = tokens * (4 * m.hidden_size + item * (4 * m.inner_dim + 2 * m.filter_size))
    logits = min(tokens, SCORED_ROWS) * m.vocab_size * (8 + (item if item == 2 else 0))  # as they are, then in float32
    head = item * m.vocab_size * m.hidden_size if item == 2 else 0
    return _count_casts(linear, item) + hidden + max(layer, logits + head)


def _count_dense_gradients(init: Init, layout: Layout, several: bool) -> tuple[int, int]:
    """What dense gradients of masked weights take on update steps (RigL's, GraNet's): in backward, and from its end on.

    Where a weight is stored whole they are a copy of its gradient, made after backward. Where its live blocks are
    stored they come in backward, apart from its own gradient, and are summed with it.

    Args:
        several: whether a device computes its rows (of a slice) in several passes, between which those are held.
    """
    if find_dense_step(init, None) is None:
        return 0, 0
    shapes, whole, packed = list_with_adapters(init), 0, 0
    for group, sizes in group_sizes(init):
        for name in sizes if group.copies_dense_gradient else ():
            stored_packed = is_packed(group, shapes[name])
            packed += stored_packed * shapes[name].numel
            whole += (not stored_packed) * shapes[name].numel
    whole //= layout.devices if layout.sharded else 1
    held = 4 * packed * (_count_waiting(layout) + several)
    return held, 4 * (whole + (0 if several else packed))


def _count_waiting(layout: Layout) -> int:
    """Sums of slices that a device holds at most while it computes another: one of each level of the tree."""
    return ((layout.slices or 1) // layout.devices if layout.slices else 1).bit_length() - 1


def _count_sums(init: Init, kept: int, layout: Layout, steps: int) -> int:
    """What adding up takes besides the gradients: sums of slices that wait, what is sent and received."""
    if layout.sharded:
        return _count_gathered(init, layout, steps)
    waiting = 4 * kept * _count_waiting(layout)
    if layout.devices == 1:
        return waiting
    sent, masked = 4 * count_sent(init, 1, steps), count_masked(init, steps)
    buffers = 3 * sent + 4 * masked if layout.slices else sent  # exact: ours, theirs, their sum, and what was picked
    return max(waiting, buffers) + 8 * masked


def _count_gathered(init: Init, layout: Layout, steps: int) -> int:
    """Whole weights of the layer at hand and the next, what is in no layer all along, and whole gradients of one."""
    layers, rest = count_gathered(init, count_item(init, layout.kind), steps)
    layer = layers // init.model.num_hidden_layers
    return 2 * layer + rest + max(layer * 4 // count_item(init, layout.kind), rest)


def count_item(init: Init, kind: str) -> int:
    """Bytes of a value of the arithmetic on a device of `kind`."""
    return 4 if arithmetic.expect_arithmetic(kind, init.precision).dtype == "float32" else 2


def count_activations(
    init: Init, kind: str, rows: int, msl: int, mode: str, linear: int, steps: int = 0
) -> tuple[int, int]:
    """What forward keeps of `rows` for backward, and what comes and goes while they are computed, at most at once.

    Args:
        msl: tokens of a row.
        mode: none, layer or attention: what backward computes again.
        linear: stored weights of the layers' matrices. steps: as in `count_stored`.
    """
    m, item, tokens = init.model, count_item(init, kind), rows * msl
    # q, k and v as each head reads them, and the output, which a GPU's fused kernel leaves as the next linear reads it
    attention = (4 if kind == "GPU" else 5) * item * m.inner_dim + _count_scores(init, kind, msl)
    ffn = item * m.filter_size * (4 if m.nonlinearity in GLU else 2)
    inputs = 4 if m.parallel else 8  # of the norms; in parallel they have one
    norms = (inputs + item * (1 if m.tied_norms else 2)) * m.hidden_size + (2 * m.hidden_size if m.dropout_rate else 0)
    whole = norms + attention + ffn
    per_layer = {"none": whole, "layer": 4 * m.hidden_size, "attention": whole - attention}[mode]
    again = {"none": 0, "layer": whole, "attention": attention}[mode]  # of the layer whose turn it is
    last = (4 + item) * m.hidden_size
    if not tokens:
        return 0, 0
    head, gpu = m.vocab_size * m.hidden_size, kind == "GPU"
    parts = count_head_rows(m.vocab_size, item, gpu)
    copied = item == 2 or (gpu and m.vocab_size % 64 > 0)  # the head's weight: cast, or filled up
    logits = min(tokens, parts) * item * (-(-m.vocab_size // 64) * 64 if gpu else m.vocab_size)
    gradient = 0 if init.base_frozen else 4 * head + (item * head if item == 2 or tokens > parts else 0)
    crossing = logits + gradient + (item * head if copied else 0) + tokens * item * m.hidden_size
    backward = tokens * (again + item * (m.filter_size + _count_picked(init, steps)) + 4 * m.hidden_size)
    work = max(_count_casts(linear, item) + crossing, backward)
    return tokens * (m.num_hidden_layers * per_layer + last), work


def _count_picked(init: Init, steps: int) -> int:
    """The most values of a token that groups of outputs with shared inputs read, side by side."""
    if not any(group.shared_inputs for group in init.sparsity):  # most runs: their weights need not be listed for it
        return 0
    shared = ((group, sizes) for group, sizes in group_sizes(init) if group.shared_inputs and group.may_pack)
    live = ((group, sizes[n], k) for group, sizes in shared for n, k in count_live(group, sizes, steps).items())
    return max((k // block_of(group, size)[0] for group, size, k in live), default=0)


def _count_casts(linear: int, item: int) -> int:
    """The linears' weights in 16 bits, where those are the arithmetic's; packed ones are cast one by one."""
    return item * linear if item == 2 else 0


def _count_scores(init: Init, kind: str, msl: int) -> int:
    """Bytes that attention keeps of a token's scores: none where a fused kernel computes them again."""
    m, item = init.model, count_item(init, kind)
    dropout = m.dropout_rate if m.attention_dropout_rate is None else m.attention_dropout_rate
    scores = m.num_heads * msl
    if kind != "CPU" or not (dropout or msl <= find_longest_plain("float32" if item == 4 else "bfloat16", dropout)):
        return 0
    if init.backend.torch_compile and not dropout:
        return 0
    return scores * (12 if dropout else item)  # with dropout the softmax, what is left of it, and which

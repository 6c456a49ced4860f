"""A report's numbers against independent ones, and its page: whole, self-contained, readable by machines."""

import base64
import csv
import json
import math
import shutil
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import cast
from xml.etree import ElementTree

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from modelzoo.backends.local import Local
from modelzoo.config.errors import UserError
from modelzoo.config.trainer import Config
from modelzoo.study.figures import cost, curves, draw, finetuned, layers
from modelzoo.study.reports import page
from modelzoo.study.reports.report import report_runs, write
from modelzoo.study.runs import results
from modelzoo.study.runs.results import Group, find_front, group_runs, interval, read_run
from modelzoo.tasks import pretrain
from modelzoo.training.build import Options
from tests.study.conftest import tiny_config

LOSS = st.floats(0.1, 20)


@given(st.lists(LOSS, min_size=2, max_size=8))
def test_the_interval_is_students(values):
    mean, low, high = interval(values)
    assert mean == pytest.approx(np.mean(values))
    if np.ptp(values) > 1e-6:
        expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        assert (low, high) == pytest.approx((expected.low, expected.high), rel=1e-6)


@given(st.lists(st.tuples(st.floats(1, 100), LOSS), min_size=1, max_size=30))
def test_the_front_is_what_no_point_beats_in_both(points):
    kept = find_front(points)
    beaten = lambda p: any(q[0] <= p[0] and q[1] <= p[1] and q != p for q in points)
    assert {points[i] for i in kept} == {p for p in points if not beaten(p)}
    assert [points[i][0] for i in kept] == sorted(points[i][0] for i in kept)


def test_runs_that_meet_a_budget_by_whole_steps_cost_the_same():
    points = [(9.99, 5.0), (10.0, 4.5), (10.2, 4.4), (5.0, 6.0)]
    assert find_front(points) == [3, 0, 1, 2] and find_front(points, 0.01) == [3, 1, 2]


@given(st.integers(1, 200), st.integers(1, 200), st.integers(0, 5))
def test_coarse_cells_hold_the_mean_of_their_weights(rows, columns, seed):
    mask = np.random.default_rng(seed).random((rows, columns)) < 0.3
    cells = draw.coarse(mask, 16)
    assert cells.shape == (min(rows, 16), min(columns, 16))
    edges = [np.linspace(0, n, min(n, 16) + 1).astype(int) for n in mask.shape]
    for i in range(cells.shape[0]):
        for j in range(cells.shape[1]):
            part = mask[edges[0][i] : edges[0][i + 1], edges[1][j] : edges[1][j + 1]]
            assert cells[i, j] == pytest.approx(part.mean())


def folders(runs: Path) -> list[str]:
    return [str(runs / n) for n in ("dense-seed1", "dense-seed2", "s75-seed1", "rigl-seed1")]


@pytest.fixture
def groups(runs) -> list[Group]:
    return group_runs([read_run(f) for f in folders(runs)])


def test_runs_that_differ_in_their_seed_are_one_group(groups):
    assert [(g.label, len(g.runs)) for g in groups] == [("dense", 2), ("s75", 1), ("rigl", 1)]


def test_points_are_the_logs_means(runs, groups):
    rows = {(r[0], r[1]): r for r in curves.points(groups)}
    assert {s for _, s in rows} == {4, 8, 12}
    for step in (4, 8, 12):
        logs = [
            [json.loads(x) for x in (runs / f"dense-seed{s}" / "metrics.jsonl").read_text().splitlines()]
            for s in (1, 2)
        ]
        pick = lambda kind, key, log, step=step: next(r[key] for r in log if r["kind"] == kind and r["step"] == step)
        row = rows["dense", step]
        assert row[2] == np.mean([pick("train", "flops", log) for log in logs])
        assert row[4] == step * 48
        assert row[6] == pytest.approx(np.mean([pick("validation", "loss", log) for log in logs]))
        assert rows["s75", step][2] < rows["rigl", step][2] < row[2]


def test_masks_over_time_account_for_every_weight(runs, groups):
    (panel,) = layers.draw_over_time(groups)
    paths = {s: runs / "rigl-seed1" / "checkpoints" / f"step_{s}" / "model.safetensors" for s in (4, 8, 12)}
    masks = {s: safetensors.numpy.load_file(p) for s, p in paths.items()}
    layer = "model.transformer_decoder.layers.1.ffn.ffn.0.linear_layer.weight_mask"
    rows = {r[1]: r for r in panel.rows if r[2:4] == (1, "ffn0")}
    for before, after in ((4, 8), (8, 12)):
        new, old = masks[after][layer], masks[before][layer]
        assert rows[after][4:] == (new.sum(), new.size, (new & ~old).sum(), (old & ~new).sum())
        assert rows[after][4] - rows[before][4] == rows[after][6] - rows[after][7]
    assert rows[8][6] > 0  # RigL did move something


def test_sparsity_by_layer_is_target_and_masks(groups):
    panel = layers.draw_by_layer(groups)
    assert {r[0] for r in panel.rows} == {"s75", "rigl"} and len(panel.rows) == 2 * 2 * 6
    assert all(r[3] == r[4] == 0.75 for r in panel.rows)


def test_what_sparsity_saves_is_said_honestly(runs, groups):
    rows = {r[0]: r for r in cost.tabulate_savings(groups).rows}
    assert rows["dense"][3] == "1.00x fewer" and rows["s75"][4] == "all of it: masked weights are multiplied"
    last = json.loads((runs / "rigl-seed1" / "metrics.jsonl").read_text().splitlines()[-2])
    assert rows["rigl"][3] == f"{last['dense_flops'] / last['flops']:.2f}x fewer"
    assert "x dense [" in rows["s75"][5]


def test_time_adds_up_to_the_log(runs, groups):
    row = next(r for r in cost.draw_time(groups).rows if r[0] == "s75")
    log = [json.loads(x) for x in (runs / "s75-seed1" / "timing.jsonl").read_text().splitlines()]
    assert sum(row[1:]) == pytest.approx(sum(r["seconds"] for r in log))


def test_peaks_at_the_edge_are_named():
    losses = {"a": {1e-3: 3.0, 2e-3: 2.0, 4e-3: 2.5}, "b": {1e-3: 3.0, 2e-3: 2.0, 4e-3: 1.5}}
    assert curves.draw_by_peak(losses).caption.endswith("so a better one may lie beyond: b.")
    assert "matrices" not in curves.draw_by_peak(losses).caption
    assert "decoder's matrices; all other weights' peak is 0.005" in curves.draw_by_peak(losses, 5e-3).caption
    assert curves.draw_by_peak({"a": {1e-3: 2.0}}) is None
    losses = {"a": {1e-3: math.nan, 2e-3: 2.0, 4e-3: 2.5}, "b": {1e-3: math.inf, 2e-3: math.nan}}
    panel = curves.draw_by_peak(losses)
    assert "a better one" not in panel.caption and "a at 0.001, b at 0.001, b at 0.002." in panel.caption
    assert [r[:2] for r in panel.rows] == [(label, p) for label in "ab" for p in losses[label]]


class Page(HTMLParser):
    """What a page refers to, its ids, and its tags."""

    def __init__(self, text: str):
        super().__init__()
        self.links, self.ids, self.tags = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for key, value in attrs:
            if key in ("href", "src", "xlink:href", "action", "data"):
                self.links.append(value)
            if key == "id":
                self.ids.append(value)


def test_the_page_needs_nothing_beside_it(runs, tmp_path):
    text = report_runs(folders(runs), str(tmp_path / "r.html"))
    assert str(tmp_path / "r.html") in text
    text = (tmp_path / "r.html").read_text()
    found = Page(text)
    assert not {"script", "link", "iframe", "object"} & set(found.tags)
    assert all(link.startswith(("#", "data:")) for link in found.links), found.links
    assert "@import" not in text and "url(http" not in text
    assert len(set(found.ids)) == len(found.ids)  # inline pictures share one page's names
    assert {link[1:] for link in found.links if link.startswith("#")} <= set(found.ids)
    assert found.tags.count("svg") == len(list((tmp_path / "r_files").glob("*.svg"))) >= 5


def test_the_numbers_are_the_same_in_the_page_and_beside_it(runs, tmp_path):
    report_runs(folders(runs), str(tmp_path / "r.html"))
    prefix = "data:text/csv;base64,"
    inside = [
        base64.b64decode(x[len(prefix) :]).decode()
        for x in Page((tmp_path / "r.html").read_text()).links
        if x.startswith(prefix)
    ]
    beside = [p.read_text() for p in (tmp_path / "r_files").glob("*.csv")]
    assert sorted(inside) == sorted(beside)
    with open(tmp_path / "r_files" / "loss_by_flops.csv") as file:
        rows = list(csv.DictReader(file))
    assert {r["group"] for r in rows} == {"dense", "s75", "rigl"} and all(math.isfinite(float(r["loss"])) for r in rows)


def _find_pictures(text: str) -> list[tuple[int, int]]:
    """Where the pictures of a page are."""
    begins = [i for i in range(len(text)) if text.startswith("<svg", i)]
    return [(i, text.index("</svg>", i)) for i in begins]


def test_pictures_stand_alone_and_take_the_pages_colours(runs, tmp_path):
    report_runs(folders(runs), str(tmp_path / "r.html"))
    for path in (tmp_path / "r_files").glob("*.svg"):
        text = path.read_text()
        ElementTree.fromstring(text)
        assert "var(" not in text and draw.INK in text and "#000000" not in text, path
    text = (tmp_path / "r.html").read_text()
    pictures = "".join(text[begin:end] for begin, end in _find_pictures(text))
    assert pictures.count(f"var(--ink, {draw.INK})") == pictures.count(draw.INK) > 0
    style = page.STYLE
    assert "prefers-color-scheme: dark" in style and "@media print" in style


def test_what_is_written_in_a_name_is_no_markup(runs, tmp_path):
    groups = [Group("<b>&\"'", [read_run(str(runs / "dense-seed1"))])]
    write(groups, str(tmp_path / "r.html"), "<i>title</i>")
    assert not {"b", "i"} & set(Page((tmp_path / "r.html").read_text()).tags)


def test_what_is_no_run_is_refused(tmp_path, runs):
    with pytest.raises(UserError, match="no such run folder"):
        report_runs([str(tmp_path / "nothing")], str(tmp_path / "r.html"))
    with pytest.raises(UserError, match=r"\.html"):
        report_runs(folders(runs), str(tmp_path / "r.pdf"))


def test_histograms_count_every_weight_before_and_after_lifting(runs, data, tmp_path):
    from modelzoo.tasks import pretrain
    from modelzoo.training.build import Options
    from tests.study.conftest import tiny_config

    start = runs / "s75-seed1" / "checkpoints" / "step_12"
    options = Options(
        "CPU", str(tmp_path / "lift"), str(start), ("model",), command=f"run.py --checkpoint_path {start}"
    )
    pretrain.train(tiny_config(data, tmp_path / "lift", loop={"max_steps": 3}), options, evaluate=True)
    (panel,) = finetuned.draw_histograms(group_runs([read_run(str(tmp_path / "lift"))]))
    assert ">100<" in panel.svg and "mathdefault" not in panel.svg  # its scale is logarithmic
    before = safetensors.numpy.load_file(start / "model.safetensors")
    total = sum(x.size for n, x in before.items() if n.endswith("_mask"))
    live = sum(int(x.sum()) for n, x in before.items() if n.endswith("_mask"))
    counts = np.array([r[2:] for r in panel.rows]).sum(0)
    assert 0.98 * live < counts[0] <= live and 0.9 * (total - live) < counts[2] <= total - live
    assert "100.0% of those once masked differ from zero" in panel.caption
    assert results.read_run(str(tmp_path / "lift")).parent == str(start)


def test_live_blocks_are_said_to_be_computed_alone(data, tmp_path):
    from modelzoo.tasks import pretrain
    from modelzoo.training.build import Options
    from tests.study.conftest import tiny_config

    sparsity = {"sparsity": 0.5, "block": [4, 4], "storage": "packed"}
    whole = tiny_config(data, tmp_path / "blocks", sparsity=sparsity, loop={"max_steps": 2})
    pretrain.train(whole, Options("CPU", str(tmp_path / "blocks")), evaluate=True)
    (row,) = cost.tabulate_savings(group_runs([read_run(str(tmp_path / "blocks"))])).rows
    assert row[1] == "block: [4, 4]" and row[4].startswith("12 weights live blocks alone")


def test_a_start_that_is_gone_is_named(runs, capsys, monkeypatch):
    run = read_run(str(runs / "dense-seed1"))
    monkeypatch.setattr(type(run), "parent", property(lambda self: "runs/gone"))
    assert finetuned.draw_histograms([Group("one", [run])]) == []
    assert "dense-seed1 began from runs/gone, which is not there" in capsys.readouterr().err


def test_time_and_flops_of_steps_between_records_count(runs):
    """Against every step's own seconds, of a run that logs each fifth step and validates each third."""
    seconds = np.random.default_rng(0).uniform(0.5, 2, 15)
    train = [{"step": s, "tokens": 100 * s, "flops": 1000 * s, "loss": 1.0} for s in (5, 10, 15)]
    timing = [{"step": s, "kind": "train", "seconds": seconds[s - 5 : s].mean(), "waiting": 0.1} for s in (5, 10, 15)]
    timing += [{"step": s, "kind": "validation", "seconds": 7.0} for s in (3, 6, 9, 12, 15)]
    validation = [{"step": s, "loss": 2.0} for s in (3, 6, 9, 12, 15)]
    run = read_run(str(runs / "dense-seed1"))
    run = results.Result("x", run.config, train, validation, [], sorted(timing, key=lambda t: t["step"]), [])
    assert run.at(15)["seconds"] == pytest.approx(seconds.sum() + 5 * 7)
    assert run.at(10)["seconds"] == pytest.approx(seconds[:10].sum() + 3 * 7)
    assert run.at(6)["seconds"] == pytest.approx(seconds[:5].sum() + seconds[5:10].mean() + 2 * 7)
    group = Group("x", [run])
    assert [(r[1], r[2], r[4]) for r in curves.points([group])] == [(s, 1000 * s, 100 * s) for s in (3, 6, 9, 12, 15)]
    (row,) = cost.draw_time([group]).rows
    assert row[1:] == pytest.approx((seconds.sum() - 1.5, 1.5, 35))
    assert "seconds" in run.at(16) and "tokens" not in run.at(16)


class Counted(list):
    """A list that counts how often it is read through."""

    def __init__(self, values):
        super().__init__(values)
        self.reads = 0

    def __iter__(self):
        self.reads += 1
        return super().__iter__()


TIMES = st.lists(st.tuples(st.integers(1, 40), st.floats(0.1, 9)), max_size=9, unique_by=lambda x: x[0])


@given(TIMES, TIMES, st.lists(st.integers(0, 45)))
def test_what_was_spent_by_a_step_is_that_of_adding_up_its_records(trained, others, steps):
    """With each log read through once, whatever number of steps and keys is asked for."""
    timing = [{"step": s, "kind": k, "seconds": x}
              for k, found in (("train", trained), ("validation", others)) for s, x in sorted(found)]  # fmt: skip
    train = [{"step": s, "loss": 1.0, "tokens": 10 * s} for s, _ in sorted(trained)]
    run = results.Result("x", cast(Config, None), Counted(train), [], [], Counted(timing), [])
    of_step, last = [0.0], 0
    for s, x in sorted(trained):
        of_step += [x] * (s - last)
        last = s
    for step in steps:
        found = run.at(step)
        spent = sum(of_step[: step + 1]) + sum(x for s, x in others if s <= step)
        assert found["seconds"] == pytest.approx(spent)
        assert found.get("tokens") == (pytest.approx(10 * step) if step <= last and trained else None)
    assert run.train.reads <= 1 and run.timing.reads <= 2


def test_a_report_reads_the_masks_of_an_end_once(runs, tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(results, "masks", lambda path, of=results.masks: read.append(path) or of(path))
    report_runs([str(runs / "s75-seed1"), str(runs / "dense-seed1")], str(tmp_path / "r.html"))
    assert sorted(read) == sorted({*read})


def test_a_records_seconds_are_those_of_all_steps_since_the_one_before(data, tmp_path, monkeypatch):
    """Of steps that each read the clock: one that is logged stands for those that are not."""
    config = tiny_config(data, tmp_path, logging={"log_steps": 4}, loop={"max_steps": 12})
    took = []

    def slow(batches):
        for number, batch in enumerate(batches):
            took.append(0.03 if number % 4 == 1 else 0.0)  # never in a step that is logged
            time.sleep(took[-1])
            yield batch

    monkeypatch.setattr(Local, "batches", lambda self, *a, of=Local.batches: slow(of(self, *a)))
    pretrain.train(config, Options(target="CPU", model_dir=str(tmp_path)), evaluate=False)
    records = [json.loads(x) for x in (tmp_path / "timing.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records] == [4, 8, 12] and sum(took) >= 0.09
    assert all(0.03 <= 4 * r["waiting"] < 4 * r["seconds"] for r in records)
    assert all(r["tokens_per_second"] == pytest.approx(48 / r["seconds"]) for r in records)


def test_a_group_keeps_its_losses_where_a_run_has_none_yet(runs):
    first, second = (read_run(str(runs / f"dense-seed{s}")) for s in (1, 2))
    second.validation = [r for r in second.validation if r["step"] < 12]
    third = results.Result("x", first.config, [], [], [], [], [])
    (row,) = curves.draw_final_losses([Group("dense", [first, second, third])]).rows
    ends = [next(r["loss"] for r in run.validation if r["step"] == 8) for run in (first, second)]
    assert row[1] == pytest.approx(np.mean(ends)) and row[4] == 2 and row[-1] == 8


def test_targets_are_those_of_the_checkpoint_whose_masks_are_shown(data, tmp_path):
    """Of a run that went on after its last checkpoint, while its schedule went on too."""
    gmp = {"algorithm": "gmp", "sparsity": {"type": "cubic", "final": 0.75, "end": 12}, "update": {"freq": 1}}
    config = tiny_config(data, tmp_path / "gmp", sparsity=gmp)
    pretrain.train(config, Options(target="CPU", model_dir=str(tmp_path / "gmp")), evaluate=False)
    shutil.rmtree(tmp_path / "gmp" / "checkpoints" / "step_12")
    panel = layers.draw_by_layer(group_runs([read_run(str(tmp_path / "gmp"))]))
    assert all(0 < target < 0.74 and target == pytest.approx(actual) for *_, target, actual in panel.rows)


def test_a_speed_of_one_run_against_one_has_no_range(runs):
    pair = group_runs([read_run(str(runs / n)) for n in ("dense-seed1", "s75-seed1")])
    cells = {r[0]: r[5] for r in cost.tabulate_savings(pair).rows}
    assert cells["s75"].endswith("x dense, one run each")


def test_a_seed_that_is_there_twice_is_noted(runs, tmp_path, capsys):
    shutil.copytree(runs / "dense-seed1", tmp_path / "copy-seed1")
    for others, noted in (([str(tmp_path / "copy-seed1")], True), ([str(runs / "dense-seed2")], False)):
        report_runs([str(runs / "dense-seed1"), *others], str(tmp_path / "r.html"))
        assert ("seed 1 is there more than once" in capsys.readouterr().err) is noted

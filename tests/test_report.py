"""The report: what it shows equals what the run logged, once, and it needs nothing from outside."""

import json
import math
import re
import runpy
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from data_prep.cli import InputError
from pretrain.formatting import counted, duration, two_digits
from pretrain.report.command import ReportConfig, main
from pretrain.report.drawing import running_mean
from pretrain.report.history import History, read_all
from pretrain.report.page_text import as_text
from tests.metrics import event, held_out, run_folder, train
from tests.stores import random_documents, store_of

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """What a browser would make of a page: ids, tables, texts of what has an id, numbers of the charts."""

    def __init__(self, path):
        super().__init__()
        self.open: list[tuple[str, str | None]] = []
        self.ids: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.inside: dict[str, str] = {}
        self.source = path.read_text()
        self.feed(self.source)
        assert not self.open, f"not closed: {self.open}"
        data = self.inside["data"]
        self.charts = json.loads(data, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append((tag, dict(attributes).get("id")))
        if "id" in dict(attributes):
            self.ids.append(dict(attributes)["id"])
        if tag == "tr":
            self.rows_of_this_table().append([])
        elif tag in ("td", "th"):
            self.rows_of_this_table()[-1].append("")

    def handle_endtag(self, tag):
        assert self.open[-1][0] == tag, f"{self.open[-1]} closed by {tag}"
        self.open.pop()

    def handle_data(self, data):
        for _, name in self.open:
            if name:
                self.inside[name] = self.inside.get(name, "") + data
        if any(tag in ("td", "th") for tag, _ in self.open):
            self.rows_of_this_table()[-1][-1] += data.strip()

    def rows_of_this_table(self):
        name = next(str(name) for tag, name in reversed(self.open) if tag == "table")
        return self.tables.setdefault(name, [])

    def series(self, chart, label=""):
        found = [line for line in self.charts[chart]["series"] if line["label"] == label]
        assert len(found) == 1, [line["label"] for line in self.charts[chart]["series"]]
        return found[0]


def report(out, *runs, **options):
    main(ReportConfig(tuple(runs), out, **options))
    return Page(out / "index.html")


LINES = [
    event(3, "skip", loss_scale=1024.0), event(4, "skip", loss_scale=512.0),
    train(10), train(20), event(20, "save", checkpoint="step-0000020"), held_out(20, 7.0),
    train(30), train(40), held_out(40, 6.5), event(40, "save", checkpoint="step-0000040"),
    train(50), held_out(50, 1.0), train(60), event(60, "save", checkpoint="step-0000060"),
    # a crash: the checkpoint of step 60 was not whole, and nothing says so but what follows
    event(40, "resume", checkpoint="step-0000040"), train(50, 15.0, mlm_loss=5.5), held_out(50, 5.4),
    event(50, "phase", number=2, of=3, seq_len=512), event(50, "stop", reason="SIGTERM"),
]  # fmt: skip


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    return run_folder(tmp_path_factory.mktemp("report") / "resumed", LINES)


@pytest.fixture(scope="module")
def page(resumed):
    return report(resumed.parent / "out", resumed)


def test_series_are_what_the_run_logged_and_repeated_steps_are_there_once(page):
    loss = page.series("mlm_loss", "training")
    assert loss["steps"] == [10, 20, 30, 40, 50]
    expected = [train(step)["mlm_loss"] for step in (10, 20, 30, 40)] + [5.5]
    assert loss["values"] == pytest.approx(expected, rel=1e-5)
    assert page.series("mlm_loss", "held out")["steps"] == [20, 40, 50]
    assert page.series("mlm_loss", "held out")["values"] == [7.0, 6.5, 5.4]
    for name in ("lr", "grad_norm", "tokens_per_s", "mfu", "padding_saved"):
        expected = [train(step)[name] for step in (10, 20, 30, 40, 50)]
        assert page.series(name)["values"] == pytest.approx(expected, rel=1e-5)
    for name in ("mlm_acc", "nsp_loss", "nsp_acc"):
        assert page.series(name, "training")["steps"] == [10, 20, 30, 40, 50]


def test_events_are_listed_in_order_and_drawn_where_they_count(page):
    _, *rows = page.tables["events"]
    assert [row[:2] for row in rows] == [
        ["3 \N{EN DASH} 4", "skip × 2"], ["20 \N{EN DASH} 40", "save × 2"], ["60", "save"], ["40", "resume"],
        ["50", "phase"], ["50", "stop"],
    ]  # fmt: skip
    assert "done again" in rows[2][2], "the save of step 60 led nowhere"
    assert "steps 41 to 60, 20 s of work" in rows[3][2]
    assert rows[5][2] == "SIGTERM"
    drawn = re.findall(r"<text[^>]*rotate\(-90[^>]*>([\w, ]+)</text>", page.source)
    assert drawn == ["skip", "resume", "phase, stop"], "what lies at one place shares a label"
    assert rows[4][2] == "2 of 3; seq len 512"


def test_a_run_that_was_killed_before_its_first_checkpoint_says_so_and_an_unknown_mfu_why(tmp_path):
    lost = "20 steps, when the process was killed before its first checkpoint"
    lines = [train(10, mfu=None), train(20, mfu=None), event(0, "restart", lost=lost), train(10, mfu=None)]
    page = report(tmp_path / "out", run_folder(tmp_path / "run", lines, hours=3.0, warmup=0.05, schedule="linear"))
    _, row = page.tables["events"]
    assert row == ["0", "restart", f"lost {lost}; done again steps 1 to 20, 20 s of work"]
    assert "unknown: the machine was busy" in page.source
    assert "warm-up 5% of the time" in page.inside["settings"]


def test_the_header_says_what_ran(page):
    assert "stopped, 50 of 100 steps" in page.source
    assert "64 samples = 2 ranks × 8 × 4 micro-batches" in page.inside["settings"]
    assert "betas 0.9/0.9995" in page.inside["settings"]
    assert "LAMB at 0.001" in page.source
    assert "5.400" in page.source
    assert f"{math.exp(5.4):.0f}" in page.source


def test_the_page_needs_nothing_but_itself(page, resumed):
    assert not re.search(r"https?:|//[\w.]+\.\w+/|<link|<img|@import|\ssrc=|url\((?!#)|fetch\(|import\(", page.source)
    assert len(page.ids) == len(set(page.ids))
    images = {path.stem: path.read_bytes() for path in (resumed.parent / "out").glob("*.png")}
    assert set(images) == set(page.charts)
    assert all(image.startswith(b"\x89PNG") for image in images.values())


def test_what_the_metrics_lack_is_not_there(page):
    assert not set(page.charts) & {"memory", "trust", "trust_by_layer", "by_source"}
    assert "sources" not in page.tables


@pytest.mark.slow
def test_trust_memory_and_sources_are_shown_where_there(tmp_path):
    lines = []
    for step in (10, 20):
        by_layer = {f"layer.{number}": 0.1 * (number + 1) for number in range(8)}
        ratios = {"min": 0.01, "median": step / 100, "max": 2.0}
        lines += [train(step, memory_gb=1.5), {"kind": "trust", "step": step, "ratios": ratios, "by_layer": by_layer}]
        sources = {"wiki": {"mlm_loss": 60 / step, "mlm_acc": 0.5}, "a$b$<b>": {"mlm_loss": 80 / step}}
        lines += [held_out(step), {"kind": "eval", "step": step, "by_source": sources}]
    page = report(tmp_path / "out", run_folder(tmp_path / "run", lines))
    assert page.series("trust", "median")["values"] == [0.1, 0.2]
    assert page.series("trust_by_layer", "7")["values"] == pytest.approx([0.8, 0.8])
    assert page.series("memory")["values"] == [1.5, 1.5]
    assert page.series("by_source", "wiki")["values"] == [6.0, 3.0]
    assert page.series("mlm_loss", "held out")["values"] == [6.0, 6.0], "both lines of an evaluation count"
    assert [row[:2] for row in page.tables["sources"][1:]] == [["wiki", "3.000"], ["a$b$<b>", "4.000"]]


@pytest.mark.slow
def test_two_runs_are_laid_over_each_other_and_compared(tmp_path, capsys):
    sources = [{"wiki": {"mlm_loss": loss}} for loss in (2.0, 5.0)]
    good = run_folder(tmp_path / "a/run", [train(10), train(20), held_out(20, 3.0, by_source=sources[0])], steps=20)
    lines = [train(10), train(20, mfu=0.5), held_out(20, 4.0, by_source=sources[1])]
    bad = run_folder(tmp_path / "b/run", lines, steps=30, seed=1)
    page = report(tmp_path / "out", good, bad, by="tokens", json=True)
    assert page.series("mlm_loss", "a/run, held out")["values"] == [3.0]
    assert page.series("mlm_loss", "b/run, held out")["values"] == [4.0]
    assert page.series("lr", "a/run")["x"] == [10_000, 20_000]
    rows = {name: cells for name, *cells in page.tables["results"]}
    assert rows[""] == ["a/run", "b/run"]
    assert rows["Masked-word loss"] == ["3.000", "4.000"]
    assert rows["Loss on wiki"] == ["2.000", "5.000"]
    assert re.findall(r'<td class="best">(.*?)</td>', page.source)[0] == "3.000"
    settings = [row for row in page.tables["settings"] if row[0]]
    assert settings[:2] == [["Steps", "20", "30"], ["Seed", "0", "1"]], "differences come first"
    result = json.loads(capsys.readouterr().out)
    assert [run["mlm_loss"] for run in result["runs"]] == [3.0, 4.0]
    assert [run["status"] for run in result["runs"]] == ["finished", "failed"]
    assert "mlm_loss.png" in result["images"]


def test_a_line_cut_short_is_left_out_and_said_and_the_one_glued_to_it_is_saved(tmp_path):
    cut = json.dumps(train(30))[:40]
    glued = cut + json.dumps(event(20, "resume", checkpoint="step-0000020"))
    folder = run_folder(tmp_path / "run", [train(10), train(20), glued, train(30, 5.0), cut], ending="")
    history = History.read(folder)
    assert [line["step"] for line in history.train] == [10, 20, 30]
    assert [happened.name for happened in history.events] == ["resume"]
    assert len(history.notes) == 2
    assert "last line" in " ".join(history.notes)
    assert (history.clock, history.lost_seconds) == (25.0, 0.0)


def test_the_later_line_wins_also_where_no_event_says_why(tmp_path):
    lines = [train(10), train(20), train(30), train(20, 4.0, mlm_loss=1.0)]
    history = History.read(run_folder(tmp_path / "run", lines))
    steps, losses = history.series("train", "mlm_loss")
    assert steps.tolist() == [10, 20]
    assert losses[-1] == 1.0
    assert (history.clock, history.lost_seconds) == (34.0, 20.0)
    assert history.along("hours", steps) == pytest.approx([10 / 3600, 34 / 3600])


def test_numbers_that_are_none_leave_a_gap(tmp_path):
    lines = [train(10), train(20, mlm_loss=math.nan, grad_norm=math.inf), held_out(20, math.nan)]
    folder = run_folder(tmp_path / "run", lines, objective="mlm")
    page = report(tmp_path / "out", folder)
    assert page.series("mlm_loss", "training")["steps"] == [10]
    assert "nsp_loss" not in page.charts, "an objective that the run did not have"
    json.dumps(History.read(folder).summary(), allow_nan=False)


@pytest.mark.slow
def test_an_evaluation_without_a_loss_and_sources_of_loss_0_are_read(tmp_path):
    sources = {"\u65e5\u672c": {"mlm_loss": 0.0}, "b": {"mlm_loss": None}}
    lines = [train(10), held_out(10, 2.0), train(20), held_out(20, 3.0) | {"mlm_loss": None, "by_source": sources}]
    folder = run_folder(tmp_path / "run", lines)
    report(tmp_path / "out", folder)
    assert History.read(folder).summary()["mlm_loss"] == 2.0


def test_the_unigram_entropy_is_that_of_the_store_and_of_no_other(tmp_path):
    store = store_of(tmp_path / "store", random_documents(30))
    folder = run_folder(tmp_path / "run", [train(10)], data=[str(store.folder)])
    config = json.loads((folder / "config.json").read_text())
    for identity in (store.identity, "another"):
        config["stores"] = [{"folder": str(store.folder), "identity": identity}]
        (folder / "config.json").write_text(json.dumps(config))
        tokens = np.concatenate([shard.tokens for shard in store.shards]).tolist()
        share = [tokens.count(token) / len(tokens) for token in set(tokens)]
        expected = -sum(p * math.log(p) for p in share) if identity == store.identity else None
        assert History.read(folder).unigram_entropy == (expected and pytest.approx(expected))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: (run / "metrics.jsonl").unlink(), "not begun"),
        (lambda run: (run / "metrics.jsonl").write_text(""), "no training step yet"),
        (lambda run: [(run / name).unlink() for name in ("config.json", "metrics.jsonl")], "not a run folder"),
        (lambda run: run.rename(run.with_name("gone")), "does not exist"),
        (lambda run: (run.parent / "out").write_text(""), "is a file"),
        (lambda run: (run.parent / "out").symlink_to(run), "is a run folder"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_written(tmp_path, damage, message):
    folder = run_folder(tmp_path / "run", [train(10)])
    damage(folder)
    with pytest.raises(InputError, match=message):
        report(tmp_path / "out", folder)
    assert not list(tmp_path.rglob("*.png"))


def test_a_run_named_twice_is_refused(tmp_path):
    folder = run_folder(tmp_path / "run", [train(10)])
    with pytest.raises(InputError, match="twice"):
        read_all((folder, Path(f"{folder}/../run")))


@pytest.mark.parametrize(("name", "code", "said"), [("resumed", 0, "out/index.html\n"), ("nowhere", 2, "")])
@pytest.mark.slow
def test_the_command(resumed, tmp_path, monkeypatch, capsys, name, code, said):
    monkeypatch.setattr(sys, "argv", ["report", str(resumed.with_name(name)), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("pretrain.report", run_name="__main__")
    assert ended.value.code == code
    assert capsys.readouterr().out.endswith(said)


def test_a_running_mean_keeps_lines_straight():
    assert running_mean(np.arange(200.0)) == pytest.approx(np.arange(200.0))
    assert running_mean(np.tile([0.0, 1.0], 100))[50:150] == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (counted(999.7), "1k"), (counted(12_345), "12.3k"), (counted(5_529_090), "5.53M"), (counted(0), "0"),
        (as_text(0.62, "share"), "62.0%"), (as_text(1.0, "share"), "100%"), (as_text(2.5, "nats"), "2.500"),
        (as_text(7.5e-4, "plain"), "7.5e-4"), (as_text(None, "nats"), "\N{EN DASH}"),
        (duration(12), "12 s"), (duration(200), "3 min 20 s"), (duration(3900), "1 h 05 min"),
        (duration(97200), "1 d 3 h"), (two_digits(123.4), "120"), (two_digits(0.0444), "0.044"),
    ],
)  # fmt: skip
def test_numbers_in_words(text, expected):
    assert text == expected

"""A run folder whose config.json or metrics.jsonl is damaged is exported and looked at all the same, and it is said."""

import json
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_prep.cli import InputError
from data_prep.fields import read_fields, write_sealed
from data_prep.tokens.tokenizer_folder import tokenizer_sha256
from data_prep.tokens.wordpiece import write_tokenizer
from pretrain.checkpoints.format import record_under
from pretrain.checkpoints.verify import verify_checkpoint
from pretrain.export import sources
from pretrain.export.command import ExportConfig
from pretrain.export.command import main as export
from pretrain.monitor.lines import read_lines
from pretrain.report.command import ReportConfig
from pretrain.report.command import main as report
from pretrain.report.history import History
from tests.checkpoints import RECORD, checkpoint_of
from tests.damage import MANIFESTS, MASKS, sweep
from tests.metrics import event, held_out, train
from tests.stores import entries_of

LINES = [
    train(1), train(2), train(3), held_out(3, 4.5, perplexity=90.0), train(4), train(5), train(6),
    held_out(6, 3.25, perplexity=25.8, mlm_acc=0.375), event(6, "save", checkpoint="step-0000006"),
]  # fmt: skip


@pytest.fixture
def run(tmp_path) -> Path:
    """A finished run of a tiny model; its held-out loss is 3.25."""
    folder = tmp_path / "runs" / "small"
    (folder / "vocab").mkdir(parents=True)
    write_tokenizer(folder / "vocab", entries_of(8), cased=False)
    checkpoint_of(folder, 6, tokenizer_sha256(folder / "vocab"))
    write_sealed(folder / "config.json", RECORD)
    write_metrics(folder, LINES)
    return folder


def write_metrics(folder: Path, lines: list[Any], end: str = "\n") -> None:
    (folder / "metrics.jsonl").write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines) + end)


def card_of(run: Path, out: Path) -> str:
    export(ExportConfig(run, out))
    return (out / "README.md").read_text()


def test_a_whole_run_has_the_whole_card(run, tmp_path):
    card = card_of(run, tmp_path / "hf")
    assert "6 steps of 8 samples of 8 tokens" in card
    assert "MLM loss 3.250 nats (perplexity 25.8), accuracy 0.375, pair accuracy 0.700." in card


def cut(path: Path, share: float) -> None:
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


CONFIGS = [b"", b'{"train": {"model": "bert-ti', *MANIFESTS[1:10], b'{"train": 3}', b'{"train": {"data": 3}}']


@pytest.mark.parametrize("content", CONFIGS, ids=range(len(CONFIGS)))
def test_a_damaged_config_does_not_stop_export_or_report(run, tmp_path, capsys, content):
    (run / "config.json").write_bytes(content)
    found = sources.find_source(run, None, None)
    assert found.title == "small"
    assert "6 steps. The settings of the run are not known any more." in found.story
    assert found.record["deepspeed"]["train_batch_size"] == 8
    assert f"{run / 'config.json'}" in capsys.readouterr().err
    history = History.read(run)
    assert history.train[-1]["step"] == 6
    assert any("config.json" in note for note in history.notes)


def test_export_and_report_of_a_run_without_a_whole_config(run, tmp_path, capsys):
    cut(run / "config.json", 0.5)
    assert "bert-tiny" not in card_of(run, tmp_path / "hf")
    report(ReportConfig((run,), tmp_path / "page"))
    assert "config.json is damaged" in (tmp_path / "page/index.html").read_text()


def test_a_flipped_byte_of_a_config_is_never_taken_for_another_content(run):
    """But for the name of its checksum, without which it is one of an older version, with the same settings."""

    def settings() -> dict[str, Any]:
        content = read_fields(run / "config.json", "").content
        return {name: content[name] for name in RECORD}

    counts = sweep(run / "config.json", settings)
    assert counts["refused"] > 4 * counts["the same"]


def test_a_flipped_byte_of_a_config_without_checksum_stops_nothing(run):
    path = run / "config.json"
    path.write_text(json.dumps(RECORD))
    folder = run / "checkpoints/step-0000006"
    whole, manifest = path.read_bytes(), verify_checkpoint(folder)
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ MASKS[place % 3]]) + whole[place + 1 :])
        assert History.read(run).summary()["step"] == 6
        assert sources.describe_run(run, manifest, record_under(folder, manifest))[3]["deepspeed"]


@pytest.mark.parametrize(
    "end", ["", '\n{"kind": "train", "st', '\n{"kind": "eval", "step": 6, "mlm_loss": 9', "\n\x00"]
)
def test_a_cut_last_line_of_metrics_stops_nothing(run, tmp_path, capsys, end):
    write_metrics(run, LINES, end)
    evaluation = sources.find_source(run, None, None).evaluation
    assert evaluation is not None
    assert evaluation["mlm_acc"] == 0.375
    assert ("cut short or damaged" in capsys.readouterr().err) == bool(end)
    assert History.read(run).train[-1]["step"] == 6


def test_of_a_damaged_evaluation_the_checkpoint_knows_the_loss(run, tmp_path, capsys):
    """The one before, of step 3, would be another model's."""
    write_metrics(run, [*LINES[:7], json.dumps(LINES[7])[:40], LINES[8]])
    card = card_of(run, tmp_path / "hf")
    assert "MLM loss 3.250 nats (perplexity 25.8)." in card
    assert "accuracy" not in card
    assert "1 lines of" in capsys.readouterr().err


def test_without_metrics_the_checkpoint_knows_the_loss(run, tmp_path):
    (run / "metrics.jsonl").unlink()
    assert "MLM loss 3.250 nats (perplexity 25.8)." in card_of(run, tmp_path / "hf")


ODD = [
    '{"kind": "train", "step": "7"}', '{"kind": "train", "step": -1, "mlm_loss": 1, "tokens": 1}', "[]", "null", "7",
    '{"kind": []}', '{"kind": "train", "step": 7}', '{"kind": "eval", "step": 7, "mlm_loss": "low"}', "\x00" * 20,
    '{"kind": "eval", "step": 7, "by_source": []}', '{"kind": "event", "step": 7}',
    '{"kind": "trust", "step": 7, "ratios": 3}',
    '{"kind": "train", "step": 1e99, "mlm_loss": 1, "tokens": 1}', "[" * 99_999, '{"kind": "train", "step": true}',
    '{"kind": "train", "step": 7, "mlm_loss": ' + "9" * 400 + ', "tokens": 1}',
]  # fmt: skip


@pytest.mark.parametrize("line", ODD, ids=range(len(ODD)))
def test_an_odd_line_in_the_middle_is_left_out_and_counted(run, line):
    write_metrics(run, [*LINES[:5], line, *LINES[5:]])
    history = History.read(run)
    assert [found["step"] for found in history.train] == [1, 2, 3, 4, 5, 6]
    assert any("1 line of metrics.jsonl" in note for note in history.notes)
    evaluation = sources.find_source(run, None, None).evaluation
    assert evaluation is not None
    assert evaluation["mlm_acc"] == 0.375


def test_a_flipped_byte_of_metrics_stops_nothing(run):
    path = run / "metrics.jsonl"
    write_metrics(run, LINES[5:])
    folder = run / "checkpoints/step-0000006"
    whole, manifest = path.read_bytes(), verify_checkpoint(folder)
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ MASKS[place % 3]]) + whole[place + 1 :])
        with suppress(InputError):  # of one line of training nothing may be left
            History.read(run).summary()
        evaluation = sources.last_evaluation(run, manifest)
        assert evaluation is not None
        assert evaluation["mlm_loss"] == 3.25


def test_an_evaluation_that_a_resume_took_back_is_not_on_the_card(run, tmp_path):
    """Step 6 was evaluated, lost, and done again without an evaluation: the checkpoint does not say one."""
    lines = [*LINES[:4], held_out(5, 2.0, perplexity=7.4), event(3, "resume", checkpoint="step-0000003"), train(6)]
    write_metrics(run, lines)
    manifest = replace(verify_checkpoint(run / "checkpoints/step-0000006"), held_out_loss=None)
    evaluation = sources.last_evaluation(run, manifest)
    assert evaluation is not None
    assert evaluation["mlm_loss"] == 4.5


NAMES = ["$\\frac$", "$x", "_hidden", "a\x1b[31mb", "\udcff", "<b>&amp;", "x" * 300, "\n", "中文"]


@pytest.mark.slow
def test_names_are_text_in_charts(run, tmp_path):
    scores = {name: {"mlm_loss": 2.0 + row, "samples": 3} for row, name in enumerate(NAMES)}
    write_metrics(run, [*LINES[:8], held_out(6, 3.25, perplexity=25.8, by_source=scores), LINES[8]])
    report(ReportConfig((run,), tmp_path / "page"))
    assert "$\\frac$" in (tmp_path / "page/index.html").read_text()


@pytest.mark.parametrize(
    "beat", ["[]", "{}", '{"heartbeat": "now"}', '{"heartbeat": 1e300}', "\xff", '{"heartbeat": NaN}']
)
def test_an_odd_lock_says_nothing_about_a_run(run, beat):
    write_metrics(run, LINES[:5])
    (run / "lock.json").write_bytes(beat.encode("latin-1"))
    assert History.read(run).status == "failed"
    (run / "lock.json").write_text(json.dumps({"heartbeat": time.time()}))
    assert History.read(run).status == "running"


def test_very_many_lines_are_thinned_and_nothing_else_is_lost(tmp_path):
    """Events, evaluations, and the lines beside them stay."""
    lines: list[Any] = []
    for step in range(1, 30_001):
        lines.append(train(step))
        if step % 1000 == 0:
            lines.append(held_out(step))
    lines.insert(20_000, event(19_000, "resume", checkpoint="step"))
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    found = read_lines(tmp_path / "metrics.jsonl", most=500)
    steps = [line["step"] for line in found.lines if line["kind"] == "train"]
    assert (found.every, found.damaged, found.is_cut) == (60, 0, False)
    assert 500 <= len(steps) < 600
    assert (steps[0], steps[-1]) == (1, 30_000)
    assert sum(line["kind"] == "eval" for line in found.lines) == 30
    assert [line["event"] for line in found.lines if line["kind"] == "event"] == ["resume"]
    assert len(read_lines(tmp_path / "metrics.jsonl", most=50_000).lines) == len(lines)


def test_what_is_no_run_is_still_refused(tmp_path):
    with pytest.raises(InputError, match="is not a run folder"):
        History.read(tmp_path)

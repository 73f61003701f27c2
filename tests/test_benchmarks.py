"""The benchmarks run and say what they promise; their figures are for an idle machine to find."""

import dataclasses
import json
import subprocess
from pathlib import Path
from types import ModuleType

import pytest
from transformers import BertForMaskedLM

from benchmarks import (
    fine_tuning,
    finetune_speed,
    loader_scale,
    plot,
    run_mlm,
    scale,
    score_throughput,
    trainer_overhead,
    vocab_speed,
)
from benchmarks.held_out_loss import held_out_score
from data_prep.cli import ROOT, InputError, parse
from data_prep.store import Store
from pretrain import data
from pretrain.finetune.config import FinetuneConfig
from tests.stores import random_documents, store_of
from tests.tiny_hf import tiny_bert

HARDWARE = {"hardware": {"cpu": "a CPU", "cores": 2}}


def step_time(ratio: float, **changes) -> dict:
    settings = {"layers": 4, "hidden": 256, "seq_len": 128}
    figures = {"ours_tokens_per_s": 30, "theirs_tokens_per_s": 10, "ours_mfu": 0.6, "theirs_mfu": 0.2}
    return {"name": "step_time", "figures": figures, "ratio": ratio, "settings": settings} | HARDWARE | changes


def test_the_newest_result_of_a_claim_is_drawn(tmp_path):
    (tmp_path / "2026-01-02-b.jsonl").write_text(json.dumps(step_time(3.0)) + "\n")
    (tmp_path / "2026-01-01-a.jsonl").write_text(json.dumps(step_time(2.0)) + "\n")
    gpu = step_time(9.0, hardware={"gpu": "NVIDIA H100", "cores": 2})
    (tmp_path / "2026-01-03-c.json").write_text(json.dumps(gpu))
    bars = plot.newest([bar for result in plot.read(tmp_path) for bar in plot.RATIOS["step_time"](result)])
    assert [(bar.label.endswith("H100"), bar.value, bar.floor) for bar in bars] == [
        (False, 3.0, 2.8),
        (True, 9.0, None),
    ]
    plot.main(plot.PlotConfig(tmp_path, tmp_path / "speed.png"))
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")


def test_every_result_of_the_project_is_read_and_drawn(tmp_path):
    plot.main(plot.PlotConfig(out=tmp_path / "speed.png"))
    assert (tmp_path / "speed.png").stat().st_size > 10_000


def test_a_damaged_result_is_named(tmp_path):
    (tmp_path / "x.json").write_text('{"name": ')
    with pytest.raises(InputError, match=r"x\.json"):
        plot.main(plot.PlotConfig(tmp_path, tmp_path / "speed.png"))
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(InputError, match="no result"):
        plot.main(plot.PlotConfig(tmp_path, tmp_path / "speed.png"))


def line_of(benchmark: ModuleType, capsys: pytest.CaptureFixture, *arguments: str) -> dict:
    """The line that a benchmark prints; in this process, which has imported what takes ten seconds to import."""
    benchmark.main(parse(benchmark.BenchmarkConfig, None, list(arguments)))
    (line,) = capsys.readouterr().out.splitlines()
    return json.loads(line)


@pytest.mark.slow
def test_all_that_a_gpu_is_asked_runs_on_a_cpu(tmp_path):
    command = ["bash", "benchmarks/gpu.sh", str(tmp_path), "--tiny"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    found = {line["name"]: line for line in lines}
    assert list(found) == ["versions", "step_time", "optimizer_step", "killed_run", "step_memory"]
    assert found["step_time"]["ratio"] > 1

    # The run that was killed made its steps again, from a checkpoint before, to the same losses.
    run = found["killed_run"]["figures"]
    assert run["loss_again"] == run["loss_before"] != []

    memory = found["step_memory"]
    ours, checkpointed, theirs = (memory["figures"][f"{side}_mb"] for side in ("ours", "ours_checkpointed", "theirs"))
    assert 0 < checkpointed < ours < theirs
    assert memory["ratio"] == pytest.approx(theirs / ours, rel=0.02)


@pytest.mark.slow
def test_trainer_overhead_tells_all_its_figures(capsys):
    options = "--model bert-tiny --steps 20 --seq_len 32 --global_batch 8 --micro_batch 4 --documents 60".split()
    found = line_of(trainer_overhead, capsys, *options)
    figures = found["figures"]
    assert list(figures) == [
        *("bare_tokens_per_s", "trainer_tokens_per_s", "two_ranks_tokens_per_s", "evaluation_s", "saving_s", "step_s"),
        *("loader_wait_share", "loader_cpu_share", "two_ranks_ratio"),
    ]
    assert min(found["ratio"], found["ratio_cpu"], *figures.values()) >= 0
    assert 0 < figures["loader_cpu_share"] < 1
    assert figures["loader_wait_share"] < 1
    # What evaluation and saving take is charged to the speed of one rank, and not in the ratio.
    assert figures["two_ranks_tokens_per_s"] / figures["trainer_tokens_per_s"] > figures["two_ranks_ratio"] - 0.01
    assert found["settings"]["documents"] == "60"


@pytest.mark.slow
def test_score_throughput_finds_the_same_in_three_ways(capsys):
    found = line_of(
        score_throughput, capsys, *"--layers 2 --hidden 64 --vocab_size 300 --sentences 5 --rounds 1".split()
    )
    assert found["figures"]["largest_difference"] < 1e-4
    assert found["ratio"] > 0


@pytest.mark.slow
def test_finetune_speed_trains_on_all_sides(capsys):
    found = line_of(finetune_speed, capsys, *"--layers 1 --hidden 64 --examples 24 --batch_size 8 --rounds 1".split())
    assert found["settings"]["examples"] == 24
    assert found["mean_tokens"] < 40  # padding stays on the side that pads
    assert all(speed > 0 for speed in found["figures"].values())
    assert found["ratio"] > 0


def test_loader_scale_plays_one_rank_of_many(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(data, "MANY_RANKS", data.MANY_RANKS)  # both are put back
    monkeypatch.setenv("ZEROBERT_CACHE", str(tmp_path))
    store_of(tmp_path / "store", random_documents(120))
    options = "--world 16 --ranks_per_node 2 --global_batch 32 --micro_batch 2 --seq_len 32 --steps 4".split()
    found = line_of(loader_scale, capsys, "--store", str(tmp_path / "store"), *options)
    assert min(found["own_samples_ms"], found["all_samples_ms"]) > 0


@pytest.mark.slow
def test_scale_counts_what_the_formulas_say(capsys):
    (row,) = line_of(scale, capsys, *"--ranks 2 --zero 2".split())["rows"]
    assert (row["zero"], row["ranks"]) == (2, 2)
    assert row["wire_bytes"] == pytest.approx(row["wire_formula"], rel=0.01)
    assert row["state_bytes"] == pytest.approx(row["state_formula"], rel=0.001)


@pytest.mark.slow
def test_vocab_speed_makes_one_vocabulary_with_any_number_of_workers(tmp_path, capsys):
    texts = [{"text": 20 * f"the {number}th of many words, said {number % 7} times. "} for number in range(999)]
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, texts)))
    options = "--size 300 --rounds 1 --baseline no".split()
    found = line_of(vocab_speed, capsys, "--corpus", str(tmp_path / "texts.jsonl"), *options)
    assert found["same_bytes"]
    assert min(found["read_mb_s"], found["workers_1"]["mb_s"], found["workers_2"]["mb_s"]) > 0


def test_differences_are_taken_seed_by_seed():
    # Of three pairs: mean .2, deviation .1; Student's t of two degrees of freedom is 4.3027 at 97.5 %.
    mean, half = fine_tuning.paired([0.5, 0.7, 0.9], [0.4, 0.5, 0.6])
    assert mean == pytest.approx(0.2)
    assert half == pytest.approx(4.302653 * 0.1 / 3**0.5)


def test_the_peer_learns_from_every_document_but_the_held_out(tmp_path):
    documents = [[[7, 8], [9]], [[10]], [[11, 12, 13], [14]]]
    store_of(tmp_path / "store", documents, held_out={1})
    store = Store.open(tmp_path / "store")
    cls, sep = store.special_ids["cls"], store.special_ids["sep"]
    assert run_mlm.training_tokens(store).tolist() == [cls, 7, 8, 9, sep, cls, 11, 12, 13, 14, sep]


@pytest.mark.parametrize("name", fine_tuning.TASKS)
def test_what_a_task_is_told_is_a_command_line_of_fine_tuning(name, tmp_path):
    task = fine_tuning.TASKS[name]
    for part in ("train", "dev"):
        file = tmp_path / task.folder / task.files.format(part)
        file.parent.mkdir(exist_ok=True)
        file.write_text("{}\n" if file.suffix == ".jsonl" else "text\tlabel\n")
    config = fine_tuning.BenchmarkConfig(hf_of(tmp_path), tmp_path, tmp_path / "out", lr=1e-3)
    told = parse(FinetuneConfig, None, [str(config.hf), *fine_tuning.options_of(config, name), "--out", "x"])
    assert (told.task, told.limit, told.epochs, told.lr) == (task.kind, task.limit, task.epochs, 1e-3)
    assert (told.train, told.eval) == (tmp_path / task.folder / task.files.format("train"), file)


def test_a_fine_tuning_that_was_made_otherwise_is_not_taken_for_the_one_asked_for(tmp_path):
    settings = {"task": "classify", "seeds": 5, "epochs": 8, "limit": 1_000, "precision": "fp32", "lr": 3e-4}
    (tmp_path / "results.json").write_text(json.dumps({"settings": settings}))
    config = fine_tuning.BenchmarkConfig(tmp_path, tmp_path, tmp_path)
    assert fine_tuning.fine_tune(config, "sst2_1k", tmp_path) == {"settings": settings}
    for other, word in (
        ({"seeds": 3}, "seeds 5"),
        ({"precision": "bf16"}, "precision fp32"),
        ({"lr": 1e-4}, "lr 0.0003"),
    ):
        with pytest.raises(InputError, match=word):
            fine_tuning.fine_tune(dataclasses.replace(config, **other), "sst2_1k", tmp_path)


def hf_of(folder: Path) -> Path:
    return tiny_bert(folder / "hf", BertForMaskedLM)


def test_the_floor_of_a_translation_is_the_target_of_the_source_that_is_most_alike(tmp_path):
    rows = ["one two three four\tseven eight nine ten", "two five six\tten ten ten ten"]
    for part in ("train", "dev"):
        (tmp_path / f"{part}.tsv").write_text("\n".join(["en\tde", *rows]) + "\n")
        rows = ["one two three\tseven eight nine ten"]
    config = FinetuneConfig(
        hf_of(tmp_path), "seq2seq", tmp_path / "train.tsv", tmp_path / "dev.tsv", tmp_path / "out",
        seq_len=16, max_new_tokens=16,
    )  # fmt: skip
    assert fine_tuning.nearest_target(config) == pytest.approx(100)


@pytest.mark.slow
def test_a_model_of_the_peer_is_asked_what_ours_is(tmp_path, capsys):
    store_of(tmp_path / "store", random_documents(40), held_out={3, 17})
    options = "--steps 12 --layers 1 --hidden 64 --seq_len 32 --batch 4 --held_out_seq_len 32".split()
    trained = line_of(run_mlm, capsys, str(tmp_path / "store"), "--out", str(tmp_path / "peer"), *options)["figures"]
    assert trained["tokens"] == 12 * 4 * 32
    asked = held_out_score(tmp_path / "peer/hf", tmp_path / "store", 32, 2_048, 32)
    assert asked._asdict() == {name: trained[name] for name in asked._fields}
    assert 2 < asked.mlm_loss < 5

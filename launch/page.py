"""The page at the end of `make`: the run's report, and around it what was read, what was chosen, what came out.

write(Path("runs/mine"), record) -> runs/mine/index.html

make.json, store/manifest.json, logs/, run/, fill.json, finetuned/results.json -> make_page.html.jinja, which extends
the page of pretrain.report
"""

import json
import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from markupsafe import Markup, escape

from data_prep.calls import call
from data_prep.files import write_whole
from data_prep.json_types import JsonObject
from data_prep.store import Store
from data_prep.store_manifest import StoreManifest
from launch.cloze import Gap, gaps_of
from launch.make_record import MakeRecord, StageRecord, TaskRecord
from launch.stages import KINDS, SETTINGS, read_settings
from pretrain.advice.tables import SHOWN, in_words
from pretrain.formatting import duration, filled_in
from pretrain.report.charts import charts_of
from pretrain.report.history import History
from pretrain.report.page import page_of

TEMPLATE = Path(__file__).with_name("make_page.html.jinja")
FILES = 500  # in the table
FEW = 0.7  # of the planned steps: worth a word
# [MASK:was], [shown:was] for a random word, [was] for one that stays, as data_prep/show.py prints them.
_ASKED = re.compile(r"\[MASK:([^\]\s]+)\]|\[([^\]\s:]+:[^\]\s]+)\]|\[(?!CLS\]|SEP\]|UNK\])([^\]\s:]+)\]")


def write(out: Path, record: MakeRecord) -> Path:
    """Write the page; where it is.

    Raises
    ------
    InputError: a part of what was made is missing or damaged.
    """
    history = History.read(out / "run", out.resolve().name)
    store = Store.open(out / "store")
    gaps = gaps_of(store, 8)
    page = page_of(
        [history],
        charts_of([history]),
        "step",
        TEMPLATE,
        warnings=[*what_fell_short(out, record), *leaked(record.task), *record.advice.get("warnings", [])],
        **answers_to(gaps, _json(out / "fill.json")),
        score=score_of(_json(out / "finetuned/results.json"), record.task),
        chosen=chosen(record),
        told=what_was_told(out / "logs"),
        **what_was_read(store),
        samples=samples_in(out / "logs/look.log"),
        stages=[(KINDS[name].title, entry.command, time_of(entry)) for name, entry in record.stages.items()],
        next=what_next(out, record),
        where=os.getcwd(),
    )
    write_whole(out / "index.html", [page.encode(errors="replace")])
    return out / "index.html"


def time_of(entry: StageRecord) -> str:
    """Return how long a stage took, and how often it was stopped on the way: "19 min 37 s, interrupted twice"."""
    times = {1: "once", 2: "twice"}.get(entry.interruptions, f"{entry.interruptions} times")
    return duration(entry.seconds) + (f", interrupted {times}" if entry.interruptions else "")


def what_fell_short(out: Path, record: MakeRecord) -> list[str]:
    """Return what came out otherwise than planned: far fewer steps in the hours."""
    planned, hours = record.advice["settings"].get("steps"), record.given.get("hours")
    lines = History.read(out / "run").train
    done = int(lines[-1]["step"]) if lines else 0
    if not hours or hours != record.advice.get("hours") or not planned or done > FEW * planned:
        return []
    return [
        f"{done:,} steps in {hours:g} hours where {planned:,} were planned: other programs took the time, or the "
        "machine is slower than its short probe; more hours go on from here"
    ]


def leaked(task: TaskRecord) -> list[str]:
    """Return the warning of labelled texts that stand in the corpus, too: the score is no measure for other texts."""
    told = task.get("overlap", "")
    return [told.removeprefix("warning: ")] if told else []


def _json(path: Path) -> JsonObject:
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def answers_to(gaps: list[Gap], filled: JsonObject) -> JsonObject:
    """Return the model's words for the gaps."""
    words = {gap.text: gap.word for gap in gaps}
    answers = []
    for answer in filled.get("answers", []):
        word = words.get(answer["text"])
        if word is None or not answer["masks"]:
            continue
        before, _, after = re.split(r"(\[MASK\]|<mask>)", answer["text"], maxsplit=1)
        guesses = [
            {"token": filled_in(before, guess["token"].strip()), "share": f"{100 * guess['probability']:.0f}%"}
            for guess in answer["masks"][0]
        ]
        tokens = [guess["token"] for guess in guesses]
        answers.append(
            {
                "before": before, "after": after, "word": word, "guesses": guesses,
                "is_right": tokens[:1] == [word], "is_among": word in tokens,
            }
        )  # fmt: skip
    return {
        "answers": answers,
        "right": sum(answer["is_right"] for answer in answers),
        "among": sum(answer["is_among"] for answer in answers),
        "is_held_out": all(gap.is_held_out for gap in gaps),
    }


def score_of(results: JsonObject, task: TaskRecord) -> JsonObject:
    """Return the score of the fine-tuned model, and what it must beat."""
    if not results or not task:
        return {}
    spread = f"± {results['ci95']:.3f} (95 %, {len(results['seeds'])} seeds)" if results.get("ci95") else ""
    beside = [("always the commonest label", results.get("majority"))]
    if baseline := results.get("baseline"):
        beside.append((baseline["name"], baseline.get(results["metric"])))
    examples = results.get("examples", {})
    about = (
        f"{task['file']}: {examples.get('train', 0):,} rows to learn from, {examples.get('eval', 0):,} to measure on."
    )
    return {
        "value": f"{results['mean']:.3f}",
        "metric": str(results["metric"]),
        "spread": spread,
        "beside": [(name, f"{value:.3f}") for name, value in beside if isinstance(value, int | float)],
        "advice": results.get("advice", ""),
        "is_below_baseline": float((baseline or {}).get(results["metric"]) or 0) > results["mean"],
        "about": f"{about} {task.get('told', '') if 'held back' in task.get('told', '') else ''}".strip(),
    }


def in_a_line(out: Path, record: MakeRecord) -> str:
    """Return what came out, for a console."""
    took = duration(sum(entry.seconds for entry in record.stages.values()))
    score = score_of(_json(out / "finetuned/results.json"), record.task)
    short = "".join(f" {line[0].upper()}{line[1:]}." for line in what_fell_short(out, record))
    if not score:
        return f"{out / 'hf'} is a model for transformers, made in {took}.{short}"
    beside = "".join(f", {name} {value}" for name, value in score["beside"])
    spread = f" {score['spread']}" if score["spread"] else ""
    what = f"{score['metric']} {score['value']}{spread}{beside}"
    return f"{out / 'hf'} and {out / 'finetuned'}, made in {took}: {what}.{short}"


def chosen(record: MakeRecord) -> list[tuple[str, str, str]]:
    """Return (setting, value, why): the advice's, with what was asked otherwise among them; then what else was
    asked."""
    settings, reasons = record.advice["settings"], record.advice["reasons"]
    by_name: Mapping[str, object] = settings
    told = [name for name in SHOWN if name in settings]
    rows = [(name.replace("_", " "), in_words(by_name[name]), reasons.get(name, "")) for name in told]
    for stage, options in read_settings(record.given["set"]).items():
        rows += [
            (f"{stage} {option}".replace("_", " "), value, "as asked")
            for option, value in options.items()
            if SETTINGS.get((stage, option), option) not in told or stage not in ("vocab", "train")
        ]
    return rows


def what_was_told(logs: Path) -> list[str]:
    """Return what making the store has said of files: left out, read in other encodings, damaged."""
    lines = (logs / "shard.log").read_text("utf-8", "replace").splitlines() if (logs / "shard.log").exists() else []
    marks = ("left out", "encoding", "read as", "damaged", "not UTF-8", "warning")
    begun = max((place for place, line in enumerate(lines) if line.startswith("$ ")), default=0)
    return [line for line in lines[begun + 1 :] if any(mark in line for mark in marks)]


def what_was_read(store: Store) -> JsonObject:
    """Return the store in figures, and its files."""
    manifest, counts = store.manifest, store.manifest.counts
    sources = manifest.sources
    encodings = Counter(source.encoding or "UTF-8" for source in sources)
    read = [
        ("Files", f"{len(sources):,}"),
        ("Size", f"{sum(source.bytes for source in sources) / 1e6:,.1f} MB"),
        ("Encodings", ", ".join(f"{name} ({count:,})" for name, count in encodings.most_common())),
        (
            "Documents",
            f"{counts.documents:,}, of which {counts.held_out_documents:,} are held out for evaluation",
        ),
        ("Sentences", f"{counts.sentences:,}"),
        ("Tokens", f"{counts.tokens:,}"),
        ("Vocabulary", f"{store.vocab_size:,} entries"),
        ("Unknown", f"{counts.unknown / max(counts.tokens, 1):.4%} of the tokens"),
    ]
    read += [(name.replace("_", " ").capitalize(), f"{count:,}") for name, count in _odd(manifest) if count]
    files = [
        {"path": source.path, "bytes": source.bytes,
         "what": ", ".join(filter(None, (source.encoding, source.layout)))}
        for source in sources[:FILES]
    ]  # fmt: skip
    return {"read": read, "files": files, "file_count": len(sources)}


def _odd(manifest: StoreManifest) -> list[tuple[str, int]]:
    """Return what was mended or left out within files, and counted."""
    total: Counter[str] = Counter()
    for found in manifest.irregularities.values():
        total.update(found)
    return total.most_common()


def samples_in(log: Path) -> list[Markup]:
    """Return the samples that the look at the store has printed, with what is hidden marked."""
    if not log.exists():
        return []
    text = log.read_text("utf-8", "replace")
    printed = text.rpartition("\n$ ")[2].partition("\n#")[2]
    return [_marked("#" + sample.strip()) for sample in re.split(r"\n#(?=\d)", printed) if sample.strip()]


def _marked(sample: str) -> Markup:
    parts, last = [], 0
    for found in _ASKED.finditer(sample):
        hidden, wrong, stays = found.groups()
        kind = "" if hidden else ' class="was"'
        parts += [escape(sample[last : found.start()]), Markup(f"<mark{kind}>"), escape(hidden or wrong or stays)]
        parts.append(Markup("</mark>"))
        last = found.end()
    return Markup("").join([*parts, escape(sample[last:])])


def what_next(out: Path, record: MakeRecord) -> list[tuple[str, str]]:
    """Return (what for, the command)."""
    given = record.given
    again = ["--corpus", *given["corpus"], "--out", out]
    rows = [("Ask it for missing words", call("predict", out / "hf", "--fill", "your own [MASK] sentence"))]
    if record.task:
        rows.append(("Ask the fine-tuned model", call("predict", out / "finetuned", "a text of yours")))
    else:
        words = ["--hours", f"{given['hours']:g}"] if given["hours"] else ["--steps", given["steps"]]
        lang = ["--lang", given["lang"]] if given["lang"] else []
        rows.append(
            (
                "Fine-tune it on labelled text of yours (a .csv, .tsv or .jsonl with a text and a label column)",
                call("make", *again, *words, *lang, "--task", "train.csv", *_overrides(given)),
            )
        )
    if given["hours"]:
        lang = ["--lang", given["lang"]] if given["lang"] else []
        task = ["--task", given["task"]] if given["task"] else []
        task += ["--eval", given["eval"]] if given["eval"] else []
        rows.append(
            (
                "Train it for longer: the run goes on",
                call("make", *again, "--hours", f"{2 * given['hours']:g}", *lang, *task, *_overrides(given)),
            )
        )
    rows.append(("Look at more samples", call("show", out / "store", "--samples", 20)))
    rows.append(("The curves as pictures, or beside another run", call("report", out / "run", "--out", out / "report")))
    return rows


def _overrides(given: JsonObject) -> list[str]:
    words = [word for name in ("model", "size") if given[name] for word in (f"--{name}", str(given[name]))]
    words += ["--cased"] if given["cased"] else []
    return words + (["--set", *given["set"]] if given["set"] else [])

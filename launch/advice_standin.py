"""TEMPORARY."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Advice(NamedTuple):
    settings: dict[str, Any]
    commands: list[tuple[str, list[str]]]
    reasons: dict[str, str]
    warnings: list[str]
    found: dict[str, Any]

    def record(self) -> dict[str, Any]:
        return {**self.settings, "commands": self.commands, "reasons": self.reasons, "warnings": self.warnings}


def advise(
    corpus: Sequence[str],
    hours: float,
    *,
    lang: str = "",
    task: Path | None = None,
    gpu: str = "",
    ranks: int = 0,
    tokens: float = 0,
    price: float = 0,
    out: Path = Path("runs/mine"),
) -> Advice:
    o = str(out)
    c = [
        (
            "vocab",
            ["vocab", "--corpus", *corpus, "--out", f"{o}/vocab", "--size", "2048"]
            + (["--cased"] if lang == "de" else []),
        ),
        (
            "shard",
            ["shard", "--corpus", *corpus, "--vocab", f"{o}/vocab", "--out", f"{o}/store", "--holdout", "0.1"]
            + (["--lang", lang] if lang else []),
        ),
        (
            "train",
            [
                "train",
                "--data",
                f"{o}/store",
                "--out",
                f"{o}/run",
                "--model",
                "bert-tiny",
                "--seq_len",
                "64",
                "--hours",
                f"{hours:g}",
                "--global_batch",
                "32",
                "--lr",
                "1e-3",
                "--steps",
                "1000000",
            ],
        ),
        ("export", ["export", f"{o}/run", f"{o}/hf"]),
    ]
    if task:
        c.append(
            (
                "finetune",
                [
                    "finetune",
                    f"{o}/hf",
                    "--task",
                    "classify",
                    "--train",
                    str(task),
                    "--eval",
                    str(task),
                    "--out",
                    f"{o}/finetuned",
                    "--lr",
                    "1e-3",
                    "--epochs",
                    "3",
                ],
            )
        )
    return Advice(
        {"model": "bert-tiny", "vocab_size": 2048, "seq_len": 64},
        c,
        {"model": "small, as the text is"},
        ["a warning with its remedy"],
        {},
    )

"""Score sentences with a masked language model: which of two it prefers, or how likely it finds each.

    python -m pretrain.score hf --pairs blimp.jsonl                   accuracy on minimal pairs, by group
    python -m pretrain.score runs/a --pairs blimp/ --group field --json
    python -m pretrain.score hf --texts sentences.txt                 one line a text

A score is a pseudo-log-likelihood: each token is masked by itself, and the log-probabilities of all are summed, in
nats; [CLS] and [SEP] are not scored. Of a minimal pair the good sentence must be the likelier one; a tie is wrong. The
accuracy is the mean over the groups.

Pairs are .jsonl, .csv or .tsv with the fields sentence_good, sentence_bad and, if any, group or UID, as BLiMP has them;
or a folder of such files. Texts are .txt, one a line, or .jsonl, .csv or .tsv with the field text. The model is a
Hugging Face folder, a run (its newest whole checkpoint) or one checkpoint.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":  # before the first package, which a plain python3 lacks
    from data_prep.interpreter import continue_in_venv

    continue_in_venv()

import tyro

from data_prep.cli import InputError, run
from data_prep.interpreter import importing
from pretrain.export.origin import Weights, check_origin
from pretrain.finetune.files.columns import TEXT_COLUMNS
from pretrain.finetune.files.kinds import KINDS, SUFFIXES
from pretrain.finetune.files.rows import shorten
from pretrain.finetune.files.tables import read_rows, read_text_lines
from pretrain.hf_files import forbid_network, need_tokenizer, read_config
from pretrain.likelihood.minimal_pairs import read_pairs


@dataclass(frozen=True)
class ScoreConfig:
    """What to score, and by which model."""

    source: tyro.conf.Positional[Path]
    """Hugging Face folder, run folder, or a checkpoint of a run; weights of another trainer, where config.json and the
    tokenizer lie beside them"""
    pairs: Path | None = None
    """minimal pairs: a file, or a folder of files"""
    texts: Path | None = None
    """texts, one a line"""
    group: str | None = None
    """field that names the group of a pair; left out: group or UID, else of a folder the file"""
    weights: Weights = "raw"
    """of a run with --average: the weights of the last step, or their average"""
    json: bool = False
    """print JSON: one object for --pairs, one a line for --texts"""

    def __post_init__(self) -> None:
        if (self.pairs is None) == (self.texts is None):
            raise InputError("give one of --pairs FILE and --texts FILE: what to score")
        if self.group is not None and self.pairs is None:
            raise InputError(f"--group {self.group} goes with --pairs")

    @staticmethod
    def check_given(given: Mapping[str, str]) -> None:
        """Refuse a wrong source before what is missing is asked for.

        Raises
        ------
        InputError: as said.
        """
        if "source" in given:
            check_origin(Path(given["source"]), None, None)


def main(config: ScoreConfig) -> None:
    """Look at the folder and the file, then score, and print."""
    if check_origin(config.source, None, None, config.weights) == "hf":
        read_config(config.source)
        need_tokenizer(config.source)
    pairs = read_pairs(config.pairs, config.group) if config.pairs else []
    texts = read_texts(config.texts) if config.texts else []
    forbid_network()
    # Behind all that can be refused at once: torch and transformers take seconds.
    with importing():
        from pretrain import scoring

    if config.pairs is not None:
        scoring.score_pairs(config.source, config.weights, config.pairs, pairs, as_json=config.json)
    else:
        scoring.score_texts(config.source, config.weights, texts, as_json=config.json)


def read_texts(path: Path) -> list[tuple[int, str]]:
    """Return (line, text) of a .txt, or of the rows of a table with a column text or sentence.

    Raises
    ------
    InputError: no such file, another kind or encoding, no texts, a missing or an empty field; naming file and line.
    """
    if path.suffix.lower() == ".txt":
        return read_text_lines(path)
    if path.is_file() and path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path}: the name must end in .txt, {KINDS}")
    texts = []
    for line, row in read_rows(path):
        column = next((name for name in TEXT_COLUMNS if name in row), "")
        text = row.get(column)
        if not isinstance(text, str) or not text.strip():
            what = f"{column} must be a text, not {shorten(text)}" if column else "no field text"
            raise InputError(f"{path}, line {line}: {what}; found {shorten(', '.join(row.written.values()), 120)}")
        texts.append((line, text))
    return texts


if __name__ == "__main__":
    run(main, ScoreConfig, __doc__)

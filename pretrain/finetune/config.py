"""The options of a fine-tuning. No library of models is imported here, which would take seconds before a word comes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from data_prep.cli import InputError
from data_prep.ranges import Range, check_ranges
from pretrain.finetune.files.kinds import kind_of
from pretrain.hf_files import read_config

COUNT = Range(1, 1e9, whole=True)
BALANCED = ("classify", "pair")
SEEDS = Range(0, 2**32 - 1, whole=True)  # numpy's
OF_TEXTS = ("classify", "pair", "multilabel", "regress")  # one answer a text
OF_TASK = {
    **dict.fromkeys(("decoder", "beams", "max_new_tokens"), "seq2seq"),
}  # options that one task alone has


@dataclass(frozen=True)
class FinetuneConfig:
    """What to fine-tune, on what, and how."""

    hf: tyro.conf.Positional[Path]
    """Hugging Face folder: config.json, model.safetensors and the tokenizer."""
    task: Literal["classify", "pair", "multilabel", "regress", "tag", "qa", "choice", "seq2seq"]
    """What is learnt: one label a text, one a pair of texts, any number of labels, a number, one tag a word,
    where in a context a question is answered, which of several options is right, or to write one text for another."""
    train: Path
    """Labelled file to learn from."""
    eval: Path
    """Labelled file to measure on."""
    out: Path
    """Folder for the model and results.json; an earlier result there is replaced once the new one is whole."""
    text: str | None = None
    """Column of the text, or of its words. Default: text, sentence, Satz, ... (see above)."""
    pair: str | None = None
    """Column of the second text of a pair; choice: of the question about a text. Goes with --text."""
    label: tuple[str, ...] = ()
    """Column of the label, a tag for each word, or the right option. Default: label, intent, answer, ... (see above).
    multilabel: several, each of 0 and 1."""
    label_names: tuple[str, ...] = ()
    """Names of the labels, or tags, that the files hold as numbers from 0 on."""
    seeds: Annotated[int, COUNT] = 1
    """How many times to fine-tune, each with another seed."""
    seed: Annotated[int, SEEDS] = 0
    """The first seed; it decides the new head, the order of the examples and dropout."""
    epochs: Annotated[int | None, COUNT] = None
    """Times through the training file. Default: 3, and up to 20 for a file of less than 3,200 examples."""
    lr: Annotated[float | None, Range(0, 1, low_open=True)] = None
    """Peak learning rate. Default: by the size of the model (see above)."""
    patience: Annotated[int | None, COUNT] = None
    """Hold a tenth of the training file back, keep the epoch that is best on it, and stop after so many epochs without
    a better one. Default: learn from all of the file, for all epochs."""
    balance: bool = False
    """classify, pair: let each label weigh the same, however rare it is."""
    batch_size: Annotated[int, COUNT] = 32
    """Examples a step."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: learn with matrix products in 16 bit, weights in fp32; twice as fast where the machine has units for it.
    What is measured is in fp32 always, as predict answers."""
    seq_len: Annotated[int, Range(4, 1 << 20, whole=True, why="and at most the model's positions")] = 128
    """Tokens an example at most, [CLS] and [SEP] included; what is longer is cut, or read by windows: see --long."""
    long: Literal["cut", "stride"] = "cut"
    """classify, pair, multilabel, regress: a text longer than --seq_len is cut, or read whole by windows that overlap
    (stride); what is said of it is the mean over them. Of a pair the second text is read so."""
    stride: Annotated[int | None, Range(0, 1 << 20, whole=True)] = None
    """qa, and --long stride: tokens that two windows of a long text share. Default: a quarter of --seq_len."""
    decoder: Path | None = None
    """seq2seq: Hugging Face folder of the half that writes. Default: that of the half that reads."""
    beams: Annotated[int | None, Range(1, 256, whole=True)] = None
    """seq2seq: beginnings of a text that are followed at once while it is written. Default: 4."""
    max_new_tokens: Annotated[int | None, Range(1, 1 << 20, whole=True)] = None
    """seq2seq: tokens that are written for a text at most. Default: --seq_len."""
    limit: Annotated[int | None, COUNT] = None
    """Learn from this many examples only, drawn over the whole file and the same for every seed."""
    save_minutes: Annotated[float, Range(0, 1e6, low_open=True)] = 10.0
    """Save what is under way every so many minutes, for the same command to go on with after a stop or a kill."""
    from_scratch: bool = False
    """Start from random weights of the same architecture, to see what pretraining is worth."""
    json: bool = False
    """Print the content of results.json as one JSON object."""

    @property
    def reads_windows(self) -> bool:
        """Return whether long texts are read by windows."""
        return self.task == "qa" or self.long == "stride"

    @staticmethod
    def check_given(given: Mapping[str, str]) -> None:
        """Refuse a folder or file that is wrong before options that are missing are asked for.

        Raises
        ------
        InputError: as said.
        """
        if "hf" in given:
            read_config(Path(given["hf"]))
        for name in ("train", "eval"):
            if name in given:
                kind_of(Path(given[name]))

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.balance and self.task not in BALANCED:
            raise InputError(f"--balance is for --task {' or '.join(BALANCED)}, and this is --task {self.task}")
        if len(self.label) > 1 and self.task != "multilabel":
            raise InputError(f"--label {' '.join(self.label)}: several columns are for --task multilabel; give one")
        if self.task == "qa" and (named := self.text or self.pair or " ".join(self.label)):
            raise InputError(f"no column {named} is read with --task qa: the fields are question, context and answers")
        if self.task == "choice" and self.label_names:
            raise InputError(f"--label_names {' '.join(self.label_names)}: options have no names with --task choice")
        if self.task == "seq2seq" and self.pair is not None:
            raise InputError(f"--pair {self.pair}: --task seq2seq reads one text, --text, and writes one, --label")
        if self.pair is not None and self.text is None:
            raise InputError(f"--pair {self.pair} needs the first text's column beside it: --text COLUMN")
        if self.task == "pair" and self.text is not None and self.pair is None:
            raise InputError(f"--task pair with --text {self.text} needs the second text's column, too: --pair COLUMN")
        if not SEEDS.holds(self.seed + self.seeds - 1):
            raise InputError(f"--seed {self.seed} and the {self.seeds - 1} after it must {SEEDS}")
        if self.long == "stride" and self.task not in OF_TEXTS:
            so = "long contexts are always read so" if self.task == "qa" else f"and this is --task {self.task}"
            raise InputError(f"--long stride is for --task {', '.join(OF_TEXTS)}; {so}")
        if self.stride is not None and not self.reads_windows:
            raise InputError(f"--stride is for --task qa and --long stride, and this is --task {self.task} --long cut")
        for name, task in OF_TASK.items():
            if getattr(self, name) is not None and self.task != task:
                raise InputError(f"--{name} is for --task {task}, and this is --task {self.task}")

"""Fine-tune a Hugging Face folder on labelled text and say how good it is.

    python -m pretrain.finetune hf --task classify --train train.tsv --eval dev.tsv --out tuned
    python -m pretrain.finetune hf --task classify --train train.tsv --eval dev.tsv --out tuned --seeds 5 --lr 2e-4
    python -m pretrain.finetune hf --task classify --train train.tsv --eval dev.tsv --out raw --seeds 5 --from_scratch

Files end in .csv or .tsv (a header line; quoted as pandas and spreadsheets do, or a .tsv without quoting) or .jsonl.
Columns by task: classify: text (or sentence, or tokens), label (or intent). pair: text_a, text_b (or question,
sentence; sentence1, sentence2; premise, hypothesis; question1, question2), label. regress: either of both, label a
number in any unit. tag: tokens, tags (JSONL only), tags as BIO, IOB1, BIOES, BILOU, BMES or without spans.

OUT holds the model of the first seed, for pretrain.predict or plain transformers, and results.json: the scores of
every seed, their mean, standard deviation and the half-width of the 95 % confidence interval. The first seed is kept,
not the best one: a model picked by its score on the evaluation file would no longer have that score elsewhere.

Small models learn better from a larger --lr than the default, which suits BERT-base: try 3e-4 for 128 to 256 units,
1e-4 for 512. One seed of a small file says little; judge pretraining by 5 seeds against --from_scratch.
"""

import json
import math
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

from data_prep.calls import call
from data_prep.cli import InputError, print_json, run, say  # first: it continues in .venv where packages are missing

# isort: split
from pretrain import hf_folder  # before transformers: it forbids the network

# isort: split
import numpy as np
import tyro
from scipy import stats
from tqdm import tqdm
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from data_prep.files import check_out, write_folder, write_json
from data_prep.ranges import Range, check_ranges
from pretrain.finetune.labelled import Example, labels_of
from pretrain.finetune.tasks import TASKS, Task, Unit, answer_in_own_unit, in_unit, listed, unit_of

WARMUP = 0.1  # of all steps
WEIGHT_DECAY = 0.01
CLIP = 1.0  # norm of the gradient
RESULTS = "results.json"
COUNT = Range(1, 1e9, whole=True)
SEEDS = Range(0, 2**32 - 1, whole=True)  # numpy's


@dataclass(frozen=True)
class FinetuneConfig:
    """What to fine-tune, on what, and how."""

    hf: tyro.conf.Positional[Path]
    """Hugging Face folder: config.json, model.safetensors and the tokenizer."""
    task: Literal["classify", "pair", "regress", "tag"]
    """What is learnt: one label a text, one a pair of texts, a number, or one tag a word."""
    train: Path
    """Labelled file to learn from."""
    eval: Path
    """Labelled file to measure on."""
    out: Path
    """Folder for the model and results.json; an earlier result there is replaced once the new one is whole."""
    seeds: Annotated[int, COUNT] = 1
    """How many times to fine-tune, each with another seed."""
    seed: Annotated[int, SEEDS] = 0
    """The first seed; it decides the new head, the order of the examples and dropout."""
    epochs: Annotated[int, COUNT] = 3
    """Times through the training file."""
    lr: Annotated[float, Range(0, 1, low_open=True)] = 5e-5
    """Peak learning rate; small models profit from more (see above)."""
    batch_size: Annotated[int, COUNT] = 32
    """Examples a step."""
    seq_len: Annotated[int, Range(4, 1 << 20, whole=True, why="and at most the model's positions")] = 128
    """Tokens an example at most, [CLS] and [SEP] included; what is longer is cut."""
    limit: Annotated[int | None, COUNT] = None
    """Learn from this many examples only, drawn over the whole file and the same for every seed."""
    from_scratch: bool = False
    """Start from random weights of the same architecture, to see what pretraining is worth."""
    json: bool = False
    """Print the content of results.json as one JSON object."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if not SEEDS.holds(self.seed + self.seeds - 1):
            raise InputError(f"--seed {self.seed} and the {self.seeds - 1} after it must {SEEDS}")


def main(config: FinetuneConfig) -> None:
    """Fine-tune, write the folder, print the score."""
    with hf_folder.quiet():
        results = fine_tune_seeds(config, TASKS[config.task])
    report(config, results)


def fine_tune_seeds(config: FinetuneConfig, task: Task) -> dict[str, Any]:
    """Fine-tune once per seed, then write model and results.json in one piece; the content of results.json.

    Raises
    ------
    InputError: a file, a folder or an option that does not fit; nothing is written then.
    """
    check_out(config.out, (config.hf, config.train, config.eval), RESULTS)
    architecture = hf_folder.load_config(config.hf)
    tokenizer = hf_folder.load_tokenizer(config.hf)
    check_seq_len(config, architecture)
    everything, evaluation = task.read(config.train), task.read(config.eval)
    check_pairs(config, everything, evaluation)
    hf_folder.check_frame(config.hf, architecture, tokenizer, pairs=everything[0].pair is not None)
    names = task.label_names(everything, config.train)
    if names:
        check_labels(config.eval, evaluation, names, config.train)
    training = subset(everything, config.limit)
    task.label_names(training, config.train)  # refuses a subset with one label alone
    unit = None if names else unit_of(training, config.train)
    say(
        f"{len(training)} examples to learn from, {len(evaluation)} to measure on"
        + (f", {len(names)} labels" if names else "")
    )
    tell_shared(training, evaluation)
    notes = task.tell(training, evaluation)
    if unit:
        say(f"labels of {unit.mean:.6g} ± {unit.std:.4g} are learnt as 0 ± 1; answers and rmse are in their unit")
        notes["unit"] = unit._asdict()
    learnt = in_unit(training, unit) if unit else training
    train_features = task.encode(tokenizer, learnt, names, config.seq_len)
    eval_features = task.encode(tokenizer, evaluation, names, config.seq_len)

    seeds: list[dict[str, Any]] = []
    for seed in range(config.seed, config.seed + config.seeds):
        started = time.monotonic()
        set_seed(seed)  # before the model: it decides the new weights
        model = build_model(config, task, names, training[0].pair is not None, tokenizer.pad_token_id)
        loss, logits = fine_tune(config, seed, model, task.collator(tokenizer), train_features, eval_features, unit)
        scores = task.score(logits, eval_features, evaluation, names)
        seeds.append({"seed": seed, "scores": scores, "train_loss": loss, "seconds": time.monotonic() - started})
        say(f"seed {seed}: " + ", ".join(f"{name} {shown(value)}" for name, value in scores.items()))
        if seed == config.seed:
            kept = model.cpu()

    results = {
        "task": config.task,
        "metric": task.metric,
        **summary([seed["scores"][task.metric] for seed in seeds]),
        "seeds": seeds,
        "saved_seed": config.seed,
        "majority": majority_share(training, evaluation) if isinstance(evaluation[0].label, str) else None,
        "labels": names,
        **notes,
        "examples": {"train": len(training), "eval": len(evaluation)},
        "settings": settings(config),
        "versions": {name: version(name) for name in ("torch", "transformers", "tokenizers", "scikit-learn")},
    }
    write_folder(config.out, lambda folder: save(folder, config.hf, kept, tokenizer, results))
    return json.loads((config.out / RESULTS).read_text())


def check_seq_len(config: FinetuneConfig, architecture: PreTrainedConfig) -> None:
    """Refuse inputs beyond the model's positions: the embedding has no row for them."""
    longest = hf_folder.positions(architecture)
    if not 4 <= config.seq_len <= longest:
        raise InputError(
            f"--seq_len {config.seq_len} must lie between 4 and the {longest} positions of {config.hf}: "
            f"try --seq_len {min(128, longest)}"
        )


def check_pairs(config: FinetuneConfig, training: list[Example], evaluation: list[Example]) -> None:
    """Refuse single texts to learn from and pairs to measure on, or the reverse."""
    if (training[0].pair is None) != (evaluation[0].pair is None):
        one, two = (config.train, config.eval) if training[0].pair is None else (config.eval, config.train)
        raise InputError(f"{two} holds pairs of texts and {one} single texts: both must hold the same")


def tell_shared(training: list[Example], evaluation: list[Example]) -> None:
    """Say which share of the file to measure on is also learnt from: its score says nothing about other texts."""
    learnt, asked = (
        [(e.text if isinstance(e.text, str) else " ".join(e.text), e.pair) for e in side]
        for side in (training, evaluation)
    )
    shared = sum(map(set(learnt).__contains__, asked))
    if shared:
        share = f"{shared} of {len(evaluation)} examples to measure on ({shared / len(evaluation):.1%})"
        say(f"{share} are also among those to learn from")


def check_labels(path: Path, examples: list[Example], names: list[str], train: Path) -> None:
    """Refuse labels that the training file does not have: no model could ever give them."""
    unknown = {label: example.line for example in reversed(examples) for label in labels_of(example)}
    for name in names:
        unknown.pop(name, None)
    if unknown:
        first = min(unknown.values())
        what = listed([repr(label) for label in sorted(unknown)])
        raise InputError(
            f"{path}, line {first}: label{'s' if len(unknown) > 1 else ''} {what} "
            f"{'do' if len(unknown) > 1 else 'does'} not occur in {train}; known are {listed(names)}"
        )


def subset(examples: list[Example], limit: int | None) -> list[Example]:
    """`limit` examples in their order, drawn over all of them: files are often sorted by label."""
    if limit is None or limit >= len(examples):
        return examples
    return [examples[index] for index in sorted(random.Random(0).sample(range(len(examples)), limit))]


def build_model(
    config: FinetuneConfig, task: Task, names: list[str], pairs: bool, pad_id: int | None
) -> PreTrainedModel:
    """The encoder of the folder, or the same at random, under a new head for `names`."""
    architecture = hf_folder.load_config(config.hf)
    hf_folder.settle_padding(config.hf, architecture, pad_id)
    architecture.id2label = dict(enumerate(names or ["score"]))
    architecture.label2id = {name: index for index, name in architecture.id2label.items()}
    architecture.zerobert_task = config.task
    architecture.zerobert_pairs = pairs  # tells pretrain.predict whether a tab separates two texts
    if task.model is AutoModelForSequenceClassification:
        architecture.problem_type = "single_label_classification" if names else "regression"
    if config.from_scratch:
        return task.model.from_config(architecture, dtype="float32", trust_remote_code=False)
    model, fresh = hf_folder.load_model(task.model, config.hf, architecture)
    if any(".pooler." in name for name in fresh):
        say(f"{config.hf} has no pooler (it was pretrained without sentence pairs): it starts at random")
    return model


class OneDevice(TrainingArguments):
    """TrainingArguments that stay on one GPU where there are several: --batch_size means the same everywhere."""

    @property
    def n_gpu(self) -> int:
        return min(1, super().n_gpu)


class Progress(TrainerCallback):
    """A bar on a terminal, a line an epoch in a log; both on stderr."""

    def __init__(self, seed: int, epochs: int) -> None:
        self.seed, self.epochs = seed, epochs

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar = tqdm(total=state.max_steps, desc=f"seed {self.seed}", unit="step", leave=False, disable=None)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.update()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss" in logs:
            self.bar.set_postfix(loss=logs["loss"])
            if self.bar.disable:
                epoch = f"epoch {state.epoch:.0f} of {self.epochs}"
                say(f"seed {self.seed}, {epoch}: training loss {float(logs['loss']):.4f}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.close()


def fine_tune(
    config: FinetuneConfig,
    seed: int,
    model: PreTrainedModel,
    collator: Any,
    train_features: Any,  # lists of Feature; Trainer's own annotation asks for a Dataset and needs none
    eval_features: Any,
    unit: Unit | None,
) -> tuple[float, np.ndarray]:
    """Train `model` in place; its mean training loss and its logits [N, ...] on the evaluation features.

    unit: what the labels of train_features are measured in; the logits are in that of the file
    """
    with tempfile.TemporaryDirectory() as scratch:  # Trainer insists on a folder; nothing is kept there
        arguments = OneDevice(
            output_dir=scratch,
            seed=seed,
            num_train_epochs=config.epochs,
            learning_rate=config.lr,
            warmup_steps=WARMUP,
            weight_decay=WEIGHT_DECAY,
            max_grad_norm=CLIP,
            per_device_train_batch_size=config.batch_size,
            per_device_eval_batch_size=config.batch_size,
            train_sampling_strategy="group_by_length",  # less padding: half the time on texts of mixed length
            logging_strategy="epoch",
            logging_nan_inf_filter=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            data_collator=collator,
            train_dataset=train_features,
            callbacks=[Progress(seed, config.epochs)],
        )
        trainer.remove_callback(PrinterCallback)  # Progress speaks
        loss = trainer.train().training_loss
        if not math.isfinite(loss):
            sys.exit(f"error: the training loss became {loss} with seed {seed}; try a lower --lr than {config.lr}")
        if unit:
            answer_in_own_unit(model, unit)
        arguments.train_sampling_strategy = "random"  # it governs prediction too, which must keep the file's order
        logits = np.asarray(trainer.predict(eval_features).predictions)
    if not np.isfinite(logits).all():
        sys.exit(f"error: some answers are not finite numbers with seed {seed}; try a lower --lr than {config.lr}")
    return loss, logits


def shown(score: float) -> str:
    """Four places, or four digits where a unit is so small or large that places say nothing."""
    return f"{score:.4f}" if score == 0 or 1e-2 <= abs(score) < 1e6 else f"{score:.4g}"


def summary(values: list[float]) -> dict[str, float | None]:
    """Mean, sample standard deviation and half-width of the 95 % t-interval; the last two None for a single value."""
    n, mean = len(values), float(np.mean(values))
    if n == 1:
        return {"mean": mean, "std": None, "ci95": None}
    std = float(np.std(values, ddof=1))
    return {"mean": mean, "std": std, "ci95": float(stats.t.ppf(0.975, n - 1)) * std / math.sqrt(n)}


def majority_share(training: list[Example], evaluation: list[Example]) -> float:
    """The accuracy of always answering the commonest training label: what a score must beat."""
    commonest = Counter(example.label for example in training).most_common(1)[0][0]
    return sum(example.label == commonest for example in evaluation) / len(evaluation)


def settings(config: FinetuneConfig) -> dict[str, Any]:
    """Everything that decides the result, as JSON values."""
    given = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(config).items()}
    del given["json"], given["out"]
    return {**given, "warmup": WARMUP, "weight_decay": WEIGHT_DECAY, "clip": CLIP, "schedule": "linear"}


def save(
    folder: Path, hf: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, results: dict[str, Any]
) -> None:
    """Model, tokenizer and, last, results.json, which also names the files written."""
    hf_folder.save_model(model, folder)
    hf_folder.copy_tokenizer(hf, folder, tokenizer)
    files = sorted({RESULTS, *(path.name for path in folder.iterdir())})
    write_json(folder / RESULTS, {**results, "files": files})


def report(config: FinetuneConfig, results: dict[str, Any]) -> None:
    """The score on stdout."""
    if config.json:
        print_json(results)
        return
    spread = f" ± {results['ci95']:.4f} (95 %, {config.seeds} seeds)" if results["ci95"] is not None else ""
    floor = f", majority {results['majority']:.4f}" if results["majority"] is not None else ""
    print(f"{results['metric']} {results['mean']:.4f}{spread}{floor}")
    say(f"model and {RESULTS} in {config.out}; try: {call('predict', config.out, '...')}")


if __name__ == "__main__":
    run(main, FinetuneConfig, __doc__)

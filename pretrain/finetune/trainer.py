"""Fine-tune on examples that have been looked at, once a seed, and say how good it is.

fine_tune_and_report(config, read_examples(config), stop)

What is under way lies in OUT.progress, seed by seed (learning/unfinished.py), and the same command goes on from there.
"""

import json
import math
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.calls import call
from data_prep.cli import print_json, say
from data_prep.json_types import JsonObject
from pretrain import hf_folder  # before transformers: it forbids the network

# isort: split
import numpy as np
from scipy import stats
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from data_prep.files import write_folder, write_json
from pretrain.checkpoints.run_lock import RunLock
from pretrain.finetune.config import FinetuneConfig
from pretrain.finetune.examples import RESULTS, Examples, check_seq_len, listed, on_scale
from pretrain.finetune.files.choices import asked_of
from pretrain.finetune.files.labelled import Example
from pretrain.finetune.learning.checkpoints import tell_stopped
from pretrain.finetune.learning.hyperparameters import alike, nothing_learnt, settled
from pretrain.finetune.learning.one_seed import CLIP, WARMUP, WEIGHT_DECAY, Encoded, Work, fine_tune
from pretrain.finetune.learning.unfinished import OF_NO_RESULT, Outcome, Unfinished
from pretrain.finetune.scores.baseline import (
    BY_WORDS,
    OF_FEW,
    bag_of_words,
    beats_guessing,
    can_tell,
    floors,
    majority,
    random_choice,
)
from pretrain.finetune.scores.pictures import draw
from pretrain.finetune.scores.predictions import PREDICTIONS, answers_of, write_predictions
from pretrain.finetune.tasks.long_texts import count_windows
from pretrain.finetune.tasks.table import task_of
from pretrain.finetune.tasks.task import Task
from pretrain.stop import STOPPED, StopRequests

PROBLEMS: dict[str, Any] = {"regress": "regression", "multilabel": "multi_label_classification"}  # to transformers


def fine_tune_and_report(config: FinetuneConfig, examples: Examples, stop: StopRequests) -> None:
    """Fine-tune, write the folder, print the score.

    Raises
    ------
    InputError: a folder that does not fit; nothing is written then. Or another process is at it.
    SystemExit: it was asked to stop; what it has is saved.
    """
    unfinished = Unfinished(config)
    try:
        with hf_folder.silenced_libraries(), RunLock(unfinished.folder):
            try:
                results = fine_tune_seeds(config, examples, unfinished, stop)
            except SystemExit as end:
                if end.code != STOPPED and (done := unfinished.give_up()):  # it went wrong, and would again
                    say(f"what is done is kept: the same command with --seeds {done} ends with the seeds before this")
                raise
            unfinished.clear()
    finally:
        unfinished.remove_empty()
    print_score(config, results)


class Prepared(NamedTuple):
    """What is known before the first seed is trained."""

    work: Work
    tokenizer: PreTrainedTokenizerBase
    hidden: int  # units of the model
    notes: JsonObject  # for results.json
    baseline: JsonObject | None


def fine_tune_seeds(
    config: FinetuneConfig, examples: Examples, unfinished: Unfinished, stop: StopRequests
) -> JsonObject:
    """Fine-tune once per seed, then write model and results.json in one piece; the content of results.json."""
    prepared = prepare(config, examples)
    outcomes: list[Outcome] = []
    for seed in range(config.seed, config.seed + config.seeds):
        done = unfinished.done(seed)
        if done is None:
            if outcomes and stop.signal:
                tell_stopped(f"{len(outcomes)} of {config.seeds} seeds are done", unfinished.folder)
                raise SystemExit(STOPPED)
            unfinished.keep(seed, done := outcome_of(seed, prepared, examples, unfinished, stop))
        outcomes.append(done)
        say(f"seed {seed}: " + ", ".join(f"{name} {shown(value)}" for name, value in done.entry["scores"].items()))
    results = results_of(prepared, examples, outcomes)
    answers = [outcome.answers for outcome in outcomes]

    def fill(folder: Path) -> None:
        write_predictions(folder / PREDICTIONS, examples.evaluation, answers)
        draw(folder, results, examples.evaluation, answers[0])
        unfinished.place_model(folder)
        files = sorted({RESULTS, *(path.name for path in folder.iterdir())})
        write_json(folder / RESULTS, {**results, "files": files})

    write_folder(config.out, fill)
    return json.loads((config.out / RESULTS).read_text("utf-8"))


def prepare(config: FinetuneConfig, examples: Examples) -> Prepared:
    """Settle what was not given, look at the folder, say what there is, and turn examples into tokens.

    Raises
    ------
    InputError: a folder that does not fit.
    """
    training, evaluation, names, scale, held = examples
    architecture = hf_folder.load_config(config.hf)
    tokenizer = hf_folder.load_tokenizer(config.hf)
    check_seq_len(config, hf_folder.positions(architecture))
    if config.seq_len > tokenizer.model_max_length:
        say(
            f"warning: --seq_len {config.seq_len} is beyond the {tokenizer.model_max_length} tokens that {config.hf} "
            "was trained on: what it knows of positions behind them, it learns from these examples alone"
        )
        tokenizer.model_max_length = config.seq_len  # and the folder answers texts of that length
    pairs = training[0].pair is not None or config.task == "choice"  # an option is a second text
    hf_folder.check_frame(config.hf, architecture, tokenizer, pairs=pairs)
    hidden = getattr(architecture, "hidden_size", 768)
    config = settled(config, hidden, len(training))
    task = task_of(config)
    say(
        f"{len(training)} examples to learn from, {len(evaluation)} to measure on"
        + (f", {len(held)} held back to choose by" if held else "")
        + (f", {len(names)} labels" if names else "")
        + f"; --epochs {config.epochs}, --lr {config.lr:g}"
    )
    tell_shared(training, evaluation)
    notes = task.tell(training, evaluation)
    if scale:
        say(f"labels of {scale.mean:.6g} ± {scale.std:.4g} are learnt as 0 ± 1; answers and rmse are in their unit")
        notes["unit"] = scale._asdict()
    baseline = random_choice(evaluation) if config.task == "choice" else None
    if config.task in BY_WORDS:
        baseline = bag_of_words(training, evaluation)
        say(f"{baseline['name']}, to compare: accuracy {baseline['accuracy']:.4f}, f1 {baseline['f1']:.4f}")
    learnt = on_scale(training, scale) if scale else training

    def encoded(examples: list[Example]) -> Encoded:
        return Encoded(examples, task.encode(tokenizer, examples, names, config.seq_len))

    work = Work(
        config=config,
        task=task,
        names=names,
        collator=task.collator(tokenizer),
        training=encoded(learnt),
        evaluation=encoded(evaluation),
        held=encoded(on_scale(list(held), scale) if scale else list(held)) if held else None,
        scale=scale,
    )
    if config.long == "stride":
        sides = {"train": work.training, "eval": work.evaluation, "held_back": work.held}
        notes["windows"] = {side: count_windows(part.features) for side, part in sides.items() if part}
    return Prepared(work, tokenizer, hidden, notes, baseline)


def outcome_of(
    seed: int, prepared: Prepared, examples: Examples, unfinished: Unfinished, stop: StopRequests
) -> Outcome:
    """Train a seed, and measure it; the model of the first one is kept."""
    work, tokenizer = prepared.work, prepared.tokenizer
    config, task, features = work.config, work.task, work.evaluation.features
    started = time.monotonic()
    set_seed(seed)  # before the model: it decides the new weights
    pairs = examples.training[0].pair is not None
    model = task.build(config) if task.build else build_model(config, task, work.names, pairs, tokenizer.pad_token_id)
    same = alike(model, work.collator, features) if seed == config.seed else None
    tuned = fine_tune(work, seed, model, unfinished, stop)
    scores = task.score(tuned.logits, features, examples.evaluation, work.names)
    if seed == config.seed:
        if task.keep:
            task.keep(model, scores, examples.training, config)
        unfinished.begin()
        write_folder(unfinished.model, lambda folder: save(folder, config.hf, task, model.cpu(), tokenizer))
    seconds = tuned.earlier_seconds + time.monotonic() - started
    entry = {"seed": seed, "scores": scores, "train_loss": tuned.loss, "seconds": seconds} | tuned.notes
    return Outcome(entry, answers_of(config.task, tuned.logits, features, examples.evaluation, work.names), same)


def results_of(prepared: Prepared, examples: Examples, outcomes: list[Outcome]) -> JsonObject:
    """Return the content of results.json, but for the files."""
    training, evaluation, names, _, held = examples
    config, task = prepared.work.config, prepared.work.task
    seeds, same = [outcome.entry for outcome in outcomes], outcomes[0].encoder_cosine
    assert same is not None
    floor = floors(config.task, training, evaluation)
    better = beats_guessing(floor, [seed["scores"] for seed in seeds], len(evaluation))
    stuck = [seed["seed"] for seed in seeds if not beats_guessing(floor, [seed["scores"]], len(evaluation))]
    advice = "" if better and not stuck else nothing_learnt(config, prepared.hidden, len(training), same, stuck)
    if not (decidable := can_tell(floor, len(evaluation))):
        stuck, advice = [], "an --eval of more examples, and of several labels"
    return {
        "task": config.task,
        "metric": task.metric,
        **summary([seed["scores"][task.metric] for seed in seeds]),
        "seeds": seeds,
        "saved_seed": config.seed,
        "majority": majority(training, evaluation) if config.task in OF_FEW else None,
        "baseline": prepared.baseline,
        "beats_guessing": better,
        "decidable": decidable,
        "stuck_seeds": stuck,
        "advice": advice,
        "encoder_cosine": same,
        "labels": names,
        **prepared.notes,
        "examples": {"train": len(training), "eval": len(evaluation), "held_back": len(held)},
        "settings": settings(config),
        "versions": {name: version(name) for name in ("torch", "transformers", "tokenizers", "scikit-learn")},
    }


def tell_shared(training: list[Example], evaluation: list[Example]) -> None:
    """Say which share of the file to measure on is also learnt from: its score says nothing about other texts."""
    learnt, asked = (list(map(asked_of, side)) for side in (training, evaluation))
    shared = sum(map(set(learnt).__contains__, asked))
    if shared:
        share = f"{shared} of {len(evaluation)} examples to measure on ({shared / len(evaluation):.1%})"
        say(f"{share} are also among those to learn from")


def build_model(
    config: FinetuneConfig, task: Task, names: list[str], pairs: bool, pad_id: int | None
) -> PreTrainedModel:
    """Return the encoder of the folder, or the same at random, under a new head for `names`."""
    architecture = hf_folder.load_config(config.hf)
    hf_folder.settle_padding(config.hf, architecture, pad_id)
    architecture.id2label = dict(enumerate(names or task.outputs or ["score"]))
    architecture.label2id = {name: index for index, name in architecture.id2label.items()}
    architecture.zerobert_task = config.task
    architecture.zerobert_pairs = pairs  # tells pretrain.predict whether a tab separates two texts
    if task.model is AutoModelForSequenceClassification:
        architecture.problem_type = PROBLEMS.get(config.task, "single_label_classification")
    if config.from_scratch:
        return task.model.from_config(architecture, dtype="float32", trust_remote_code=False)
    model, fresh = hf_folder.load_model(task.model, config.hf, architecture)
    if any(".pooler." in name for name in fresh):
        say(f"{config.hf} has no pooler (it was pretrained without sentence pairs): it starts at random")
    return model


def shown(score: float) -> str:
    """Return a number with four places, or four digits where a unit is so small or large that places say nothing."""
    return f"{score:.4f}" if score == 0 or 1e-2 <= abs(score) < 1e6 else f"{score:.4g}"


def summary(values: list[float]) -> dict[str, float | None]:
    """Return the mean, sample standard deviation and half-width of the 95 % t-interval; the last two None for a single
    value."""
    n, mean = len(values), float(np.mean(values))
    if n == 1:
        return {"mean": mean, "std": None, "ci95": None}
    std = float(np.std(values, ddof=1))
    return {"mean": mean, "std": std, "ci95": float(stats.t.ppf(0.975, n - 1)) * std / math.sqrt(n)}


def settings(config: FinetuneConfig) -> JsonObject:
    """Return everything that decides the result, as JSON values."""
    given = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(config).items()}
    for name in OF_NO_RESULT:
        del given[name]
    return {**given, "warmup": WARMUP, "weight_decay": WEIGHT_DECAY, "clip": CLIP, "schedule": "linear"}


def save(folder: Path, hf: Path, task: Task, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write model and tokenizer."""
    hf_folder.save_model(model, folder)
    hf_folder.copy_tokenizer(hf, folder, tokenizer)
    if task.save:
        task.save(folder)


def print_score(config: FinetuneConfig, results: JsonObject) -> None:
    """Print the score on stdout."""
    if config.json:
        print_json(results)
        return
    spread = f" ± {results['ci95']:.4f} (95 %, {config.seeds} seeds)" if results["ci95"] is not None else ""
    floor = f", majority {results['majority']:.4f}" if results["majority"] is not None else ""
    words = results["baseline"]
    beside = f", {words['name']} {words[results['metric']]:.4f}" if words else ""
    print(f"{results['metric']} {results['mean']:.4f}{spread}{floor}{beside}")
    if not results["decidable"]:
        count = results["examples"]["eval"]
        what = f"even a perfect score on these {count} examples would not tell learning from guessing"
        say(f"warning: {what}: give {results['advice']}")
    elif results["advice"]:
        stuck = results["stuck_seeds"]
        some = f"with seed{'s' * (len(stuck) > 1)} {listed([str(seed) for seed in stuck])} "
        where = some if 0 < len(stuck) < config.seeds else ""
        say(f"warning: {where}it has learnt nothing, and only guesses: try {results['advice']}")
    elif results["majority"] is not None and results["mean"] <= results["majority"]:
        say(
            f"warning: {results['metric']} {results['mean']:.4f} does not beat always answering the commonest label "
            f"({results['majority']:.4f}); look at f1, and try --balance, --epochs or more examples of rare labels"
        )
    elif words and words[results["metric"]] > results["mean"] + (results["ci95"] or 0.0):
        say(f"the {words['name']} does better: a model that was pretrained for longer would know more than words")
    say(f"model and {RESULTS} in {config.out}; try: {call('predict', config.out, '...')}")

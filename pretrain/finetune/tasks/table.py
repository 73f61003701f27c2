"""One row of TASKS for each fine-tuning task, of the functions that the other files of this folder have."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from transformers import (
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    DataCollatorForSeq2Seq,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    EncoderDecoderModel,
)

from pretrain.finetune.config import FinetuneConfig
from pretrain.finetune.tasks import question_answering as qa
from pretrain.finetune.tasks import seq2seq
from pretrain.finetune.tasks.choices import Choosing, encode_choices, score_choices, tell_choices
from pretrain.finetune.tasks.label_sets import encode_label_sets, score_label_sets, tell_label_sets
from pretrain.finetune.tasks.long_texts import WindowCollator, by_windows
from pretrain.finetune.tasks.tags import encode_words, score_tags, tell_tags
from pretrain.finetune.tasks.task import Task
from pretrain.finetune.tasks.texts import encode_texts, score_classes, score_numbers, tell_classes, tell_numbers

CLASSIFY = Task(
    tell_classes,
    AutoModelForSequenceClassification,
    encode_texts,
    DataCollatorWithPadding,
    "accuracy",
    score_classes,
)


def answering_questions(config: FinetuneConfig) -> Task:
    """Return the task of questions whose answers stand in a context; `config`: a settled one."""
    assert config.stride is not None
    return Task(
        qa.tell_questions,
        AutoModelForQuestionAnswering,
        partial(qa.encode_questions, stride=config.stride),
        DataCollatorWithPadding,
        "f1",
        qa.score_questions,
        outputs=("start", "end"),
        keep=qa.keep_threshold,
    )


def writing_texts(config: FinetuneConfig) -> Task:
    """Return the task of texts that are written for others; `config`: a settled one.

    Raises
    ------
    InputError: the folder of a decoder that does not fit.
    """
    sides = seq2seq.open_sides(config)
    return Task(
        partial(seq2seq.tell_targets, sides=sides),
        EncoderDecoderModel,
        partial(seq2seq.encode_targets, sides=sides),
        DataCollatorForSeq2Seq,
        "bleu",
        partial(seq2seq.score_targets, sides=sides),
        build=partial(seq2seq.build, sides=sides),
        answer=partial(seq2seq.write_targets, sides=sides),
        save=partial(seq2seq.save_target_tokenizer, sides=sides),
    )


# A task, or what makes one of the options.
TASKS: dict[str, Task | Callable[[FinetuneConfig], Task]] = {
    "classify": CLASSIFY,
    "pair": CLASSIFY,
    "multilabel": replace(
        CLASSIFY,
        tell=tell_label_sets,
        encode=encode_label_sets,
        metric="micro_f1",
        score=score_label_sets,
        by_threshold=True,
    ),
    "regress": replace(CLASSIFY, tell=tell_numbers, metric="pearson", score=score_numbers),
    "tag": Task(
        tell_tags,
        AutoModelForTokenClassification,
        encode_words,
        DataCollatorForTokenClassification,
        "f1",
        score_tags,
    ),
    "qa": answering_questions,
    "choice": Task(
        tell_choices,
        AutoModelForMultipleChoice,
        encode_choices,
        WindowCollator,
        "accuracy",
        score_choices,
        learner=Choosing,
    ),
    "seq2seq": writing_texts,
}


def task_of(config: FinetuneConfig) -> Task:
    """Return the task of a settled config.

    Raises
    ------
    InputError: as writing_texts().
    """
    task = TASKS[config.task]
    if not isinstance(task, Task):
        return task(config)
    return by_windows(task, config) if config.long == "stride" else task

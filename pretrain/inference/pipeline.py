"""Answers of a Hugging Face folder: the missing words of a text, its label, its tags, the answer to a question, the
likeliest of several options.

pretrain/predict.py asks:

answer(folder, "labels", False, ["a text", "another one"], 5, as_json=False)
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from data_prep.cli import InputError, print_json, say
from data_prep.json_types import JsonObject
from pretrain import hf_folder
from pretrain.formatting import filled_in
from pretrain.hf_files import Kind
from pretrain.inference.choices import choose_option
from pretrain.inference.encoder_decoder import generate, most_to_read, open_writer, positions_to_write
from pretrain.inference.long_texts import encode_long, pooled_logits
from pretrain.inference.question_answering import answer_in_context, window_of
from pretrain.inference.tag_spans import scheme_of, spans

# Controls, on which a terminal would act or begin a line; a tab stands between two texts.
SPELLED = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if code != 9}

MASK = re.compile(r"\[MASK\]|<mask>")

Answer = JsonObject
WINDOWS = 32  # of a long text that go through the model at once

MODELS: dict[Kind, Any] = {
    "fill": AutoModelForMaskedLM,
    "labels": AutoModelForSequenceClassification,
    "tags": AutoModelForTokenClassification,
    "answers": AutoModelForQuestionAnswering,
    "choice": AutoModelForMultipleChoice,
}


def answer(folder: Path, kind: Kind, pairs: bool, texts: Iterable[str], top: int, as_json: bool) -> None:
    """Load the folder, answer each text in turn, print.

    Raises
    ------
    InputError: a folder that cannot answer, a text without a mask to fill.
    """
    with hf_folder.silenced_libraries():
        check_label_names(folder, hf_folder.load_config(folder), kind)
        tokenizer = hf_folder.load_tokenizer(folder)
        model = load(folder, kind)
    if kind == "fill" and tokenizer.mask_token is None:
        raise InputError(f"{folder}: the tokenizer has no mask token, so that nothing can be filled")
    print_answers(folder, kind, (ask(model, tokenizer, kind, pairs, text, top) for text in texts), as_json)


def choose(folder: Path, rows: Iterable[tuple[str, str | None, Sequence[str]]], top: int, as_json: bool) -> None:
    """Load the folder, choose among the options of each row (text, question, options) in turn, print.

    Raises
    ------
    InputError: a folder that cannot answer.
    """
    with hf_folder.silenced_libraries():
        tokenizer = hf_folder.load_tokenizer(folder)
        model = load(folder, "choice")
    print_answers(folder, "choice", (choose_option(model, tokenizer, *row, top) for row in rows), as_json)


def write(folder: Path, texts: Iterable[str], beams: int | None, max_new_tokens: int | None, as_json: bool) -> None:
    """Load a folder that writes, let it write one text for each, print.

    Raises
    ------
    InputError: a folder that is not whole, or writes less than `max_new_tokens`.
    """
    with hf_folder.silenced_libraries():
        writer = open_writer(folder)
    longest, most = most_to_read(writer.model.config), positions_to_write(writer.model.config)
    if max_new_tokens is not None and max_new_tokens > most:
        raise InputError(f"--max_new_tokens {max_new_tokens} is more than the {most} positions of {folder}")

    def written(text: str) -> Answer:
        if writer.source(text, truncation=True, max_length=longest).encodings[0].overflowing:
            say(f"longer than the model's {longest} tokens, and cut: {text[:60]}...")
        with hf_folder.silenced_libraries():
            found = generate(writer, [text], beams=beams, max_new_tokens=max_new_tokens)
        return {"text": text, "generated": found[0]}

    print_answers(folder, "generated", map(written, texts), as_json)


def print_answers(folder: Path, kind: Kind, found: Iterable[Answer], as_json: bool) -> None:
    """Print answers as they come, for people, or all of them as one JSON object."""
    answers = []
    for each in found:
        answers.append(each)
        if not as_json:
            print(shown(each), flush=True)
    if as_json:
        print_json({"folder": str(folder), "kind": kind, "answers": answers})


def check_label_names(folder: Path, architecture: PreTrainedConfig, kind: Kind) -> None:
    """Refuse a folder that has no name for an answer it may give.

    Raises
    ------
    InputError: as said.
    """
    names: dict[Any, Any] = architecture.id2label or {}
    if kind in ("labels", "tags") and (
        set(names) != set(range(len(names))) or not all(isinstance(n, str) for n in names.values())
    ):
        raise InputError(
            f"{folder}/config.json: id2label must name the labels 0, 1, ... by texts, not {str(names)[:80]}"
        )


def load(folder: Path, kind: Kind) -> PreTrainedModel:
    """Return the model, ready to answer, on the GPU if there is one. Unused heads in the folder are left aside.

    Raises
    ------
    InputError: a weight of the head that answers is missing: the answers would be random.
    """
    model, fresh = hf_folder.load_model(MODELS[kind], folder)
    if fresh:
        raise InputError(
            f"{folder} lacks weights needed to answer, such as {fresh[0]}: "
            + ("it was saved without its masked-word head" if kind == "fill" else "it is not a whole fine-tuned folder")
        )
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


@torch.inference_mode()
def ask(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, kind: Kind, pairs: bool, text: str, top: int
) -> Answer:
    """Return the answer to one text: {"text"} and, by kind, {"masks"}, {"labels"}, {"score"}, {"tags"} or {"answer"}.

    Of a model that gives several labels a text, {"given"} are those above its threshold.

    pairs: the text is two, around a tab

    Raises
    ------
    InputError: no mask token in a text to fill; the model's numbers overflow.
    """
    if kind == "answers":
        question, context = text.split("\t", 1)
        return answer_in_context(model, tokenizer, question, context, top)
    first, second = text.split("\t") if pairs else (text, None)
    if kind == "labels" and getattr(model.config, "zerobert_long", None) == "stride":
        return answer_of_label(model, text, long_text_logits(model, tokenizer, first, second), top)
    longest = min(hf_folder.positions(model.config), tokenizer.model_max_length)
    encoded = tokenizer(first, second, truncation=True, max_length=longest, return_tensors="pt")
    if encoded.encodings[0].overflowing:
        say(f"longer than the model's {longest} tokens, and cut: {text[:60]}...")
    if kind != "fill":
        tell_unknown(tokenizer, {*encoded["input_ids"][0].tolist()}, text)
    logits = model(**encoded.to(model.device)).logits[0].float().cpu()
    hf_folder.check_logits(logits, text)
    if kind == "fill":
        return {"text": text, "masks": masked_words(tokenizer, encoded["input_ids"][0].cpu(), logits, text, top)}
    if kind == "tags":
        names: dict[Any, str] = model.config.id2label or {}
        words = tagged_words(names, encoded, logits)
        tags = [{"word": text[word.start : word.end], "tag": word.tag} for word in words]
        return {"text": text, "tags": tags, "spans": tagged_spans(names, words, text)}
    return answer_of_label(model, text, logits, top)


def tell_unknown(tokenizer: PreTrainedTokenizerBase, ids: set[int], text: str) -> None:
    """Say where nothing of a text has reached the model."""
    if ids <= {*tokenizer.all_special_ids}:
        say(f"the tokenizer knows nothing of this text, and the answer does not depend on it: {text[:60]!a}")


def long_text_logits(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, first: str, second: str | None
) -> torch.Tensor:
    """Return the logits [labels] of a text, or pair, that is read by the windows that the model learnt with."""
    seq_len, stride = window_of(model, tokenizer)
    seconds = None if second is None else [second]
    [windows] = encode_long(tokenizer, [first], seconds, seq_len=seq_len, stride=stride).windows
    tell_unknown(tokenizer, {number for window in windows for number in window["input_ids"]}, first)
    inputs: Any = tokenizer.pad(
        {name: [window[name] for window in windows] for name in windows[0]}, return_tensors="pt"
    ).to(model.device)
    return pooled_logits(model, inputs, [len(windows)], most=WINDOWS)[0].float().cpu()


def answer_of_label(model: PreTrainedModel, text: str, logits: torch.Tensor, top: int) -> Answer:
    """Return the labels, or the number, that the logits [labels] of a text say.

    Raises
    ------
    InputError: they are no numbers.
    """
    hf_folder.check_logits(logits, text)
    names: dict[Any, str] = model.config.id2label or {}
    if model.config.problem_type == "multi_label_classification":
        return {"text": text, **label_set(names, logits, top, getattr(model.config, "zerobert_threshold", 0.5))}
    if model.config.num_labels == 1:
        return {"text": text, "score": float(logits[0])}
    return {"text": text, "labels": ranked(logits, top, lambda index: {"label": names[index]})}


def masked_words(
    tokenizer: PreTrainedTokenizerBase, ids: torch.Tensor, logits: torch.Tensor, text: str, top: int
) -> list[list[Answer]]:
    """Return the likeliest tokens of each mask. ids: [L]; logits: [L, V]."""
    places = (ids == tokenizer.mask_token_id).nonzero()[:, 0]
    if not len(places):
        where = "only beyond the model's length" if tokenizer.mask_token in text else "not in the text"
        raise InputError(f"the mask token {tokenizer.mask_token} is {where}: {text[:60]!r}")
    return [ranked(logits[at], top, lambda index: {"token": tokenizer.decode([index])}) for at in places]


class TaggedWord(NamedTuple):
    """A word, by its characters in the text, and its likeliest tag."""

    start: int
    end: int
    tag: str
    probability: float


def tagged_words(names: dict[Any, str], encoded: Any, logits: torch.Tensor) -> list[TaggedWord]:
    """Return one tag per word, from its first token; words as the tokenizer cuts them, so that a mark is a word of its
    own."""
    owners = encoded.word_ids(0)
    words = []
    for at, word in enumerate(owners):
        if word is not None and word != owners[at - 1]:
            probability, index = logits[at].softmax(-1).max(-1)
            start, end = encoded.word_to_chars(0, word)
            words.append(TaggedWord(start, end, names[int(index)], float(probability)))
    return words


def tagged_spans(names: dict[Any, str], words: list[TaggedWord], text: str) -> list[Answer]:
    """Return the spans that the tags mark, in the order of the text, as conlleval sees them; the score is the mean of
    its tags' probabilities."""
    found = spans([word.tag for word in words], scheme_of([list(names.values())]))
    answers = []
    for first, after, label in sorted(found):
        start, end = words[first].start, words[after - 1].end
        score = sum(word.probability for word in words[first:after]) / (after - first)
        answers.append({"start": start, "end": end, "text": text[start:end], "label": label, "score": round(score, 6)})
    return answers


def label_set(names: dict[Any, str], logits: torch.Tensor, top: int, threshold: float) -> Answer:
    """Return the `top` likeliest of logits [K], each with a probability of its own, and those above the threshold."""
    probabilities = logits.sigmoid()
    best = probabilities.argsort(descending=True, stable=True).tolist()
    labels = [{"label": names[index], "probability": round(float(probabilities[index]), 6)} for index in best[:top]]
    return {"labels": labels, "given": [names[index] for index in best if probabilities[index] >= threshold]}


def ranked(logits: torch.Tensor, top: int, name: Any) -> list[Answer]:
    """Return the `top` likeliest of logits [K], best first, with their probabilities."""
    best = logits.softmax(-1).topk(min(top, len(logits)))
    return [
        {**name(int(index)), "probability": round(float(value), 6)}
        for value, index in zip(best.values, best.indices, strict=True)
    ]


def shown(answer: Answer) -> str:
    """Return one answer for people: the text, and below it a line an answer."""
    lines = [answer["text"]]
    between = MASK.split(answer["text"])  # what stands before each mask, and after the last
    for number, words in enumerate(answer.get("masks", []), 1):
        before = between[number - 1] if number <= len(between) else ""
        if len(answer["masks"]) > 1:
            lines.append(f"  mask {number}")
        lines += [f"  {word['probability']:.4f}  {filled_in(before, word['token'])}" for word in words]
    lines += [f"  {label['probability']:.4f}  {label['label']}" for label in answer.get("labels", [])]
    if "given" in answer:
        lines.append("  given: " + (", ".join(answer["given"]) or "none"))
    if "score" in answer and "question" not in answer:
        lines.append(f"  {answer['score']:.6g}")  # in the unit of the labels, which may be tiny
    if "generated" in answer:
        lines.append(f"  {answer['generated']}")
    if "question" in answer:
        lines.append(f"  {answer['question']}")
    lines += [f"  {option['probability']:.4f}  {option['option']}" for option in answer.get("options", [])]
    if "start" in answer:
        if not answer["answer"]:
            lines.append(f"  {answer['score']:.4f}  (no answer)")
        lines += [f"  {s['score']:.4f}  {s['answer']}  ({s['start']}-{s['end']})" for s in answer["spans"]]
    if "tags" in answer:
        lines.append("  " + " ".join(f"{word['word']}/{word['tag']}" for word in answer["tags"]))
        lines += [f"  {s['score']:.4f}  {s['label']}  {s['text']}  ({s['start']}-{s['end']})" for s in answer["spans"]]
    return "\n".join(line.translate(SPELLED) for line in lines)

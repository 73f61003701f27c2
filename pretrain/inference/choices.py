"""Choose one of several options with a model that was fine-tuned to: each option is the second text of a pair.

first text      second text            of
sent1           sent2 ending           texts that go on (SWAG)
article         question option        questions about a text (RACE); a blank in the question, _, is filled instead
premise         choice                 what has nothing in between
question        option                 questions alone (CommonsenseQA)
"""

import re
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data_prep.cli import say
from data_prep.json_types import JsonObject
from pretrain import hf_folder

_BLANK = re.compile(r"(?<!\w)_+(?!\w)")


def second_texts(question: str | None, options: Sequence[str]) -> list[str]:
    """Return what a model reads behind the first text, for each option."""
    if question is None:
        return list(options)
    if _BLANK.search(question):
        return [_BLANK.sub(lambda _: option, question) for option in options]  # noqa: B023 - called at once
    return [f"{question} {option}" for option in options]


def are_alike(options: Sequence[Sequence[int]]) -> bool:
    """Return whether two of the options of a row, as tokens, are one to a model."""
    return len({*map(tuple, options)}) < len(options)


@torch.inference_mode()
def choose_option(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    question: str | None,
    options: Sequence[str],
    top: int,
) -> JsonObject:
    """Return the likeliest option, "answer", its number from 0 on, "choice", its "probability", and "options", the
    `top` likeliest.

    Raises
    ------
    InputError: the model's numbers overflow.
    """
    longest = min(hf_folder.positions(model.config), tokenizer.model_max_length)
    batch = tokenizer(
        [text] * len(options),
        second_texts(question, options),
        truncation=True,
        max_length=longest,
        padding=True,
        return_tensors="pt",
    )
    if any(encoding.overflowing for encoding in batch.encodings):
        say(f"longer than the model's {longest} tokens, and cut: {text[:60]}...")
    if are_alike(batch["input_ids"].tolist()):
        say(f"some of these options are one to the model, and their order means nothing: {text[:60]}...")
    inputs = {name: values[None].to(model.device) for name, values in batch.items()}
    logits = model(**inputs).logits[0].float().cpu()
    hf_folder.check_logits(logits, text)
    shares = logits.softmax(0)
    found = [
        {"option": options[place], "choice": place, "probability": round(float(shares[place]), 6)}
        for place in shares.argsort(descending=True, stable=True).tolist()
    ]
    asked = {"text": text} if question is None else {"text": text, "question": question}
    best = found[0]
    return {
        **asked,
        "answer": best["option"],
        "choice": best["choice"],
        "probability": best["probability"],
        "options": found[:top],
    }

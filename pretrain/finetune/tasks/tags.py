"""A tag for each word: --task tag.

N examples, L tokens, tags: how many names there are.
"""

import numpy as np
from transformers import PreTrainedTokenizerBase

from data_prep.cli import say
from data_prep.json_types import JsonObject
from pretrain.finetune.examples import listed
from pretrain.finetune.files.labelled import Example
from pretrain.finetune.tasks.lost import tell_lost
from pretrain.finetune.tasks.task import Feature, Scores
from pretrain.inference.tag_spans import PLAIN, kinds_of, scheme_of, spans

IGNORED = -100  # label of a position that counts for nothing; torch's cross entropy skips it


def tell_tags(training: list[Example], evaluation: list[Example]) -> JsonObject:
    """Say which scheme the tags follow, and which kinds of spans one side lacks."""
    scheme = scheme_of([example.label for example in training])
    known, asked = (kinds_of([example.label for example in side], scheme) for side in (training, evaluation))
    what = "no scheme of spans, so that each tag counts for itself" if scheme.name == PLAIN else scheme.name
    if odd := sorted(scheme.outside - {"O"}):
        what += f", with {', '.join(map(repr, odd))} for words outside"
    say(f"tags: {what}; {len(known)} kinds ({listed(known)})")
    if not asked:
        say("nothing but O in the file to measure on: f1 is 0 whatever the answers; look at accuracy")
    elif absent := sorted(set(known) - set(asked)):
        say(f"not in the file to measure on: {listed(absent)}")
    if unseen := sorted(set(asked) - set(known)):
        say(f"not among the examples to learn from: {listed(unseen)}; no answer can name them")
    return {"scheme": scheme.name, "not_in_eval": sorted(set(known) - set(asked))}


def encode_words(
    tokenizer: PreTrainedTokenizerBase, examples: list[Example], names: list[str], seq_len: int
) -> list[Feature]:
    """Return words, with the tag of each on its first token; `words` [words kept] says which word each tag belongs to.

    A word may have no token: cut off, or made of characters that the tokenizer drops.
    """
    batch = tokenizer([e.text for e in examples], is_split_into_words=True, truncation=True, max_length=seq_len)
    tell_lost(batch, seq_len, tokenizer)
    number = {name: index for index, name in enumerate(names)}
    features = []
    for row, example in enumerate(examples):
        owners = batch.word_ids(row)
        starts = [at for at, word in enumerate(owners) if word is not None and word != owners[at - 1]]
        labels = [IGNORED] * len(owners)
        for at in starts:
            labels[at] = number[example.label[owners[at]]]
        feature = {key: batch[key][row] for key in batch}
        features.append({**feature, "labels": labels, "words": [owners[at] for at in starts]})
    return features


def score_tags(logits: np.ndarray, features: list[Feature], examples: list[Example], names: list[str]) -> Scores:
    """Return accuracy over words; precision, recall and F1 over spans that are right in place and kind.

    logits: [N, L, tags]

    names: all tags of the training file, which tell how spans are marked
    Every word of the file counts: one that has no token is guessed to be outside of any span.
    """
    scheme = scheme_of([names])
    right, words = 0, 0
    found, wanted, hits = 0, 0, 0
    for guess, example in zip(guessed_tags(logits, features, examples, names), examples, strict=True):
        right += sum(a == b for a, b in zip(guess, example.label, strict=True))
        words += len(guess)
        guessed_spans, true_spans = spans(guess, scheme), spans(example.label, scheme)
        found, wanted, hits = (
            found + len(guessed_spans),
            wanted + len(true_spans),
            hits + len(guessed_spans & true_spans),
        )
    return {
        "f1": 2 * hits / max(1, found + wanted),
        "precision": hits / max(1, found),
        "recall": hits / max(1, wanted),
        "accuracy": right / words,
    }


def guessed_tags(
    logits: np.ndarray, features: list[Feature], examples: list[Example], names: list[str]
) -> list[list[str]]:
    """Return the likeliest tag of each word; of one that has no token O.

    logits: [N, L, tags]
    """
    guesses = []
    for row, (feature, example) in enumerate(zip(features, examples, strict=True)):
        places = [at for at, label in enumerate(feature["labels"]) if label != IGNORED]
        guess = ["O"] * len(example.label)
        for at, word in zip(places, feature["words"], strict=True):
            guess[word] = names[int(logits[row, at].argmax())]
        guesses.append(guess)
    return guesses

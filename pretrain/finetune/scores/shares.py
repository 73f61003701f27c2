"""How frequent each label is, on either side."""

from collections import Counter

from data_prep.cli import say
from data_prep.json_types import JsonObject
from pretrain.finetune.files.labelled import Example, labels_of

SHOWN = 8  # labels in a message


def tell_shares(training: list[Example], evaluation: list[Example]) -> JsonObject:
    """Say which share of the examples has each label, on either side; for results.json."""
    counts = [Counter(name for example in side for name in labels_of(example)) for side in (training, evaluation)]
    totals = [len(training), len(evaluation)]
    known = [name for name, _ in counts[0].most_common()]
    shares = {
        side: {name: count[name] / total for name in known}
        for side, count, total in zip(("train", "eval"), counts, totals, strict=True)
    }
    lines = [f"{name} {shares['train'][name]:.1%} ({shares['eval'][name]:.1%})" for name in known[:SHOWN]]
    more = f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
    say(f"shares of the labels, and in the file to measure on: {', '.join(lines)}{more}")
    return {"label_shares": shares}

"""--task choice: learn which of several options is right.

examples (files/choices.py) -> a pair of texts an option (inference/choices.py) -> a logit each -> softmax over a row

A feature has the options of a row end to end, as a long text has its windows (long_texts.py): rows of two options and
of five stand in one batch, and no option is computed that is not there. The folder is a plain model of transformers,
which takes [rows, options, tokens].
"""

from itertools import islice

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import MultipleChoiceModelOutput

from data_prep.cli import say
from data_prep.json_types import JsonObject
from pretrain.finetune.files.labelled import Example
from pretrain.finetune.scores.shares import tell_shares
from pretrain.finetune.tasks.long_texts import end_to_end, windows_of
from pretrain.finetune.tasks.lost import tell_lost
from pretrain.finetune.tasks.task import Feature, Scores
from pretrain.inference.choices import are_alike, second_texts

NO_OPTION = -1e4  # the logit of an option that a row has not: a number, and e to it is 0


def tell_choices(training: list[Example], evaluation: list[Example]) -> JsonObject:
    """Say how often the right option stands at each place."""
    by_place = (
        [example._replace(label=str(example.label.answer)) for example in side] for side in (training, evaluation)
    )
    return tell_shares(*by_place)


def encode_choices(
    tokenizer: PreTrainedTokenizerBase, examples: list[Example], names: list[str], seq_len: int
) -> list[Feature]:
    """Return the options of each row, end to end, with the place of the right one."""
    seconds = [second_texts(example.pair, example.label.texts) for example in examples]
    firsts = [example.text for example, texts in zip(examples, seconds, strict=True) for _ in texts]
    batch = tokenizer(firsts, [text for texts in seconds for text in texts], truncation=True, max_length=seq_len)
    tell_lost(batch, seq_len, tokenizer, "options with their texts", "a higher --seq_len reads more of them")
    inputs = [name for name in tokenizer.model_input_names if name in batch]
    encoded = ({name: batch[name][row] for name in inputs} for row in range(len(firsts)))
    features = [
        end_to_end(list(islice(encoded, len(texts)))) | {"labels": example.label.answer}
        for example, texts in zip(examples, seconds, strict=True)
    ]
    _tell_alike(features)
    return features


def _tell_alike(features: list[Feature]) -> None:
    """Say how many rows have options that the model cannot tell apart."""
    alike = sum(are_alike([window["input_ids"] for window in windows_of(feature)]) for feature in features)
    if alike:
        say(
            f"{alike} of {len(features)} rows ({alike / len(features):.1%}) have options that are one to the model: "
            "written twice, cut before they differ, or of unknown letters"
        )


class Choosing(torch.nn.Module):
    """A model that is asked option by option, and gives each row the logits of its options, and their loss."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: torch.Tensor,
        windows: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
    ) -> MultipleChoiceModelOutput:
        """Return loss and logits [N, most options]; `input_ids`, ...: [options of all rows, L], `windows`: [N]."""
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        alone = {name: values[:, None] for name, values in given.items() if values is not None}
        each = self.model(**alone).logits[:, 0]
        logits = pad_sequence(each.split(windows.tolist()), batch_first=True, padding_value=NO_OPTION)
        loss = None if labels is None else torch.nn.functional.cross_entropy(logits, labels)
        return MultipleChoiceModelOutput(loss=loss, logits=logits)


def chosen(logits: np.ndarray, features: list[Feature]) -> list[int]:
    """Return the place of the likeliest option of each row. logits: [N, most options]"""
    return [int(row[: len(feature["windows"])].argmax()) for row, feature in zip(logits, features, strict=True)]


def score_choices(logits: np.ndarray, features: list[Feature], examples: list[Example], names: list[str]) -> Scores:
    """Return the share of rows whose likeliest option is right. logits: [N, most options]"""
    hits = [place == feature["labels"] for place, feature in zip(chosen(logits, features), features, strict=True)]
    return {"accuracy": sum(hits) / len(hits)}

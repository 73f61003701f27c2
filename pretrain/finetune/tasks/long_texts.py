"""--long stride: texts longer than --seq_len are learnt from, measured and answered whole, as windows that overlap.

    examples -> windows (inference/long_texts.py) -> logits of each -> their mean for each text -> loss, score

A feature has the windows of a text end to end, with the length of each in "windows": so texts of like length go
together, as without windows.
"""

from dataclasses import replace
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import SequenceClassifierOutput

from data_prep.cli import say
from data_prep.json_types import JsonObject
from pretrain.finetune.config import FinetuneConfig
from pretrain.finetune.files.labelled import Example
from pretrain.finetune.tasks.lost import tell_unknown
from pretrain.finetune.tasks.task import Feature, Scores, Task
from pretrain.inference.long_texts import Window, encode_long, pooled_logits


def by_windows(task: Task, config: FinetuneConfig) -> Task:
    """Return a task of texts as one that reads long ones by windows; `config`: a settled one."""
    return replace(
        task,
        encode=partial(task.encode, stride=config.stride),
        collator=WindowCollator,
        learner=partial(PooledWindows, most=config.batch_size),
        keep=keep_windows,
    )


def encode_windows(
    tokenizer: PreTrainedTokenizerBase, examples: list[Example], *, seq_len: int, stride: int
) -> list[Feature]:
    """Return the windows of each text or pair, end to end; how many texts have several is said."""
    pairs = None if examples[0].pair is None else [example.pair or "" for example in examples]
    texts, batch = encode_long(
        tokenizer, [str(example.text) for example in examples], pairs, seq_len=seq_len, stride=stride
    )
    tell_unknown(batch, tokenizer)
    features = [end_to_end(windows) for windows in texts]
    if several := sum(len(windows) > 1 for windows in texts):
        say(
            f"{several} of {len(texts)} texts ({several / len(texts):.1%}) are longer than --seq_len {seq_len} tokens; "
            f"all {len(texts)} are read in {sum(map(len, texts))} windows (--stride {stride})"
        )
    return features


def end_to_end(windows: list[Window]) -> Feature:
    """Return windows as one feature, which says how long each is."""
    return {name: [number for window in windows for number in window[name]] for name in windows[0]} | {
        "windows": [len(window["input_ids"]) for window in windows]
    }


def windows_of(feature: Feature) -> list[Window]:
    """Return the windows of a feature, one by one; of one that does not say where they end, all as one."""
    inputs = {name: values for name, values in feature.items() if name not in ("windows", "labels")}
    lengths = feature.get("windows", [len(feature["input_ids"])])
    return [
        {name: values[end - length : end] for name, values in inputs.items()}
        for end, length in zip(accumulate(lengths), lengths, strict=True)
    ]


def count_windows(features: list[Feature]) -> JsonObject:
    """Return how many texts have several windows, and how many all have; for results.json."""
    counts = [len(feature["windows"]) for feature in features]
    return {"texts": sum(count > 1 for count in counts), "windows": sum(counts)}


class WindowCollator:
    """Pads the windows of texts to one length; batch["windows"] [N] says how many each text has."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._pad = DataCollatorWithPadding(tokenizer)

    def __call__(self, features: list[Feature]) -> Any:
        texts = [windows_of(feature) for feature in features]
        batch = self._pad([window for windows in texts for window in windows])
        batch["windows"] = torch.tensor([len(windows) for windows in texts])
        if "labels" in features[0]:
            batch["labels"] = torch.tensor([feature["labels"] for feature in features])
        return batch


class PooledWindows(torch.nn.Module):
    """A model that is asked window by window, and gives each text the mean of its windows' logits, and their loss."""

    def __init__(self, model: PreTrainedModel, *, most: int):
        """`most`: windows that go through the model at once."""
        super().__init__()
        self.model, self.most = model, most

    def forward(
        self,
        input_ids: torch.Tensor,
        windows: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
    ) -> SequenceClassifierOutput:
        """Return loss and logits [N, labels]; `input_ids`, ...: [windows, L], `windows`: [N]."""
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        inputs = {name: values for name, values in given.items() if values is not None}
        logits = pooled_logits(self.model, inputs, windows.tolist(), most=self.most)
        return SequenceClassifierOutput(
            loss=None if labels is None else self._loss(logits, labels),
            logits=logits,
        )

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the loss that transformers' models have for such labels."""
        problem = self.model.config.problem_type
        if problem == "regression":
            return torch.nn.functional.mse_loss(logits[:, 0], labels)
        if problem == "multi_label_classification":
            return torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)
        return torch.nn.functional.cross_entropy(logits, labels)


def keep_windows(model: PreTrainedModel, scores: Scores, training: list[Example], config: FinetuneConfig) -> None:
    """Put into the model's config.json how long texts are read, so that predicting does the same."""
    model.config.zerobert_long = config.long
    model.config.zerobert_seq_len, model.config.zerobert_stride = config.seq_len, config.stride

"""Answer a question from a context with a model that was fine-tuned on questions: by the windows of answer_spans.py."""

from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data_prep.json_types import JsonObject
from pretrain import hf_folder
from pretrain.inference.answer_spans import (
    LEAST_WINDOW,
    Window,
    context_offsets,
    default_stride,
    encode_windows,
    most_stride,
    probabilities,
    read_spans,
)


@torch.inference_mode()
def answer_in_context(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, question: str, context: str, top: int
) -> JsonObject:
    """Return the answer to a question as a piece of its context: "answer", "start" and "end" (characters), "score" (its
    share among the likeliest), and "spans", the `top` likeliest of these. No answer is "" without a place; of that only
    a model speaks which has learnt from questions without an answer.

    Raises
    ------
    InputError: the model's numbers overflow.
    """
    seq_len, stride = window_of(model, tokenizer)
    batch = encode_windows(tokenizer, [question], [context], seq_len=seq_len, stride=stride)
    inputs = [name for name in tokenizer.model_input_names if name in batch]
    windows = []
    for row, ids in enumerate(batch["input_ids"]):
        out = model(**{name: torch.tensor([batch[name][row]], device=model.device) for name in inputs})
        logits = torch.stack([out.start_logits[0], out.end_logits[0]]).float().cpu()
        hf_folder.check_logits(logits, question)
        starts, ends = logits.numpy()
        windows.append(Window(starts, ends, context_offsets(batch, row), ids.index(tokenizer.cls_token_id)))
    reading = read_spans(windows)
    threshold = getattr(model.config, "zerobert_null_threshold", None)
    threshold = threshold if isinstance(threshold, int | float) else None
    shares = probabilities(reading, with_null=threshold is not None)
    spans: list[JsonObject] = [
        {
            "answer": context[span.start : span.end],
            "start": span.start,
            "end": span.end,
            "score": round(float(share), 6),
        }
        for span, share in zip(reading.spans, shares, strict=False)
    ]
    best: JsonObject = spans[0] if spans else {"answer": "", "start": None, "end": None, "score": 0.0}
    if threshold is not None:
        none: JsonObject = {"answer": "", "start": None, "end": None, "score": round(float(shares[-1]), 6)}
        best = none if reading.null_difference > threshold else best
    return {"text": context, "question": question, **best, "spans": spans[:top]}


def window_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """Return the length and stride of windows: those that the model learnt with, else all of its positions."""
    longest = min(hf_folder.positions(model.config), tokenizer.model_max_length)
    seq_len: Any = getattr(model.config, "zerobert_seq_len", None)
    if not isinstance(seq_len, int) or not LEAST_WINDOW <= seq_len <= longest:
        seq_len = longest
    stride: Any = getattr(model.config, "zerobert_stride", None)
    if not isinstance(stride, int) or not 0 <= stride <= most_stride(seq_len):
        stride = default_stride(seq_len)
    return seq_len, stride

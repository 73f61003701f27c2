"""The pseudo-log-likelihood of a text as one would write it down: a copy at a time, in float64, transformers alone."""

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase


@torch.no_grad()
def pseudo_log_likelihood(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str) -> float:
    """Sum of the log-probabilities of all tokens but the first and the last, each masked by itself."""
    model = model.double().eval()
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    total = 0.0
    for place in range(1, ids.shape[1] - 1):
        masked = ids.clone()
        masked[0, place] = tokenizer.mask_token_id
        output = model(input_ids=masked)
        logits = output.prediction_logits if hasattr(output, "prediction_logits") else output.logits
        total += float(logits[0, place].log_softmax(-1)[ids[0, place]])
    return total

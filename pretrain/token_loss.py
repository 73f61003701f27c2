"""The loss of the masked tokens without a second matrix of logits.

    use_token_loss(model)                     the decoder of a BERT then takes labels, too
    decoder(hidden)                           logits [M, V], as before
    decoder(hidden, labels)                   TokenLoss: a sum in nats, and how many are right

cross_entropy keeps the logits, a float32 copy, the log-softmax and a gradient of the same size. On a CPU these, and the
pages that they touch, took up to a third of a bf16 step (docs/log.md). Here the logits are turned into their gradient
where they stand, some rows at a time, while they are in the cache; the backward pass has only to scale. On a GPU, where
the kernels of cross_entropy are fused, and where no gradient is asked for, nothing changes.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear
from transformers import BertForMaskedLM, BertForPreTraining

CHUNK_BYTES = 1 << 21  # of float32 logits that are worked on at a time: within the second-level cache of a core


class TokenLoss(NamedTuple):
    """Of M masked tokens, float32 scalars."""

    loss: Tensor  # summed, nats
    correct: Tensor


class TokenDecoder(nn.Linear):
    """The decoder of the language-model head. It is a module, and called as one, since under ZeRO-3 its weight exists
    inside its forward only."""

    def forward(self, hidden: Tensor, labels: Tensor | None = None) -> Tensor | TokenLoss:  # type: ignore[override]
        """Return logits [M, V] of hidden [M, H]; with labels [M] their loss."""
        if labels is None:
            return super().forward(hidden)
        if hidden.device.type != "cpu" or not torch.is_grad_enabled():
            logits = super().forward(hidden).float()
            correct = (logits.detach().argmax(-1) == labels).sum().float()
            return TokenLoss(cross_entropy(logits, labels, reduction="sum"), correct)
        return TokenLoss(*_SummedLoss.apply(hidden, self.weight, self.bias, labels))


def use_token_loss(model: BertForMaskedLM | BertForPreTraining) -> None:
    """Put a TokenDecoder with the same weights in place of the model's decoder."""
    head: Any = model.cls.predictions
    old = head.decoder
    with torch.device("meta"):
        decoder = TokenDecoder(old.in_features, old.out_features)
    decoder.weight, decoder.bias = old.weight, old.bias
    head.decoder = decoder.train(old.training)


class _SummedLoss(torch.autograd.Function):
    """cross_entropy(hidden weight' + bias, labels), summed, and the number that are right."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = linear(hidden, weight, bias)
        wide = torch.promote_types(logits.dtype, torch.float32)
        loss, correct = torch.zeros((), dtype=wide), torch.zeros((), dtype=torch.int64)
        rows = max(1, CHUNK_BYTES // (4 * logits.size(1)))
        for chunk, answers in zip(logits.split(rows), labels[:, None].split(rows), strict=True):
            # What is in float32 already is worked on where it stands.
            scores = chunk.to(wide)
            largest, place = scores.max(1, keepdim=True)
            correct += (place == answers).sum()
            expected = scores.gather(1, answers)
            total = scores.sub_(largest).exp_().sum(1, keepdim=True)
            loss += (total.log() + largest - expected).sum()
            # d loss / d logits = softmax - 1 at the label
            scores.div_(total).scatter_add_(1, answers, -torch.ones_like(expected))
            chunk.copy_(scores)
        ctx.save_for_backward(logits @ weight, logits.t() @ hidden, logits.sum(0))
        correct = correct.float()
        ctx.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    def backward(ctx: Any, loss_gradient: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        hidden, weight, bias = ctx.saved_tensors
        # A float32 scalar: rounded to 16 bit first, it would scale all of them by up to a 500th.
        return hidden * loss_gradient, weight * loss_gradient, bias * loss_gradient, None

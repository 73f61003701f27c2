"""How fast and how long to learn where nobody says so, and whether anything was learnt.

settled(config, hidden, examples)      --lr by the size of the model, --epochs by that of the file
alike(model, features)                 how much of the encoder's answers to different texts is the same
nothing_learnt(...)                    what to say, and what to try, where a score is no better than guessing
"""

from dataclasses import replace
from typing import Any

import torch

from pretrain.finetune.config import FinetuneConfig
from pretrain.inference.answer_spans import default_stride

# Peak learning rates by units of a layer. Devlin et al. 2019 have 2e-5 to 5e-5 for 768 and 1024, Turc et al. 2019 up to
# 3e-4 for small ones. A young encoder gives nearly the same vector for all texts, and a rate that suits a grown one
# does not undo that in the steps of a small file: docs/log.md, "Fine-tuning that learnt nothing".
RATES = ((384, 3e-4), (640, 1e-4), (896, 5e-5))
LARGE = 3e-5
EPOCHS, MOST_EPOCHS = 3, 20  # Devlin et al. 2019; Mosbach et al. 2021, who take 20 for 2,500 examples
STEPS = 300  # that a small file is gone through for, within MOST_EPOCHS
ALIKE = 0.99  # cosine of two different texts from which on an encoder hardly tells them apart
SAMPLED_TEXTS = 64
BEAMS = 4  # Rothe et al. 2020


def rate_of(hidden: int) -> float:
    """Return the default of --lr for a model of so many units."""
    return next((rate for most, rate in RATES if hidden <= most), LARGE)


def epochs_of(examples: int, batch_size: int) -> int:
    """Return the default of --epochs: a small file is gone through more often."""
    steps = -(-examples // batch_size)
    return min(MOST_EPOCHS, max(EPOCHS, -(-STEPS // steps)))


def settled(config: FinetuneConfig, hidden: int, examples: int) -> FinetuneConfig:
    """Return the same with what was not given: a rate, epochs, and what --task has of its own."""
    lr, epochs = config.lr, config.epochs
    stride, beams, longest = config.stride, config.beams, config.max_new_tokens
    if config.reads_windows and stride is None:
        stride = default_stride(config.seq_len)
    if config.task == "seq2seq":
        beams, longest = beams or BEAMS, longest or config.seq_len
    return replace(
        config,
        lr=rate_of(hidden) if lr is None else lr,
        epochs=epochs_of(examples, config.batch_size) if epochs is None else epochs,
        stride=stride,
        beams=beams,
        max_new_tokens=longest,
    )


@torch.no_grad()
def alike(model: Any, collator: Any, features: list[dict[str, Any]]) -> float:
    """Return the mean cosine of what the encoder says of texts, at their first token: 1 where all are alike to it."""
    names = ("input_ids", "token_type_ids", "attention_mask")
    some = [
        # Of windows that lie end to end the first.
        {name: feature[name][: feature.get("windows", [None])[0]] for name in names if name in feature}
        for feature in features[:SAMPLED_TEXTS]
    ]
    was_training = model.training
    model.eval()
    encoder = model.get_encoder() if model.config.is_encoder_decoder else model.base_model
    batch = collator(some).to(model.device)
    first = encoder(**{name: batch[name] for name in names if name in batch}).last_hidden_state[:, 0].double()
    model.train(was_training)
    first = torch.nn.functional.normalize(first, dim=1)
    count = len(first)
    return float(((first @ first.T).sum() - count) / max(count * (count - 1), 1))


def nothing_learnt(config: FinetuneConfig, hidden: int, examples: int, same: float, stuck: list[int]) -> str:
    """Return what to try where a score is no better than guessing, the likeliest first; `stuck` are the seeds of which
    that is true. A few of them say that the rate is too high for the weights to settle, or just too low to get away."""
    lr, epochs = config.lr or 0.0, config.epochs or 0
    if len(stuck) < config.seeds:
        return f"--lr {lr / 3:g}, or --epochs {2 * epochs}"
    tries = []
    if lr < rate_of(hidden):
        tries.append(f"--lr {rate_of(hidden):g} (small models need more than large ones)")
    if lr > 3 * rate_of(hidden):
        tries.append(f"--lr {rate_of(hidden):g} (this one is high for {hidden} units)")
    if epochs < epochs_of(examples, config.batch_size):
        tries.append(f"--epochs {epochs_of(examples, config.batch_size)}")
    if same > ALIKE:
        tries.append(f"a model that was pretrained for longer (to this one all texts are alike: cosine {same:.4f})")
    if lr == rate_of(hidden):
        tries.append(f"--lr {3 * lr:g}, --epochs {2 * epochs}, more examples; and look at the labels")
    return "; or ".join(tries or [f"--lr {rate_of(hidden):g}"])

"""What a BERT costs, by formula: parameters, arithmetic, memory. No torch is needed to ask.

parameters(Shape(12, 768, 12), 30528)              110 million
token_flops(Shape(12, 768, 12), 30528, 128, .15)   of a token's forward and backward pass
state_bytes(1, parameters, 8, "bf16")              per rank, at a ZeRO stage
activation_bytes(...)                              per token, kept for the backward pass
"""

from pretrain.settings.limits import MAX_POSITIONS
from pretrain.settings.shape import Shape

STATE = 12  # bytes per parameter of fp32 weights and both moments: the optimizer's state, and a checkpoint
# Elements of the hidden size that a layer keeps for the backward pass, with attention kernels that keep no matrix of
# scores: 34 bytes in 16 bit (Korthikanti et al. 2022, section 4.1).
KEPT = 17


def parameters(shape: Shape, vocab_size: int) -> int:
    """Return the number of weights of BertForPreTraining."""
    layers, hidden, _ = shape
    embeddings = (vocab_size + MAX_POSITIONS + 2 + 2) * hidden
    encoder = layers * (12 * hidden**2 + 13 * hidden)
    heads = 2 * (hidden**2 + hidden) + 2 * hidden + vocab_size + 2 * hidden + 2  # pooler, transform, output biases, nsp
    return embeddings + encoder + heads


def token_flops(shape: Shape, vocab_size: int, sample_tokens: float, mask_rate: float) -> float:
    """Return the floating-point operations of a token's forward and backward pass, in samples of so many tokens.

    Chowdhery et al. 2022, appendix B, with the head at masked tokens only.
    """
    layers, hidden, _ = shape
    encoder = layers * (24 * hidden**2 + 4 * hidden * sample_tokens)
    head = mask_rate * (2 * hidden**2 + 2 * hidden * vocab_size)
    return 3.0 * (encoder + head)


def state_bytes(stage: int, parameters: int, ranks: int, precision: str, has_average: bool = False) -> float:
    """Return bytes per rank of weights, gradients and optimizer state (Rajbhandari et al. 2020, section 3); with the
    average of the weights, where there is one, which lies beside the optimizer's state."""
    size = 4 if precision == "fp32" else 2  # of a weight, or a gradient
    average = 4 * has_average
    if stage == 0:
        return (2 * size + (8 if precision == "fp32" else STATE) + average) * parameters  # fp32: no second copy
    whole = {1: 2 * size, 2: size, 3: 0}[stage]
    return (whole + (2 * size + STATE + average - whole) / ranks) * parameters


def activation_bytes(shape: Shape, vocab_size: int, mask_rate: float, precision: str) -> float:
    """Return bytes per token that a forward pass keeps, about: layers, and logits with their gradient in fp32."""
    size = 4 if precision == "fp32" else 2
    return size * KEPT * shape.layers * shape.hidden + mask_rate * vocab_size * (4 + 4)

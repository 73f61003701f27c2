"""What an advice says, by the names that make.json and `zerobert plan --json` have."""

from typing import NotRequired, TypedDict

from data_prep.json_types import JsonObject


class AdviceSettings(TypedDict):
    """What fits."""

    lang: str
    cased: bool
    vocab_kind: str
    vocab_size: int
    model: str
    layers: int
    hidden: int
    heads: int
    objective: str
    seq_len: int
    global_batch: int
    micro_batch: int
    ranks: int
    zero: int
    precision: str
    lr: float
    optimizer: str
    average: str
    schedule: str
    warmup: float
    mask_rate: float
    mlm_bias: str
    dropout: float
    hours: float
    steps: int  # that the hours hold
    epochs: float  # passes over the text
    tokens: int  # that are trained on
    tokens_per_second: int
    text_tokens: int
    phases: list[str]  # each a --phase; none: one phase
    eval_every: int
    eval_samples: int
    save_every: int
    log_every: int
    patience: int


class Cost(TypedDict):
    """What it takes; prices where one was given."""

    gpu_hours: float
    hours_a_pass: float
    price: NotRequired[float]
    price_a_pass: NotRequired[float]


class Memory(TypedDict):
    """What a rank needs, in bytes, and what it has."""

    parameters: int
    state_bytes: int
    activation_bytes: int
    together_bytes: int
    has_bytes: int
    fits: bool


class Found(TypedDict):
    """What the advice stands on."""

    text: JsonObject  # Survey.to_json()
    machine: JsonObject  # machine_json()
    cost: Cost
    memory: Memory

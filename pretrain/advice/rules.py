"""What fits which text, machine and hours: one table of numbers with their sources, and the functions that use them.

Each choice is a pure function: numbers in, (value, reason in plain words) out. Trials (docs/log.md) change the table,
not the functions.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from data_prep.text.languages import defaults
from pretrain.advice.machine import Machine
from pretrain.advice.survey import UNSPACED, Survey
from pretrain.formatting import bytes_in_words, counted, duration
from pretrain.settings.shape import PRESETS, Shape
from pretrain.sizes import activation_bytes, parameters, state_bytes


class ModelRule(NamedTuple):
    """What a model of one size asks for."""

    least_tokens: float  # below which a smaller one has learnt more
    lr: float  # for AdamW, at `lr_tokens` a step
    lr_tokens: float  # 0: whatever the batch
    warmup: float  # share of the steps
    mask_rate: float


# least_tokens: bert-mini left its plateau after 5 M tokens and was a language model after 13 M (docs/log.md: 64 x 64
# tokens per step); BERT-base is what a day of one GPU buys (Geiping and Goldstein 2023: 5 B tokens and more),
# BERT-large what a day of eight buys (Izsak et al. 2021: 13 B). Between them in proportion to their weights, about 20
# tokens per weight, as for language models (Hoffmann et al. 2022).
# lr: measured for bert-mini (1e-3; bert-tiny learns with 2e-3 alike). For base and large with the square root of the
# batch between the published points of their post-LayerNorm form: BERT 1e-4 at 131 k tokens (Devlin et al. 2019),
# RoBERTa 6e-4 (base) and 4e-4 (large) at 4.2 M (Liu et al. 2019, table 9).
# warmup: 3 % measured, 6 % Izsak et al. mask_rate: where tokens are few, more of them teach more: of bert-mini .30 that
# comes down to .15 gave 3.55 nats for 3.75 (docs/log.md); base 20 %, large 40 % (Wettig et al. 2023).
MODEL_RULES = {
    "bert-tiny": ModelRule(0, 2e-3, 0, 0.05, 0.20),
    "bert-mini": ModelRule(8e6, 1e-3, 0, 0.03, 0.30),
    "bert-small": ModelRule(150e6, 1e-3, 0, 0.03, 0.30),
    "bert-medium": ModelRule(500e6, 5e-4, 0, 0.06, 0.20),
    "bert-base": ModelRule(2e9, 6e-4, 4.2e6, 0.06, 0.20),
    "bert-large": ModelRule(8e9, 4e-4, 4.2e6, 0.06, 0.40),
}
MANY_PASSES = 40  # further ones teach nothing new (Muennighoff et al. 2023, of language models; masks differ each time)
HALF_WORTH = 15.4  # passes: how fast repeated text loses its worth (the same, R*)
PLATEAU = 1500  # steps before which no model here had left it (docs/log.md)
STEPS_WANTED = 20_000  # steps matter, not tokens (docs/log.md); Izsak et al. made 25,000
LEAST_STEP, MOST_STEP = 4096, 1 << 19  # tokens: measured, 64 x 64; Izsak et al. 4,096 x 128
SHORTEST_STEP = 2048  # tokens, where time is so short that 4,096 leave fewer steps than the plateau is long
SHORT_SAMPLES = 200e6  # tokens to train on, below which 64 a sample did better than 128 (docs/log.md)
LONGEST = 512  # tokens of a sample of the last phase
LONG_SAMPLES = 1e9  # tokens from which a last phase at 512 pays (Devlin et al. 2019: a tenth of the steps)
FILLED = 0.85  # of a sample's tokens: whole sentences seldom end where it does (docs/log.md: .86 at 64, .82 at 128)
VOCAB_SIZES = (1024, 2048, 4096, 8192, 12288, 16384, 30528)
# Times that four of five entries are to be met. Gowda and May 2020 ask 100 times of 95 %, of millions of sentences; 50
# times of 80 % give 10 M words the 8 to 16 k of BabyLM's encoders.
LEAST_SEEN = 50
UNSPACED_SHARE = 0.2  # of the letters
UNSPACED_LETTERS = 3.0  # a token of Thai and the like
BYTES_PER_TOKEN = 4.2  # of English with 8,192 entries (docs/log.md); where there is no text to count
MARKS = 0.003  # share of letters with accents or vowel signs from which lower-casing, which strips them, loses words
NO_DROPOUT = 3.0  # passes, after which a run without dropout held out as well as in training, 2.88 nats (docs/log.md)
LITTLE_TEXT = 1e6  # bytes, of which nothing can be learnt
CPU_MICRO_BATCH_TOKENS = 2048  # more is not faster on a CPU, whose caches it leaves
GPU_MICRO_BATCH_TOKENS = 1 << 15  # fills a large GPU
MEMORY_SHARE = 0.8  # of the memory, for what the formulas know
CPU_DAYS = 2.0  # days of a CPU that are worth a word
ONE_SENTENCE = 0.5  # share of the documents

Choice = tuple[Any, str]


def cased(text: Survey, lang: str) -> Choice:
    """Return whether the vocabulary keeps case and accents: as the language asks, and whatever the language where the
    text has many accents."""
    example = f" ({text.uncased_loses})" if text.uncased_loses else ""
    if lang and (known := defaults(lang)).cased:
        return True, f"{known.name}: {known.why}{example}"
    if text.marks > MARKS:
        share = 100 * text.marks
        return (
            True,
            f"{share:.1f} % of the letters carry accents or vowel signs: an uncased vocabulary strips them{example}",
        )
    if text.capitals < 0.002:
        return False, "the script has no capitals and hardly any accents: nothing is lost"
    return False, (
        f"{100 * text.capitals:.1f} % capitals, {100 * text.marks:.2f} % accents: they carry little here, and every "
        "word is learnt once instead of twice"
    )


def vocab_kind(text: Survey) -> Choice:
    """Return WordPiece, or a vocabulary that finds words by itself."""
    unspaced = sum(text.scripts.get(name, 0.0) for name in UNSPACED)
    if unspaced > UNSPACED_SHARE:
        names = ", ".join(name for name in text.scripts if name in UNSPACED)
        return "unigram", f"{100 * unspaced:.0f} % of the letters are {names}, which puts no space between words"
    if text.scripts.get("Han", 0.0) > 0.5:
        return "wordpiece", "Chinese, cut into characters as BERT's Chinese model is"
    return "wordpiece", "words are parted by spaces"


def token_count(text: Survey, vocab_size: int) -> float:
    """Return the tokens of a corpus with a vocabulary of so many entries, from its words: the most frequent ones are
    entries, the others are cut into pieces, longer ones in a large vocabulary.

    The numbers are fitted to 14 vocabularies of 1,024 to 16,384 entries trained on English, German, Russian and Hindi,
    whose tokens they tell within 9 % (docs/log.md).
    """
    if not text.frequent:
        return text.text_bytes / BYTES_PER_TOKEN
    entries = max(1, int(0.6 * (vocab_size - 3 * text.alphabet)))
    letters_a_piece = max(1.5, 0.4 * math.log2(vocab_size) - 2)
    tokens = float(sum(text.frequent[:entries]))
    for times, letters in zip(text.frequent[entries:], text.lengths[entries:], strict=True):
        tokens += times * (max(2.0, letters / letters_a_piece) if letters > 1 else 1.0)
    return max(1.0, tokens * text.scale + text.signs + text.unspaced_chars / UNSPACED_LETTERS)


def vocab_size(text: Survey, tokens: float = math.inf, shape: Shape | None = None) -> Choice:
    """Return the largest vocabulary that is not made of rare entries, in all of the text or in the tokens that are
    trained on, and whose embeddings are not larger than the layers of the model."""
    if not text.frequent:
        return VOCAB_SIZES[-1], "BERT's own size; there is no text here to count words in"
    seen = min(1.0, tokens / token_count(text, 8192))
    most = max(VOCAB_SIZES[1], 12 * shape.layers * shape.hidden) if shape else VOCAB_SIZES[-1]
    sizes = [size for size in VOCAB_SIZES if size <= most] or [VOCAB_SIZES[0]]
    fitting = [size for size in sizes if met_by_most(text, size) * seen >= LEAST_SEEN]
    size = max(fitting, default=sizes[0])
    if text.han > size // 2:  # each of them is an entry
        room = min(text.han + 3 * text.alphabet + 512, VOCAB_SIZES[-1])
        size = min(larger for larger in VOCAB_SIZES if larger >= room)
        return size, f"room for the {text.han:,} Chinese characters that were found, and for words of other scripts"
    met = counted(met_by_most(text, size) * seen)
    reason = f"{bytes_in_words(text.text_bytes)} of text: four of five entries are met {met} times"
    larger = next((other for other in VOCAB_SIZES if other > size), None)
    if larger is not None and met_by_most(text, larger) * seen < LEAST_SEEN:
        met = counted(met_by_most(text, larger) * seen)
        return size, f"{reason}; of {larger:,} {met}, and rare ones are not learnt"
    if larger is not None:
        return size, f"{reason}; more would outweigh the layers of so small a model"
    return size, f"{reason}; BERT's own size"


def met_by_most(text: Survey, vocab_size: int) -> float:
    """Return how often four of five entries occur in the corpus at least: about four times as often as the word at 95 %
    of the size, since pieces are shared by words (docs/log.md: seven vocabularies of English, German, Russian and
    Hindi)."""
    if _is_unspaced(text):
        return token_count(text, vocab_size) / (10 * vocab_size)
    return 4 * count_at(text, int(0.95 * vocab_size))


def met_by_half(text: Survey, vocab_size: int) -> float:
    """Return how often half of the entries occur, likewise: three times as often as the word at half the size."""
    if _is_unspaced(text):
        return token_count(text, vocab_size) / (5 * vocab_size)
    if text.han > vocab_size // 4:
        return count_at(text, min(vocab_size, len(text.frequent)) // 2)
    return 3 * count_at(text, vocab_size // 2)


def _is_unspaced(text: Survey) -> bool:
    return sum(text.scripts.get(name, 0.0) for name in UNSPACED) > UNSPACED_SHARE


def count_at(text: Survey, rank: int) -> float:
    """Return how often the word of this rank occurs in the corpus."""
    return text.frequent[rank] * text.scale if rank < len(text.frequent) else 0.0


def worth(tokens: float, text_tokens: float) -> float:
    """Return the tokens of new text that so many are worth, of which most are repeated (Muennighoff et al. 2023,
    equation 5)."""
    repeats = max(0.0, tokens / text_tokens - 1)
    return min(tokens, text_tokens) + text_tokens * HALF_WORTH * (1 - math.exp(-repeats / HALF_WORTH))


class Pace(NamedTuple):
    """What a preset would do in the hours."""

    model: str
    tokens_per_second: float
    tokens: float  # that the hours hold
    worth: float  # of new text


def paces(
    machine: Machine, hours: float, vocab_size: int, text_tokens: float, shapes: Mapping[str, Shape] = PRESETS
) -> list[Pace]:
    """Return the pace of every preset that fits into the memory; `shapes`: those that are asked for, by preset."""
    found: list[Pace] = []
    for name, shape in shapes.items():
        sample = 64 if shape.hidden <= 256 else 128
        speed = machine.tokens_per_second(shape, vocab_size, sample, MODEL_RULES[name].mask_rate)
        tokens = 3600 * hours * speed
        if found and not fits(name, machine, vocab_size, shape):
            break
        found.append(Pace(name, speed, tokens, worth(tokens, text_tokens)))
    return found


def fits(name: str, machine: Machine, vocab_size: int, shape: Shape | None = None) -> bool:
    """Return whether the state and eight samples of 128 tokens fit, at any ZeRO stage."""
    return stage_and_micro_batch(name, machine, vocab_size, 128, 8, shape=shape)[1] >= 8


def model(found: Sequence[Pace]) -> tuple[Pace, Pace | None]:
    """Return the largest preset that gets the tokens it wants, and the next one, which does not."""
    enough = [pace for pace in found if pace.worth >= MODEL_RULES[pace.model].least_tokens]
    larger = next((pace for pace in found if pace not in enough), None)
    return (enough or found)[-1], larger  # where one is asked for, it alone is looked at


def why_model(chosen: Pace, larger: Pace | None, hours: float) -> str:
    """Return why a preset was chosen, and not a `larger` one."""
    reason = f"{counted(chosen.tokens_per_second)} tokens/s: {counted(chosen.tokens)} tokens in {_hours(hours)}"
    if chosen.worth < 0.9 * chosen.tokens:
        reason += f", worth {counted(chosen.worth)} of new text as they repeat"
    if larger is not None:
        wanted = counted(MODEL_RULES[larger.model].least_tokens)
        reason += f"; {larger.model} would see {counted(larger.worth)} and wants {wanted}"
    return reason


def why_warmup(share: float, whole: str) -> str:
    """Return how the rate runs: `of` the time, or of the steps."""
    return f"{100 * share:g} % of the {whole}, then down to 0 in a straight line"


def why_mask_rate(name: str) -> str:
    """Return why so many tokens of a sample are to be predicted."""
    if name in ("bert-base", "bert-large"):
        return "larger models learn more from more (Wettig et al.)"
    return "more targets a step end the plateau sooner: 3.55 for 3.75 nats of bert-mini, .30 to .15 (docs/log.md)"


def why_micro_batch(machine: Machine, samples: int, seq_len: int, share: int) -> str:
    """Return why a rank takes so many samples at once, of its `share` of a step."""
    usual = GPU_MICRO_BATCH_TOKENS if machine.is_gpu else CPU_MICRO_BATCH_TOKENS
    if samples == share and samples * seq_len < usual:
        return f"all that a rank gets of a step: {samples * seq_len:,} tokens" + (
            ", too few to fill a GPU" if machine.is_gpu else ""
        )
    if machine.is_gpu:
        return f"as many as fill the GPU and fit into its {machine.memory / 1e9:.0f} GB"
    return f"{usual:,} tokens: more is not faster on a CPU"


def why_precision(machine: Machine, shape: Shape) -> str:
    """Return why a model of this shape trains in the precision that it does."""
    if machine.precision_of(shape) != "fp32":
        units = "the GPU has" if machine.is_gpu else "these cores have"
        return f"{units} units for it, faster than those of fp32 (docs/log.md); the optimizer's weights stay fp32"
    return "cores without units for bf16" if machine.precision == "fp32" else "so small a model is slower in bf16"


def objective(text: Survey) -> Choice:
    """Return what is learnt."""
    if text.one_sentence > ONE_SENTENCE:
        share = 100 * text.one_sentence
        return "mlm", f"masked words only: {share:.0f} % of the documents are one sentence, which has no next one"
    return "mlm", (
        "masked words only: sentence pairs cost length and gain nothing (RoBERTa, Izsak et al.), and with them the "
        "same model was still on its plateau here"
    )


def seq_len(tokens: float, document_tokens: float) -> Choice:
    """Return the tokens of a sample."""
    if document_tokens < 48:
        length = 32 if document_tokens < 24 else 64
        return length, f"documents are short, {document_tokens:.0f} tokens the median"
    if tokens < SHORT_SAMPLES:
        return 64, f"with {counted(tokens)} tokens many short samples teach more than few long ones (docs/log.md)"
    return 128, "attention is cheap there, and most of language is learnt (Devlin et al., Izsak et al.)"


def step_tokens(tokens: float) -> Choice:
    """Return the tokens of a step: as few as learn steadily, since steps matter."""
    size = LEAST_STEP
    while size * 2 <= min(tokens / STEPS_WANTED, MOST_STEP):
        size *= 2
    if tokens / size < PLATEAU:
        size = SHORTEST_STEP
    return (
        size,
        f"{size:,} tokens per step: steps matter more than tokens, so small steps learn more (docs/log.md)",
    )


def learning_rate(name: str, batch_tokens: float) -> Choice:
    """Return the peak rate of AdamW."""
    rule = MODEL_RULES[name]
    if not rule.lr_tokens:
        return rule.lr, f"what taught {name} or its like in trials (docs/log.md)"
    rate = rule.lr * math.sqrt(batch_tokens / rule.lr_tokens)
    rate = float(f"{min(max(rate, 1e-4), rule.lr):.1g}")
    return rate, "between BERT's 1e-4 and RoBERTa's rate, by the square root of the batch"


MLM_BIAS: Choice = (
    "unigram",
    "the frequencies of tokens need not be learnt: 4.7 for 5.4 nats after 1,300 steps (docs/log.md)",
)


def dropout(passes: float) -> Choice:
    """Return the dropout of hidden units."""
    if passes <= NO_DROPOUT:
        return 0.0, f"{passes:.2g} passes: too few to learn the text by heart (docs/log.md)"
    return 0.1, f"BERT's own; {counted(passes)} passes over the text"


def stage_and_micro_batch(
    name: str,
    machine: Machine,
    vocab_size: int,
    seq_len: int,
    share: int,
    *,
    shape: Shape | None = None,
    has_average: bool = False,
) -> tuple[int, int]:
    """Return the lowest ZeRO stage from 1 on with room for a good micro-batch, and that: a power of two that divides a
    rank's share of the batch; 0 where none fits. The model has the shape of preset `name`, or another `shape`."""
    shape = shape or PRESETS[name]
    weights, precision = parameters(shape, vocab_size), machine.precision_of(shape)
    sample = seq_len * activation_bytes(shape, vocab_size, MODEL_RULES[name].mask_rate, precision)
    wanted = max(1, (GPU_MICRO_BATCH_TOKENS if machine.is_gpu else CPU_MICRO_BATCH_TOKENS) // seq_len)
    best = (1, 0)
    for stage in (1, 2, 3) if machine.ranks > 1 else (1,):
        state = state_bytes(stage, weights, machine.ranks, precision, has_average)
        room = MEMORY_SHARE * machine.memory - state
        most = min(int(room / sample), wanted, share) if room > 0 else 0
        micro = 1 << (most.bit_length() - 1) if most > 0 else 0
        while micro > 1 and share % micro:
            micro //= 2
        if micro > best[1]:
            best = (stage, micro)
        if micro >= min(8, share):
            break
    return best


def phases(
    tokens: float, document_tokens: float, length: int, batch: int, micro: int, steps: int, lr: float, ranks: int = 1
) -> list[str]:
    """Return the --phase of a run that ends with long samples, where tokens and documents are enough for them; else
    none."""
    shorter = LONGEST // length
    if tokens < LONG_SAMPLES or document_tokens < LONGEST // 2 or batch < shorter or batch % (shorter * micro):
        return []
    if batch // shorter % (ranks * max(1, micro // shorter)):  # of the long samples each rank takes as many
        return []
    long_steps = max(1, steps // 10)
    return [
        f"seq_len={length},steps={steps - long_steps},global_batch={batch},micro_batch={micro}",
        f"seq_len={LONGEST},steps={long_steps},global_batch={batch // shorter},micro_batch={max(1, micro // shorter)},"
        f"lr={lr / 2:g}",
    ]


def _hours(hours: float) -> str:
    return duration(3600 * hours)

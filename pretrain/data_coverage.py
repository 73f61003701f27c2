"""What can be said of a run's data before it runs: how much of the text it will see, and what will never come.

data_coverage_of(config, stores) -> DataCoverage       in config.json, in the start's table and in the plan of a dry run
"""

from typing import NamedTuple

from data_prep.cli import InputError
from data_prep.samples.coverage import MOST, evaluated, look_over, why_not_evaluated
from data_prep.store import Store
from pretrain.settings.config import TrainConfig


class DataCoverage(NamedTuple):
    """Shares over all stores, each with the weight of its tokens; of several phases the lowest."""

    tokens_seen: float  # of the training tokens, in one pass
    tokens_seen_10: float
    seen: str  # the same in words, with a remedy
    no_evaluation: str  # why there is none, or none of some stores, and the remedy; empty where all is well
    is_evaluated: bool
    warnings: list[str]


def data_coverage_of(config: TrainConfig, stores: list[Store]) -> DataCoverage:
    """Count what samples will show.

    Raises
    ------
    InputError: labels that say nothing, --patience with nothing to be patient about.
    """
    why = why_not_evaluated(stores, config.objective) if config.eval_samples else ""
    is_evaluated = bool(config.eval_samples and evaluated(stores, config.objective))
    if config.patience and not is_evaluated:
        raise InputError(f"--patience {config.patience} waits for evaluations that cannot be: {why}")
    lengths = sorted({span.seq_len for span in config.spans})
    found = [look_over(stores, config.objective, seq_len, config.seed) for seq_len in lengths]
    covered = [coverage for coverage in found if coverage is not None]
    if not covered:
        raise InputError(
            f"{', '.join(config.data)}: next-sentence pairs need two documents or more; add text, or use "
            "--objective sop or mlm"
        )
    for coverage in covered:
        if coverage.without_choice >= MOST:
            raise InputError(f"{', '.join(config.data)}: {coverage.warning}")
    worst = min(covered, key=lambda coverage: coverage.tokens_seen)
    warnings = [coverage.warning for coverage in covered if coverage.warning] + ([why] if why else [])
    words = {coverage.seq_len: coverage.in_words() for coverage in covered}
    seen = "; ".join(f"{length} tokens a sample: {text}" for length, text in words.items())
    seen = seen if len(words) > 1 else worst.in_words()
    return DataCoverage(worst.tokens_seen, worst.tokens_seen_10, seen, why, is_evaluated, warnings)

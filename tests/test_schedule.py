import math

import pytest

from pretrain.settings.schedule import BATCH_STAGES, batch_size, lr_multiplier

TOTAL, WARMUP = 100, 10
SCHEDULES = ["linear", "poly", "cosine", "constant", "wsd"]


@pytest.mark.parametrize(
    ("schedule", "last"),
    [
        *(("linear", 1 / 90), ("poly", (1 / 90) ** 0.5), ("cosine", (1 - math.cos(math.pi / 90)) / 2)),
        *(("constant", 1.0), ("wsd", 0.05)),
    ],
)
def test_rises_to_the_peak_and_spends_no_step_at_zero(schedule, last):
    values = [lr_multiplier(schedule, step, WARMUP, TOTAL) for step in range(TOTAL)]
    assert values[:WARMUP] == pytest.approx([(step + 1) / (WARMUP + 1) for step in range(WARMUP)])
    assert values[WARMUP] == max(values) == 1.0
    assert values[-1] == pytest.approx(last)
    assert all(a >= b for a, b in zip(values[WARMUP:], values[WARMUP + 1 :], strict=False))


@pytest.mark.parametrize(
    ("schedule", "halfway", "end"),
    [("linear", 0.5, 0.0), ("poly", 0.5**0.5, 0.0), ("cosine", 0.5, 0.0), ("constant", 1.0, 1.0), ("wsd", 1.0, 0.0)],
)
def test_values_by_hand(schedule, halfway, end):
    assert lr_multiplier(schedule, WARMUP + (TOTAL - WARMUP) // 2, WARMUP, TOTAL) == pytest.approx(halfway)
    assert lr_multiplier(schedule, TOTAL, WARMUP, TOTAL) == pytest.approx(end, abs=1e-12)


def test_wsd_falls_over_the_last_fifth():
    assert lr_multiplier("wsd", 80, WARMUP, TOTAL) == 1.0
    assert lr_multiplier("wsd", 90, WARMUP, TOTAL) == pytest.approx(0.5)


def test_without_a_warmup_the_first_step_is_the_peak():
    assert lr_multiplier("linear", 0, 0, TOTAL) == 1.0


def test_a_batch_grows_in_equal_stages_and_stays():
    full, warmup = 64, 20
    sizes, taken = [], 0
    for _ in range(30):
        sizes.append(batch_size(taken, full, warmup))
        taken += sizes[-1]
    assert sizes == sorted(sizes)
    assert sizes[warmup * (BATCH_STAGES - 1) // BATCH_STAGES :] == [full] * (30 - warmup * 7 // 8)
    assert [sizes.count(8 * stage) for stage in range(1, BATCH_STAGES)] == [2, 3, 2, 3, 2, 3, 2]


def test_without_a_batch_warmup_the_batch_is_whole_from_the_start():
    assert batch_size(0, 64, 0) == 64

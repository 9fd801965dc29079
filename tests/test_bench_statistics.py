"""The numbers that selva-bench computes from its samples, against numbers worked out by hand."""

import math
from dataclasses import asdict

import numpy as np
import pytest

from selva_bench.presentation import seconds
from selva_bench.runtime_side import StageClock
from selva_bench.statistics import (
    further_stem_s,
    quantile,
    ratios,
    real_time_factor,
    round_totals,
    snr_db,
    stems_in,
    summarise,
    summarise_rounds,
)


def totals(*samples: float) -> list[dict]:
    return [{"totals": {"first_stem": [sample]}} for sample in samples]


class Ticking:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def clock_of(*reports: tuple[str, int, int, float]) -> StageClock:
    time = Ticking()
    clock = StageClock(time)
    for stage, done, total, took_s in reports:
        time.now_s += took_s
        clock(stage, done, total)
    time.now_s += 0.5
    clock.stop()
    return clock


def test_quantiles_lie_between_neighbours() -> None:
    assert [quantile([4, 1, 3, 2], share) for share in (0, 0.25, 0.5, 1)] == [1, 1.75, 2.5, 4]
    assert quantile([7.0], 0.99) == 7


def test_summary() -> None:
    assert asdict(summarise([3.0, 1.0, 2.0, 10.0, 4.0])) == {
        "median_s": 3,
        "low_s": 2,
        "high_s": 4,
        "min_s": 1,
        "max_s": 10,
        "p99_s": None,
        "samples": 5,
    }
    assert summarise(range(101)).p99_s == 99
    assert summarise(range(99)).p99_s is None


def test_rounds_are_pooled_by_name() -> None:
    rounds = [{"stages": {"step": [1.0, 2.0]}}, {"stages": {"step": [3.0], "text": [9.0]}}]
    found = summarise_rounds(rounds, "stages")
    assert (found["step"].median_s, found["step"].samples, found["text"].samples) == (2, 3, 1)


def test_ratio_is_the_median_of_the_rounds_ratios() -> None:
    # medians 2 and 8 would give 4; the machine was busy in the second round
    found = ratios(totals(1, 10, 2), totals(3, 40, 8), "totals")["first_stem"]
    assert (found.median, found.min, found.max) == (4, 3, 4)


def test_ratio_is_left_out_where_a_time_drowned_or_is_not_shared() -> None:
    assert ratios(totals(1, 0), totals(3, 3), "totals") == {}
    assert ratios(totals(1, -1), totals(3, 3), "totals") == {}
    assert ratios([{"totals": {"ours": [1.0]}}], [{"totals": {"theirs": [1.0]}}], "totals") == {}


def test_further_stems_and_real_time() -> None:
    assert further_stem_s(10, 16, 4) == 2
    assert real_time_factor(4, 8) == 0.5


def test_totals_of_a_round() -> None:
    found = round_totals({1: (10, 1), 4: (16, 1)}, 3)
    assert found == {
        "first_stem": [10],
        "first_stem_after_decode": [9],
        "4_stems": [16],
        "4_stems_after_decode": [15],
        "further_stem_of_4": [2],
        "new_prompt": [3],
    }
    assert [stems_in(name) for name in found] == [1, 1, 4, 4, 1, 1]


def test_stages_get_the_time_since_the_last_report() -> None:
    clock = clock_of(("decode", 1, 2, 1), ("decode", 2, 2, 2), ("encode", 1, 1, 4))
    assert (clock.total_s("decode"), clock.total_s("encode"), clock.total_s("text")) == (3, 4, 0)
    assert clock.elapsed_s == 7.5


def test_steps_may_be_reported_one_by_one_or_several_at_once() -> None:
    one_by_one = [("conditions", 1, 1, 4.0), ("step", 1, 2, 2.0), ("step", 2, 2, 3.0), ("vocode", 1, 1, 9)]
    assert clock_of(*one_by_one).steps_s() == [2, 3]
    assert clock_of(("step", 4, 10, 6.0), ("step", 8, 10, 4.0), ("step", 10, 10, 2.0)).steps_s() == [1.5] * 4 + [1] * 6


def test_signal_to_noise() -> None:
    sound = np.ones(8, np.float32)
    assert snr_db(sound + np.float32(0.125), sound) == pytest.approx(20 * math.log10(8))
    assert snr_db(sound, sound) is None
    assert snr_db(sound[:4], sound) is None


@pytest.mark.parametrize(
    ("value_s", "text"),
    [
        (0.00123, "1.23 ms"),
        (0.0345, "34.5 ms"),
        (0.678, "678 ms"),
        (0.9996, "1.00 s"),
        (12.34, "12.3 s"),
        (123, "123 s"),
    ],
)
def test_seconds_for_people(value_s: float, text: str) -> None:
    assert seconds(value_s) == text

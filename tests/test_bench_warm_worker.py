"""The benchmark of a warm worker: every side runs, and the ratios are those within a round."""

import pytest

from selva_bench.warm_worker import document, measure

SIDES = ["worker_first_stem", "session_first_stem", "worker_new_prompt", "session_new_prompt"]


def test_every_side_runs(demo_bundle, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))  # restores it afterwards
    (row,) = measure(demo_bundle, steps=1, rounds=1)
    assert list(row) == [*SIDES, "command_with_worker", "command"]
    assert all(seconds > 0 for seconds in row.values())


def test_ratios_are_taken_within_a_round():
    rounds = [dict(zip(SIDES, seconds, strict=True)) for seconds in ((2, 1, 6, 2), (40, 10, 2, 2), (3, 1, 8, 2))]
    made = document(rounds)
    assert made["ratios"] == {"first_stem": 3, "new_prompt": 3}
    assert made["seconds"]["session_first_stem"]["median_s"] == pytest.approx(1)

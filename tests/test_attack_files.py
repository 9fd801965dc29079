"""Runs a few attacks of each kind on files and on the hub; SELVA_ATTACKS=1000 runs a thousand."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from attacks.engine_attacks import attack_engine_sets
from attacks.state_attacks import attack_states
from attacks.weight_attacks import attack_checkpoints, attack_fetch

FEW = {attack_states: 40, attack_engine_sets: 100, attack_checkpoints: 100, attack_fetch: 15}


@pytest.mark.parametrize("attack", FEW)
def test_every_attack_is_refused_or_without_effect(attack: Callable[[int, Path], int], tmp_path: Path) -> None:
    count = int(os.environ.get("SELVA_ATTACKS", FEW[attack]))
    assert count >= attack(count, tmp_path / "attacked") > count / 4  # most are refused: the attacks reach the code

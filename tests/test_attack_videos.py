"""Runs a few attacks on videos; `make attack` runs a thousand."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "attacks"))

import pytest
import video_attacks

COUNT = int(os.environ.get("SELVA_ATTACKS", "40"))


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured through /proc")
def test_attacked_videos_give_a_result_or_one_error():
    video_attacks.attack(COUNT, seed=0)

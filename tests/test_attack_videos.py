"""Runs a few attacks on videos; `make attack` runs a thousand."""

import os

from attacks import video_attacks
from platforms import needs_linux

COUNT = int(os.environ.get("SELVA_ATTACKS", "40"))


@needs_linux
def test_attacked_videos_give_a_result_or_one_error():
    video_attacks.attack(COUNT, seed=0)

"""Kills `selva-generate` at a random moment, a few times."""

from attacks.campaign import campaign
from attacks.kill_attacks import KillAttacks
from platforms import needs_posix


@needs_posix
def test_only_whole_files_are_left(tmp_path):
    campaign(KillAttacks(tmp_path).attack, 3)

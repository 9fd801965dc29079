"""Kills `selva-generate` at a random moment, a few times."""

import os

import pytest
from attacks.campaign import campaign
from attacks.kill_attacks import KillAttacks


@pytest.mark.skipif(os.name == "nt", reason="signals are sent the POSIX way")
def test_only_whole_files_are_left(tmp_path):
    campaign(KillAttacks(tmp_path).attack, 3)

"""Opens damaged and edited bundles, one after another, in a child that may die; runs a few `attacks` of each kind."""

import shutil
from functools import partial
from pathlib import Path

import pytest
from attacks import bundle_edits
from attacks.bundle_attacks import BundleAttacks
from attacks.campaign import campaign
from attacks.changed_graphs import change_output
from attacks.outside_weights import move_weights_out
from platforms import needs_posix

import selva_runtime

DEMO = Path(selva_runtime.__file__).with_name("demo_bundle")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    attacks = BundleAttacks(Path(shutil.copytree(DEMO, folder / "base")), folder)
    yield attacks
    attacks.close()


@needs_posix
@pytest.mark.parametrize(
    ("edits", "bounded"),
    [
        ([bundle_edits.edit_manifest], 16),
        ([bundle_edits.edit_numbers], 3),
        ([bundle_edits.edit_ports], 3),
        ([bundle_edits.damage_file, bundle_edits.damage_manifest, bundle_edits.swap_files], 6),
        ([bundle_edits.strange_file], 15),
        ([bundle_edits.damage_graph, bundle_edits.edit_tokenizer], 4),
        ([change_output], 4),
        ([move_weights_out], 3),
        ([bundle_edits.swap_in_use], 2),
    ],
    ids=["manifest", "numbers", "ports", "files", "strangers", "parsers", "outputs", "weights", "in-use"],
)
def test_a_session_gives_whole_stems_or_one_error(bundles, edits, bounded):
    campaign(partial(bundles.attack, edits), bounded)

"""Lengths and positions, compared with the published table and with PyTorch's own arithmetic."""

import csv
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from selva_bundle.lengths import (
    SequenceRules,
    latent_positions,
    nearest_exact_indices,
    shown_indices,
    sync_indices,
    sync_rows,
    visual_positions,
)

TABLE = Path(__file__).parent / "data" / "expected" / "sequence_lengths.tsv"
HOPS = {16000: 256, 44100: 512}


def rules(rate_hz: int = 16000, **changes: object) -> SequenceRules:
    values = {
        "sample_rate_hz": rate_hz,
        "hop": HOPS[rate_hz],
        "latent_width": 20,
        "fps": 25,
        "clip_fps": 8,
        "segment_frames": 16,
        "segment_step": 8,
        "sync_per_segment": 8,
        "image_size": 224,
        "min_duration_s": 0.64,
        "max_duration_s": 30.0,
    }
    return SequenceRules(**{**values, **changes})


@pytest.mark.parametrize(
    "row",
    list(csv.DictReader(TABLE.open(), delimiter="\t")),
    ids=lambda row: f"{row['sampling_rate']}-{row['duration_s']}",
)
def test_lengths_are_the_published_ones(row):
    rate_hz = int(row["sampling_rate"])
    lengths = rules(rate_hz).lengths(float(row["duration_s"]))
    decoded = lengths.latent * 2 * HOPS[rate_hz]
    expected = (int(row["latent"]), int(row["clip"]), int(row["sync"]), int(row["audio_samples"]))
    assert (lengths.latent, lengths.visual, lengths.sync, decoded) == expected


@pytest.mark.parametrize("rate_hz", HOPS)
def test_every_duration_fits_the_decoder_and_the_frames(rate_hz):
    for hundredths in range(64, 3001):
        lengths = rules(rate_hz).lengths(hundredths / 100)
        assert lengths.frames == hundredths // 4
        assert lengths.samples == round(hundredths * rate_hz / 100)
        assert lengths.samples <= lengths.latent * 2 * HOPS[rate_hz] < lengths.samples + 2 * HOPS[rate_hz] + 1
        assert lengths.visual >= 1
        assert 16 + 8 * (lengths.segments - 1) <= lengths.frames < 16 + 8 * lengths.segments


def test_durations_mean_what_was_written():
    assert rules().lengths(12.04).frames == 301
    assert rules().lengths(0.1 + 0.2 + 0.34).frames == 16
    assert rules().lengths(16 / 3).samples == round(16000 * 16 / 3)
    assert rules(44100).lengths(100 * 1024 / 44100).latent == 100


def test_the_shortest_visual_stream_has_one_token():
    assert rules(clip_fps=1).lengths(0.64).visual == 1


@pytest.mark.parametrize("rate_hz", HOPS)
def test_nearest_exact_is_pytorchs(rate_hz):
    torch = pytest.importorskip("torch")
    all_lengths = [rules(rate_hz).lengths(hundredths / 100) for hundredths in range(64, 3001)]
    for sync, latent in {(lengths.sync, lengths.latent) for lengths in all_lengths}:
        features = torch.arange(sync, dtype=torch.float32)[None, None]
        expected = torch.nn.functional.interpolate(features, size=latent, mode="nearest-exact")[0, 0].numpy()
        np.testing.assert_array_equal(nearest_exact_indices(sync, latent), expected)


def test_positions_count_in_latents():
    lengths = rules().lengths(8.0)
    np.testing.assert_array_equal(latent_positions(lengths), np.arange(250, dtype=np.float32))
    np.testing.assert_allclose(visual_positions(lengths), np.arange(64) * 250 / 64, rtol=1e-6)
    assert visual_positions(lengths).dtype == latent_positions(lengths).dtype == np.float32


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hop", 0),
        ("fps", 25.0),
        ("fps", True),
        ("latent_width", -1),
        ("image_size", 100_000),
        ("min_duration_s", float("nan")),
        ("min_duration_s", 0.1),
        ("max_duration_s", 0.5),
        ("sample_rate_hz", "16000"),
        ("sample_rate_hz", 192_001),
    ],
)
def test_rules_that_cannot_be_meant_are_refused(name, value):
    with pytest.raises(ValueError, match="sequence"):
        rules(**{name: value})


def test_rules_up_to_each_limit_are_taken():
    assert rules(sample_rate_hz=192_000, image_size=4096).image_size == 4096
    assert rules(min_duration_s=0.64, max_duration_s=0.64).lengths(0.64).frames == 16


def test_rules_are_plain_values():
    assert rules() == SequenceRules(**asdict(rules()))


def test_shown_features_lie_within_half_their_span_of_the_latent():
    """12 segments of 8 features of 80 ms each; a latent vector of 32 ms uses the feature that covers its middle."""
    indices = shown_indices(96, 130, 0.8)
    segment, place = np.divmod(indices, 8)
    shown_s = (8 * segment + 2 * place + 1) / 25
    asked_s = (np.arange(130) + 0.5) * 0.032
    assert np.abs(shown_s - asked_s).max() <= 0.04 + 1e-9
    assert (np.diff(shown_s) >= 0).all()
    assert set(place[(segment > 0) & (segment < 11)]) == {2, 3, 4, 5}  # mid-segment has context on both sides


def test_even_spreading_drifts_where_shown_does_not():
    """With even spreading, a feature is up to 0.4 s away from the moment that it shows."""
    shown_s = np.array([(8 * (k // 8) + 2 * (k % 8) + 1) / 25 for k in range(96)])
    asked_s = (np.arange(130) + 0.5) * 0.032
    even = np.abs(shown_s[nearest_exact_indices(96, 130)] - asked_s).max()
    shown = np.abs(shown_s[shown_indices(96, 130, 0.8)] - asked_s).max()
    assert even > 0.25
    assert shown < 0.05


def test_rules_say_how_features_meet_latents():
    even, shown = (rules(sync_timing=timing) for timing in ("even", "shown"))
    lengths = even.lengths(4.16)
    np.testing.assert_array_equal(sync_indices(even, lengths), nearest_exact_indices(lengths.sync, lengths.latent))
    np.testing.assert_array_equal(sync_indices(shown, lengths), shown_indices(lengths.sync, lengths.latent, 0.8))
    with pytest.raises(ValueError, match="sync_timing"):
        rules(sync_timing="late")


@pytest.mark.parametrize("timing", ["even", "shown"])
@pytest.mark.parametrize("duration_s", [0.64, 0.96, 1.28, 8.0])
@pytest.mark.parametrize("stems", [1, 3])
def test_each_latent_vector_has_its_row(timing, duration_s, stems):
    """The table has rows (stem, feature) for the stems and (kind of segment, place) for the empty half."""
    made = rules(sync_timing=timing)
    lengths = made.lengths(duration_s)
    own = [(stem, feature) for stem in range(stems) for feature in range(lengths.sync)]
    kinds = [(kind, place) for kind in ("first", "middle", "last", "only") for place in range(8)]
    table = [*own, *kinds]
    rows = sync_rows(made, lengths, stems)
    assert (rows.shape, rows.dtype) == ((2 * stems, lengths.latent), np.int64)
    by_segment = {1: ["only"], 2: ["first", "last"], 3: ["first", "middle", "last"]}.get(
        lengths.segments, ["first", *["middle"] * (lengths.segments - 2), "last"]
    )
    for at, feature in enumerate(sync_indices(made, lengths)):
        for stem in range(stems):
            assert table[rows[stem, at]] == (stem, feature)
            assert table[rows[stems + stem, at]] == (by_segment[feature // 8], feature % 8)

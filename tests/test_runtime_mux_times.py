"""Decoding times as damaged files have them, and what `IncreasingTimes` makes of them: numbers, no file."""

from fractions import Fraction
from types import SimpleNamespace

import pytest

from selva_runtime.media.mux import MAX_REORDERED_FRAMES, IncreasingTimes


def fixed(*packets, shift=0):
    """(pts, dts) of packets given as (pts, dts) or (pts, dts, duration), at 1000 ticks a second."""
    order, given = IncreasingTimes(), []
    for pts, dts, *duration in packets:
        packet = SimpleNamespace(
            pts=pts, dts=dts, duration=(duration or [None])[0], time_base=Fraction(1, 1000), stream_index=0
        )
        order.fix(packet, Fraction(shift))
        given.append((packet.pts, packet.dts))
    return given


@pytest.mark.parametrize(
    ("packets", "expected"),
    [
        ([(40, 0), (120, 40), (80, 80)], [(40, 0), (120, 40), (80, 80)]),  # sound: nothing changes
        ([(0, 0), (40, 0), (80, 0)], [(0, 0), (40, 1), (80, 2)]),  # the same time again
        ([(0, 50), (40, 20), (90, 90)], [(50, 50), (51, 51), (90, 90)]),  # back in time; nothing shows before its time
        ([(None, 0), (None, 40)], [(0, 0), (40, 40)]),  # no presentation times
        ([(None, 0, 40), (None, None, 40), (None, None, None)], [(0, 0), (40, 40), (41, 41)]),  # and no others
        ([(0, 0, 40), (80, None, 40), (40, None, 40)], [(0, 0), (80, 1), (40, 2)]),  # Matroska's: any that rise will do
    ],
)
def test_decoding_times_rise(packets, expected):
    assert fixed(*packets) == expected


def test_the_first_packet_without_a_decoding_time_leaves_room_for_reordered_frames():
    room = MAX_REORDERED_FRAMES
    assert fixed((0, None), (120, None), (40, None)) == [(0, -room), (120, 1 - room), (40, 2 - room)]
    assert fixed((500, None)) == [(500, 500 - room)]
    assert fixed((None, None)) == [(-room, -room)]


def test_a_recording_that_began_later_starts_at_zero():
    assert fixed((60_000, 60_000), (60_040, 60_040), shift=60) == [(0, 0), (40, 40)]
    assert fixed((60_000, None), shift=60) == [(0, -MAX_REORDERED_FRAMES)]
    assert fixed((-2_000, -2_000), shift=-2) == [(0, 0)]


def test_streams_rise_each_for_itself():
    order = IncreasingTimes()
    packets = [
        SimpleNamespace(pts=time, dts=time, duration=1, time_base=Fraction(1, 1000), stream_index=stream)
        for stream, time in ((0, 100), (1, 0), (0, 100), (1, 1))
    ]
    for packet in packets:
        order.fix(packet, Fraction(0))
    assert [packet.dts for packet in packets] == [100, 0, 101, 1]

"""The fingerprint of a video: the same for the same packets under any name, another for any change to be seen."""

import shutil
import threading
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from clips import click, numbered, write_video

import selva_runtime.media.fingerprint
from selva_runtime import Cancelled, MediaError, MediaNotFoundError
from selva_runtime.media.fingerprint import fingerprint
from selva_runtime.media.video import VideoFile, read_clip


def copied(source: Path, target: Path, change=lambda packet: [packet], **options) -> Path:
    """Copies the video stream. `change` returns the packets to write for a packet."""
    with av.open(str(source)) as reader, av.open(str(target), "w", options=options) as writer:
        stream = writer.add_stream_from_template(reader.streams.video[0])
        for packet in reader.demux(reader.streams.video[0]):
            if packet.dts is not None:
                for made in change(packet):
                    made.stream = stream
                    writer.mux(made)
    return target


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    """40 s of H.264 with reordered frames and a key frame each second."""
    folder = tmp_path_factory.mktemp("video")
    pictures = (numbered(number // 5 % 256) for number in range(1000))
    return write_video(folder / "film.mp4", pictures, options={"g": "25", "bf": "3"})


def test_the_name_the_times_and_the_tags_do_not_count(video, tmp_path):
    copy = Path(shutil.copy(video, tmp_path / "copy.mp4"))
    assert fingerprint(copy) == fingerprint(str(video)) == fingerprint(VideoFile(video))
    plain = copied(video, tmp_path / "plain.mp4")
    tagged = copied(video, tmp_path / "tagged.mp4", movflags="faststart")
    assert plain.read_bytes() != tagged.read_bytes()
    assert fingerprint(plain) == fingerprint(tagged)


def test_sound_does_not_count(tmp_path):
    pictures = [numbered(number) for number in range(50)]
    files = [
        write_video(tmp_path / f"{at_s}.mp4", pictures, sound=click(2, at_s, 48000), container="mp4")
        for at_s in (0.5, 1)
    ]
    assert files[0].read_bytes() != files[1].read_bytes()
    assert fingerprint(files[0]) == fingerprint(files[1])


def test_a_copy_in_another_format_is_another_video(video, tmp_path):
    assert fingerprint(copied(video, tmp_path / "film.mkv")) != fingerprint(video)


def flip(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def changed_at(second: float, what: str):
    """Changes the first packet that is decoded from `second` on."""
    done = []

    def change(packet):
        if done or packet.dts * packet.time_base < second:
            return [packet]
        done.append(packet)
        if what == "left out":
            return []
        if what == "bytes":
            made = av.Packet(flip(bytes(packet)))
            made.pts, made.dts, made.time_base = packet.pts, packet.dts, packet.time_base
            made.is_keyframe = packet.is_keyframe
            return [made]
        packet.pts += 1
        return [packet]

    return change


@pytest.mark.parametrize("what", ["bytes", "left out", "time"])
@pytest.mark.parametrize("second", [14.2, 16, 21.9])
def test_a_changed_packet_is_noticed_in_the_part_that_is_used(video, tmp_path, what, second):
    plain = copied(video, tmp_path / "plain.mp4")
    changed = copied(video, tmp_path / "changed.mp4", changed_at(second, what))
    assert fingerprint(changed, start_s=15, duration_s=7) != fingerprint(plain, start_s=15, duration_s=7)
    assert fingerprint(changed) != fingerprint(plain)


@pytest.mark.parametrize(("start_s", "duration_s", "second"), [(0, 8, 20), (5, 4, 20), (20, 4, 5), (20, 4, 32)])
def test_what_lies_outside_the_part_does_not_count(video, tmp_path, start_s, duration_s, second):
    """From the first frame on for an early start, as `read_clip` decodes it."""
    plain = copied(video, tmp_path / "plain.mp4")
    changed = copied(video, tmp_path / "changed.mp4", changed_at(second, "bytes"))
    span = {"start_s": start_s, "duration_s": duration_s}
    assert fingerprint(changed, **span) == fingerprint(plain, **span)
    np.testing.assert_array_equal(*(read_clip(path, size=32, **span).frames for path in (plain, changed)))
    assert fingerprint(changed, start_s=start_s) != fingerprint(plain, start_s=start_s) or second < start_s


def test_only_a_part_of_a_long_film_is_read(video, monkeypatch):
    read = []
    real = selva_runtime.media.fingerprint._Content.add

    def add(self, packet):
        read.append(packet)
        real(self, packet)

    monkeypatch.setattr(selva_runtime.media.fingerprint._Content, "add", add)
    fingerprint(video, start_s=20, duration_s=4)
    assert len(read) < 25 * (5 + 1 + 4 + 6 + 2)
    read.clear()
    fingerprint(video)
    assert len(read) >= 1000


def test_a_slide_that_stands_long_counts_its_next(tmp_path):
    """The first frame after the end is used for the last due times, however late it comes."""
    films = [
        write_video(
            tmp_path / f"{last}.mkv",
            [numbered(0), numbered(1), numbered(last), numbered(3)],
            ticks=[0, 1000, 60_000, 120_000],
            time_base=Fraction(1, 1000),
            options={"bf": "0"},
        )
        for last in (5, 6)
    ]
    frames = [read_clip(film, size=32, duration_s=8).frames for film in films]
    assert not np.array_equal(*frames)
    assert fingerprint(films[0], duration_s=8) != fingerprint(films[1], duration_s=8)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.avi", {"codec": "mpeg4"}),
        ("a.ts", {}),
        ("a.mkv", {}),
        ("a.h264", {"container": "h264"}),
        ("a.webm", {"codec": "libvpx"}),
    ],
)
def test_every_format_has_a_fingerprint(tmp_path, name, options):
    """Those that cannot seek and those without times too."""
    pictures = [numbered(number % 256) for number in range(400)]
    film = write_video(tmp_path / name, pictures, **options)
    pictures[320] = numbered(7)
    (tmp_path / "other").mkdir()
    other = write_video(tmp_path / "other" / name, pictures, **options)
    for span in ({"start_s": 11, "duration_s": 4}, {"duration_s": 15}, {}):
        assert fingerprint(film, **span) == fingerprint(film, **span)
        assert fingerprint(film, **span) != fingerprint(other, **span)


def test_how_the_picture_is_shown_counts(tmp_path):
    pictures = [numbered(number) for number in range(25)]
    ways = ({}, {"turned": (90, False, False)}, {"turned": (90, True, False)}, {"colour": (1, 2)}, {"rate": 30})
    films = [write_video(tmp_path / f"{index}.mp4", pictures, **way) for index, way in enumerate(ways)]
    assert len({fingerprint(film) for film in films}) == len(ways)


def test_a_damaged_file_has_a_fingerprint(video, tmp_path):
    content = video.read_bytes()
    film = tmp_path / "film.mp4"
    film.write_bytes(content[: len(content) // 2])
    with pytest.raises(MediaError):
        fingerprint(film)
    middle = content.index(b"mdat") + 30_000
    film.write_bytes(content[:middle] + bytes(2000) + content[middle + 2000 :])
    assert fingerprint(film) == fingerprint(film) != fingerprint(video)
    with pytest.raises(MediaNotFoundError):
        fingerprint(tmp_path / "nothing.mp4")


def test_it_can_be_cancelled(video):
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(Cancelled):
        fingerprint(video, cancelled=cancelled)

"""Memory for the tables of a movie: too large a movie is refused before FFmpeg sees the file, and no other is."""

import struct
from io import FileIO

import av
import numpy as np
import pytest
from clips import click, numbered, write_video
from movies import box, build, compressed, edits, full, parse, peaks_mib, replaced, table, with_samples
from platforms import needs_linux

import selva_runtime.media.boxes
from selva_bundle.errors import MediaError
from selva_runtime.media.boxes import BoxFile
from selva_runtime.media.movie_memory import Movie, check_movie
from selva_runtime.media.mux import mux
from selva_runtime.media.video import read_clip

MANY = 80_000_000
FRAGMENTED = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}


@pytest.fixture(scope="module")
def movie(tmp_path_factory):
    """Boxes of ten seconds of video: 250 samples, a key frame every second."""
    path = tmp_path_factory.mktemp("movie") / "a.mp4"
    return parse(write_video(path, map(numbered, range(250)), options={"g": "25"}).read_bytes())


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    path = tmp_path_factory.mktemp("movie") / "a.mov"
    settings = {"sound": click(1, 0.5, 48000), "sound_codec": "pcm_s16le"}
    return parse(write_video(path, map(numbered, range(25)), **settings).read_bytes())


@pytest.fixture(scope="module")
def fragmented(tmp_path_factory):
    path = tmp_path_factory.mktemp("movie") / "f.mp4"
    with av.open(str(path), "w", options=FRAGMENTED) as target:
        stream = target.add_stream("libx264", rate=25, width=64, height=48, pix_fmt="yuv420p", options={"g": "25"})
        for number in range(50):
            frame = av.VideoFrame.from_ndarray(numbered(number), "rgb24")
            frame.pts = number
            target.mux(stream.encode(frame))
        target.mux(stream.encode(None))
    return parse(path.read_bytes())


def sound_track(boxes, changes):
    """Changes only the sound track."""
    return [
        (
            kind,
            content
            if kind != b"moov"
            else [
                (name, replaced(inner, changes) if name == b"trak" and b"soun" in build(inner) else inner)
                for name, inner in content
            ],
        )
        for kind, content in boxes
    ]


def pcm_chunks(boxes, samples):
    changes = {b"stsc": table(1, 1, samples, 1), b"stsz": table(2, samples), b"edts": None}
    return sound_track(boxes, changes)


def with_fragments(boxes, tracks, count):
    """Adds `count` empty fragments; FFmpeg stores something about each track for every one."""
    made = []
    for kind, content in boxes:
        if kind == b"moov":
            header = next(inner for name, inner in content if name == b"trak")
            made.append((kind, [*content, *[(b"trak", header[:1])] * tracks]))
            made += [(b"moof", b"")] * count
        else:
            made.append((kind, content))
    return made


def hidden_fragment(boxes, samples):
    """Hides a fragment inside the media data. Only an index points to it, and it claims to have many samples."""
    header = full(b"tfhd", 1, 512, 1, flags=0x18)
    moof = box(b"moof", full(b"mfhd", 1), box(b"traf", header, full(b"trun", samples)))
    data = box(b"mdat", bytes(100), moof)
    index = full(b"sidx", 1, 12800, 0, 100 + 8, 1, len(moof), 12800, 0)
    top = [item for item in boxes if item[0] in (b"ftyp", b"moov")]
    return [*top, *parse(index), (b"mdat", data[8:])]


def still_picture(items):
    location = box(b"iloc", struct.pack(">IHI", 2 << 24, 0x4400, items))
    return box(b"ftyp", b"heicheic") + box(b"meta", bytes(4), full(b"hdlr", 0, rest=b"pict" + bytes(13)), location)


HOSTILE = {
    "samples": lambda movie, sound, parts, size: build(with_samples(movie, round(MANY * size))),
    "edits": lambda movie, sound, parts, size: build(replaced(movie, {b"elst": edits(round(800_000 * size), 5000)})),
    "fragment": lambda movie, sound, parts, size: build(
        replaced(parts, {b"trun": struct.pack(">II", 0, round(MANY * size / 2))})
    ),
    "sound": lambda movie, sound, parts, size: build(pcm_chunks(sound, round(2_000_000_000 * size))),
    "fragments": lambda movie, sound, parts, size: build(with_fragments(movie, 900, round(20_000 * size))),
    "compressed": lambda movie, sound, parts, size: build(compressed(movie, round(1_000_000_000 * size))),
    "items": lambda movie, sound, parts, size: still_picture(round(200_000_000 * size)),
    "hidden": lambda movie, sound, parts, size: build(hidden_fragment(parts, round(MANY * size))),
}
"""Files that use memory in proportion to `size`; at 1 it is too much."""


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_small_file_that_would_take_much_memory_is_refused(tmp_path, movie, sound, fragmented, kind):
    path = tmp_path / "bomb.mp4"
    path.write_bytes(HOSTILE[kind](movie, sound, fragmented, 1))
    assert path.stat().st_size < 12e6
    with pytest.raises(MediaError, match=r"bomb\.mp4: its tables need more than 5\d\d MiB of memory") as caught:
        read_clip(path, size=32)
    assert "\n" not in str(caught.value)
    with pytest.raises(MediaError, match="its tables need more than"):
        mux(path, np.zeros(16000, np.float32), 16000, tmp_path / "o.mp4")
    assert [file.name for file in tmp_path.iterdir()] == ["bomb.mp4"]


def reckoned_mib(path):
    """The check's estimate for a file, with tables read wherever that helps."""
    with open(path, "rb") as file:
        movie = Movie(1 << 28)
        movie.read(BoxFile(file, path.stat().st_size))
        return movie.spent_bytes / 2**20


@needs_linux
def test_ffmpeg_takes_no_more_than_estimated(tmp_path, movie, sound, fragmented):
    paths = [tmp_path / f"{kind}.mp4" for kind in HOSTILE]
    for path in paths:
        path.write_bytes(HOSTILE[path.stem](movie, sound, fragmented, 0.02))
    code = "import av\ndef run(path):\n    av.open(open(path, 'rb')).close()\nrun({!r})"
    for path, (_, peak) in zip(paths, peaks_mib(code.format(str(paths[0])), *paths), strict=True):
        assert peak < 1.1 * reckoned_mib(path) + 16, path.stem


def ten_hours(*, edit_count=1, sound_tracks=16):
    """Headers of a ten-hour recording: 60 pictures per second, and uncompressed sound in many tracks."""
    pictures, seconds = 60 * 36000, 36000

    def track(number, kind, scale, tables):
        return box(
            b"trak",
            full(b"tkhd", 0, 0, number),
            box(b"edts", full(b"elst", edit_count, rest=elst(seconds, edit_count, scale))),
            box(
                b"mdia",
                full(b"mdhd", 0, 0, scale, seconds * scale),
                full(b"hdlr", 0, rest=kind + bytes(13)),
                box(b"minf", box(b"stbl", *tables)),
            ),
        )

    def elst(seconds, count, scale):
        rows = [(seconds * 1000 // count, seconds * scale // count * index, 1 << 16) for index in range(count)]
        return b"".join(struct.pack(">IiI", length, begin % 2**31, rate) for length, begin, rate in rows)

    keys = np.arange(1, pictures, 120, dtype=">u4")
    video = [
        full(b"stts", 1, pictures, 512),
        full(b"ctts", pictures, rest=np.tile(np.array([1, 1024], ">u4"), pictures).tobytes()),
        full(b"stss", len(keys), rest=keys.tobytes()),
        full(b"stsc", 1, 1, 30, 1),
        full(b"stsz", 0, pictures, rest=np.full(pictures, 9000, ">u4").tobytes()),
        full(b"co64", pictures // 30, rest=bytes(8 * (pictures // 30))),
    ]
    entry = struct.pack(">I4s6xH", 36, b"sowt", 1) + bytes(20)
    plain = [
        full(b"stsd", 1, rest=entry),
        full(b"stts", 1, 48000 * seconds, 1),
        full(b"stsc", 1, 1, 24000, 1),
        full(b"stsz", 2, 48000 * seconds),
        full(b"stco", 2 * seconds, rest=bytes(8 * seconds)),
    ]
    sounds = [track(2 + number, b"soun", 48000, plain) for number in range(sound_tracks)]
    return box(b"ftyp", b"qt  ") + box(b"moov", full(b"mvhd", 0, 0, 1000), track(1, b"vide", 30720, video), *sounds)


@pytest.mark.parametrize(("edit_count", "sound_tracks"), [(1, 6), (300, 2)])
def test_ten_hours_pass_even_cut_after_their_header(tmp_path, edit_count, sound_tracks):
    path = tmp_path / "long.mov"
    path.write_bytes(ten_hours(edit_count=edit_count, sound_tracks=sound_tracks))
    check_movie(FileIO(path), path)


def test_thousands_of_fragments_pass(tmp_path, fragmented):
    path = tmp_path / "live.mp4"
    path.write_bytes(build([*fragmented[:2], *fragmented[2:4] * 3_000]))
    check_movie(FileIO(path), path)


LAYOUTS = {
    "junk before": lambda head, moov, data: box(b"junk", bytes(99)) + box(b"free", bytes(9)) + head + moov + data,
    "no type": lambda head, moov, data: box(b"wide") + box(b"skip", bytes(9)) + moov + data,
    "header first": lambda head, moov, data: moov + head + data,
    "header last": lambda head, moov, data: head + data + moov,
    "64-bit size": lambda head, moov, data: head + data + struct.pack(">I4sQ", 1, b"moov", len(moov) + 8) + moov[8:],
    "to the end": lambda head, moov, data: head + data + bytes(4) + moov[4:],
    "in free space": lambda head, moov, data: head + data + moov[:4] + b"free" + moov[8:],
    "hoov": lambda head, moov, data: head + data + moov[:4] + b"hoov" + moov[8:],
    "compressed": lambda head, moov, data: head + data + build(compressed(parse(moov))),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_wherever_ffmpeg_finds_the_header_it_is_checked(tmp_path, movie, layout):
    path = tmp_path / "a.dat"
    for boxes, error in ((movie, None), (with_samples(movie, MANY), MediaError)):
        parts = [build([item for item in boxes if item[0] == kind]) for kind in (b"ftyp", b"moov", b"mdat")]
        path.write_bytes(LAYOUTS[layout](*parts))
        if error:
            with pytest.raises(error, match="its tables need"):
                check_movie(FileIO(path), path)
        else:
            check_movie(FileIO(path), path)
            with av.open(str(path)) as source:
                assert (source.format.name, source.streams.video[0].frames) == ("mov,mp4,m4a,3gp,3g2,mj2", 250)


def test_millions_of_tiny_boxes_are_not_followed(tmp_path, monkeypatch):
    monkeypatch.setattr(selva_runtime.media.boxes, "MAX_BOXES", 1000)
    path = tmp_path / "dust.mp4"
    path.write_bytes(box(b"free") * 1001)
    with pytest.raises(MediaError, match="it has more than 1,000 boxes"):
        read_clip(path, size=32)


def test_endlessly_nested_boxes_are_left_to_ffmpeg(tmp_path):
    path = tmp_path / "deep.mp4"
    data = b""
    for _ in range(5000):
        data = box(b"moov", data)
    path.write_bytes(data)
    check_movie(FileIO(path), path)


@pytest.mark.parametrize("kind", [b"stsz", b"stts", b"ctts", b"stsc", b"stco", b"stss"])
def test_a_damaged_count_beyond_the_file_is_left_to_ffmpeg(tmp_path, movie, kind):
    def damage(content):
        place = 8 if kind == b"stsz" else 4
        return content[:place] + b"\x7f" + content[place + 1 :]

    path = tmp_path / "a.mp4"
    path.write_bytes(build(replaced(movie, {kind: damage})))
    check_movie(FileIO(path), path)

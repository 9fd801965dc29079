"""MMAudio in the runtime: the stems of the reference in every mode, videos of any length, and the cache."""

from __future__ import annotations

import subprocess
from pathlib import Path

import av
import numpy as np
import pytest
from gpus import on_fake_engines, on_host
from sessions import least_snr_db, moving_frames

from selva_bundle.errors import RequestError
from selva_bundle.lengths import Lengths
from selva_ref.pipeline_mmaudio import MMAudioPipeline
from selva_runtime import Clip, Session
from selva_runtime.session import encode_for
from selva_runtime.video_part import VideoPart
from selva_runtime.windows import Shot, pictures_shown

STREET = Path(__file__).parents[1] / "examples" / "street.mp4"
SHORT_S, LONG_S = 1.3, 10.0
MODES = {
    "picture and prompt": {"prompts": ["street"], "negative": "music"},
    "picture alone": {"prompts": []},
    "prompt alone": {"prompts": ["rain"], "video": False},
    "no guidance": {"prompts": ["street"], "guidance": 0.5},
}
# Least signal-to-noise ratio in dB, as in `test_parity`.
WAYS = {
    ("cpu", "fp32"): 80,
    ("cpu", "fp16"): 35,
    ("openvino", "fp32"): 80,
    ("cuda on a simulated GPU", "fp32"): 80,
    ("tensorrt on a simulated GPU", "fp32"): 80,
}


@pytest.fixture(scope="module")
def pipeline() -> MMAudioPipeline:
    return MMAudioPipeline("demo_mmaudio")


@pytest.fixture(scope="module")
def session(mmaudio_bundle: Path) -> Session:
    return Session(mmaudio_bundle, backend="cpu")


def shown(lengths: Lengths, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Frames for the sync features, and pictures that differ from them."""
    return moving_frames(lengths.frames, size), moving_frames(lengths.visual, size)[:, ::-1].copy()


def clip_of(session: Session, duration_s: float, *, video: bool = True) -> Clip:
    if not video:
        return session.without_video(duration_s)
    frames, pictures = shown(session._rules.lengths(duration_s), session.info.image_size)
    return session.encode_frames(frames, duration_s, pictures=pictures)


def check_modes(session: Session, pipeline: MMAudioPipeline, least_db: float) -> None:
    lengths = pipeline.rules.lengths(SHORT_S)
    noise = np.random.default_rng(3).standard_normal((1, lengths.latent, pipeline.rules.latent_width), np.float32)
    frames, pictures = shown(lengths, pipeline.rules.image_size)
    for asked in MODES.values():
        options = dict(asked)
        prompts, video = options.pop("prompts"), options.pop("video", True)
        (stem,) = session.generate(clip_of(session, SHORT_S, video=video), prompts, noise=noise, steps=5, **options)
        given = (pictures, frames) if video else (None, None)
        expected = pipeline(*given, *prompts, duration_s=SHORT_S, noise=noise[0], steps=5, **options)
        assert least_snr_db(stem.audio[None], expected[None]) >= least_db, asked


@pytest.mark.parametrize("way", WAYS, ids=" ".join)
def test_every_mode_gives_the_reference_s_sound(way, mmaudio_bundle, mmaudio_bundle_fp16, pipeline, tmp_path) -> None:
    backend, precision = way
    bundle = {"fp32": mmaudio_bundle, "fp16": mmaudio_bundle_fp16}[precision]
    if backend == "cuda on a simulated GPU":
        with on_host(bundle) as session:
            check_modes(session, pipeline, WAYS[way])
    elif backend == "tensorrt on a simulated GPU":
        with on_fake_engines(bundle, tmp_path) as (session, _):
            check_modes(session, pipeline, WAYS[way])
    else:
        if backend == "openvino":
            pytest.importorskip("openvino")
        check_modes(Session(bundle, backend=backend), pipeline, WAYS[way])


def test_the_modes_differ(session) -> None:
    """Otherwise the test above would pass with any of them."""
    sounds = [
        session.generate(clip_of(session, SHORT_S, video=options.get("video", True)), options["prompts"], steps=3)[
            0
        ].audio
        for options in MODES.values()
    ]
    for index, one in enumerate(sounds[:3]):
        for other in sounds[index + 1 : 3]:
            assert np.linalg.norm(one - other) > 0.05 * np.linalg.norm(one)


def write_video(path: Path, frames: np.ndarray) -> Path:
    """Writes uint8 (T, 3, H, W) without loss, at 25 frames a second."""
    with av.open(str(path), "w") as target:
        stream = target.add_stream("ffv1", rate=25, width=frames.shape[3], height=frames.shape[2], pix_fmt="bgr0")
        for picture in frames:
            target.mux(stream.encode(av.VideoFrame.from_ndarray(picture.transpose(1, 2, 0).copy(), "rgb24")))
        target.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("size", [(96, 160), (120, 70)], ids=["wide", "tall"])
def test_a_file_is_seen_as_the_reference_sees_it(session, pipeline, tmp_path, size) -> None:
    """The middle of the picture at 25 frames a second, and the whole, squashed, at 8."""
    frames = np.random.default_rng(1).integers(0, 256, (38, 3, *size), dtype=np.uint8)
    path = write_video(tmp_path / "v.mkv", frames)
    clip = session.encode(path)
    assert clip.duration_s == pytest.approx(1.52)
    lengths = pipeline.rules.lengths(1.52)
    noise = np.random.default_rng(3).standard_normal((1, lengths.latent, pipeline.rules.latent_width), np.float32)
    pictures = frames[[-(-25 * k // 8) for k in range(lengths.visual)]]
    expected = pipeline(pictures, frames, duration_s=1.52, noise=noise[0], steps=3)
    (stem,) = session.generate(clip, noise=noise, steps=3)
    assert least_snr_db(stem.audio[None], expected[None]) >= 80


def test_the_cache_has_the_pictures_too(mmaudio_bundle, tmp_path) -> None:
    calls: list[str] = []

    def opened() -> Session:
        session = Session(mmaudio_bundle, backend="cpu", cache=tmp_path / "cache")
        run = session._executor.run
        session._executor.run = lambda name, *given: calls.append(name) or run(name, *given)
        return session

    first, again = (session.encode(STREET) for session in (opened(), opened()))
    assert {"video_backbone", "video_pool", "video_clip"} == set(calls)
    assert calls.count("video_clip") == first.pictures.shape[0] == 33  # 8 pictures a second of 4.16 s
    np.testing.assert_array_equal(np.asarray(first.tokens), np.asarray(again.tokens))
    np.testing.assert_array_equal(first.pictures, again.pictures)
    assert np.asarray(first.tokens).shape[1:] == (8, 96)  # features, not the backbone's tokens


def test_one_decoding_for_two_models(demo_bundle, mmaudio_bundle, session, monkeypatch) -> None:
    """Each sees what it would see alone."""
    from selva_runtime.media import video

    selva = Session(demo_bundle, backend="cpu")
    alone = selva.encode(STREET), session.encode(STREET)
    opened: list[object] = []
    read = video.read
    monkeypatch.setattr(video, "read", lambda *given, **named: opened.append(given) or read(*given, **named))
    together = encode_for([selva, session], STREET, VideoPart())
    assert len(opened) == 1
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(np.asarray(one.tokens), np.asarray(other.tokens))
    np.testing.assert_array_equal(alone[1].pictures, together[1].pictures)


def long_film(folder: Path) -> Path:
    path = folder / "long.mp4"
    command = [
        "ffmpeg",
        "-y",
        "-v",
        "error",
        "-stream_loop",
        "2",
        "-i",
        str(STREET),
        "-t",
        str(LONG_S),
        "-an",
        str(path),
    ]
    subprocess.run(command, check=True)
    return path


def test_a_long_video_is_the_same_from_the_cache(mmaudio_bundle, tmp_path) -> None:
    path = long_film(tmp_path)
    stems = []
    for cache in ("none", tmp_path / "cache", tmp_path / "cache"):
        session = Session(mmaudio_bundle, backend="cpu", cache=cache)
        clip = session.encode(path, cuts="none")
        assert len(clip.pictures) == 80
        (stem,) = session.generate(clip, ["street"], steps=2)
        stems.append(stem.audio)
        assert stem.audio.size == 160_000
    np.testing.assert_array_equal(stems[0], stems[1])
    np.testing.assert_array_equal(stems[0], stems[2])


def test_long_sound_without_a_video(session) -> None:
    (stem,) = session.generate(session.without_video(LONG_S), ["rain"], steps=2)
    assert stem.audio.size == 160_000
    assert np.abs(stem.audio[-16_000:]).max() > 0


def test_pictures_of_a_single_window_are_all_in_order(session) -> None:
    rules = session._rules
    lengths = rules.lengths(4.16)
    shots = (Shot(first_frame=0, first_segment=0, segments=lengths.segments),)
    found = pictures_shown(((0, lengths.segments),), shots, rules, count=lengths.visual, total=lengths.visual)
    np.testing.assert_array_equal(found, np.arange(33))


def test_pictures_of_a_window_show_the_moments_of_its_segments(session) -> None:
    """An anchor of 3 segments from segment 2 on, then segments of a second shot, whose last frame is repeated."""
    rules = session._rules
    shots = (
        Shot(first_frame=0, first_segment=0, segments=11),
        Shot(first_frame=104, first_segment=11, segments=4),
    )
    found = pictures_shown(((2, 5), (11, 15)), shots, rules, count=20, total=46)
    for token, picture in enumerate(found):
        frame = token * 25 / 8
        unit = min(int(frame // 8), 6)
        start = 16 + 8 * unit if unit < 3 else 104 + 8 * (unit - 3)
        assert picture == min(int((start + frame - 8 * unit) * 8 / 25), 45)


def test_pictures_stop_where_a_shot_ends(session) -> None:
    shots = (Shot(first_frame=0, first_segment=0, segments=2), Shot(first_frame=20, first_segment=2, segments=2))
    found = pictures_shown(((0, 2),), shots, session._rules, count=8, total=40)
    assert found.max() == 6  # frame 19, the last of the shot, is shown at 0.76 s


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "also sees pictures"),
        ({"pictures": np.zeros((3, 3, 64, 64), np.uint8)}, "do not last"),
        ({"pictures": np.zeros((99, 3, 32, 64), np.uint8)}, "give uint8"),
    ],
)
def test_wrong_pictures(session, given, message) -> None:
    with pytest.raises(RequestError, match=message):
        session.encode_frames(moving_frames(32, 64), SHORT_S, **given)


def test_selva_takes_no_pictures_and_needs_a_video(demo_bundle) -> None:
    session = Session(demo_bundle, backend="cpu")
    with pytest.raises(RequestError, match="sees no pictures"):
        session.encode_frames(moving_frames(32, 64), SHORT_S, pictures=np.zeros((10, 3, 64, 64), np.uint8))
    with pytest.raises(RequestError, match="needs a video"):
        session.without_video(1.0)
    with pytest.raises(RequestError, match="no prompt"):
        session.request([])


def test_a_clip_of_the_other_system_is_refused(session, demo_bundle) -> None:
    clip = Session(demo_bundle, backend="cpu").encode(STREET, duration_s=1.0)
    with pytest.raises(RequestError, match="another bundle"):
        session.generate(clip, ["street"])


def test_masks_fill_frames_and_pictures(session) -> None:
    """As if the caller had filled them: the left half is grey."""
    frames, pictures = shown(session._rules.lengths(SHORT_S), 64)
    left = np.zeros((64, 64), np.uint8)
    left[:, 32:] = 255
    found = session.encode_frames(frames, SHORT_S, pictures=pictures, mask=left, picture_mask=left == 255)
    frames[..., :32], pictures[..., :32] = 128, 128
    expected = session.encode_frames(frames, SHORT_S, pictures=pictures)
    np.testing.assert_array_equal(np.asarray(found.tokens), np.asarray(expected.tokens))
    np.testing.assert_array_equal(found.pictures, expected.pictures)
    with pytest.raises(RequestError, match="give both mask and picture_mask"):
        session.encode_frames(frames, SHORT_S, pictures=pictures, mask=left)

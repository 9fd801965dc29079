"""Render `street.mp4`, the video that the documentation and the quick start use.

A place-holder scene with two sounds that overlap in time: a ball bounces on the ground ("ball bouncing") and a lamp
beeps whenever it lights ("lamp beeping"). Nothing in it is random, so every run shows and plays the same. Usage:

    python examples/make_clip.py [OUT.mp4]
"""

import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

WIDTH, HEIGHT = 320, 240
FPS, FRAMES = 25, 104
RATE_HZ = 48_000
SAMPLES = FRAMES * RATE_HZ // FPS

GROUND_Y, BALL_X, BALL_RADIUS = 196, 96, 15
BOUNCE_PIXELS = 84
GRAVITY = 1200
"""Pixels per second squared."""
FIRST_IMPACT_S = 0.55
BOUNCE_S = 2 * (2 * BOUNCE_PIXELS / GRAVITY) ** 0.5
"""From one impact to the next: the ball loses no height."""
LAMP_X, LAMP_Y, LAMP_RADIUS = 236, 66, 15
LAMP_FIRST_S, LAMP_EVERY_S, LAMP_LIT_S = 0.32, 0.8, 0.28
BEEP_HZ = 1760

Y, X = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)


def ball_height(time_s):
    """Pixels above the ground: a parabola between impacts."""
    since_s = (time_s - FIRST_IMPACT_S) % BOUNCE_S
    return GRAVITY / 2 * since_s * (BOUNCE_S - since_s)


def is_lit(time_s):
    since_s = time_s - LAMP_FIRST_S
    return since_s >= 0 and since_s % LAMP_EVERY_S < LAMP_LIT_S


def paint(picture, cover, colour):
    """Blend `colour` (3,) or (H, W, 3) in where `cover` (H, W) is near 1."""
    picture += np.clip(cover, 0, 1)[..., None] * (np.asarray(colour, np.float32) - picture)


def disc(x, y, radius, squash=1.0):
    """Coverage of an ellipse with soft edges, `squash` times as high as wide."""
    return radius - np.hypot(X - x, (Y - y) / squash) + 0.5


def box(left, top, right, bottom):
    return (left <= X) & (right > X) & (top <= Y) & (bottom > Y)


def backdrop():
    """An evening street: sky, house fronts with windows, pavement, the lamp's post."""
    shade = (Y / HEIGHT)[..., None]
    picture = np.array([58, 74, 112], np.float32) * (1 - shade) + np.array([150, 128, 132], np.float32) * shade
    for left, top, colour in ((0, 92, (92, 72, 66)), (58, 118, (78, 82, 92)), (128, 100, (96, 86, 72))):
        paint(picture, box(left, top, left + 64, GROUND_Y), colour)
        for x in (left + 10, left + 36):
            for y in range(top + 12, GROUND_Y - 24, 28):
                paint(picture, box(x, y, x + 14, y + 16), (148, 140, 112))
    paint(picture, box(0, GROUND_Y, WIDTH, HEIGHT), (84, 84, 88))
    paint(picture, box(0, GROUND_Y, WIDTH, GROUND_Y + 2), (118, 118, 120))
    for x in range(-20, WIDTH, 40):
        paint(picture, np.abs(X - x - (Y - GROUND_Y) * 0.6) < 1, np.where(Y[..., None] > GROUND_Y + 1, 70, picture))
    paint(picture, box(LAMP_X - 3, LAMP_Y, LAMP_X + 3, GROUND_Y), (42, 46, 50))
    paint(picture, box(LAMP_X - 10, GROUND_Y - 6, LAMP_X + 10, GROUND_Y), (42, 46, 50))
    return picture


def frame_picture(scene, time_s):
    """uint8 (HEIGHT, WIDTH, 3)."""
    picture = scene.copy()
    lit = is_lit(time_s)
    if lit:
        glow = np.exp(-((np.hypot(X - LAMP_X, Y - LAMP_Y) / 46) ** 2))
        paint(picture, 0.75 * glow, (255, 214, 120))
    paint(picture, disc(LAMP_X, LAMP_Y, LAMP_RADIUS + 3), (36, 38, 42))
    paint(picture, disc(LAMP_X, LAMP_Y, LAMP_RADIUS), (255, 240, 180) if lit else (88, 84, 74))

    height = ball_height(time_s)
    squash = 1 - 0.28 * max(0.0, 1 - height / 9)
    y = GROUND_Y - height - BALL_RADIUS * squash
    paint(picture, (0.55 - 0.0025 * height) * disc(BALL_X, GROUND_Y + 5, BALL_RADIUS, 0.28), (30, 30, 34))
    paint(picture, disc(BALL_X, y, BALL_RADIUS, squash), (214, 66, 44))
    paint(picture, 0.6 * disc(BALL_X - 5, y - 6 * squash, 4), (255, 190, 170))
    return np.clip(picture + 0.5, 0, 255).astype(np.uint8)


def soundtrack():
    """float32 (SAMPLES,)."""
    sound = np.zeros(SAMPLES)
    for impact_s in np.arange(FIRST_IMPACT_S, FRAMES / FPS, BOUNCE_S):
        add(sound, impact_s, tock())
    for lit_s in np.arange(LAMP_FIRST_S, FRAMES / FPS, LAMP_EVERY_S):
        add(sound, lit_s, beep())
    return sound.astype(np.float32)


def add(sound, start_s, part):
    start = round(start_s * RATE_HZ)
    part = part[: len(sound) - start]
    sound[start : start + len(part)] += part


def tock():
    """A hollow knock: three damped partials and a short click."""
    time_s = np.arange(round(0.22 * RATE_HZ)) / RATE_HZ
    partials = ((185, 0.5, 22), (410, 0.28, 38), (930, 0.14, 70), (2600, 0.12, 400))
    knock = sum(level * np.sin(2 * np.pi * hz * time_s) * np.exp(-decay * time_s) for hz, level, decay in partials)
    return knock * np.minimum(1, time_s / 0.001)


def beep():
    """A steady tone with soft edges, as long as the lamp is lit."""
    time_s = np.arange(round(LAMP_LIT_S * RATE_HZ)) / RATE_HZ
    edges = np.minimum(1, np.minimum(time_s, LAMP_LIT_S - time_s) / 0.008)
    return 0.16 * edges * (np.sin(2 * np.pi * BEEP_HZ * time_s) + 0.25 * np.sin(4 * np.pi * BEEP_HZ * time_s))


def render(path):
    scene, sound = backdrop(), soundtrack()
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart", "fflags": "+bitexact"}) as target:
        video = target.add_stream(
            "libx264", rate=FPS, width=WIDTH, height=HEIGHT, pix_fmt="yuv420p", options={"crf": "23", "threads": "1"}
        )
        video.codec_context.time_base = Fraction(1, FPS)
        audio = target.add_stream("aac", rate=RATE_HZ, layout="mono", bit_rate=96_000)
        for index in range(FRAMES):
            frame = av.VideoFrame.from_ndarray(frame_picture(scene, index / FPS), "rgb24")
            frame.pts, frame.time_base = index, Fraction(1, FPS)
            target.mux(video.encode(frame))
            part = sound[index * RATE_HZ // FPS : (index + 1) * RATE_HZ // FPS]
            frame = av.AudioFrame.from_ndarray(part[None], format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = RATE_HZ, index * RATE_HZ // FPS, Fraction(1, RATE_HZ)
            target.mux(audio.encode(frame))
        target.mux(video.encode(None))
        target.mux(audio.encode(None))


if __name__ == "__main__":
    render(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("street.mp4"))

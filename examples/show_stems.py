"""Draw what `make demo` made: a film strip, the stems' spectrograms, and when each source truly sounded.

    python examples/show_stems.py VIDEO.mp4 OUT.png KIND=STEM.wav KIND=STEM.wav [all=MIX.wav]

The true events are read from VIDEO.json, which `make_clip.py` writes; the model never sees them.
"""

import json
import sys
from pathlib import Path

import av
import matplotlib
import numpy as np
import soundfile

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PICTURES = 14
FLOOR_DB = -70
ALL = "all"
"""Instead of a kind: the track should have every sound."""


def film_strip(path):
    """`PICTURES` frames side by side and the clip's duration in seconds."""
    with av.open(str(path)) as video:
        rate = float(video.streams.video[0].average_rate)
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    middles = ((np.arange(PICTURES) + 0.5) * len(frames) / PICTURES).astype(int)
    return np.concatenate([frames[i] for i in middles], axis=1), len(frames) / rate


def draw(video, out, stems):
    events = json.loads(video.with_suffix(".json").read_text(encoding="utf-8"))
    strip, duration_s = film_strip(video)
    figure, rows = plt.subplots(
        1 + len(stems), 1, figsize=(12, 1.3 + 2.1 * len(stems)), layout="constrained", sharex=True,
        height_ratios=[1, *[2.2] * len(stems)],
    )  # fmt: skip
    rows[0].imshow(strip, extent=(0, duration_s, 0, 1), aspect="auto")
    rows[0].set_yticks([])
    rows[0].set_title("what is seen: a rendered toy world; no training clip has two sources in one frame", fontsize=10)
    for row, (kind, path) in zip(rows[1:], stems, strict=True):
        audio, rate_hz = soundfile.read(path)
        row.specgram(audio + 1e-9, NFFT=512, Fs=rate_hz, noverlap=384, cmap="magma", vmin=FLOOR_DB - 40, vmax=-30)
        row.set_ylabel("Hz")
        for other, times_s in events.items():
            own = kind in (other, ALL)
            row.vlines(times_s, 0, rate_hz / 2, color="cyan" if own else "white", lw=1.4, ls="-" if own else ":")
        others = ", ".join(other for other in events if other != kind)
        heard = "any of them truly sounds" if kind == ALL else f"the {kind} truly sounds; dotted, the {others}"
        row.set_title(f"{path.stem}: solid, when {heard}", fontsize=10)
    rows[-1].set_xlabel("s")
    rows[-1].set_xlim(0, duration_s)
    figure.savefig(out, dpi=90)
    return events


def main(video, out, *pairs):
    stems = [(kind, Path(path)) for kind, path in (pair.split("=", 1) for pair in pairs)]
    events = draw(Path(video), Path(out), stems)
    wanted = {kind: f"{len(times_s)} sounds of the {kind} alone" for kind, times_s in events.items()}
    wanted[ALL] = f"all {sum(map(len, events.values()))}"
    counts = "; ".join(f"{path} should have {wanted[kind]}" for kind, path in stems)
    print(f"listen: {counts}. Compare with {out}. This is a toy model of a rendered world, not SelVA's weights.")


if __name__ == "__main__":
    main(*sys.argv[1:])

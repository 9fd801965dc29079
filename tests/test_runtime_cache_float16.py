"""Which type the tokens of a clip may be stored in: stems must stay within 60 dB of those from the exact tokens."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from selva_runtime import Session
from selva_runtime.command.deliver import DEMO_BUNDLE
from selva_runtime.flow import draw_noise

MIN_DB = 60
STREET = Path(__file__).parents[1] / "examples" / "street.mp4"


def test_clips_need_float32():
    """float16 keeps most stems within 62 to 106 dB, but this prompt with this noise within 57 dB only."""
    session = Session(DEMO_BUNDLE, backend="cpu", threads=1)
    clip = session.encode(STREET)
    noise = draw_noise(0, 5, 0, session._rules.lengths(clip.duration_s).latent, session._rules.latent_width)[None]

    half = np.asarray(clip.tokens).astype(np.float16)
    exact, rounded = (
        session.generate(each, ["lamp beeping"], noise=noise)[0].audio
        for each in (clip, replace(clip, tokens=half.astype(np.float32)))
    )
    error_db = 10 * np.log10(np.square(exact).sum() / np.square(exact - rounded).sum())
    assert 40 < error_db < MIN_DB, "if float16 is enough for every prompt, clips can be half as large"

"""Tokens kept as float16: what that costs in the sound, on the demo model, against the exact tokens."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from selva_runtime import Session
from selva_runtime.cache import Cache
from selva_runtime.command.deliver import DEMO_BUNDLE

MIN_DB = 60
STREET = Path(__file__).parents[1] / "examples" / "street.mp4"


NEEDS_OPENVINO = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="OpenVINO is not installed")


@pytest.mark.parametrize("backend", ["cpu", pytest.param("openvino", marks=NEEDS_OPENVINO)])
def test_float16_tokens_give_the_same_stems(tmp_path, backend):
    session = Session(DEMO_BUNDLE, backend=backend, threads=1)
    clip = session.encode(STREET, duration_s=2.0)
    with Cache(tmp_path).writer("clip", {}, dtype="float16") as writer:
        writer.append(np.asarray(clip.tokens))
        kept = replace(clip, tokens=np.asarray(writer.commit({})))
    assert not np.array_equal(clip.tokens, kept.tokens)
    exact, rounded = (session.generate(each, ["ball bouncing", "rain"], steps=8) for each in (clip, kept))
    for one, other in zip(exact, rounded, strict=True):
        error = np.square(one.audio - other.audio).sum()
        assert 10 * np.log10(np.square(one.audio).sum() / error) >= MIN_DB

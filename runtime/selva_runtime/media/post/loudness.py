"""Measure loudness and true peak of a sound block by block, and find one gain for all stems of a video.

Loudness is integrated as in ITU-R BS.1770-4 by libav's `ebur128` filter. The filter tells peaks to 0.001 only, which is
half a decibel at -40 dB. So the true peak is measured here, on the sound at four times its rate as BS.1770 says.
"""

from __future__ import annotations

from contextlib import suppress
from fractions import Fraction
from math import log10
from typing import cast

import av
import av.filter
import numpy as np

from selva_runtime.media.audio import Audio, check_audio
from selva_runtime.media.resampler import FILTER_REACH, Resampler

OVERSAMPLING = 4
SILENT_LUFS = -70.0
"""The absolute gate of BS.1770. The filter reports it for a sound without a louder block of 0.4 s."""
CEILING_DB = -1.0
"""Highest true peak of a delivered stem (EBU R 128)."""
MARGIN_DB = 0.05
"""Meters with other filters read up to this much more."""


class LoudnessMeter:
    """Measures a mono sound of up to 48 kHz in memory that does not grow."""

    def __init__(self, rate_hz: int) -> None:
        self._rate_hz, self._samples, self._peak, self._lufs = rate_hz, 0, 0.0, SILENT_LUFS
        self._oversampler = Resampler(rate_hz, OVERSAMPLING * rate_hz)
        self._silence = np.zeros(2 * FILTER_REACH, np.float32)
        self._note_peak(self._oversampler.push(self._silence))
        self._graph = av.filter.Graph()
        self._source = self._graph.add_abuffer(
            sample_rate=rate_hz, format="fltp", layout="mono", time_base=Fraction(1, rate_hz)
        )
        self._sink = self._graph.add("abuffersink")
        meter = self._graph.add("ebur128", "metadata=1:framelog=quiet")
        self._graph.link_nodes(self._source, meter, self._sink).configure()

    def push(self, block: Audio) -> None:
        """Take the next samples (n,).

        Raises:
            RequestError: not mono or not finite.
        """
        block = check_audio(block)
        if not len(block):
            return
        self._note_peak(self._oversampler.push(block))
        frame = av.AudioFrame.from_ndarray(block[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = self._rate_hz, self._samples, Fraction(1, self._rate_hz)
        self._samples += len(block)
        self._source.push(frame)
        self._read()

    def finish(self) -> None:
        """Measure what is left. Nothing can be pushed after."""
        self._note_peak(self._oversampler.push(self._silence))
        self._note_peak(self._oversampler.finish())
        self._source.push(None)
        self._read()

    @property
    def lufs(self) -> float | None:
        """Integrated loudness until now. None for silence, or less than 0.4 s."""
        return self._lufs if self._lufs > SILENT_LUFS else None

    @property
    def true_peak_db(self) -> float | None:
        """True peak until now, in dBTP. None for silence."""
        return 20 * log10(self._peak) if self._peak else None

    def _note_peak(self, oversampled: Audio) -> None:
        self._peak = max(self._peak, float(np.abs(oversampled).max(initial=0)))

    def _read(self) -> None:
        with suppress(av.EOFError, av.BlockingIOError):
            while True:
                found = cast(av.AudioFrame, self._sink.pull()).metadata
                self._lufs = float(found.get("lavfi.r128.I", self._lufs))


class SharedGain:
    """One gain for the stems of a video, so that their balance stays: the loudest peak is at most `CEILING_DB`."""

    def __init__(self, rate_hz: int) -> None:
        self._rate_hz = rate_hz
        self._meters: list[LoudnessMeter] = []

    def new_meter(self) -> LoudnessMeter:
        """Return a meter for another stem."""
        self._meters.append(LoudnessMeter(self._rate_hz))
        return self._meters[-1]

    @property
    def gain_db(self) -> float:
        """The gain, 0 or less. It is known when all meters are finished."""
        peaks = [meter.true_peak_db for meter in self._meters]
        highest = max((peak for peak in peaks if peak is not None), default=CEILING_DB)
        return 0.0 if highest <= CEILING_DB else CEILING_DB - MARGIN_DB - highest

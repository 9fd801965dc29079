"""Resample a sound block by block with libav, aligned in time."""

from __future__ import annotations

from contextlib import suppress
from fractions import Fraction
from math import ceil, gcd
from typing import cast

import av
import av.filter
import numpy as np

from selva_runtime.media.audio import Audio, check_audio, check_rate

FILTER_TAPS = 256
FILTER_REACH = 160
"""Samples of the lower rate. swresample's filter reads fewer to either side."""


class Resampler:
    """Resamples a sound block by block, aligned in time: sample 0 stays at 0 s.

    The outputs of `push` and `finish` make up (round(n * to_hz / from_hz),) samples for n samples of input. They do not
    depend on the sizes of the blocks. The memory does not grow. The filter has eight times swresample's default length,
    because a stem of a 16 kHz model has sound up to 8 kHz and the default filter would alias the sound above 7 kHz.

    Raises:
        RequestError: a rate outside 8 to 192 kHz.
    """

    def __init__(self, from_hz: int, to_hz: int) -> None:
        self.from_hz, self.to_hz = check_rate(from_hz), check_rate(to_hz)
        # The ends are mirrored, so that the filter sees no jump to silence and enough samples. The lead-in is a whole
        # number of samples at both rates.
        common = gcd(from_hz, to_hz)
        periods = ceil(FILTER_REACH * max(1, from_hz / to_hz) / (from_hz // common))
        self._lead, self._skip = periods * (from_hz // common), periods * (to_hz // common)
        self._edge = np.empty(0, np.float32)
        """All samples until the start can be mirrored, then the last ones, which mirror the end."""
        self._taken = self._given = self._filtered = 0
        self._graph = av.filter.Graph()
        self._source = self._graph.add_abuffer(
            sample_rate=from_hz, format="fltp", layout="mono", time_base=Fraction(1, from_hz)
        )
        self._sink = self._graph.add("abuffersink")
        converter = self._graph.add("aresample", f"{to_hz}:filter_size={FILTER_TAPS}:cutoff=0.98")
        self._graph.link_nodes(self._source, converter, self._sink).configure()

    def push(self, block: Audio) -> Audio:
        """Take the next samples (n,). Return those that are ready, (m,), from none on.

        Raises:
            RequestError: not mono or not finite.
        """
        block = check_audio(block)
        if self.from_hz == self.to_hz or not len(block):
            return block.copy()
        started, self._taken = self._taken > self._lead, self._taken + len(block)
        known = np.concatenate([self._edge, block])
        if self._taken <= self._lead:
            self._edge = known
            return known[:0]
        self._edge = known[-self._lead - 1 :]
        return self._filter(block if started else np.concatenate([known[self._lead : 0 : -1], known]))

    def finish(self) -> Audio:
        """Return the last samples (m,). Nothing can be pushed after."""
        if self.from_hz == self.to_hz or not self._taken:
            return np.empty(0, np.float32)
        if self._taken > self._lead:
            rest = self._filter(self._edge[-2::-1], last=True)
        else:
            rest = self._filter(np.pad(self._edge, self._lead, mode="reflect"), last=True)
        length = round(Fraction(self._taken * self.to_hz, self.from_hz))
        return rest[: len(rest) - (self._given - length)]

    def _filter(self, samples: Audio, *, last: bool = False) -> Audio:
        """Put mirrored samples into swresample. Return the sound that comes out, without the lead-in."""
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples)[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = self.from_hz, self._filtered, Fraction(1, self.from_hz)
        self._filtered += len(samples)
        self._source.push(frame)
        if last:
            self._source.push(None)
        parts = [np.empty(0, np.float32)]
        with suppress(av.EOFError, av.BlockingIOError):
            while True:
                parts.append(cast(av.AudioFrame, self._sink.pull()).to_ndarray()[0])
        ready = np.concatenate(parts).astype(np.float32, copy=False)
        skipped = min(self._skip, len(ready))
        self._skip -= skipped
        self._given += len(ready) - skipped
        return ready[skipped:]


def resample(audio: Audio, from_hz: int, to_hz: int) -> Audio:
    """Resample (n,) to (round(n * to_hz / from_hz),), aligned in time: sample 0 stays at 0 s.

    Raises:
        RequestError: not mono, not finite, or a rate outside 8 to 192 kHz.
    """
    resampler = Resampler(from_hz, to_hz)
    return np.concatenate([resampler.push(audio), resampler.finish()])

"""The stages of one `generate` call: text, selection, conditions, flow, vocoder.

Every stage is computed per prompt or per stem. Only the flow runs several stems as one batch, and the rows of a batch
do not affect each other. So a stem is the same whichever stems run beside it. `long_form` says which windows of a clip
are generated after each other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from threading import Event

import numpy as np
import numpy.typing as npt

from selva_bundle.errors import BackendError, DeviceMemoryError, RequestError
from selva_bundle.lengths import SequenceRules, latent_positions, sync_rows, visual_positions
from selva_bundle.ports import DECODER, FLOWS, VIDEO_SELECT
from selva_runtime.backends.executor import Array, Executor, Tensor, concatenate, stack
from selva_runtime.backends.gpu.device_array import DeviceArray
from selva_runtime.batches import in_batches
from selva_runtime.cache import Rows
from selva_runtime.flow import Held, draw_noise, finite, integrate
from selva_runtime.lru_cache import LruCache
from selva_runtime.progress import Progress
from selva_runtime.request import StemRequest
from selva_runtime.results import Clip, StemPart
from selva_runtime.text import TextEncoder
from selva_runtime.windows import Slices, Window, pictures_shown, stretches

Float32 = npt.NDArray[np.float32]
_ROWS = 64
"""Rows of a clip that are read at a time."""


@dataclass(frozen=True, kw_only=True)
class Features:
    """What the flow needs of the clip and the prompts."""

    stems: list[tuple[Tensor, Tensor]]
    """Sync features (segments * 8, width) and text features (tokens, width) of each stem."""
    negative: Tensor | None
    """Text features of the negative prompt."""


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One request on one clip. `selected` caches the clip's sync features by prompt between calls."""

    executor: Executor
    text: TextEncoder
    rules: SequenceRules
    clip: Clip
    selected: LruCache[str, Tensor]
    request: StemRequest
    latent: int
    """Latent vectors of each stem."""
    samples: int
    windows: int
    """Number of windows, for the progress."""
    progress: Progress
    cancel: Event | None
    device_output: bool = False
    notes: list[str] = field(default_factory=list)
    """Warnings about this run for the user."""
    _done: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        if self.device_output and self.executor.loop is None:
            raise RequestError(f"device_output needs a GPU backend; this session runs on {self.executor.backend}")

    @property
    def graphs(self) -> tuple[str, str]:
        """Names of the graphs for the conditions and for a step."""
        return FLOWS[self.request.quality]

    @property
    def stems(self) -> list[tuple[str, int]]:
        """Prompt and take of each stem: all takes of the first prompt, then of the second, and so on."""
        return [(prompt, take) for prompt in self.request.prompts for take in range(self.request.takes)]

    def noise(self, given: Float32 | None) -> Float32:
        """(stems, latent, width) noise, drawn from the seed unless it is given.

        Raises:
            RequestError: the given noise has another shape or is not finite.
        """
        count, width, takes = len(self.stems), self.rules.latent_width, self.request.takes
        if given is None:
            return np.stack(
                [draw_noise(self.request.seed, *divmod(i, takes), self.latent, width) for i in range(count)]
            )
        if given.shape != (count, self.latent, width) or not np.isfinite(given).all():
            raise RequestError(f"noise is {given.shape}; give finite numbers as ({count}, {self.latent}, {width})")
        return given.astype(np.float32)

    def features(self) -> Features:
        """Run the text towers, and select in the clip what belongs to each prompt.

        Raises:
            BackendError: the backend failed.
            Cancelled: the caller's event was set.
        """
        t5, clip_text = self.text.features(
            self.request.prompts,
            self.request.negative,
            cancel=self.cancel,
            on_progress=lambda done, total: self.progress("text", done, total),
        )
        self.notes.extend(self.text.new_cache_warnings())
        sync = self._select(t5) if self.clip.pictures is None else dict.fromkeys(clip_text, self._all_that_moves())
        return Features(
            stems=[(sync[prompt], clip_text[prompt]) for prompt, _ in self.stems],
            negative=None if self.request.negative is None else clip_text[self.request.negative],
        )

    def _all_that_moves(self) -> Tensor:
        """(sync, W) features of the whole picture, which do not depend on a prompt."""
        tokens = self.clip.tokens
        parts = [tokens[first : first + _ROWS] for first in range(0, len(tokens), _ROWS)]
        return concatenate(self.executor, [part[i] for part in parts for i in range(len(part))])

    def _select(self, t5: dict[str, Tensor]) -> dict[str, Tensor]:
        """(sync, W) features of the clip for each prompt, computed some segments at a time."""
        new = [prompt for prompt in t5 if prompt not in self.selected]
        found = {prompt: self.selected[prompt] for prompt in t5 if prompt not in new}
        for number, prompt in enumerate(new):
            mask = self.text.mask(prompt, t5[prompt].shape[0])
            found[prompt] = self.selected[prompt] = self._select_one(t5[prompt][None], mask, number, len(new))
        return found

    def _select_one(self, text: Tensor, mask: Array, number: int, prompts: int) -> Tensor:
        executor, tokens = self.executor, self.clip.tokens
        feeds = {"text": text, "mask": mask}

        def run(rows: slice) -> Tensor:
            part = executor.run(VIDEO_SELECT, {"tokens": tokens[rows], **feeds}, self.cancel)["sync"][0]
            self.progress("select", number * len(tokens) + rows.stop, prompts * len(tokens))
            return part

        def fewer(limit: int) -> None:
            executor.segments_per_batch = limit
            self.notes.append(f"the GPU is low on memory: segments are searched {limit} at a time")

        return concatenate(executor, in_batches(len(tokens), executor.segments_per_batch, run, fewer))

    def flow(
        self,
        window: Window,
        features: Features,
        noise: Float32,
        held: Held | None = None,
        *,
        anchors: Sequence[int] = (),
        keep_states: bool = False,
    ) -> tuple[Tensor, list[Float32 | None]]:
        """Generate the latents of a window, (stems, T, Z), from noise of that shape.

        `anchors` are the first segments of the stems' anchors. Also return the states of each batch of stems,
        (steps, B, T, Z), or None without `keep_states`.

        Raises:
            BackendError: the backend failed.
            Cancelled: the caller's event was set.
        """
        executor, request, every = self.executor, self.request, features.stems
        anchors = anchors or [0] * len(every)

        def run(rows: slice) -> tuple[Tensor, Float32 | None]:
            before, batch = self._done["step"], rows.stop - rows.start
            later = self.windows - 1 - self._done["window"]
            rest = -(-(len(every) - rows.start) // batch) + later * -(-len(every) // batch)

            def on_step() -> None:
                self._done["step"] += 1
                self.progress("step", self._done["step"], before + request.steps * rest)

            try:
                conditions = self._conditions(window, every[rows], anchors[rows], features.negative)
                done = self._done["window"] * len(every) + rows.stop
                self.progress("conditions", done, self.windows * len(every))
                return integrate(
                    executor,
                    noise[rows],
                    conditions,
                    graph=self.graphs[1],
                    steps=request.steps,
                    guidance=request.guidance,
                    solver=request.solver,
                    cancel=self.cancel,
                    on_step=on_step,
                    held=None if held is None else Held(values=held.values[:, rows], weights=held.weights),
                    keep_states=keep_states,
                )
            except DeviceMemoryError:
                self._done["step"] = before
                raise

        def fewer(limit: int) -> None:
            executor.stems_per_batch = limit
            self.notes.append(f"the GPU is low on memory: stems are generated {limit} at a time")

        found = in_batches(len(every), executor.stems_per_batch, run, fewer, few_sizes=True)
        self._done["window"] += 1
        return concatenate(executor, [latents for latents, _ in found]), [states for _, states in found]

    def _conditions(
        self, window: Window, features: list[tuple[Tensor, Tensor]], anchors: Sequence[int], negative: Tensor | None
    ) -> dict[str, Tensor]:
        text = stack(self.executor, [text for _, text in features])
        each = self.rules.sync_per_segment
        shown = [
            self._shown(window, anchor, len(sync) // each) for anchor, (sync, _) in zip(anchors, features, strict=True)
        ]
        parts = [
            concatenate(self.executor, [sync[each * first : each * stop] for first, stop in slices])
            for slices, (sync, _) in zip(shown, features, strict=True)
        ]
        feeds: dict[str, Tensor] = {
            "sync": stack(self.executor, parts),
            "text": text,
            "negative_text": np.zeros((1, *text.shape[1:]), np.float32) if negative is None else negative[None],
            "use_negative": np.array([negative is not None]),
            "latent_positions": latent_positions(window.lengths),
            "clip_positions": visual_positions(window.lengths),
        }
        if self.clip.pictures is not None:
            seen = np.array([self.clip.has_video])
            pictures = np.stack([self._pictures(window, slices, self.clip.pictures) for slices in shown])
            feeds |= {"use_sync": seen, "clip": pictures, "use_clip": seen}
        conditions = self.executor.run(self.graphs[0], feeds, self.cancel)
        return {**conditions, "sync_row": sync_rows(self.rules, window.lengths, len(features))}

    def _shown(self, window: Window, anchor: int, total: int) -> Slices:
        """The segments of the clip's `total` that a window shows. `anchor` is the first of its anchor."""
        return (*stretches(anchor, window.anchor_segments, total), *window.segments)

    def _pictures(self, window: Window, shown: Slices, pictures: Float32 | Rows) -> Float32:
        """(visual, width) features of the pictures in a window that shows these segments."""
        places = pictures_shown(shown, self.clip.shots, self.rules, count=window.lengths.visual, total=len(pictures))
        known = np.unique(places)
        runs = np.split(known, np.flatnonzero(np.diff(known) > _ROWS) + 1)
        parts = [pictures[int(run[0]) : int(run[-1]) + 1][run - run[0]] for run in runs]
        return np.concatenate(parts)[np.searchsorted(known, places)]

    def decode(self, latents: Tensor, lead: int, first: int, stop: int) -> Iterator[StemPart]:
        """Decode `latents` (stems, T, Z) and yield each stem's sound from the place `first` to `stop`.

        The first `lead` vectors, and those after `stop`, are only context.

        Raises:
            BackendError: the backend failed, or a value is not finite.
            Cancelled: the caller's event was set.
        """
        executor, total = self.executor, self.windows * len(self.stems)
        hop = 2 * self.rules.hop
        samples = slice(lead * hop, lead * hop + min(stop * hop, self.samples) - first * hop)

        def run(rows: slice) -> list[StemPart]:
            sound = executor.run(DECODER, {"latents": latents[rows]}, self.cancel)["audio"]
            ended, heard = executor.read(latents[rows], sound)
            finite(ended, self.graphs[1])  # a value that is not finite stays so to the end
            finite(heard, DECODER)
            if heard.shape[1] < samples.stop:
                asked = samples.stop
                raise BackendError(f"graph decoder gave {heard.shape[1]} samples of {asked}; export the bundle again")
            found = []
            for row, number in enumerate(range(rows.start, rows.stop)):
                self._done["vocode"] += 1
                self.progress("vocode", self._done["vocode"], max(total, self._done["vocode"]))
                prompt, take = self.stems[number]
                found.append(
                    StemPart(
                        stem=number,
                        prompt=prompt,
                        take=take,
                        seed=self.request.seed,
                        first_sample=first * hop,
                        audio=heard[row, samples].copy(),
                        sample_rate_hz=self.rules.sample_rate_hz,
                        latents=ended[row, lead : lead + stop - first].copy(),
                        notes=tuple(self.notes),
                        device_audio=self._device_part(sound, row, samples),
                    )
                )
            return found

        def fewer(limit: int) -> None:
            executor.stems_per_decode = limit
            self.notes.append(f"the GPU is low on memory: stems are decoded {limit} at a time")

        for batch in in_batches(len(self.stems), executor.stems_per_decode, run, fewer, few_sizes=True):
            yield from batch

    def _device_part(self, sound: Tensor, row: int, samples: slice) -> DeviceArray | None:
        if not self.device_output or not isinstance(sound, DeviceArray):
            return None
        return sound[row][samples]

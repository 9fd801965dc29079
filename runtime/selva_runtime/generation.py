"""The stages of one `generate` call: text, selection, conditions, flow, vocoder.

Every stage is computed per prompt or per stem. Only the flow runs several stems as one batch, and the rows of a batch
do not affect each other. So a stem is the same whichever stems run beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from threading import Event

import numpy as np
import numpy.typing as npt

from selva_bundle.errors import BackendError, DeviceMemoryError, RequestError
from selva_bundle.lengths import SequenceRules, latent_positions, sync_rows, visual_positions
from selva_bundle.ports import CONDITIONS, DECODER, GUIDED_STEP, VIDEO_SELECT
from selva_runtime.backends.executor import Array, Executor, Tensor, concatenate, stack
from selva_runtime.backends.gpu.device_array import DeviceArray
from selva_runtime.batches import in_batches
from selva_runtime.flow import draw_noise, finite, integrate
from selva_runtime.lru_cache import LruCache
from selva_runtime.progress import Progress
from selva_runtime.request import StemRequest
from selva_runtime.results import Clip, Stem
from selva_runtime.text import TextEncoder

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One request on one clip. `selected` caches the clip's sync features by prompt between calls."""

    executor: Executor
    text: TextEncoder
    rules: SequenceRules
    clip: Clip
    selected: LruCache[str, Tensor]
    request: StemRequest
    progress: Progress
    cancel: Event | None
    device_output: bool
    notes: list[str] = field(default_factory=list)
    """Warnings about this run for the user."""

    def stems(self, given_noise: Float32 | None) -> list[Stem]:
        """Generate all takes of the first prompt, then of the second, and so on.

        `given_noise` is (stems, latent, width), or None to draw it from the seed.

        Raises:
            RequestError: the noise has another shape, or the backend has no GPU output.
            BackendError: the backend failed.
            Cancelled: the caller's event was set.
        """
        if self.device_output and self.executor.loop is None:
            raise RequestError(f"device_output needs a GPU backend; this session runs on {self.executor.backend}")
        noise = self._noise(given_noise)
        prompts, takes = self.request.prompts, self.request.takes
        t5, clip_text = self.text.features(
            prompts,
            self.request.negative,
            cancel=self.cancel,
            on_progress=lambda done, total: self.progress("text", done, total),
        )
        sync = self._select(t5)
        negative = None if self.request.negative is None else clip_text[self.request.negative]
        jobs = [(prompt, take) for prompt in prompts for take in range(takes)]
        latents = self._flow([(sync[prompt], clip_text[prompt]) for prompt, _ in jobs], negative, noise)
        sounds = self._decode(latents)
        return [
            Stem(
                prompt=prompt,
                take=take,
                seed=self.request.seed,
                audio=audio,
                sample_rate_hz=self.rules.sample_rate_hz,
                warnings=(*self.request.warnings[prompt], *self.notes),
                device_audio=device_audio,
            )
            for (prompt, take), (audio, device_audio) in zip(jobs, sounds, strict=True)
        ]

    def _noise(self, given: Float32 | None) -> Float32:
        """(stems, latent, width) noise, drawn from the seed unless it is given."""
        stems, takes = len(self.request.prompts) * self.request.takes, self.request.takes
        latent, width = self.rules.lengths(self.clip.duration_s).latent, self.rules.latent_width
        if given is None:
            return np.stack([draw_noise(self.request.seed, *divmod(i, takes), latent, width) for i in range(stems)])
        if given.shape != (stems, latent, width) or not np.isfinite(given).all():
            raise RequestError(f"noise is {given.shape}; give finite numbers as ({stems}, {latent}, {width})")
        return given.astype(np.float32)

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

    def _flow(self, features: list[tuple[Tensor, Tensor]], negative: Tensor | None, noise: Float32) -> Tensor:
        """(stems, latent, width) latents from each stem's sync and text features."""
        executor, request, done = self.executor, self.request, 0

        def run(rows: slice) -> Tensor:
            nonlocal done
            before, batch = done, rows.stop - rows.start
            total = before + request.steps * -(-(len(features) - rows.start) // batch)

            def on_step() -> None:
                nonlocal done
                done += 1
                self.progress("step", done, total)

            try:
                conditions = self._conditions(features[rows], negative)
                self.progress("conditions", rows.stop, len(features))
                return integrate(
                    executor,
                    noise[rows],
                    conditions,
                    steps=request.steps,
                    guidance=request.guidance,
                    solver=request.solver,
                    cancel=self.cancel,
                    on_step=on_step,
                )[0]
            except DeviceMemoryError:
                done = before
                raise

        def fewer(limit: int) -> None:
            executor.stems_per_batch = limit
            self.notes.append(f"the GPU is low on memory: stems are generated {limit} at a time")

        return concatenate(executor, in_batches(len(features), executor.stems_per_batch, run, fewer, few_sizes=True))

    def _conditions(self, features: list[tuple[Tensor, Tensor]], negative: Tensor | None) -> dict[str, Tensor]:
        lengths = self.rules.lengths(self.clip.duration_s)
        text = stack(self.executor, [text for _, text in features])
        feeds = {
            "sync": stack(self.executor, [sync for sync, _ in features]),
            "text": text,
            "negative_text": np.zeros((1, *text.shape[1:]), np.float32) if negative is None else negative[None],
            "use_negative": np.array([negative is not None]),
            "latent_positions": latent_positions(lengths),
            "clip_positions": visual_positions(lengths),
        }
        conditions = self.executor.run(CONDITIONS, feeds, self.cancel)
        return {**conditions, "sync_row": sync_rows(self.rules, lengths, len(features))}

    def _decode(self, latents: Tensor) -> list[tuple[Float32, DeviceArray | None]]:
        """(samples,) audio of each stem, and its copy on the device if the caller asked for it."""
        executor = self.executor

        def run(rows: slice) -> list[tuple[Float32, DeviceArray | None]]:
            audio = executor.run(DECODER, {"latents": latents[rows]}, self.cancel)["audio"]
            ended, heard = executor.read(latents[rows], audio)
            finite(ended, GUIDED_STEP)  # a value that is not finite stays so to the end
            finite(heard, DECODER)
            sounds = [(self._trim(heard[i]), self._device_part(audio, i)) for i in range(len(heard))]
            for number in range(rows.start, rows.stop):
                self.progress("vocode", number + 1, len(latents))
            return sounds

        def fewer(limit: int) -> None:
            executor.stems_per_decode = limit
            self.notes.append(f"the GPU is low on memory: stems are decoded {limit} at a time")

        batches = in_batches(len(latents), executor.stems_per_decode, run, fewer, few_sizes=True)
        return [sound for batch in batches for sound in batch]

    def _trim(self, decoded: Float32) -> Float32:
        """(samples,) audio, exactly as long as the clip. The decoder rounds up to whole latents."""
        samples = self.rules.lengths(self.clip.duration_s).samples
        if len(decoded) < samples:
            raise BackendError(f"graph decoder gave {len(decoded)} samples of {samples}; export the bundle again")
        return decoded[:samples].copy()

    def _device_part(self, audio: Tensor, index: int) -> DeviceArray | None:
        if not self.device_output or not isinstance(audio, DeviceArray):
            return None
        return audio[index][: self.rules.lengths(self.clip.duration_s).samples]

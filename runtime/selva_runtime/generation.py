"""The way of one `generate` call: text, selection, conditions, flow, vocoder.

Every stage is computed per prompt or per stem; only the flow runs several stems as one batch, whose rows do not see
each other. So a stem is the same whatever it runs beside.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from threading import Event

import numpy as np
import numpy.typing as npt

from .errors import RequestError
from .executor import Array, Executor
from .flow import draw_noise, finite, integrate
from .recent import Recent
from .request import StemRequest
from .results import Clip, Stem
from .sequence import SequenceRules, clip_positions, latent_positions, nearest_exact_indices
from .text import TextEncoder

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One request on one clip. `selected` remembers the clip's sync features by prompt between calls."""

    executor: Executor
    text: TextEncoder
    rules: SequenceRules
    clip: Clip
    selected: Recent[str, Array]
    request: StemRequest
    progress: Callable[[str, int, int], None]
    cancel: Event | None

    def stems(self, given_noise: Float32 | None) -> list[Stem]:
        """All takes of the first prompt, then of the second, and so on."""
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
        warnings = {prompt: self.text.warnings(prompt) for prompt in prompts}
        return [
            Stem(
                prompt=prompt,
                take=take,
                seed=self.request.seed,
                audio=self._decode(latents, index),
                sample_rate_hz=self.rules.sample_rate_hz,
                warnings=warnings[prompt],
            )
            for index, (prompt, take) in enumerate(jobs)
        ]

    def _noise(self, given: Float32 | None) -> Float32:
        """(stems, latent, width), drawn from the seed unless given."""
        stems, takes = len(self.request.prompts) * self.request.takes, self.request.takes
        latent, width = self.rules.lengths(self.clip.duration_s).latent, self.rules.latent_width
        if given is None:
            return np.stack([draw_noise(self.request.seed, *divmod(i, takes), latent, width) for i in range(stems)])
        if given.shape != (stems, latent, width) or not np.isfinite(given).all():
            raise RequestError(f"noise is {given.shape}; give finite numbers as ({stems}, {latent}, {width})")
        return given.astype(np.float32)

    def _select(self, t5: dict[str, Array]) -> dict[str, Array]:
        """What of the clip each prompt asks for: (sync, W) features, some segments at a time."""
        new = [prompt for prompt in t5 if prompt not in self.selected]
        found = {prompt: self.selected[prompt] for prompt in t5 if prompt not in new}
        chunk = self.executor.segments_per_batch
        starts = range(0, len(self.clip.tokens), chunk)
        for number, prompt in enumerate(new):
            text = t5[prompt][None]
            feeds = {"text": text, "mask": np.ones(text.shape[:2], dtype=np.bool_)}
            parts = []
            for done, start in enumerate(starts, start=1):
                tokens = self.clip.tokens[start : start + chunk]
                parts.append(self.executor.run("video_select", {"tokens": tokens, **feeds}, self.cancel)["sync"][0])
                self.progress("select", number * len(starts) + done, len(new) * len(starts))
            found[prompt] = self.selected[prompt] = np.concatenate(parts)
        return found

    def _flow(self, features: list[tuple[Array, Array]], negative: Array | None, noise: Float32) -> Float32:
        """(stems, latent, width) latents from each stem's sync and text features."""
        chunk = self.executor.stems_per_batch
        starts = range(0, len(features), chunk)
        steps, done = self.request.steps, 0

        def on_step() -> None:
            nonlocal done
            done += 1
            self.progress("step", done, steps * len(starts))

        parts = []
        for start in starts:
            rows = slice(start, start + chunk)
            parts.append(
                integrate(
                    self.executor,
                    noise[rows],
                    self._conditions(features[rows], negative),
                    steps=steps,
                    guidance=self.request.guidance,
                    cancel=self.cancel,
                    on_step=on_step,
                )
            )
        return np.concatenate(parts)

    def _conditions(self, features: list[tuple[Array, Array]], negative: Array | None) -> dict[str, Array]:
        lengths = self.rules.lengths(self.clip.duration_s)
        text = np.stack([text for _, text in features])
        feeds = {
            "sync": np.stack([sync for sync, _ in features]),
            "text": text,
            "negative_text": np.zeros_like(text[:1]) if negative is None else negative[None],
            "use_negative": np.array([negative is not None]),
            "sync_index": nearest_exact_indices(lengths.sync, lengths.latent),
            "latent_positions": latent_positions(lengths),
            "clip_positions": clip_positions(lengths),
        }
        return self.executor.run("conditions", feeds, self.cancel)

    def _decode(self, latents: Float32, index: int) -> Float32:
        """(samples,): exactly as long as the clip; the decoder rounds up to whole latents."""
        samples = self.rules.lengths(self.clip.duration_s).samples
        decoded = finite(
            self.executor.run("decoder", {"latents": latents[index : index + 1]}, self.cancel)["audio"][0], "decoder"
        )
        audio = np.zeros(samples, dtype=np.float32)
        audio[: len(decoded)] = decoded[:samples]
        self.progress("vocode", index + 1, len(latents))
        return audio

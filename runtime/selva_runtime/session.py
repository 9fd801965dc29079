"""The main class of the runtime: encode a video once, then generate stems for as many prompts as the user tries.

Memory is bounded: the backbone takes a few segments at a time, the generator a few stems, the vocoder one. Stems share
nothing, so each is the same whichever stems run beside it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from threading import Event, RLock
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from selva_bundle.bundle import Bundle
from selva_bundle.errors import BackendError, RequestError
from selva_bundle.lengths import Lengths
from selva_bundle.ports import VIDEO_BACKBONE
from selva_runtime.backends.choose import make_executor
from selva_runtime.backends.executor import EXACT, POLL_S, Tensor, check_cancel, check_process, concatenate, stack
from selva_runtime.backends.gpu.foreign import is_foreign, stream_handle
from selva_runtime.batches import in_batches
from selva_runtime.flow import EULER, finite
from selva_runtime.generation import Generation
from selva_runtime.lru_cache import LruCache
from selva_runtime.progress import Progress, no_progress
from selva_runtime.request import StemRequest, check_span
from selva_runtime.results import Clip, SessionInfo, Stem
from selva_runtime.text import TextEncoder

_CACHED_SELECTIONS = 64


class Session:
    """A bundle on a backend. Calls from several threads take turns. A forked process must open its own session.

    `backend` "auto" takes the fastest that runs here (`info.backend_reason` says why); any other name is used or
    refused. `threads` limits the CPU threads (None: the cores that the process may use). `precision` "bf16" is faster
    and less exact, and needs a CPU with bfloat16. `keep_text_towers` keeps the text towers in memory between new
    prompts (None: only on a GPU).

    Raises:
        BundleError: the bundle is missing, damaged or altered.
        RequestError: `threads` or `precision` is out of range.
        BackendError: the backend is unknown, not installed or cannot run here.
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str] | Bundle,
        *,
        backend: str = "auto",
        threads: int | None = None,
        keep_text_towers: bool | None = None,
        precision: str = EXACT,
    ) -> None:
        self._bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        self._rules = self._bundle.manifest.sequence
        self._compute_precision = precision
        self._executor = make_executor(self._bundle, backend, threads, precision)
        keep = self._executor.keeps_text_towers if keep_text_towers is None else keep_text_towers
        self._text = TextEncoder(self._bundle, self._executor, keep=keep)
        self._selections: WeakKeyDictionary[Clip, LruCache[str, Tensor]] = WeakKeyDictionary()
        self._process = os.getpid()
        self._turn = RLock()

    @property
    def info(self) -> SessionInfo:
        """The model, backend and limits of this session."""
        manifest = self._bundle.manifest
        return SessionInfo(
            preset=manifest.preset,
            precision=manifest.precision,
            compute_precision=self._compute_precision,
            weights=manifest.weights,
            notice=manifest.notice,
            backend=self._executor.backend,
            backend_reason=self._executor.reason,
            backend_notice=self._executor.notice,
            sample_rate_hz=self._rules.sample_rate_hz,
            image_size=self._rules.image_size,
            fps=self._rules.fps,
            min_duration_s=self._rules.min_duration_s,
            max_duration_s=self._rules.max_duration_s,
            defaults=manifest.defaults,
        )

    def verify(self, progress: Progress | None = None) -> None:
        """Check the hashes of all files now, instead of each at its first use.

        Raises:
            BundleError: a file was altered or cannot be read.
        """
        for done, name in enumerate(self._bundle.manifest.files, start=1):
            self._bundle.verified_path(name)
            if progress is not None:
                progress("verify", done, len(self._bundle.manifest.files))

    def encode(
        self,
        path: str | os.PathLike[str],
        *,
        duration_s: float | None = None,
        start_s: float = 0.0,
        progress: Progress | None = None,
        cancel: Event | None = None,
    ) -> Clip:
        """Read a part of a video file and run the backbone on it. The clip is shorter if the video ends early.

        `path` may also be a `VideoFile`, which is read from where it is open. `duration_s` None means the bundle's
        default, 8 s.

        Raises:
            MediaNotFoundError: there is no such file.
            MediaError: the file has no usable video, or the video is too short or too large.
            RequestError: `start_s` or `duration_s` is out of range, or the start is past the end of the video.
            BackendError: the backend failed, or the session was opened before a fork.
            Cancelled: `cancel` was set.
        """
        from selva_runtime.media.video import read_clip

        duration_s = self._bundle.manifest.defaults.duration_s if duration_s is None else duration_s
        check_span(start_s, duration_s, self._rules.min_duration_s, self._rules.max_duration_s)
        uploaded: list[Tensor] = []

        def upload(rows: Tensor) -> None:
            with self._taking_turns(cancel):
                uploaded.append(self._executor.put(rows))

        part = read_clip(
            path,
            size=self._rules.image_size,
            fps=self._rules.fps,
            start_s=start_s,
            duration_s=duration_s,
            min_duration_s=self._rules.min_duration_s,
            on_progress=None if progress is None else lambda done, total: progress("decode", done, total),
            on_rows=None if self._executor.loop is None else upload,  # a device takes frames meanwhile
            cancelled=cancel,
        )
        with self._taking_turns(cancel):
            frames = concatenate(self._executor, uploaded) if uploaded else part.frames
            tokens, warnings = self._backbone(frames, self._rules.lengths(part.duration_s), progress, cancel)
        return Clip(
            duration_s=part.duration_s,
            start_s=start_s,
            tokens=tokens,
            source=os.fspath(path),
            source_duration_s=part.source_duration_s,
            video_start_s=part.video_start_s,
            warnings=(*part.warnings, *warnings),
            backbone=self._bundle.graph_hash(VIDEO_BACKBONE),
        )

    def encode_frames(
        self,
        frames: Any,
        duration_s: float,
        *,
        progress: Progress | None = None,
        cancel: Event | None = None,
        stream: Any = None,
    ) -> Clip:
        """Run the backbone on the caller's frames: uint8 (T, 3, H, H) at `info.fps`, where H is `info.image_size`.

        `frames` is a NumPy array or, with a GPU backend, an array with `__cuda_array_interface__` (PyCUDA, CuPy,
        PyTorch, …), which is used without a copy. The GPU first waits for the work in `stream`, a handle of the
        caller's stream.

        Raises:
            RequestError: `duration_s` is out of range, the frames have another shape or type or are too few, or the
                backend cannot use the array or the stream.
            BackendError: the backend failed, or the session was opened before a fork.
            Cancelled: `cancel` was set.
        """
        check_span(0.0, duration_s, self._rules.min_duration_s, self._rules.max_duration_s)
        size, lengths = self._rules.image_size, self._rules.lengths(duration_s)
        with self._taking_turns(cancel):
            self._wait_for(stream)
            if is_foreign(frames):
                frames = self._executor.adopt(frames)
            if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != (3, size, size):
                raise RequestError(f"frames are {frames.dtype} {frames.shape}; give uint8 (frames, 3, {size}, {size})")
            if len(frames) < lengths.frames:
                raise RequestError(f"{len(frames)} frames do not last {duration_s} s; give {lengths.frames}")
            tokens, warnings = self._backbone(frames, lengths, progress, cancel)
        return Clip(
            duration_s=duration_s,
            start_s=0.0,
            tokens=tokens,
            source=None,
            source_duration_s=None,
            video_start_s=None,
            warnings=warnings,
            backbone=self._bundle.graph_hash(VIDEO_BACKBONE),
        )

    def prompt_warnings(self, prompt: str) -> tuple[str, ...]:
        """Warn about what the model ignores in a prompt: words past its window, and unknown words or characters."""
        return self._text.warnings(prompt)

    def generate(
        self,
        clip: Clip,
        prompts: Sequence[str],
        *,
        negative: str | None = None,
        seed: int = 0,
        steps: int | None = None,
        guidance: float | None = None,
        solver: str | None = None,
        takes: int = 1,
        noise: npt.NDArray[np.float32] | None = None,
        progress: Progress | None = None,
        cancel: Event | None = None,
        stream: Any = None,
        device_output: bool = False,
    ) -> list[Stem]:
        """Generate one stem per prompt and take: all takes of the first prompt, then of the second, and so on.

        `steps` and `guidance` None mean the bundle's defaults, 25 and 4.5. `solver` None means "euler"; "ab2" comes
        about as close in two thirds of the steps. `noise` (stems, latent, width) replaces the noise that the seed would
        draw. With a GPU backend, the GPU first waits for the work in `stream` (a handle of the caller's stream), and
        `device_output` keeps a copy of the sound on the GPU (`Stem.device_audio`), complete when this returns.

        Raises:
            RequestError: an argument is out of range, the clip belongs to another bundle, or the backend has no GPU
                output or streams.
            DeviceMemoryError: not even one stem fits in the GPU's memory.
            BackendError: the backend failed, or the session was opened before a fork.
            Cancelled: `cancel` was set.
        """
        request = self.request(
            prompts, negative=negative, seed=seed, steps=steps, guidance=guidance, solver=solver, takes=takes
        )
        return self.generate_request(
            clip, request, noise=noise, progress=progress, cancel=cancel, stream=stream, device_output=device_output
        )

    def request(
        self,
        prompts: Sequence[str],
        *,
        negative: str | None = None,
        seed: int = 0,
        steps: int | None = None,
        guidance: float | None = None,
        solver: str | None = None,
        takes: int = 1,
    ) -> StemRequest:
        """Check the arguments of `generate` before anything is computed, and replace None by the bundle's defaults.

        Raises:
            RequestError: an argument is out of range.
        """
        defaults = self._bundle.manifest.defaults
        request = StemRequest(
            prompts=prompts if isinstance(prompts, str) else tuple(prompts),
            negative=negative,
            seed=seed,
            steps=defaults.steps if steps is None else steps,
            guidance=defaults.guidance if guidance is None else guidance,
            solver=EULER if solver is None else solver,
            takes=takes,
        )
        return replace(request, warnings={prompt: self._text.warnings(prompt) for prompt in request.prompts})

    def generate_request(
        self,
        clip: Clip,
        request: StemRequest,
        *,
        noise: npt.NDArray[np.float32] | None = None,
        progress: Progress | None = None,
        cancel: Event | None = None,
        stream: Any = None,
        device_output: bool = False,
    ) -> list[Stem]:
        """Do the work of `generate` for a request that was checked before. Arguments and errors are the same."""
        if clip.backbone != self._bundle.graph_hash(VIDEO_BACKBONE):
            raise RequestError("the clip was encoded with another bundle; encode the video again with this one")
        generation = Generation(
            executor=self._executor,
            text=self._text,
            rules=self._rules,
            clip=clip,
            selected=self._selections.setdefault(clip, LruCache(_CACHED_SELECTIONS)),
            request=request,
            progress=progress or no_progress,
            cancel=cancel,
            device_output=device_output,
        )
        with self._taking_turns(cancel):
            self._wait_for(stream)
            stems = generation.stems(noise)
            self._executor.finish()
        return stems

    @contextmanager
    def _taking_turns(self, cancel: Event | None) -> Iterator[None]:
        """Wait until no other thread's call runs. Raises `BackendError` after a fork, and `Cancelled`."""
        check_process(self._process)
        while not self._turn.acquire(timeout=POLL_S):
            check_cancel(cancel)
        try:
            yield
        except BaseException:
            with suppress(BackendError):  # the first error counts
                self._executor.finish()  # queued work may still read the caller's memory
            raise
        finally:
            self._turn.release()

    def _wait_for(self, stream: Any) -> None:
        if stream is not None:
            self._executor.after(stream_handle(stream))

    def _backbone(
        self, frames: Tensor, lengths: Lengths, progress: Progress | None, cancel: Event | None
    ) -> tuple[Tensor, tuple[str, ...]]:
        """Run the backbone on overlapping segments, a few at a time. Return (segments, tokens, W) and warnings."""
        executor, warnings = self._executor, []
        step, width = self._rules.segment_step, self._rules.segment_frames
        frames = executor.put(frames[: lengths.frames])
        tokens: Tensor | None = None

        def encode(rows: slice) -> None:
            nonlocal tokens
            starts = range(step * rows.start, step * rows.stop, step)
            segments = stack(executor, [frames[start : start + width] for start in starts])
            part = executor.run(VIDEO_BACKBONE, {"segments": segments}, cancel)["tokens"]
            if tokens is None:
                tokens = executor.empty((lengths.segments, *part.shape[1:]), np.float32)
            tokens[rows] = finite(part, VIDEO_BACKBONE)
            if progress is not None:
                progress("encode", rows.stop, lengths.segments)

        def fewer(limit: int) -> None:
            executor.segments_per_batch = limit
            warnings.append(f"the GPU is low on memory: segments are encoded {limit} at a time")

        in_batches(lengths.segments, executor.segments_per_batch, encode, fewer)
        executor.idle(VIDEO_BACKBONE)
        assert tokens is not None
        executor.finish()
        return tokens, tuple(warnings)

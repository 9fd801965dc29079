"""The main class of the runtime: encode a video once, then generate stems for as many prompts as the user tries.

Memory is bounded whatever the length of the video: the backbone takes a few segments at a time, the generator a few
stems of one window, the vocoder one. Stems share nothing, so each is the same whichever stems run beside it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from threading import Event
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from selva_bundle.bundle import Bundle
from selva_bundle.errors import RequestError
from selva_bundle.lengths import LongForm, exact_seconds
from selva_bundle.ports import FLOWS, MMAUDIO
from selva_runtime.backends.choose import make_executor
from selva_runtime.backends.executor import EXACT, Tensor, concatenate
from selva_runtime.backends.gpu.device_array import DeviceArray
from selva_runtime.backends.gpu.foreign import stream_handle
from selva_runtime.cache import Cache
from selva_runtime.clip_encoder import ClipEncoder
from selva_runtime.encode_file import encode_file
from selva_runtime.flow import EULER
from selva_runtime.generation import Generation
from selva_runtime.long_form import decode_part, decoded_at_once, parts, replaced, splice
from selva_runtime.lru_cache import LruCache
from selva_runtime.media.masks.filling import GREY
from selva_runtime.progress import Progress, no_progress
from selva_runtime.quality import check_quality, choose_quality, default_steps
from selva_runtime.request import StemRequest, check_region, check_span
from selva_runtime.results import Clip, SessionInfo, Stem, StemPart
from selva_runtime.text import TextEncoder
from selva_runtime.turns import Turns
from selva_runtime.video_part import AUTO, FIRST, NO_CUTS, VideoPart
from selva_runtime.windows import Grid, Window, joins_s, one_pass, plan, region_windows

WINDOWS, ONE_PASS = "windows", "one-pass"
"""What `long` may be, besides a `LongForm`."""
_CACHED_SELECTIONS = 64
_CACHED_SELECTION_BYTES = 64e6


class Session:
    """A bundle on a backend. Calls from several threads take turns. A forked process must open its own session.

    `backend` "auto" takes the fastest that runs here (`info.backend_reason` says why); any other name is used or
    refused. `threads` limits the CPU threads (None: the cores that the process may use). `precision` "bf16" and
    "int8" are faster and less exact, and need a CPU with bfloat16 or AVX-512. `keep_text_towers` keeps the text towers
    in memory between new prompts (None: only on a GPU). `cache` is the folder in which later sessions find what this
    one computed (None: SELVA_CACHE, or else the user's cache folder; "none": nothing is kept).

    Raises:
        BundleError: the bundle is missing, damaged or altered.
        RequestError: `threads` or `precision` is out of range, or `cache` is no file name.
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
        cache: str | os.PathLike[str] | None = None,
    ) -> None:
        self._cache = Cache.at(cache)
        self._bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        self._rules = self._bundle.manifest.sequence
        self._compute_precision = precision
        self._executor = make_executor(self._bundle, backend, threads, precision)
        keep = self._executor.keeps_text_towers if keep_text_towers is None else keep_text_towers
        self._turns = Turns(self._executor)
        self._text = TextEncoder(
            self._bundle, self._executor, turns=self._turns, keep=keep, cache=self._cache, precision=precision
        )
        self._selections: WeakKeyDictionary[Clip, LruCache[str, Tensor]] = WeakKeyDictionary()
        self._encoder = ClipEncoder(
            bundle=self._bundle,
            executor=self._executor,
            cache=self._cache,
            precision=precision,
            turns=self._turns,
        )

    @property
    def info(self) -> SessionInfo:
        """The model, backend and limits of this session."""
        manifest = self._bundle.manifest
        return SessionInfo(
            preset=manifest.preset,
            system=manifest.system,
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
            picture_size=self._rules.clip_image_size,
            picture_fps=self._rules.clip_fps,
            min_duration_s=self._rules.min_duration_s,
            max_duration_s=self._rules.max_duration_s,
            window_s=self._encoder.window_s,
            long_form=manifest.long_form,
            defaults=manifest.defaults,
            qualities=manifest.qualities,
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
        cuts: str | Sequence[float] = AUTO,
        frame_rule: str = FIRST,
        mask: str | os.PathLike[str] | None = None,
        mask_fill: str = GREY,
        mask_invert: bool = False,
        progress: Progress | None = None,
        cancel: Event | None = None,
    ) -> Clip:
        """Read a part of a video file and run the backbone on it. The clip is shorter if the video ends early.

        `path` may also be a `VideoFile`, which is read from where it is open. `duration_s` None means all of the
        video. `cuts` are where new shots begin, in seconds of the video: "auto" finds them, "none" takes
        the video for one shot. They matter only in a clip that is longer than a window. `frame_rule` says which decoded
        frame shows a moment: "first" takes the first that is not earlier, as in training, "nearest" the nearest.

        `mask` is a mask video, a folder of numbered PNGs or one PNG, of any size and rate. White keeps, black is filled
        with `mask_fill`: "grey", "black" or "blur". `mask_invert` swaps white and black.

        Raises:
            MediaNotFoundError: there is no such file or mask.
            MediaError: the file has no usable video, or the video is too short or too large, or the mask is no mask.
            RequestError: an argument is out of range, or the start is past the end of the video.
            BackendError: the backend failed, or the session was opened before a fork.
            Cancelled: `cancel` was set.
        """
        part = VideoPart(
            start_s=start_s,
            duration_s=duration_s,
            cuts=cuts,
            frame_rule=frame_rule,
            mask=mask,
            mask_fill=mask_fill,
            mask_invert=mask_invert,
        )
        return self.encode_part(path, part, progress=progress, cancel=cancel)

    def encode_part(
        self,
        path: str | os.PathLike[str],
        part: VideoPart,
        *,
        progress: Progress | None = None,
        cancel: Event | None = None,
    ) -> Clip:
        """Do the work of `encode`. Errors are the same."""
        return encode_for([self], path, part, progress=progress, cancel=cancel)[0]

    def without_video(self, duration_s: float) -> Clip:
        """Return a clip without a picture, for MMAudio: `generate` then makes sound from the prompt alone.

        Raises:
            RequestError: `duration_s` is out of range, or this is no MMAudio bundle.
        """
        check_span(0.0, duration_s, self._rules.min_duration_s)
        return self._encoder.without_video(float(duration_s))

    def encode_frames(
        self,
        frames: Any,
        duration_s: float,
        *,
        pictures: npt.NDArray[np.uint8] | None = None,
        cuts: str | Sequence[float] = NO_CUTS,
        mask: Any = None,
        picture_mask: Any = None,
        mask_fill: str = GREY,
        mask_invert: bool = False,
        progress: Progress | None = None,
        cancel: Event | None = None,
        stream: Any = None,
    ) -> Clip:
        """Run the backbone on the caller's frames: uint8 (T, 3, H, H) at `info.fps`, where H is `info.image_size`.

        `frames` is a NumPy array or, with a GPU backend, an array with `__cuda_array_interface__` (PyCUDA, CuPy,
        PyTorch, …), which is used without a copy. The GPU first waits for the work in `stream`, a handle of the
        caller's stream. `cuts` as in `encode`. MMAudio also takes `pictures`, (P, 3, S, S) at `info.picture_fps`, where
        S is `info.picture_size`.

        `mask` is an array, uint8 or bool, (H, H) or (T, H, H); `mask_fill` and `mask_invert` as in `encode`. It needs
        frames in a NumPy array, and fills a copy of them. `picture_mask`, (S, S) or (P, S, S), is that of the pictures.

        Raises:
            RequestError: an argument is out of range, the frames or the mask have another shape or type or are too few,
                or the backend cannot use the array or the stream.
            BackendError: the backend failed, or the session was opened before a fork.
            Cancelled: `cancel` was set.
        """
        check_span(0.0, duration_s, self._rules.min_duration_s)
        with self._turns.take(cancel):
            self._wait_for(stream)
            return self._encoder.from_frames(
                frames,
                duration_s,
                pictures=pictures,
                cuts=cuts,
                mask=mask,
                picture_mask=picture_mask,
                mask_fill=mask_fill,
                mask_invert=mask_invert,
                progress=progress,
                cancel=cancel,
            )

    def prompt_warnings(self, prompt: str) -> tuple[str, ...]:
        """Warn about what the model ignores in a prompt: words past its window, and unknown words or characters.

        If the bundle names what the model does not hear, its text tower tells whether the prompt means such a thing.
        That waits for other calls of the session.

        Raises:
            BundleError: a file was altered.
        """
        return self._text.warnings([prompt], None)[prompt]

    def generate(
        self,
        clip: Clip,
        prompts: Sequence[str] = (),
        *,
        negative: str | None = None,
        seed: int = 0,
        steps: int | None = None,
        guidance: float | None = None,
        solver: str | None = None,
        takes: int = 1,
        quality: str | None = None,
        noise: npt.NDArray[np.float32] | None = None,
        long: str | LongForm = WINDOWS,
        loop: bool = False,
        progress: Progress | None = None,
        cancel: Event | None = None,
        stream: Any = None,
        device_output: bool = False,
    ) -> list[Stem]:
        """Generate one stem per prompt and take: all takes of the first prompt, then of the second, and so on.

        MMAudio needs no prompts, and takes an empty one: its stem is all that it sees.

        `steps` and `guidance` None mean the bundle's defaults, 25 and 4.5. `solver` None means "euler"; "ab2" comes
        about as close in two thirds of the steps. `noise` (stems, latent, width) replaces the noise that the seed would
        draw.

        `quality` "draft" makes a stem in four jumps instead of 25 guided steps, with the bundle's student (`guidance`
        from 1 to 7, no other solver); with a negative prompt the stem is of the quality "best", in the bundle's default
        steps, and warns. None means "best", or "draft" if the bundle makes nothing else.

        A clip that is longer than a window (`info.window_s`) is generated in windows that continue each other, of the
        bundle's `long_form` or of the one that is given. `long` "one-pass" generates up to `info.max_duration_s` in one
        pass, which only some models can. The end of a `loop` leads back to its begin; it is up to 0.6 s shorter than
        the clip.

        With a GPU backend, the GPU first waits for the work in `stream` (a handle of the caller's stream), and
        `device_output` keeps a copy of the sound on the GPU (`Stem.device_audio`), complete when this returns.

        Raises:
            RequestError: an argument is out of range, the clip belongs to another bundle, or the backend has no GPU
                output or streams.
            BundleError: a file was altered.
            DeviceMemoryError: not even one stem fits in the GPU's memory.
            BackendError: the backend failed, or the session was opened before a fork.
            Cancelled: `cancel` was set.
        """
        request = self.request(
            prompts,
            negative=negative,
            seed=seed,
            steps=steps,
            guidance=guidance,
            solver=solver,
            takes=takes,
            quality=quality,
            cancel=cancel,
        )
        return self.generate_request(
            clip,
            request,
            noise=noise,
            long=long,
            loop=loop,
            progress=progress,
            cancel=cancel,
            stream=stream,
            device_output=device_output,
        )

    def request(
        self,
        prompts: Sequence[str] = (),
        *,
        negative: str | None = None,
        seed: int = 0,
        steps: int | None = None,
        guidance: float | None = None,
        solver: str | None = None,
        takes: int = 1,
        quality: str | None = None,
        cancel: Event | None = None,
    ) -> StemRequest:
        """Check the arguments of `generate`, replace None by the bundle's defaults, and find the prompts' warnings.

        The warnings are those of `prompt_warnings`. They come after the checks: if the bundle names what the model does
        not hear, its text tower runs for all prompts, and waits for other calls of the session. `cancel` ends that.

        Raises:
            RequestError: an argument is out of range.
            BundleError: a file was altered.
            Cancelled: `cancel` was set.
        """
        manifest = self._bundle.manifest
        may_be_empty = manifest.system == MMAUDIO
        chosen, warnings = choose_quality(manifest, quality, negative)
        if warnings:
            steps = None  # those of a draft are too few
        asked = prompts if isinstance(prompts, str) else tuple(prompts)
        request = StemRequest(
            prompts=("",) if may_be_empty and not asked else asked,
            may_be_empty=may_be_empty,
            negative=negative,
            seed=seed,
            steps=default_steps(manifest, chosen) if steps is None else steps,
            guidance=manifest.defaults.guidance if guidance is None else guidance,
            solver=EULER if solver is None else solver,
            takes=takes,
            quality=chosen,
        )
        check_quality(manifest, request)
        found = self._text.warnings(request.prompts, cancel)
        return replace(request, warnings={prompt: (*warnings, *more) for prompt, more in found.items()})

    def generate_request(
        self,
        clip: Clip,
        request: StemRequest,
        *,
        noise: npt.NDArray[np.float32] | None = None,
        long: str | LongForm = WINDOWS,
        loop: bool = False,
        progress: Progress | None = None,
        cancel: Event | None = None,
        stream: Any = None,
        device_output: bool = False,
    ) -> list[Stem]:
        """Do the work of `generate` for a request that was checked before. Arguments and errors are the same."""
        generation, windows, form = self._generation(
            clip, request, long, loop=loop, progress=progress, cancel=cancel, device_output=device_output
        )
        found: list[list[StemPart]] = [[] for _ in generation.stems]
        for part in self._run(generation, windows, form, noise, loop=loop, stream=stream):
            found[part.stem].append(part)
        with self._turns.take(cancel):
            stems = [self._stem(each, generation) for each in found]
            self._executor.finish()
        return stems

    def stream(
        self,
        clip: Clip,
        request: StemRequest,
        *,
        noise: npt.NDArray[np.float32] | None = None,
        long: str | LongForm = WINDOWS,
        loop: bool = False,
        progress: Progress | None = None,
        cancel: Event | None = None,
        stream: Any = None,
        device_output: bool = False,
    ) -> Iterator[StemPart]:
        """Generate as `generate_request` does, and yield the sound while it is made: a part of each stem per window.

        What was yielded takes no more memory. Arguments and errors are the same; what is out of range is said now,
        the rest while the parts are taken. Other calls of the session may run between two parts.
        """
        generation, windows, form = self._generation(
            clip, request, long, loop=loop, progress=progress, cancel=cancel, device_output=device_output
        )
        return self._run(generation, windows, form, noise, loop=loop, stream=stream)

    def joins_s(self, clip: Clip, *, long: str | LongForm = WINDOWS, loop: bool = False) -> tuple[float, ...]:
        """Return where the windows of a clip join, in seconds of the stems. None in a clip of one window.

        Raises:
            RequestError: an argument is out of range.
        """
        form = long if isinstance(long, LongForm) else self._bundle.manifest.long_form
        return joins_s(self._windows(clip, form, long, loop=loop), self._rules)

    def regenerate(
        self,
        clip: Clip,
        stem: Stem,
        begin_s: float,
        end_s: float,
        *,
        seed: int,
        prompt: str | None = None,
        long: str | LongForm = WINDOWS,
        progress: Progress | None = None,
        cancel: Event | None = None,
    ) -> Stem:
        """Generate a region of a stem again, with another seed or prompt. Outside of it not a bit changes.

        `begin_s` and `end_s` are seconds from the start of the clip. The new sound joins the old one at both ends, over
        a part of the region. `prompt` None means the stem's.

        Raises:
            RequestError: the region or another argument is out of range, or the clip belongs to another bundle.
            BundleError: a file was altered.
            BackendError: the backend failed, or the session was opened before a fork.
            Cancelled: `cancel` was set.
        """
        old = stem.request
        request = self.request(
            [stem.prompt if prompt is None else prompt],
            negative=old.negative,
            seed=seed,
            steps=old.steps,
            guidance=old.guidance,
            solver=old.solver,
            quality=old.quality,
            cancel=cancel,
        )
        check_region(begin_s, end_s, clip.duration_s)
        generation, planned, form = self._generation(clip, request, long, progress=progress, cancel=cancel)
        grid = self._grid(clip, form)
        if len(stem.latents) != grid.latent:
            raise RequestError("the stem is not as long as the clip; regenerate it from the clip that it was made from")
        latents_per_s = Fraction(self._rules.sample_rate_hz, 2 * self._rules.hop)
        first = math.ceil(exact_seconds(begin_s) * latents_per_s)
        stop = math.floor(exact_seconds(end_s) * latents_per_s) if end_s < clip.duration_s else grid.latent
        opening = planned[0] if len(planned) == 1 else None
        windows = region_windows(grid, first, stop, opening=opening)
        with self._turns.take(cancel):
            latents = replaced(generation, windows, form, generation.noise(None), stem.latents[None])
            heard = list(decode_part(generation, latents, first, stop, decoded_at_once(self._rules, form)))
            self._executor.finish()
        audio = stem.audio.copy()
        splice(audio, np.concatenate([part.audio for part in heard]), heard[0].first_sample)
        return replace(
            stem,
            audio=audio,
            latents=latents[0],
            prompt=request.prompts[0],
            seed=seed,
            warnings=(*request.warnings[request.prompts[0]], *generation.notes),
            request=request,
            device_audio=None,
        )

    def _generation(
        self,
        clip: Clip,
        request: StemRequest,
        long: str | LongForm,
        *,
        loop: bool = False,
        progress: Progress | None,
        cancel: Event | None,
        device_output: bool = False,
    ) -> tuple[Generation, list[Window], LongForm]:
        """Check that the clip can be used as asked, and divide it into windows."""
        if clip.backbone != self._encoder.networks:
            raise RequestError("the clip was encoded with another bundle; encode the video again with this one")
        check_quality(self._bundle.manifest, request)
        form = long if isinstance(long, LongForm) else self._bundle.manifest.long_form
        windows = self._windows(clip, form, long, loop=loop)
        lengths = self._rules.lengths(clip.duration_s)
        latent = windows[-1].final
        sync = self._bundle.manifest.graphs[FLOWS[request.quality][0]].inputs[0]
        sync_bytes = 4 * math.prod(sync.sizes({"stems": 1, "segments": len(clip.tokens)}))
        capacity = max(1, min(_CACHED_SELECTIONS, int(_CACHED_SELECTION_BYTES / sync_bytes)))
        generation = Generation(
            executor=self._executor,
            text=self._text,
            rules=self._rules,
            clip=clip,
            selected=self._selections.setdefault(clip, LruCache(capacity)),
            request=request,
            latent=latent,
            samples=latent * 2 * self._rules.hop if loop else lengths.samples,
            windows=len(windows),
            progress=progress or no_progress,
            cancel=cancel,
            device_output=device_output,
        )
        return generation, windows, form

    def _windows(self, clip: Clip, form: LongForm, long: str | LongForm, *, loop: bool) -> list[Window]:
        if long not in (WINDOWS, ONE_PASS) and not isinstance(long, LongForm):
            raise RequestError(f"long is {long!r}; give {WINDOWS!r}, {ONE_PASS!r} or a LongForm")
        whole = one_pass(self._rules.lengths(clip.duration_s))
        is_whole = long == ONE_PASS or self._is_short(clip.duration_s)
        if is_whole and (
            len(clip.shots) > 1 or exact_seconds(clip.duration_s) > exact_seconds(self._rules.max_duration_s)
        ):
            raise RequestError(
                f"one pass takes up to {self._rules.max_duration_s:g} s of video that was encoded without cuts"
            )
        if is_whole and not loop:
            return [whole]
        grid = self._grid(clip, form)
        if not is_whole and grid.window.latent > grid.latent:
            raise RequestError(
                f"a window of {form.window_segments} segments is longer than the clip of {clip.duration_s:g} s"
            )
        return plan(grid, opening=whole if is_whole else None, loop=loop)

    def _grid(self, clip: Clip, form: LongForm) -> Grid:
        latent = self._rules.lengths(clip.duration_s).latent
        return Grid(rules=self._rules, form=form, shots=clip.shots, latent=latent)

    def _run(
        self,
        generation: Generation,
        windows: list[Window],
        form: LongForm,
        noise: npt.NDArray[np.float32] | None,
        *,
        loop: bool,
        stream: Any,
    ) -> Iterator[StemPart]:
        """Yield the parts of the stems. The session is free for other calls between two of them."""
        made = parts(generation, windows, form, generation.noise(noise), loop=loop)
        return self._in_turns(made, generation.cancel, stream)

    def _in_turns(self, made: Iterator[StemPart], cancel: Event | None, stream: Any) -> Iterator[StemPart]:
        with self._turns.take(cancel):
            self._wait_for(stream)
        while True:
            with self._turns.take(cancel):
                part = next(made, None)
                if part is None:
                    self._executor.finish()
                    return
            yield part

    def _stem(self, found: list[StemPart], generation: Generation) -> Stem:
        first = found[0]
        on_device: list[Tensor] = [part.device_audio for part in found if part.device_audio is not None]
        device_audio = concatenate(self._executor, on_device) if on_device else None
        return Stem(
            prompt=first.prompt,
            take=first.take,
            seed=first.seed,
            audio=first.audio if len(found) == 1 else np.concatenate([part.audio for part in found]),
            sample_rate_hz=first.sample_rate_hz,
            warnings=(*generation.request.warnings[first.prompt], *generation.notes),
            latents=np.concatenate([part.latents for part in found]),
            request=generation.request,
            device_audio=device_audio if isinstance(device_audio, DeviceArray) else None,
        )

    def _is_short(self, duration_s: float) -> bool:
        """Whether a clip of this length is generated in a single window."""
        return exact_seconds(duration_s) <= exact_seconds(self._encoder.window_s)

    def _wait_for(self, stream: Any) -> None:
        if stream is not None:
            self._executor.after(stream_handle(stream))


def encode_for(
    sessions: Sequence[Session],
    path: str | os.PathLike[str],
    part: VideoPart,
    *,
    progress: Progress | None = None,
    cancel: Event | None = None,
) -> list[Clip]:
    """Encode one part of a video for several sessions with one decoding. Errors are those of `Session.encode`.

    Only the first session sees the video through the mask.
    """
    encoders = [session._encoder for session in sessions]
    return encode_file(encoders, path, part, progress=progress, cancel=cancel)

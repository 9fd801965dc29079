"""Times the PyTorch reference: it runs the whole pipeline for every prompt, as the authors' code does.

The reference gets favourable conditions. Weight norms are folded, as when the authors load the model; nothing is copied
between stages; on a GPU, events are recorded instead of waiting. Its weights are random, which takes the same time as
trained ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from selva_bench.options import BenchError, BenchOptions
from selva_bench.statistics import round_totals
from selva_bundle.bundle import Bundle
from selva_bundle.manifest import Defaults
from selva_bundle.ports import SELVA
from selva_export.rewrites import vae
from selva_export.rewrites.vocoder import fold_weight_norms
from selva_ref.model.generator import Conditions
from selva_ref.model.presets import get_preset
from selva_ref.pipeline import Pipeline
from selva_runtime.media.video import read_clip

_PRODUCT = 2048
"""Side of the square matrices whose product measures this CPU's speed."""
_COMPILE_MODES = {"torch-compile": None, "torch-max-autotune": "max-autotune"}
_CUDA_GRAPHS = "torch-cuda-graphs"


class TorchSide:
    """A pipeline in this process: float32 on a CPU, bfloat16 on a GPU. Without a bundle it needs only the preset."""

    def __init__(self, label: str, options: BenchOptions, prompts: Iterator[str]) -> None:
        baseline, _, self._device = label.rpartition("-")
        self._compiled = baseline in _COMPILE_MODES
        torch.set_num_threads(options.threads)
        if self._device == "cuda" and not torch.cuda.is_available():
            raise BenchError("this PyTorch sees no GPU")
        self._options = options
        self._prompts = prompts
        preset, self._guidance = options.preset, Defaults().guidance
        if preset is None:
            manifest = Bundle.open(options.bundle_folder).manifest
            preset, self._guidance = manifest.preset, manifest.defaults.guidance
        if get_preset(preset).system != SELVA:
            raise BenchError(f"the PyTorch side is SelVA's; {preset} is timed alone: leave out --against")
        self._dtype = torch.bfloat16 if self._device == "cuda" else torch.float32
        self._pipeline = Pipeline(preset, None, device=self._device, dtype=self._dtype, quality=options.quality)
        for network in filter(lambda part: isinstance(part, torch.nn.Module), vars(self._pipeline).values()):
            network.requires_grad_(False)
        vae.rewrite(self._pipeline.vae)
        fold_weight_norms(self._pipeline.vocoder)
        self._marks: list[tuple[str, Any, Any, int]] = []
        self._count: Callable[[], int] = lambda: 0
        backbone = self._pipeline.video_encoder.backbone
        self._pipeline.video_encoder.backbone = lambda segments: backbone(segments.to(self._dtype))  # type: ignore[method-assign]
        if self._compiled:
            _compile(self._pipeline, _COMPILE_MODES[baseline])
        if baseline == _CUDA_GRAPHS:
            _capture(self._pipeline)
        self._watch()

    @property
    def facts(self) -> dict[str, Any]:
        """Facts about the device and the networks."""
        return {"backend": self._device, "precision": str(self._dtype).removeprefix("torch."), "weights": "random"}

    def first_stem(self) -> np.ndarray:
        """Generates the sound of the first prompt; in a fresh process this is a cold start."""
        return self._run()[0]

    def warm_up(self) -> None:
        """Runs a compiled pipeline once more: the text changes shape, and torch.compile may compile again for that."""
        if self._compiled:
            self._run()

    def round(self) -> dict[str, Any]:
        """Totals and stages, seconds, of as many complete runs as the most stems. Each run is a new prompt."""
        stages: dict[str, list[float]] = {}
        decodes_s, runs_s = [], []
        for _ in range(self._options.stem_counts[-1]):
            _, decode_s, run_s, spent = self._run()
            decodes_s.append(decode_s)
            runs_s.append(run_s)
            for stage, samples in {"decode": [decode_s], **spent}.items():
                stages.setdefault(stage, []).extend(samples)
        by_stems = {n: (sum(runs_s[:n]), sum(decodes_s[:n])) for n in self._options.stem_counts}
        return {"totals": round_totals(by_stems, runs_s[-1]), "stages": stages}

    def floor(self) -> dict[str, Any] | None:
        """The time that the arithmetic of each stage alone would take on this CPU, seconds.

        That is its operations divided by the speed of a large matrix product. None after torch.compile, and on a GPU.
        """
        if self._compiled or self._device == "cuda":
            return None
        operations, rate = self.operations(), _product_rate()
        return {
            "flop_per_s": rate,
            "stages": {name: {"flop": count, "seconds": count / rate} for name, count in operations.items()},
        }

    def operations(self) -> dict[str, int]:
        """Floating-point operations of each stage of one stem; those of one step."""
        with FlopCounterMode(display=False) as counter:
            self._count = counter.get_total_flops
            self._run(steps=2)
            self._count = lambda: 0
        operations: dict[str, int] = {}
        for stage, _, _, count in self._marks:
            operations[stage] = count if stage == "step" else operations.get(stage, 0) + count
        return operations

    def _run(self, steps: int | None = None) -> tuple[np.ndarray, float, float, dict[str, list[float]]]:
        """Returns the sound, seconds for reading the video, seconds in total, and the seconds of each stage."""
        rules, duration_s = self._pipeline.rules, self._options.duration_s
        self._marks.clear()
        start_s = perf_counter()
        read = read_clip(
            self._options.video,
            size=rules.image_size,
            fps=rules.fps,
            start_s=0.0,
            duration_s=duration_s,
            min_duration_s=rules.min_duration_s,
        )
        decode_s = perf_counter() - start_s
        audio = self._pipeline(
            read.frames,
            next(self._prompts),
            duration_s=duration_s,
            steps=steps or self._options.steps,
            guidance=self._guidance,
        )
        return audio, decode_s, perf_counter() - start_s, self._spent()

    def _spent(self) -> dict[str, list[float]]:
        """Seconds by stage: every step separately, the calls of other stages summed."""
        found: dict[str, list[float]] = {}
        for stage, start, end, _ in self._marks:
            seconds = end - start if isinstance(start, float) else start.elapsed_time(end) / 1000
            found.setdefault(stage, []).append(seconds)
        return {stage: samples if stage == "step" else [sum(samples)] for stage, samples in found.items()}

    def _watch(self) -> None:
        """Wraps a timer around everything that is a graph in the runtime."""
        p = self._pipeline
        for owner, name, stage in (
            (p.text_t5, "forward", "text"),
            (p.text_clip, "forward", "text"),
            (p.video_encoder, "backbone", "encode"),
            (p.video_encoder, "select", "select"),
            (p.generator, "prepare", "conditions"),
            (p.generator, "average" if p.drafts else "guided_flow", "step"),
            (p.vae, "decode", "vocode"),
            (p.vocoder, "forward", "vocode"),
        ):
            setattr(owner, name, self._timed(stage, getattr(owner, name)))

    def _timed(self, stage: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start, count = self._now(), self._count()
            result = call(*args, **kwargs)
            self._marks.append((stage, start, self._now(), self._count() - count))
            return result

        return timed

    def _now(self) -> Any:
        """Seconds, or an event on a GPU: it can be read later, so the queue need not wait now."""
        if self._device != "cuda":
            return perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def _product_rate() -> float:
    """Operations per second of a float32 matrix product, the best of several."""
    a = torch.ones(_PRODUCT, _PRODUCT)
    times_s = []
    for _ in range(8):
        start_s = perf_counter()
        a @ a
        times_s.append(perf_counter() - start_s)
    return float(2 * _PRODUCT**3 / min(times_s))


def _compile(pipeline: Pipeline, mode: str | None) -> None:
    """Compiles every network with torch.compile; those that get prompts use dynamic lengths."""
    for owner, name, dynamic in (
        (pipeline.text_t5, "forward", True),
        (pipeline.text_clip, "forward", None),
        (pipeline.video_encoder, "backbone", None),
        (pipeline.video_encoder, "select", True),
        (pipeline.generator, "average" if pipeline.drafts else "flow", None),
        (pipeline.vae, "decode", None),
        (pipeline.vocoder, "forward", None),
    ):
        compiled = torch.compile(getattr(owner, name), dynamic=dynamic, mode=mode)
        # max-autotune replays CUDA graphs, whose output is overwritten by the next call
        setattr(owner, name, compiled if mode is None else _cloned(compiled))


def _cloned(call: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    return lambda *given: call(*given).clone()


def _capture(pipeline: Pipeline) -> None:
    """Replays every network as a CUDA graph. `prepare` stays eager: it copies an index from the host."""
    pytree.register_dataclass(Conditions)  # so that its tensors are found among a function's arguments
    for owner, name in (
        (pipeline.text_t5, "forward"),
        (pipeline.text_clip, "forward"),
        (pipeline.video_encoder, "backbone"),
        (pipeline.video_encoder, "select"),
        (pipeline.generator, "average" if pipeline.drafts else "guided_flow"),
        (pipeline.vae, "decode"),
        (pipeline.vocoder, "forward"),
    ):
        setattr(owner, name, Captured(getattr(owner, name)))


class Captured:
    """A function of tensors that is recorded once for each combination of shapes, then replayed."""

    def __init__(self, call: Callable[..., torch.Tensor]) -> None:
        self._call = call
        self._graphs: dict[Any, tuple[Callable[[], None], list[torch.Tensor], torch.Tensor]] = {}
        self._given: dict[Any, list[Any]] = {}

    def __call__(self, *given: Any) -> torch.Tensor:
        leaves, spec = pytree.tree_flatten(given)
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        key = tuple((leaf.shape, leaf.dtype) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves)
        if key not in self._graphs:
            fixed = [leaf.clone() if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
            replay, output = _record(lambda: self._call(*pytree.tree_unflatten(fixed, spec)))
            self._graphs[key] = replay, [leaf for leaf in fixed if isinstance(leaf, torch.Tensor)], output
            self._given[key] = [None] * len(tensors)
        replay, inputs, output = self._graphs[key]
        for target, values, before in zip(inputs, tensors, self._given[key], strict=True):
            if values is not before:  # conditions are the same in all steps
                target.copy_(values)
        self._given[key] = tensors
        replay()
        return output.clone()


def _record(call: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
    """Records a call as a CUDA graph, after a few runs in which libraries set themselves up."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = call()
    return graph.replay, output

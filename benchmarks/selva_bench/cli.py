"""`selva-bench`: prints a table and one line of JSON on stdout; progress goes to stderr."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from selva_bench.inputs import EXAMPLE
from selva_bench.options import BenchOptions
from selva_bench.presentation import table
from selva_bench.run import run_bench
from selva_bundle.manifest import AverageFlow, Defaults
from selva_bundle.ports import BEST, DRAFT, QUALITIES
from selva_runtime.backends.cores import usable_cores
from selva_runtime.command.base import OneLineCommand


def _list(_context: click.Context, _parameter: click.Parameter, text: str | None) -> tuple[str, ...]:
    """Splits "1,4" into ("1", "4"), in order and without repeats."""
    return tuple(dict.fromkeys(part for part in (text or "").replace(" ", "").split(",") if part))


def _numbers(context: click.Context, parameter: click.Parameter, text: str) -> tuple[int | str, ...]:
    """Splits "1,4" into (1, 4). What is not a number stays text, for the message of `BenchOptions`."""
    return tuple(int(part) if part.isdecimal() else part for part in _list(context, parameter, text))


class _Bench(OneLineCommand):
    """`selva-bench gpu-check …` is a command of its own; everything else is this one."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Parse the arguments, by the command that they name."""
        if args[:1] != ["gpu-check"]:
            return super().make_context(info_name, args, parent, **extra)
        from selva_bench.gpu.command import gpu_check

        return gpu_check.make_context(f"{info_name} gpu-check", args[1:], parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that parsed the arguments."""
        return super().invoke(ctx) if ctx.command is self else ctx.command.invoke(ctx)


@click.command("selva-bench", cls=_Bench, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
@click.option("--preset", help="Instead of BUNDLE: export one of this preset, and keep it.")
@click.option("--random-weights", is_flag=True, help="With --preset: what its networks are filled with.")
@click.option("--precision", type=click.Choice(["fp32", "fp16"]), help="With --preset.  [default: fp32]")
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
    default="out/bench",
    show_default=True,
    help="Folder of the exported bundles.",
)
@click.option(
    "--backend",
    "backends",
    callback=_list,
    default="auto",
    show_default=True,
    help="Backends, with commas between, openvino-bf16 and openvino-int8 among them; all: each that can run here.",
)
@click.option(
    "--against",
    "baselines",
    callback=_list,
    metavar="LIST",
    help="Baselines: torch (selva_ref as it is), torch-compile, with a comma between.",
)
@click.option(
    "--stems", callback=_numbers, default="1,4", show_default=True, help="Numbers of stems of one video, 1 to 64."
)
@click.option("--duration", "duration_s", type=float, default=8.0, show_default=True, help="Seconds of video.")
@click.option(
    "--video",
    type=click.Path(path_type=Path),
    default=EXAMPLE,
    help="Repeated if too short.  [default: examples/street.mp4]",
)
@click.option(
    "--quality",
    type=click.Choice(QUALITIES),
    default=BEST,
    show_default=True,
    help="draft: the student's jumps on every side; the bundle must make drafts.",
)
@click.option("--steps", type=click.IntRange(2, 1000), help="Integration steps.  [default: 25, of drafts 4]")
@click.option(
    "--rounds", type=click.IntRange(1, 10_000), default=3, show_default=True, help="Turns of every side, after warm-up."
)
@click.option(
    "--threads",
    type=click.IntRange(1, 1024),
    default=usable_cores,
    help="CPU threads.  [default: the cores that may be used]",
)
@click.option("--keep-text-towers", is_flag=True, help="Let the runtime keep its text towers loaded, as PyTorch does.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default="benchmarks/results",
    show_default=True,
    help="Folder of the results.",
)
@click.option("--json-only", is_flag=True, help="No table and no progress: the line of JSON alone.")
def main(json_only: bool, steps: int | None, quality: str, **options: Any) -> None:
    """Time the runtime on BUNDLE, and PyTorch beside it: every stage, first stem, further stems, new prompt.

    \b
    selva-bench small_16k --backend cpu --against torch
    selva-bench --preset demo --random-weights --backend all --against torch,torch-compile
    selva-bench gpu-check --help     the GPU in this machine: what works, how fast
    """

    def say(line: str) -> None:
        if not json_only:
            click.echo(line, err=True)

    steps = steps or (AverageFlow().steps if quality == DRAFT else Defaults().steps)
    document = run_bench(BenchOptions(quiet=json_only, steps=steps, quality=quality, **options), say)
    if not json_only:
        click.echo(table(document))
    click.echo(json.dumps(document))

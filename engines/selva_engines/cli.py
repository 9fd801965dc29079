"""`selva-engines`: the command line of `build_engines` and `inspect`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

from selva_engines.assemble import BuildRequest, build_engines
from selva_engines.errors import EngineError
from selva_engines.library import TARGETS
from selva_engines.profiles import MAX_STEMS
from selva_engines.report import inspect, summary, table
from selva_engines.store import PORTABLE_CAPABILITIES

T = TypeVar("T")
_SETTINGS = {"help_option_names": ["-h", "--help"], "show_default": True}


class _BuildByDefault(click.Group):
    """A group whose default command is build: `selva-engines BUNDLE …` means `selva-engines build BUNDLE …`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "-h", "--help", "--version"):
            args = ["build", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_BuildByDefault, context_settings=_SETTINGS, subcommand_metavar="BUNDLE [OPTIONS] | COMMAND [ARGS]...")
@click.version_option(package_name="selva-deploy", prog_name="selva-engines", message="%(prog)s %(version)s")
def main() -> None:
    """Turn a bundle's ONNX graphs into TensorRT engines, and look into them. Needs neither PyTorch nor a runtime.

    \b
    selva-engines BUNDLE --target tensorrt-rtx     same as: selva-engines build BUNDLE --target tensorrt-rtx
    selva-engines inspect BUNDLE                   layers by precision
    """


@main.command(context_settings=_SETTINGS)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--target",
    type=click.Choice(list(TARGETS)),
    required=True,
    help="tensorrt-rtx builds without a GPU; tensorrt builds for the GPU in this machine.",
)
@click.option(
    "--capability",
    "capabilities",
    multiple=True,
    metavar="X.Y",
    help=f"Compute capability of the GPU, such as 8.6. Repeatable. Default: {PORTABLE_CAPABILITIES}.",
)
@click.option("--graphs", metavar="NAME,NAME", default="", help="Only these graphs, separated by commas. Default: all.")
@click.option("--max-stems", type=int, default=MAX_STEMS, help="Maximum stems per engine call, 1 to 64.")
@click.option(
    "--strip-weights",
    is_flag=True,
    help="Small engines without weights, filled from the ONNX files when loaded. Building them takes a GPU.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on standard output.")
def build(
    bundle: Path,
    target: str,
    capabilities: tuple[str, ...],
    graphs: str,
    max_stems: int,
    strip_weights: bool,
    as_json: bool,
) -> None:
    """Build the engines of BUNDLE into BUNDLE/engines/TARGET-VERSION-CAPABILITY.

    Engines there that are still current are kept. The folder changes only when all is built.
    """
    request = BuildRequest(
        bundle=bundle,
        target=target,
        capabilities=capabilities,
        graphs=tuple(name.strip() for name in graphs.split(",") if name.strip()),
        max_stems=max_stems,
        strip_weights=strip_weights,
    )
    engines = _run(lambda: build_engines(request, say=lambda line: click.echo(line, err=True)))
    click.echo(json.dumps(summary(engines)) if as_json else f"built {engines.folder}")


@main.command("inspect", context_settings=_SETTINGS)
@click.argument("path", type=click.Path(path_type=Path), metavar="BUNDLE|ENGINE")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")
def inspect_command(path: Path, as_json: bool) -> None:
    """Show the layers of a bundle's engines, or of one NAME.engine file, by kind and precision. Needs no GPU."""
    entries = _run(lambda: inspect(path))
    click.echo(json.dumps(entries) if as_json else table(entries))


def _run(work: Callable[[], T]) -> T:
    try:
        return work()
    except KeyboardInterrupt:
        click.echo("interrupted: nothing was written", err=True)
        sys.exit(130)
    except (EngineError, OSError) as error:
        click.echo(f"error: {' '.join(str(error).split())}", err=True)
        sys.exit(2)

"""`selva-worker`: a process that keeps the model and generates stems for host programs."""

from __future__ import annotations

import math
import sys
from typing import Any

import click

from selva_runtime.command.base import SETTINGS, OneLineCommand
from selva_worker import stdio
from selva_worker.client import Worker, WorkerError
from selva_worker.folders import AllowedFolders
from selva_worker.state_folder import StateFolder
from selva_worker.supervisor import Supervisor


@click.command("selva-worker", cls=OneLineCommand, context_settings=SETTINGS)
@click.option("--stdio", "over_stdio", is_flag=True, help="Serve the host that started this, on pipes, not HTTP.")
@click.option(
    "--open", "open_browser", is_flag=True, help="Open the page in a browser: of the worker that runs, or a new one."
)
@click.option(
    "--allow", "folders", multiple=True, metavar="DIR", help="Clients may read and write below this folder. Repeatable."
)
@click.option("--bundle", help="Bundle folder from selva-export.  [default: $SELVA_BUNDLE, else the toy demo]")
@click.option("--backend", default="auto", help="auto, cpu, openvino, cuda or tensorrt.")
@click.option("--threads", type=int, help="CPU threads.  [default: the cores that may be used]")
@click.option("--precision", default="exact", help="exact, bf16 or int8.")
@click.option("--cache", metavar="DIR|none", help="As in selva-generate.")
@click.option("--state", metavar="DIR", help="Folder for the journal and the log.  [default: one of your own]")
@click.option(
    "--idle-unload",
    "idle_unload_s",
    type=click.FloatRange(0),
    default=300.0,
    help="Seconds without a job after which the model leaves the memory; inf: never.",
)
def main(
    over_stdio: bool,
    open_browser: bool,
    folders: tuple[str, ...],
    state: str | None,
    idle_unload_s: float,
    **settings: Any,
) -> None:
    """Keep the model in memory and generate stems for editors, audio workstations and scripts.

    \b
    selva-worker --stdio --allow ~/films
    selva-worker --open
    """
    if math.isnan(idle_unload_s):
        raise click.UsageError("--idle-unload is not a number")
    if open_browser and over_stdio:
        raise click.UsageError("--open needs HTTP; leave out --stdio")
    if open_browser and _opened_running(folders):
        return
    place = StateFolder(state)
    supervisor = Supervisor(settings, place.path, AllowedFolders(list(folders)), idle_unload_s=idle_unload_s)
    try:
        if over_stdio:
            stdio.serve(supervisor, sys.stdin.buffer, sys.stdout.buffer)
        else:
            from selva_worker import web

            web.serve(supervisor, open_browser=open_browser)
    finally:
        supervisor.close()


def _opened_running(folders: tuple[str, ...]) -> bool:
    """Open the page of the worker that runs, if there is one, after allowing these folders too."""
    from selva_worker.page.opening import open_page, running_page

    worker = Worker.find()
    if worker is None:
        return False
    try:
        worker.call("initialize", folders=list(folders))
    except WorkerError as error:
        raise click.UsageError(str(error)) from error
    click.echo("A worker runs already: its page is opened. It keeps its options, but for --allow.", err=True)
    open_page(running_page())
    return True

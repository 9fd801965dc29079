"""Open the page in the user's browser.

The address holds the token, and the arguments of a process are public. So the browser gets the path of a small file
that only the user can read, and that file leads to the page.
"""

from __future__ import annotations

import json
import os
import webbrowser
from contextlib import suppress
from pathlib import Path

import click

from selva_bundle.atomic import output_errors
from selva_worker.client import rendezvous_path

_HEAD = '<!doctype html><meta charset="utf-8"><meta name="referrer" content="no-referrer"><title>selva</title>'


def page_url(port: int, token: str) -> str:
    """Return the page's address. A browser never sends what follows the #."""
    return f"http://127.0.0.1:{port}/#token={token}"


def running_page() -> str:
    """Return the address of the page of the worker that runs. Call it once `Worker.find` found one.

    Raises:
        OSError, ValueError, KeyError: its file is gone by now.
    """
    place = json.loads(Path(rendezvous_path()).read_text(encoding="utf-8"))
    return page_url(int(place["port"]), str(place["token"]))


def open_page(url: str) -> None:
    """Open the page, and print its address for the case that no browser comes.

    Raises:
        OutputError: the file that leads to it cannot be written.
    """
    click.echo(f"The page of this worker: {url}", err=True)
    lead = _lead()
    with output_errors(lead):
        lead.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with suppress(FileNotFoundError):
            lead.unlink()
        descriptor = os.open(lead, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(f'{_HEAD}<meta http-equiv="refresh" content="0;url={url}">')
    webbrowser.open(lead.as_uri())


def forget_page(url: str) -> None:
    """Remove the file that leads to the page, unless it leads to another one by now."""
    with suppress(OSError):
        if url in _lead().read_text(encoding="utf-8"):
            _lead().unlink()


def _lead() -> Path:
    return Path(rendezvous_path()).with_name("open.html")

"""`selva-cache`: show what the cache holds, empty it, and set its limit."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import click

from selva_bundle.errors import RequestError
from selva_runtime.cache import Cache
from selva_runtime.cache.settings import parsed_size, size_text, write_limit
from selva_runtime.command.base import SETTINGS, OneLineCommand

_DAY_S = 86400


@dataclass(frozen=True, kw_only=True)
class ListedEntry:
    """An entry as the user sees it."""

    file: str
    kind: str
    facts: dict[str, Any]
    """Empty if the entry is damaged."""
    size_bytes: int
    last_used: str
    """Local time, ISO 8601."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What the cache holds, the most recently used first."""

    folder: str
    total_bytes: int
    limit_bytes: int
    entries: tuple[ListedEntry, ...]


def examine(cache: Cache) -> Listing:
    """List the entries of a cache.

    Raises:
        OSError: the folder cannot be read.
    """
    files = cache.files()
    entries = []
    for file in reversed(files):
        description = cache.describe(file.path)
        entries.append(
            ListedEntry(
                file=file.path.name,
                kind=file.path.name.partition("-")[0],
                facts=description.facts if description else {},
                size_bytes=file.size_bytes,
                last_used=datetime.fromtimestamp(file.used_s).astimezone().isoformat(timespec="seconds"),
            )
        )
    return Listing(
        folder=str(cache.folder),
        total_bytes=sum(file.size_bytes for file in files),
        limit_bytes=cache.limit_bytes,
        entries=tuple(entries),
    )


def line(entry: ListedEntry) -> str:
    """Describe an entry in one line."""
    facts = entry.facts
    span = f" {facts['start_s']:.2f}-{facts['start_s'] + facts['duration_s']:.2f} s" if "duration_s" in facts else ""
    what = f"{facts.get('name')}{span} ({facts.get('model')})" if facts else "damaged"
    used = entry.last_used[:16].replace("T", " ")
    return " ".join(f"{entry.kind}  {size_text(entry.size_bytes):>8}  {used}  {what}".splitlines())


class _Commands(OneLineCommand, click.Group):
    """Subcommands that report a user's mistake in one line."""


@click.group("selva-cache", cls=_Commands, context_settings=SETTINGS)
def main() -> None:
    """Encoded clips and text features that selva-generate need not compute again.

    \b
    selva-cache list
    selva-cache clear --older-than 30
    selva-cache limit 50GB
    """


def _shared(command: Callable[..., None]) -> Callable[..., None]:
    command = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")(command)
    folder = "The cache's folder.  [default: $SELVA_CACHE, else your cache folder]"
    return click.option("--cache", "place", metavar="DIR", help=folder)(command)


@main.command("list", context_settings=SETTINGS)
@_shared
def list_entries(place: str | None, as_json: bool) -> None:
    """Show every entry, the most recently used first, and the size and limit of the cache."""
    cache = _opened(place)
    listing = examine(cache)
    total = f"{size_text(listing.total_bytes)} of {size_text(listing.limit_bytes)} in {listing.folder}"
    _print(cache, as_json, asdict(listing), [*map(line, listing.entries), total])


@main.command("clear", context_settings=SETTINGS)
@click.option("--older-than", "days", type=click.FloatRange(0), metavar="DAYS", help="Only what was not used since.")
@_shared
def clear(place: str | None, days: float | None, as_json: bool) -> None:
    """Remove the entries. Other files in the folder stay."""
    cache = _opened(place)
    removed = cache.clear(0.0 if days is None else days * _DAY_S)
    size_bytes = sum(file.size_bytes for file in removed)
    text = f"removed {len(removed)} entries, {size_text(size_bytes)}"
    _print(cache, as_json, {"removed": len(removed), "removed_bytes": size_bytes}, [text])


@main.command("limit", context_settings=SETTINGS)
@click.argument("size", required=False)
@_shared
def limit(place: str | None, size: str | None, as_json: bool) -> None:
    """Show the size limit, or set it to SIZE, such as 50GB, and remove what is beyond it."""
    cache = _opened(place)
    if size is not None:
        write_limit(cache.folder, parsed_size(size))
        cache.make_room()
    _print(cache, as_json, {"limit_bytes": cache.limit_bytes}, [size_text(cache.limit_bytes)])


def _opened(place: str | None) -> Cache:
    cache = Cache.at(place)
    if cache is None:
        raise RequestError("there is no cache (SELVA_CACHE or --cache is none, or you have no home); name a folder")
    return cache


def _print(cache: Cache, as_json: bool, document: dict[str, Any], lines: list[str]) -> None:
    click.echo(json.dumps(document, indent=2) if as_json else "\n".join(lines))
    for warning in cache.new_warnings():
        click.echo(f"warning: {warning}", err=True)

"""`selva-fetch`: a preset's official weights, verified, as safetensors in one folder.

This project does not redistribute weights, so the user downloads them from their authors. Every file is checked against
a hash from its publisher or from the hub before it is opened. A file that has neither is reported, and recorded as not
verified. Files are converted without running anything in them, and recorded, so that a second run only compares. An
interrupted run loses nothing.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from tempfile import TemporaryFile

import click
import torch
from huggingface_hub.utils import disable_progress_bars
from safetensors.torch import save_file

from selva_bundle.atomic import atomic_write
from selva_ref.model.presets import PRESETS, get_preset
from selva_ref.weights.checkpoints import RECORD, file_sha256, find_checkpoint, read_checkpoint, read_record
from selva_ref.weights.hub import FetchError, Hub, HubCopy, UnreachableError, check_content
from selva_ref.weights.published import CHECKPOINTS, LICENCE_NOTICES, REPOS, Checkpoint, HubFile
from selva_runtime.command.base import SETTINGS, OneLineCommand


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """One file of the folder after `fetch`."""

    part: str
    file: str
    status: str
    """`fetched`, `already there` (as recorded), or `kept` (not ours: not changed, not recorded)."""
    bytes: int
    sha256: str
    verified: bool | None
    """Whether a hash from its publisher or from the hub confirmed it; None: an older version did not record that."""
    source: dict[str, str] | None = None
    """Repository, path, commit, MD5 and SHA-256 of the original file, and its licence."""


@dataclass(frozen=True, kw_only=True)
class _Item:
    """One file to get: weights, which are converted, or a companion, which is copied."""

    checkpoint: Checkpoint
    repo: str
    file: HubFile
    name: str
    revision: str
    official: bool
    """False: the user chose another revision, so the hashes known here do not apply, and a file placed by hand is not
    used.
    """

    @property
    def is_weights(self) -> bool:
        return self.name == self.checkpoint.file

    @property
    def source(self) -> tuple[str, str, str]:
        """The file on the hub. Two networks may be halves of one."""
        return self.repo, self.file.path, self.revision


def fetch(
    preset_name: str,
    directory: str | Path,
    *,
    with_teacher: bool = False,
    revision: str | None = None,
    endpoint: str | None = None,
    cache_dir: str | Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> list[Fetched]:
    """Puts the weights and tokenizers of a preset into `directory` and returns what is there.

    Looks in the folder, then in the hub's cache, then asks the hub.

    Args:
        with_teacher: SelVA does without its teacher except in training; MMAudio always needs it.
        revision: a commit, tag or branch of the repository of the preset's system (`REPOS`). Its files need not have
            the hashes known here, only those that the hub states.
        endpoint: replaces HF_ENDPOINT.
        cache_dir: replaces HF_HOME.
        say: called with lines about the progress.

    Raises:
        ValueError: there is no such preset.
        FetchError: files could not be downloaded; lists them all if the hub cannot be reached.
        CheckpointError: a file cannot be converted. Files finished before it stay.
    """
    folder = Path(directory)
    items = list(_items(preset_name, folder, with_teacher, revision))
    present = {item.name: _existing(item, folder, say) for item in items}
    if not all(present.values()):
        _check_writable(folder)
    hub = Hub(partials=folder / ".download", say=say, endpoint=endpoint, cache_dir=cache_dir)
    _say_what_comes_again(items, present, say)
    fetched, missing, reason = [], [], ""
    for number, item in enumerate(items):
        try:
            later = {other.source for other in items[number + 1 :] if not present[other.name]}
            fetched.append(present[item.name] or _fetch_one(item, folder, hub, needed_again=item.source in later))
            say(f"{item.name}: {fetched[-1].status}")
        except UnreachableError as error:
            missing.append(item.name)
            reason = reason or str(error)
    if missing:
        raise FetchError(f"{reason}; missing from {folder} and the hub's cache: {', '.join(missing)}")
    with suppress(OSError):
        hub.partials.rmdir()
    return fetched


def _items(preset_name: str, folder: Path, with_teacher: bool, revision: str | None) -> Iterator[_Item]:
    preset = get_preset(preset_name)
    if preset.is_demo:
        raise FetchError(f"preset {preset_name} has no official weights: there is nothing to fetch")
    for checkpoint in CHECKPOINTS[preset.name].values():
        if checkpoint.part == "teacher" and preset.system == "selva" and not with_teacher:
            continue
        if checkpoint.part == "student":
            continue  # an option that only training makes
        if checkpoint.repo is None or checkpoint.weights is None:
            find_checkpoint(folder, checkpoint.part, preset_name)
            continue
        here = PurePosixPath(checkpoint.file).parent
        wanted = revision if checkpoint.repo == REPOS[preset.system] else None
        for file in (checkpoint.weights, *checkpoint.companions):
            name = checkpoint.file if file is checkpoint.weights else str(here / PurePosixPath(file.path).name)
            official = wanted is None
            yield _Item(
                checkpoint=checkpoint,
                repo=checkpoint.repo,
                file=file if official else replace(file, md5=None, sha256=None),
                name=name,
                revision=checkpoint.revision or wanted or "main",
                official=official,
            )


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise FetchError(f"{folder}: cannot be written: {error.strerror or error}") from error


def _existing(item: _Item, folder: Path, say: Callable[[str], None]) -> Fetched | None:
    """Returns what the folder already has under the item's name, verified if it is recorded."""
    path = folder / item.name
    if not path.is_file():
        return None
    sha256, entry = file_sha256(path), read_record(folder).get(item.name)
    here = Fetched(
        part=item.checkpoint.part,
        file=item.name,
        status="kept",
        bytes=path.stat().st_size,
        sha256=sha256,
        verified=False,
    )
    if entry is None:
        return here
    if entry["sha256"] != sha256:
        say(f"{item.name}: differs from what was fetched; fetching it again")
        return None
    if entry.get("asked") != item.revision:
        return None
    return replace(here, status="already there", verified=entry.get("verified"), source=entry.get("source"))


def _say_what_comes_again(items: list[_Item], present: dict[str, Fetched | None], say: Callable[[str], None]) -> None:
    """Warns of files of which one half was kept in an earlier run, for another preset, and the other is needed now."""
    kept = {item.source: item.name for item in items if item.is_weights and present[item.name]}
    for item in items:
        if not present[item.name] and item.source in kept:
            say(f"{item.name}: not kept when {kept[item.source]} was made from {item.file.path}; that is needed again")


def _fetch_one(item: _Item, folder: Path, hub: Hub, *, needed_again: bool) -> Fetched:
    copy = _local_copy(item, folder) or hub.get(item.repo, item.file, item.revision)
    if not copy.verified:
        hub.say(f"warning: {item.name}: neither its publisher nor the hub states a hash, so it is not verified")
    source = {
        "repo": item.repo,
        "path": item.file.path,
        "revision": copy.commit,
        "md5": copy.md5,
        "sha256": copy.sha256,
        "licence": item.checkpoint.licence,
    }
    target = folder / item.name
    try:
        with atomic_write(target) as temporary:
            if item.is_weights:
                _convert(copy.path, temporary, source, item.checkpoint.unused)
            else:
                shutil.copyfile(copy.path, temporary)
            sha256, size = file_sha256(temporary), temporary.stat().st_size
            # Record the file before it appears: if the run ends in between, the next run can tell.
            entry = {"sha256": sha256, "bytes": size, "asked": item.revision, "verified": copy.verified}
            _record(folder, item.name, entry | {"source": source})
    except OSError as error:
        raise FetchError(f"{target}: cannot be written: {error.strerror or error}") from error
    if copy.downloaded and not needed_again:
        copy.path.unlink()
    return Fetched(
        part=item.checkpoint.part,
        file=item.name,
        status="fetched",
        bytes=size,
        sha256=sha256,
        verified=copy.verified,
        source=source,
    )


def _local_copy(item: _Item, folder: Path) -> HubCopy | None:
    """Returns the official file if the user has put it into the folder by hand."""
    path = (folder / item.name).with_name(PurePosixPath(item.file.path).name)
    if not item.official or path == folder / item.name or not path.is_file():
        return None
    try:
        md5, sha256, verified = check_content(path, item.file)
    except FetchError as error:
        raise FetchError(f"{path} is not the official file: {error}; remove it and run the command again") from None
    return HubCopy(path=path, commit="", md5=md5, sha256=sha256, verified=verified, downloaded=False)


def _convert(path: Path, target: Path, source: dict[str, str], unused: tuple[str, ...]) -> None:
    """Converts any checkpoint to safetensors: same names, contiguous tensors, nothing shared, `source` as metadata."""
    tensors = {
        name: tensor.clone(memory_format=torch.contiguous_format)
        for name, tensor in read_checkpoint(path).items()
        if not any(fnmatchcase(name, pattern) for pattern in unused)
    }
    try:
        # one entry: safetensors writes several in random order, and the same weights should give the same file
        save_file(tensors, target, metadata={"source": json.dumps(source, sort_keys=True)})
    except Exception as error:  # safetensors wraps the system's error in its own
        raise OSError(str(error)) from error


def _record(folder: Path, name: str, entry: dict[str, object]) -> None:
    files = read_record(folder) | {name: entry}
    with atomic_write(folder / RECORD) as temporary:
        temporary.write_text(json.dumps({"files": files}, indent=1, sort_keys=True) + "\n", encoding="utf-8")


@click.command("selva-fetch", cls=OneLineCommand, context_settings=SETTINGS)
@click.option("--preset", "preset_name", required=True, type=click.Choice(list(PRESETS)))
@click.option("--out", "directory", required=True, type=click.Path(path_type=Path), help="Folder for the weights.")
@click.option("--with-teacher", is_flag=True, help="Also fetch SelVA's teacher (Synchformer), for stage 1.")
@click.option("--revision", help="Commit, tag or branch of SelVA's or MMAudio's repository, instead of main.")
@click.option("--json", "as_json", is_flag=True, help="Print the files as JSON on standard output.")
def main(preset_name: str, directory: Path, with_teacher: bool, revision: str | None, as_json: bool) -> None:
    """Get a preset's official weights: from --out, the Hugging Face cache, or the hub.

    Run an interrupted command again to resume it. HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE are honoured.
    """
    click.echo(LICENCE_NOTICES[get_preset(preset_name).system], err=True)
    if as_json or not sys.stderr.isatty():
        disable_progress_bars()
    try:
        fetched = fetch(
            preset_name,
            directory,
            with_teacher=with_teacher,
            revision=revision,
            say=lambda line: click.echo(line, err=True),
        )
    except KeyboardInterrupt:
        click.echo("notice: run the same command again to resume", err=True)
        raise
    if as_json:
        click.echo(json.dumps({"directory": str(directory), "files": [asdict(one) for one in fetched]}, indent=1))
    else:
        click.echo(f"{directory}: {len(fetched)} files for preset {preset_name}")


if __name__ == "__main__":
    main()

"""`selva-generate --list`: which bundles are here and whether they are intact, which backends run, and all versions.

This does not fail: anything that is broken becomes a line of the answer.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from selva_bundle.bundle import Bundle
from selva_bundle.errors import BundleError, SelvaError
from selva_bundle.manifest import FORMAT, MAX_MANIFEST_BYTES
from selva_runtime.backends.choose import BACKENDS, TITLES, make_executor
from selva_runtime.command.deliver import DEMO_BUNDLE, bundle_folder
from selva_runtime.command.versions import versions


@dataclass(frozen=True, kw_only=True)
class FoundBundle:
    """A bundle, or a folder that was named as one."""

    path: str
    found_by: str
    """"--bundle", "SELVA_BUNDLE", "the demo", or "working directory"."""
    preset: str | None
    """None if the bundle cannot be opened, as is `weights`."""
    weights: str | None
    problems: tuple[str, ...]
    """Altered files, or why the bundle cannot be opened. Empty if every hash is right."""


@dataclass(frozen=True, kw_only=True)
class FoundBackend:
    """A backend, or `auto`, and whether it runs here."""

    name: str
    runs: bool
    reason: str
    """What it runs on, or why it does not run."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Everything that was found."""

    bundles: tuple[FoundBundle, ...]
    backends: tuple[FoundBackend, ...]
    """Backends for the first bundle that can be opened, which a run would use. Empty if none can be opened."""
    system: str
    versions: dict[str, str]
    """Versions of Python and of the installed packages that the runtime uses."""


def examine(bundle: str | os.PathLike[str] | None) -> Findings:
    """Find bundles, backends and versions. `bundle` is one more folder to check, and the first to try backends with."""
    opened: list[Bundle] = []
    bundles = tuple(_examine_bundle(path, found_by, opened) for path, found_by in _places(bundle))
    return Findings(
        bundles=bundles,
        backends=tuple(_examine_backends(opened[0])) if opened else (),
        system=platform.platform(),
        versions=versions(),
    )


def lines(findings: Findings) -> Iterator[str]:
    """Yield the findings as lines for a person."""
    for bundle in findings.bundles:
        what = f"{bundle.preset}, {bundle.weights} weights" if bundle.preset else "cannot be used"
        state = "; ".join(bundle.problems) or "every hash is right"
        yield f"bundle {bundle.path} ({bundle.found_by}): {what}: {state}"
    for backend in findings.backends:
        yield f"backend {backend.name}: {'runs' if backend.runs else 'does not run'}: {backend.reason}"
    numbers = ", ".join(f"{name} {number}" for name, number in findings.versions.items())
    yield f"versions: {numbers} on {findings.system}"


def _places(named: str | os.PathLike[str] | None) -> Iterator[tuple[Path, str]]:
    """Yield each folder once, in the order in which a run would use them."""
    candidates = [(bundle_folder(named), "--bundle")] if named is not None else []
    if from_environment := os.environ.get("SELVA_BUNDLE"):
        candidates.append((bundle_folder(from_environment), "SELVA_BUNDLE"))
    candidates.append((DEMO_BUNDLE, "the demo"))
    here = Path.cwd()
    for manifest in sorted((*here.glob("manifest.json"), *here.glob("*/manifest.json"))):
        if _is_ours(manifest):
            candidates.append((manifest.parent, "working directory"))
    seen: set[str] = set()
    for path, found_by in candidates:
        if (real := os.path.realpath(path)) not in seen:
            seen.add(real)
            yield path, found_by


def _is_ours(manifest: Path) -> bool:
    """Whether a manifest.json belongs to a bundle. Other programs have such files too."""
    try:
        with manifest.open("rb") as file:
            return f'"{FORMAT}"'.encode() in file.read(MAX_MANIFEST_BYTES)
    except OSError:
        return False


def _examine_bundle(path: Path, found_by: str, opened: list[Bundle]) -> FoundBundle:
    try:
        bundle = Bundle.open(path)
    except BundleError as error:
        return FoundBundle(path=str(path), found_by=found_by, preset=None, weights=None, problems=(str(error),))
    opened.append(bundle)
    return FoundBundle(
        path=str(path),
        found_by=found_by,
        preset=bundle.manifest.preset,
        weights=bundle.manifest.weights,
        problems=tuple(filter(None, (_problem(bundle, name) for name in bundle.manifest.files))),
    )


def _problem(bundle: Bundle, name: str) -> str | None:
    try:
        bundle.verified_path(name)
    except BundleError as error:
        return str(error)
    return None


def _examine_backends(bundle: Bundle) -> Iterator[FoundBackend]:
    for name in ("auto", *BACKENDS):
        try:
            executor = make_executor(bundle, name, None)
        except SelvaError as error:
            yield FoundBackend(name=name, runs=False, reason=str(error))
        else:
            yield FoundBackend(name=name, runs=True, reason=executor.notice or TITLES[name])

"""What is missing for the worker to run, and the line that installs it."""

from __future__ import annotations

import os
import shutil
from typing import Any

PACKAGE = "selva-deploy[cpu]"
BACKENDS = ("onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx-cu13")
"""Packages of which a worker needs one."""


def new_environment() -> str:
    """Return the line that makes an environment of its own, never Blender's Python."""
    if os.name == "nt":
        return f'py -m venv "%USERPROFILE%\\selva" && "%USERPROFILE%\\selva\\Scripts\\pip" install "{PACKAGE}"'
    return f"python3 -m venv ~/selva && ~/selva/bin/pip install '{PACKAGE}'"


def into(command: list[str]) -> str:
    """Return the line that installs what is missing where this command runs."""
    python = command[0] if command[1:2] == ["-m"] else _beside(command[0])
    quote = '"' if os.name == "nt" else "'"
    return f"{quote}{python}{quote} -m pip install --upgrade {quote}{PACKAGE}{quote}"


def _beside(script: str) -> str:
    """Return the Python of the environment that a script was installed in."""
    name = "python.exe" if os.name == "nt" else "python"
    return os.path.join(os.path.dirname(os.path.realpath(script)), name)


def healthy(facts: dict[str, Any], report: dict[str, Any], command: list[str], by: str) -> tuple[list[str], str]:
    """Return lines about a worker that answers, and what to install, or "".

    `facts` is its answer to `initialize`, `report` that to `doctor`, `by` what named it.
    """
    versions, bundle = report["versions"], facts["bundle"]
    found = [f"{name} {versions[name]}" for name in BACKENDS if name in versions]
    lines = [
        f"Worker: {' '.join(command)} (from {by})",
        f"selva-deploy {facts['version']} on Python {versions['python']}",
        "Backend: " + (", ".join(found) or "none is installed"),
    ]
    if bundle["error"]:
        lines.append(f"Bundle: {bundle['error']}")
    else:
        toy = ": a toy; name another bundle in the preferences" if bundle["toy"] else ""
        lines.append(f"Bundle: {bundle['preset']}, {bundle['weights']} weights{toy}")
    return [*lines, f"Log: {report['log']}"], "" if found else into(command)


def broken(problem: str, command: list[str]) -> tuple[list[str], str]:
    """Return lines about a worker that was not found (`command` is empty) or does not start, and what to install."""
    if not command:
        return [problem], new_environment()
    line = into(command) if shutil.which(command[0]) else new_environment()
    return [f"Worker: {' '.join(command)}", problem], line

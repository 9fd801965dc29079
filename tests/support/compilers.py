"""C and C++ compilers of this machine, and what is built with them."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEADER = ROOT / "runtime" / "hosts" / "c" / "selva.h"
PLUGIN = ROOT / "runtime" / "hosts" / "plugin"
HERE = Path(__file__).parent / "hosts"
WARNINGS = ("-Wall", "-Wextra", "-Wpedantic", "-Werror")


def compiler(*names: str) -> str:
    """The first of these compilers that is here. Skips the test if none is."""
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip(f"needs a compiler: {' or '.join(names)}")
    return found


def build(target: Path, source: Path, *options: str, command: str | None = None) -> Path:
    """Compiles a program in C99. Skips the test if the compiler has no such sanitizer here."""
    command = command or compiler("gcc", "clang", "cc")
    given = [command, "-std=c99", *WARNINGS, "-O1", "-g", f"-I{HEADER.parent}", str(source), "-o", str(target)]
    done = subprocess.run([*given, *options, "-lpthread"], capture_output=True, text=True, check=False)
    if done.returncode and any(f"lib{name}" in done.stderr for name in ("asan", "tsan", "ubsan", "clang_rt")):
        pytest.skip(f"{command} has no library for {' '.join(options)}")
    assert done.returncode == 0, done.stderr
    return target

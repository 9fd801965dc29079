"""Bundles for the tests: exported once per session, with random weights; copy one before changing it.

If SELVA_TEST_BUNDLES names a folder they are kept there, for the thousand sessions of `make mutants`.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background jobs; commands would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _export(folder: Path, precision: str) -> Path:
    from selva_export.bundle import ExportRequest, export_bundle
    from selva_ref import get_preset

    out = Path(os.environ.get("SELVA_TEST_BUNDLES", folder)) / precision
    if not out.exists():
        export_bundle(ExportRequest(preset=get_preset("demo"), precision=precision, checkpoints=None, out=out))
    return out


@pytest.fixture(scope="session")
def demo_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float32 bundle of the `demo` preset."""
    return _export(tmp_path_factory.mktemp("bundles"), "fp32")


@pytest.fixture(scope="session")
def demo_bundle_fp16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float16 bundle of the `demo` preset."""
    return _export(tmp_path_factory.mktemp("bundles"), "fp16")

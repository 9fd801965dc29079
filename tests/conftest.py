"""Workers and bundles for the tests. Bundles are exported once per run, with random weights; copy one to change it.

If SELVA_TEST_BUNDLES names a folder they are kept there, for the thousand sessions of `make mutants`.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pytest
from bundles import export_demo
from filelock import FileLock
from workers import STREET, serving, start

from selva_worker.client import Worker

os.environ["SELVA_CACHE"] = "none"  # no test reads or fills the developer's cache
FIXTURES = {
    "fp32": "demo_bundle",
    "fp16": "demo_bundle_fp16",
    "both-fp32": "both_bundle",
    "both-fp16": "both_bundle_fp16",
    "mmaudio-fp32": "mmaudio_bundle",
    "mmaudio-fp16": "mmaudio_bundle_fp16",
}

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background jobs; commands would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def exports(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The bundles that the collected tests need, by name. Exported at the same time: each keeps one core busy."""
    needed = {name for item in request.session.items for name in getattr(item, "fixturenames", ())}
    names = [name for name, fixture in FIXTURES.items() if fixture in needed]
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent  # of all workers
    folder = Path(os.environ.get("SELVA_TEST_BUNDLES", shared / "bundles"))
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        missing = [name for name in names if not (folder / name).exists()]
        with ProcessPoolExecutor(len(FIXTURES), mp_context=get_context("spawn")) as pool:
            list(pool.map(partial(export_demo, folder), missing))
    return {name: folder / name for name in names}


@pytest.fixture(scope="session")
def demo_bundle(exports: dict[str, Path]) -> Path:
    """A float32 bundle of the `demo` preset."""
    return exports["fp32"]


@pytest.fixture(scope="session")
def demo_bundle_fp16(exports: dict[str, Path]) -> Path:
    """A float16 bundle of the `demo` preset."""
    return exports["fp16"]


@pytest.fixture(scope="session")
def both_bundle(exports: dict[str, Path]) -> Path:
    """A float32 bundle of the `demo` preset that also makes drafts."""
    return exports["both-fp32"]


@pytest.fixture(scope="session")
def both_bundle_fp16(exports: dict[str, Path]) -> Path:
    """A float16 bundle of the `demo` preset that also makes drafts."""
    return exports["both-fp16"]


@pytest.fixture(scope="session")
def mmaudio_bundle(exports: dict[str, Path]) -> Path:
    """A float32 bundle of the `demo_mmaudio` preset."""
    return exports["mmaudio-fp32"]


@pytest.fixture(scope="session")
def mmaudio_bundle_fp16(exports: dict[str, Path]) -> Path:
    """A float16 bundle of the `demo_mmaudio` preset."""
    return exports["mmaudio-fp16"]


@pytest.fixture(scope="session")
def gpu_bundles(demo_bundle: Path, demo_bundle_fp16: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Copies of both, with engines for the GPU from every library that can build them."""
    from gpus import build_all_engines

    folder = tmp_path_factory.mktemp("gpu")
    given = {"fp32": demo_bundle, "fp16": demo_bundle_fp16}
    copies = {name: Path(shutil.copytree(bundle, folder / name)) for name, bundle in given.items()}
    for copy in copies.values():
        build_all_engines(copy)
    return copies


@pytest.fixture
def piped(demo_bundle: Path, tmp_path: Path) -> Iterator[Worker]:
    """A worker on pipes that may read the example and write to `tmp_path`."""
    worker = start(tmp_path, demo_bundle)
    yield worker
    worker.close()


@pytest.fixture
def site(demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    """The same on HTTP, found by its file."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    with serving(tmp_path, demo_bundle, "--allow", str(tmp_path), "--allow", str(STREET.parent)) as worker:
        yield worker

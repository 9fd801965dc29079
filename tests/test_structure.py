"""Data flows one way: which packages may import which, and no import cycles among modules."""

import ast
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from itertools import islice
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {
    "selva_bundle": "runtime",
    "selva_runtime": "runtime",
    "selva_worker": "runtime",
    "selva_engines": "engines",
    "selva_ref": ".",
    "selva_export": "export",
    "selva_bench": "benchmarks",
}
MAY_IMPORT = {
    "selva_bundle": set(),
    "selva_engines": {"selva_bundle"},
    "selva_runtime": {"selva_bundle"},  # and selva_engines, but by name: only the tensorrt backend needs it
    "selva_worker": {"selva_bundle", "selva_runtime"},
    "selva_ref": {"selva_bundle", "selva_runtime"},
    "selva_export": {"selva_bundle", "selva_runtime", "selva_engines", "selva_ref"},
    "selva_bench": set(FOLDERS),
}
ROOMS = {
    "selva_runtime": (("lru_cache", "batches"), ("cache",), ("media",), ("backends",), ("",), ("command", "start")),
    "selva_ref": (
        ("errors",),
        ("model", ""),
        ("weights",),
        ("pipeline", "pipeline_mmaudio"),
        ("training",),
        ("demo",),
        ("training.cli",),
    ),
}
"""Rooms of a package: a module may import from its own row and the rows before it. "" is every module not in a row."""


def modules() -> dict[str, ast.Module]:
    found = {}
    for package, folder in FOLDERS.items():
        for path in (ROOT / folder / package).rglob("*.py"):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join(part for part in parts if part != "__init__")] = ast.parse(path.read_text(encoding="utf-8"))
    return found


MODULES = modules()
TESTS = {path.stem: ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "tests").rglob("*.py")}


def names(statements: Iterable[ast.AST]) -> Iterator[str]:
    """Names that the statements import."""
    for node in statements:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported(statements: Iterable[ast.AST]) -> Iterator[str]:
    """Our own modules that the statements import."""
    for name in names(statements):
        parts = name.split(".")
        heads = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
        yield from islice((head for head in heads if head in MODULES), 1)


def row(module: str) -> int:
    package, _, rest = module.partition(".")
    rooms = ROOMS[package]
    names = {name for row in rooms for name in row}
    name = next((name for name in (rest, rest.split(".")[0]) if name in names), "")
    return next(number for number, row in enumerate(rooms) if name in row)


@pytest.mark.parametrize("package", FOLDERS)
def test_packages_import_only_what_they_may(package):
    allowed = MAY_IMPORT[package] | {package}
    wrong = {
        f"{module} imports {target}"
        for module, tree in MODULES.items()
        if module.split(".")[0] == package
        for target in imported(ast.walk(tree))
        if target.split(".")[0] not in allowed
    }
    assert not wrong


@pytest.mark.parametrize("package", ROOMS)
def test_rooms_import_only_rooms_before_them(package):
    wrong = {
        f"{module} imports {target}"
        for module, tree in MODULES.items()
        if module.startswith(f"{package}.") and not module.endswith("__main__")
        for target in imported(ast.walk(tree))
        if target.startswith(f"{package}.") and row(target) > row(module)
    }
    assert not wrong


def test_no_import_cycles():
    """Considers imports at load time, not those inside functions or only for type checkers."""
    graph = {module: {m for m in imported(tree.body) if m != module} for module, tree in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_graph_names_stand_in_one_place():
    """Names such as "decoder" also mean other things; these do not."""
    wrong = {
        module
        for module, tree in MODULES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and node.value in ("guided_step", "video_backbone", "video_select")
    }
    assert wrong == {"selva_bundle.ports"}


def test_this_test_sees_the_imports():
    assert {"selva_bundle.bundle", "selva_runtime.request"} <= set(imported(ast.walk(MODULES["selva_runtime.session"])))
    assert "clips" in top_names(ast.walk(TESTS["test_runtime_video"]))


def top_names(statements: Iterable[ast.AST]) -> set[str]:
    return {name.partition(".")[0] for name in names(statements)}


def test_tests_share_only_what_is_in_support():
    beside = {path.stem for path in (ROOT / "tests").glob("*.py")}
    assert {name for name in beside if not name.startswith("test_")} == {"conftest"}
    found = {name: top_names(ast.walk(tree)) & beside for name, tree in TESTS.items()}
    assert {name: wrong for name, wrong in found.items() if wrong} == {}


def test_tests_load_without_posix():
    found = {name: top_names(tree.body) & {"resource", "fcntl", "pty", "termios"} for name, tree in TESTS.items()}
    assert {name: wrong for name, wrong in found.items() if wrong} == {}

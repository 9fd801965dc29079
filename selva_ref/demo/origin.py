"""What a run of the demo depends on besides its plan and seed: the world that it renders and the networks."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
_FOLDERS = ("demo/world", "demo/models", "model")
_TOKENIZERS = ("data/tokenizers/t5_demo.json", "data/tokenizers/clip_demo.json")


def origin_sha256(package: Path = _PACKAGE) -> str:
    """Hash of the code that renders the world and defines the networks, and of the demo's tokenizers.

    Comments, docstrings and the layout of the code do not count.
    """
    digest = hashlib.sha256()
    for name in _TOKENIZERS:
        digest.update((package / name).read_bytes())
    for folder in _FOLDERS:
        for path in sorted((package / folder).glob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for body in _bodies(tree):
                body[:] = [line for line in body if not _is_docstring(line)]
            digest.update(f"{path.name}\n{ast.unparse(tree)}\n".encode())
    return digest.hexdigest()


def _bodies(tree: ast.Module) -> Iterator[list[ast.stmt]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            yield node.body


def _is_docstring(line: ast.stmt) -> bool:
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant)

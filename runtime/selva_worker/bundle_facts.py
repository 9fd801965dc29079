"""What a page or a host shows of the model before it is loaded. The engine checks the bundle; this only reads of it."""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_MAX_BYTES = 4_000_000


def bundle_facts(bundle: str | None) -> dict[str, Any]:
    """Return preset, weights, notice, what it hears and its defaults. `bundle` None means the default one.

    `toy` says that this is the demo model. `error` says why there is nothing else, and is None otherwise.
    """
    try:
        path = _path(bundle) / "manifest.json"
        with path.open("rb") as file:
            top = json.loads(file.read(_MAX_BYTES))
        sequence = top["sequence"]
        return {
            "preset": str(top["preset"]),
            "toy": str(top["preset"]).startswith("demo"),
            "weights": str(top["weights"]),
            "notice": " ".join(str(top["notice"]).split()),
            "hears": [str(prompt) for prompt in top.get("hears", [])],
            "defaults": dict(top.get("defaults", {})),
            "min_duration_s": float(sequence["min_duration_s"]),
            "error": None,
        }
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        return {"toy": False, "error": f"the bundle cannot be read: {error}"}


def _path(bundle: str | None) -> Path:
    runtime = find_spec("selva_runtime")
    assert runtime is not None
    assert runtime.origin is not None
    toys = {name: Path(runtime.origin).with_name(f"{name}_bundle") for name in ("demo", "demo_mmaudio")}
    named = bundle or os.environ.get("SELVA_BUNDLE") or "demo"
    return toys[named] if named in toys and not Path(named).exists() else Path(named)

"""Build the extension's zip: what is in `extension/`, the worker's client and the licence.

python runtime/hosts/blender/build.py out/selva-blender.zip
"""

from __future__ import annotations

import sys
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
CLIENT = ROOT / "runtime" / "selva_worker" / "client.py"


def build(target: Path) -> Path:
    """Write the zip and return its path."""
    sources = {path.name: path for path in (HERE / "extension").iterdir() if path.suffix in (".py", ".toml")}
    sources |= {"client.py": CLIENT, "LICENSE": ROOT / "LICENSE"}
    target.parent.mkdir(parents=True, exist_ok=True)
    with ZipFile(target, "w", ZIP_DEFLATED) as archive:
        for name in sorted(sources):
            archive.writestr(ZipInfo(name, (2026, 1, 1, 0, 0, 0)), sources[name].read_bytes(), ZIP_DEFLATED)
    return target


if __name__ == "__main__":
    print(build(Path(sys.argv[1] if len(sys.argv) > 1 else "out/selva-blender.zip")))

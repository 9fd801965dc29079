"""Where the packages lie. Everything else about the distribution is in pyproject.toml.

The top-level folders are the deliverables and have common names (`runtime`, `export`). The importable packages inside
have unique names, because the runtime is installed into other programs' Pythons.
"""

from setuptools import find_packages, setup

FOLDERS = {
    "selva_bundle": "runtime",
    "selva_ref": ".",
    "selva_export": "export",
    "selva_engines": "engines",
    "selva_runtime": "runtime",
    "selva_worker": "runtime",
    "selva_bench": "benchmarks",
}

packages, package_dir = [], {}
for name, folder in FOLDERS.items():
    packages += find_packages(folder, include=[name, f"{name}.*"])
    package_dir[name] = f"{folder}/{name}"

setup(packages=packages, package_dir=package_dir)

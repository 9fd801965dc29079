"""One distribution, several packages: the base install is the runtime, everything else is an extra.

The top-level folders are the deliverables and have common names (`runtime`, `export`). The importable packages inside
have unique names, because the runtime is installed into other programs' Pythons.
"""

from pathlib import Path

from setuptools import find_packages, setup

FOLDERS = {
    "selva_bundle": "runtime",
    "selva_ref": ".",
    "selva_export": "export",
    "selva_engines": "engines",
    "selva_runtime": "runtime",
    "selva_bench": "benchmarks",
}

packages, package_dir = [], {}
for name, folder in FOLDERS.items():
    packages += find_packages(folder, include=[name, f"{name}.*"])
    package_dir[name] = f"{folder}/{name}"

EXPORT = [
    "torch>=2.9",
    "einops>=0.8",
    "torchdiffeq>=0.2.5",
    "onnx>=1.19",
    "onnxruntime>=1.24",
    "onnxscript>=0.6",
    "polygraphy>=0.49",
    "safetensors>=0.5",
    "transformers>=5.23",
    "huggingface_hub>=2.4",
]

TRAIN = [*EXPORT, "tensorboard>=2.20", "ema-pytorch>=0.8", "matplotlib"]

DOCS = ["mkdocs>=1.6.1,<2", "mkdocs-material>=9.8", "mkdocstrings[python]>=1.0.8"]

CPU = "onnxruntime>=1.24"
OPENVINO = "openvino>=2026.4"
CUDA = "cuda-python>=13"
RTX = "tensorrt-rtx-cu13>=1.7"

setup(
    name="selva-deploy",
    version="0.1.0",
    description="Text-selected audio stems from video (SelVA): reference, ONNX export and a runtime without PyTorch",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=packages,
    package_dir=package_dir,
    package_data={
        "selva_ref": ["py.typed", "data/*", "data/*/*"],
        "selva_runtime": ["py.typed", "demo_bundle/*", "demo_bundle/*/*"],
        "selva_bundle": ["py.typed"],
        "selva_engines": ["py.typed"],
    },
    install_requires=["numpy>=1.26", "av>=17", "soundfile>=0.12", "tokenizers>=0.20", "click>=8.1"],
    extras_require={
        "cpu": [CPU],
        "openvino": [OPENVINO, CPU],
        "gpu": ["onnxruntime-gpu>=1.27", CUDA],
        "tensorrt": ["tensorrt>=11", CUDA],
        "tensorrt-rtx": [RTX, CUDA],
        "export": EXPORT,
        "bench": [*EXPORT, "matplotlib"],
        "train": TRAIN,
        "mutants": ["mutmut>=3.8"],
        "docs": DOCS,
        "dev": [*TRAIN, *DOCS, OPENVINO, RTX, CUDA, "ruff", "mypy", "pytest", "build"],
    },
    entry_points={
        "console_scripts": [
            "selva-fetch=selva_runtime.command.start:fetch",
            "selva-export=selva_runtime.command.start:export",
            "selva-generate=selva_runtime.command.start:generate",
            "selva-engines=selva_runtime.command.start:engines",
            "selva-bench=selva_runtime.command.start:bench",
            "selva-train=selva_runtime.command.start:train",
        ]
    },
)

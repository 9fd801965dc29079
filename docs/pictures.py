"""Pictures that lie elsewhere in the repository, as files of the site: MkDocs takes only what is below docs/."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PICTURES = (
    "examples/street.png",
    "benchmarks/results/demo_scores.png",
    "benchmarks/results/demo_cases.png",
    "benchmarks/results/demo_worst.png",
    "benchmarks/results/long_form.png",
    "benchmarks/results/openvino+openvino-bf16-small_16k-fp32-amx.png",
    "benchmarks/results/openvino+openvino-bf16+openvino-int8-small_16k-fp32-avx512-bf16.png",
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add each picture as `pictures/NAME`."""
    for path in PICTURES:
        source = ROOT / path
        files.append(File.generated(config, f"pictures/{source.name}", abs_src_path=str(source)))
    return files

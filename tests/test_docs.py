"""The documentation quotes messages, modules and tests that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")]
FOLDERS = ("runtime", "export", "engines", "benchmarks")
PAGES += sorted((ROOT / "docs").rglob("*.md")) + sorted((ROOT / "runtime" / "hosts").glob("*/README.md"))


def test_every_message_in_troubleshooting_is_one_that_the_code_gives():
    folders = ("runtime", "engines/selva_engines", "selva_ref/weights")
    code = "\n".join(path.read_text() for folder in folders for path in sorted((ROOT / folder).rglob("*.py")))
    code = re.sub(r'"\s*\n\s*f?"', "", code)  # a message that goes over several lines
    quoted = re.findall(r"^\| `([^`]+)` \|", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    assert len(quoted) > 30
    assert [message for message in quoted if message not in code] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_that_a_page_names_is_there(page):
    paths = re.findall(rf"`((?:{'|'.join(FOLDERS)}|selva_[a-z]+|tests|examples|docs)/[\w/.*+-]+)`", page.read_text())
    roots = [ROOT, *(ROOT / folder for folder in FOLDERS)]
    assert [path for path in paths if not any(any(root.glob(path)) for root in roots)] == []


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130

"""What the XML timelines share: an element with text, and the file."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from selva_runtime.media.audio import tag


def add(parent: ElementTree.Element, name: str, value: object) -> ElementTree.Element:
    """Append an element with one line of printable text, and return it."""
    made = ElementTree.SubElement(parent, name)
    made.text = tag(str(value))
    return made


def write_xml(root: ElementTree.Element, path: Path, doctype: str = "") -> None:
    """Write the document. `doctype` is the root's name in formats that need the declaration.

    Raises:
        OSError: the file cannot be written.
    """
    ElementTree.indent(root)
    head = '<?xml version="1.0" encoding="UTF-8"?>\n' + (f"<!DOCTYPE {doctype}>\n" if doctype else "")
    path.write_bytes((head + ElementTree.tostring(root, encoding="unicode") + "\n").encode())

"""Where the files of the checkout are."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def doc_page(name: str) -> Path:
    """Find a page of the documentation by its file name, in whichever folder of docs/ it is."""
    [found] = DOCS.rglob(name)
    return found

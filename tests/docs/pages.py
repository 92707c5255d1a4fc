"""The fenced blocks of README and pages, with what stands before those that no test runs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_BLOCK = re.compile(r"(?:<!-- not run here: (?P<reason>.+?) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)```", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and why no test runs it (None where one does)."""

    language: str
    text: str
    reason: str | None


def blocks(page: Path) -> list[Block]:
    """The blocks of a page, from top to bottom."""
    return [Block(m["language"], m["text"], m["reason"]) for m in _BLOCK.finditer(page.read_text(encoding="utf-8"))]

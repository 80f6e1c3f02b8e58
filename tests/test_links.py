"""What the documents point to is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]


def missing(text: str, folder: Path) -> list[str]:
    """Relative targets of Markdown links and pictures that lead nowhere from this folder."""
    targets = [target.split("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]
    return [target for target in targets if target and not (folder / target).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    assert missing(page.read_text(), page.parent) == []


def test_a_link_that_leads_nowhere_is_found() -> None:
    assert missing("[a](README.md) [b](gone.md) ![c](docs/gone.png#x)", ROOT) == ["gone.md", "docs/gone.png"]


def test_pages_named_in_confs_and_confs_named_in_pages_exist() -> None:
    named = [name for conf in (ROOT / "conf").glob("*.toml") for name in re.findall(r"docs/\w+\.md", conf.read_text())]
    named += [name for page in PAGES for name in re.findall(r"conf/\w+\.toml", page.read_text())]
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []

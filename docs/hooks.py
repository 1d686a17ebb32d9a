"""Fills pages of the site from other files of the repository, and from what commands print, while mkdocs builds it."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGES = {"CHANGELOG.md": "changelog.md"}  # of files outside of docs/


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replaces `<!-- content of FILE -->` and `<!-- output of PROGRAM -->`."""
    markdown = re.sub(r"<!-- content of (\S+) -->", lambda found: content(found[1]), markdown)
    return re.sub(r"<!-- output of (\S+) -->", lambda found: output(found[1]), markdown)


def content(file: str) -> str:
    """A file of the repository, with links as the site has them."""
    return re.sub(r"\[([^][]*)\]\((?!https?:)([^)]+)\)", site_link, (ROOT / file).read_text())


def site_link(link: re.Match[str]) -> str:
    """A link to a page of the site; the words alone where the site has no such page."""
    words, target = link.groups()
    if target.startswith("docs/") or target in PAGES:
        return f"[{words}]({PAGES.get(target, target.removeprefix('docs/'))})"
    return words


def output(program: str) -> str:
    """What a program of the repository prints."""
    return subprocess.run([sys.executable, program], cwd=ROOT, capture_output=True, text=True, check=True).stdout

"""The documentation's site as built: its pages, read by an HTML parser, and what each links to, loads and says."""

import os
import subprocess
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tests.cluster.paths import REPOSITORY

DOCS = REPOSITORY / "docs"
BUILD_SECONDS = 120
STRUCTURE = ("h1", "h2", "h3", "h4", "ol", "ul", "li", "table", "tr", "th", "td", "pre", "blockquote", "em", "strong", "img")
"""Tags that make the structure of a page. Paragraphs are left out: MkDocs and a repository's browser differ within lists."""


@dataclass
class Content(HTMLParser):
    """What one page has."""

    links: list[str] = field(default_factory=list)
    navigation: list[str] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    structure: list[str] = field(default_factory=list)
    """The tags of the article, or of the whole where there is none, in order."""

    def __post_init__(self) -> None:
        super().__init__()
        self._in_navigation, self._is_complete = 0, False

    @classmethod
    def of(cls, text: str) -> "Content":
        content = cls()
        content.feed(text)
        return content

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self._in_navigation += tag == "nav"
        if tag == "article":
            self.structure.clear()
        elif tag in STRUCTURE and not self._is_complete:
            self.structure.append(tag)
        if "id" in values:
            self.ids.append(values["id"])
        if tag == "a" and "href" in values:
            (self.navigation if self._in_navigation else self.links).append(values["href"])
        elif "src" in values or (tag == "link" and "href" in values):
            self.loaded.append(values.get("src") or values["href"])

    def handle_endtag(self, tag: str) -> None:
        self._in_navigation -= tag == "nav"
        self._is_complete |= tag == "article"

    @property
    def all_links(self) -> list[str]:
        return self.links + self.navigation


@dataclass
class Site:
    """A built site."""

    folder: Path
    log: str
    pages: dict[Path, Content]

    @classmethod
    def build(cls, folder: Path) -> "Site":
        """Build it as `make docs` does, strictly."""
        command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(folder)]
        environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
        done = subprocess.run(
            command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False
        )
        log = done.stdout + done.stderr
        assert done.returncode == 0, log
        (folder / "404.html").unlink()  # its links are those of a server's root
        pages = {path: Content.of(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.html"))}
        return cls(folder, log, pages)

    def page_of(self, source: Path) -> Content:
        """The page that was made of a file of docs/."""
        return self.pages[self.folder / source.relative_to(DOCS).with_suffix(".html")]

    def target(self, page: Path, link: str) -> tuple[Path, str] | None:
        """The file and anchor that a link of a page leads to; None where that is another host's."""
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            return None
        path = page if not parts.path else (page.parent / unquote(parts.path)).resolve()
        return (path / "index.html" if path.is_dir() else path), unquote(parts.fragment)


def sources() -> list[Path]:
    """Every page of docs/."""
    return sorted(DOCS.rglob("*.md"))

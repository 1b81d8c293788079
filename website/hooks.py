"""MkDocs' hooks: entries of the navigation that stand for a folder, pages of files outside docs/, the list of decisions.

It must not change what a page says.
"""

import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from website.links import DOCS, FILES, NOTEBOOK, for_site, is_page, place, targets

ROOT = Path(__file__).resolve().parents[1]
LANGUAGES = {".yaml": "yaml", ".yml": "yaml", ".py": "python", ".json": "json", ".toml": "toml", ".sh": "sh"}
LIST_MARK = "<!-- list of the pages beside this one -->"
NOT_SEARCHED = "---\nsearch: {exclude: true}\n---\n"
WIDE = ("reference.md", "files/charts/rewardfl/readme.md")
"""Pages of wide tables, which get the room of the table of contents."""

_LONG_NAME = re.compile(r"<code>[^<>\s&]{24,}</code>")
_JOINT = re.compile(r"(?<=[\w\]])(?:[._]|::|/)(?=\w)")
_HEADING = re.compile(r"^# (.+)$", re.MULTILINE)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages of a folder in place of `folder/*` in the navigation."""
    config.nav = _expanded(config.nav)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each file of the repository that a page links to, and for those that these link to."""
    todo = [ROOT / DOCS / file.src_uri for file in files.documentation_pages()]
    done = set[str]()
    while todo:
        source = todo.pop()
        path = source.relative_to(ROOT).as_posix()
        if path in done:
            continue
        done.add(path)
        if not is_page(path):
            files.append(File.generated(config, place(path), content=_page_of(source, path)))
        if source.suffix == ".md" or source.is_dir():
            text = _listing(source) if source.is_dir() else source.read_text(encoding="utf-8")
            linked = targets(text, path + "/" * source.is_dir())
            todo += [
                ROOT / other for other in linked if not other.startswith("..") and not is_page(other) and (ROOT / other).exists()
            ]
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links lead to the pages of files, and fill in the lists of pages."""
    if page.file.src_uri in WIDE:
        page.meta["hide"] = ["toc"]
    if page.file.src_uri.startswith(FILES):
        return markdown
    markdown = for_site(markdown, DOCS + page.file.src_uri, page.file.src_uri)
    return with_lists(markdown, ROOT / DOCS / page.file.src_uri)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let long names break at their joints, and nowhere else: they stand in narrow columns."""
    return _LONG_NAME.sub(lambda name: _JOINT.sub(lambda joint: f"{joint[0]}<wbr>", name[0]), html)


def with_lists(markdown: str, path: Path) -> str:
    """Return the text of a page with the list of the pages beside it, where that is asked for."""
    return markdown.replace(LIST_MARK, "\n".join(f"- [{title_of(other)}]({other.name})" for other in _pages(path.parent)))


def title_of(path: Path) -> str:
    """Return the heading of a page."""
    heading = _HEADING.search(path.read_text(encoding="utf-8"))
    return heading[1] if heading else path.name


def _expanded(entry: Any) -> Any:
    """Return a part of the navigation with each `folder/*` replaced by its pages, its index excepted."""
    if isinstance(entry, dict):
        return {title: _expanded(child) for title, child in entry.items()}
    if not isinstance(entry, list):
        return entry
    entries: list[Any] = []
    for child in entry:
        if isinstance(child, str) and child.endswith("/*"):
            folder = child.removesuffix("*")
            entries += [folder + path.name for path in _pages(ROOT / DOCS / folder)]
        else:
            entries.append(_expanded(child))
    return entries


def _pages(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob("*.md")) if path.name != "index.md"]


def _page_of(source: Path, path: str) -> str:
    """Return the page of a file or folder of the repository."""
    if source.is_dir():
        return NOT_SEARCHED + for_site(_listing(source), f"{path}/", place(path))
    text = source.read_text(encoding="utf-8")
    if source.suffix == NOTEBOOK:
        return for_site("\n\n".join(_cell(cell) for cell in json.loads(text)["cells"]), path, place(path))
    if source.suffix == ".md":
        return for_site(text, path, place(path))
    fence = "`" * 4
    return f"{NOT_SEARCHED}# {path}\n\n{fence}{LANGUAGES.get(source.suffix, 'text')}\n{text}{fence}\n"


def _cell(cell: dict[str, Any]) -> str:
    """Return a cell of a notebook, with what it has printed, as Markdown."""
    source = "".join(cell["source"])
    if cell["cell_type"] != "code":
        return source
    printed = ["".join(output.get("text") or output.get("data", {}).get("text/plain") or []) for output in cell["outputs"]]
    return "\n\n".join([f"```python\n{source}\n```", *(f"```text\n{text.rstrip()}\n```" for text in printed if text)])


def _listing(folder: Path) -> str:
    """Return what is in a folder, as Markdown."""
    readme = folder / "README.md"
    if readme.is_file():
        return readme.read_text(encoding="utf-8")
    names = [path.name for path in sorted(folder.iterdir()) if not path.name.startswith(("_", "."))]
    heading = posixpath.relpath(folder, ROOT)
    return f"# {heading}/\n\n" + "\n".join(f"- [{name}]({name})" for name in names) + "\n"

"""Where a page's links lead in the repository, and where the same is on the site. Pure.

The pages are read in two places: in a repository's browser, where a link may name any file of the repository, and on the site,
which has only pages. So each file outside docs/ that a page links to becomes a page itself, below files/, and so do notebooks.
"""

import posixpath
import re
from collections.abc import Callable, Iterator

DOCS = "docs/"
FILES = "files/"
"""Where the site has what lies outside docs/."""

NOTEBOOK = ".ipynb"

_FENCE = re.compile(r"^\s*(```|~~~)")
_LINK = re.compile(r"(?P<before>\]\()(?P<target>[^)\s#]+)(?P<anchor>#[^)\s]*)?(?=\))")
_ABSOLUTE = re.compile(r"[a-z][a-z0-9+.-]*:|/|#")


def is_page(path: str) -> bool:
    """Whether a file of the repository is on the site as it is."""
    return path.startswith(DOCS) and not path.endswith(NOTEBOOK)


def place(path: str) -> str:
    """Return where the site has a file or folder of the repository, as the path of its source below docs/."""
    if is_page(path):
        return path.removeprefix(DOCS)
    folder, name = posixpath.split(path)
    name = name.lower() if name == "README.md" else name  # MkDocs would take it for the index of a section
    return FILES + posixpath.join(folder, name if name.endswith(".md") else f"{name}.md")


def targets(markdown: str, path: str) -> Iterator[str]:
    """Yield what a text links to, as paths in the repository.

    Args:
        markdown: the text.
        path: the file that it is in, in the repository.
    """
    found: list[str] = []

    def note(target: str) -> str:
        found.append(target)
        return target

    _each_target(markdown, path, note)
    yield from found


def for_site(markdown: str, path: str, page: str) -> str:
    """Return the text with its links leading to the same on the site.

    Args:
        markdown: the text.
        path: the file that it is in, in the repository.
        page: where the site has it.
    """
    start = posixpath.dirname(page) or "."
    return _each_target(markdown, path, lambda target: posixpath.relpath(place(target), start))


def _each_target(markdown: str, path: str, change: Callable[[str], str]) -> str:
    """Replace every relative link outside of fences by `change` of where it leads."""
    folder, fence, lines = posixpath.dirname(path), "", list[str]()

    def changed(link: re.Match[str]) -> str:
        target = link["target"]
        if _ABSOLUTE.match(target):
            return link[0]
        return link["before"] + change(posixpath.normpath(posixpath.join(folder, target))) + (link["anchor"] or "")

    for line in markdown.split("\n"):
        mark = _FENCE.match(line)
        if mark and fence in ("", mark[1]):
            fence = "" if fence else mark[1]
        lines.append(line if fence or mark else _LINK.sub(changed, line))
    return "\n".join(lines)

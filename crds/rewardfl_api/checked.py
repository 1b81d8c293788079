"""A manifest, and what is wrong with it: what the command line and the Python client check jobs with. Pure."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .manifests import STANDARD_INPUT, Document
from .schema import Problem
from .validation import problems_of

Raw = dict[str, Any]


@dataclass
class Checked:
    """What was found of one document.

    Attributes:
        document: the document.
        body: what it says, with what was changed in it.
        problems: what is wrong; empty when the API server and the operator would take it.
    """

    document: Document
    body: Any
    problems: list[Problem]

    @property
    def where(self) -> str:
        """The document, as it is named in messages."""
        return self.document.file if self.document.file != STANDARD_INPUT else "standard input"

    def lines(self, several: bool) -> list[str]:
        """The problems, one a line, in the order of the file."""
        of = f" (document {self.document.number}{f', {self.document.name}' if self.document.name else ''})" if several else ""
        places = sorted(((self.document.line(problem.path) or 0, problem) for problem in self.problems), key=lambda it: it[0])
        return [f"{self.where}{f':{line}' if line else ''}{of}: {problem.text}" for line, problem in places]


def check(document: Document, change: Callable[[Raw], Raw] = lambda body: body) -> Checked:
    """Check a document with what `change` makes of it."""
    body = change(document.body) if isinstance(document.body, dict) else document.body
    broken = list(document.problems)
    return Checked(document, body, broken if document.body is None else [*broken, *problems_of(body)])


def check_all(
    documents: list[Document], change: Callable[[Raw], Raw] = lambda body: body
) -> tuple[list[Checked], list[Document]]:
    """Check the RewardFLJobs among the documents; return what was found, and the documents of other kinds."""
    found = [check(document, change) for document in documents if document.is_job]
    return found, [document for document in documents if not document.is_job]

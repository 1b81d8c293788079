"""The few things that a release asks of git. Never pushes, never rewrites."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.cluster.report import ClusterError, run

from .errors import ReleaseError


@dataclass(frozen=True)
class Repository:
    """A checkout, or a work tree of one."""

    folder: Path

    def changed_files(self) -> list[str]:
        """The files that differ from what is committed, also such that git does not know."""
        return [line[3:] for line in self._git("status", "--porcelain").splitlines()]

    def has_tag(self, name: str) -> bool:
        """Whether there is such a tag."""
        return bool(self._git("tag", "--list", name).strip())

    @contextmanager
    def worktree(self) -> Iterator["Repository"]:
        """A second checkout of what is committed, removed in the end."""
        with TemporaryDirectory(prefix="rewardfl-release-") as scratch:
            folder = Path(scratch).resolve() / "rewardfl"
            self._git("worktree", "add", "--quiet", "--detach", str(folder), "HEAD")
            try:
                yield Repository(folder)
            finally:
                self._git("worktree", "remove", "--force", str(folder))

    def commit(self, message: str) -> str:
        """Commit all that has changed; returns the commit."""
        self._git("add", "--all")
        self._git("commit", "--quiet", f"--message={message}")
        return self._git("rev-parse", "HEAD").strip()

    def commit_seconds(self) -> int:
        """When the newest commit was made, as seconds since 1970."""
        return int(self._git("show", "--no-patch", "--format=%ct", "HEAD"))

    def advance(self, commit: str, tag: str) -> None:
        """Let the branch go on to `commit`, which gets the tag: both or none.

        Raises:
            ReleaseError: the branch has got other commits meanwhile.
        """
        self._git("tag", "--annotate", f"--message={tag}", tag, commit)
        try:
            self._git("merge", "--quiet", "--ff-only", commit)
        except ClusterError as error:
            self._git("tag", "--delete", tag)
            raise ReleaseError(f"the checkout has changed while the release was made: make it again ({error})") from error

    def _git(self, *arguments: str) -> str:
        return run(["git", "-C", str(self.folder), *arguments])

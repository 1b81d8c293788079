"""`make release VERSION=x`: everything that a person publishes, in dist/rewardfl-x. Nothing leaves this machine.

The version, and the changelog's section, are committed in a work tree of its own, and everything is built there: what is built
is what is committed, and until all of it is done nothing is changed here but dist/. Then the branch goes on to that
commit, and the commit gets its tag. docs/releasing.md says how it is used, decision 0130 why it is so.
"""

import argparse
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

from docker.build import IMAGES
from tests.cluster.paths import REPOSITORY
from tests.cluster.report import ClusterError, say

from . import changelog, chart, images, sums, versions
from .errors import ReleaseError
from .repository import Repository

CHANGELOG = "CHANGELOG.md"
NOTES = "RELEASE_NOTES.md"


@dataclass(frozen=True)
class Wanted:
    """What the command line asks for.

    Attributes:
        version: the release's.
        images: which are built. When one is missing it is a trial: nothing is committed or tagged.
        registry: what the chart says that the images are in; empty: who installs it says so.
        building: further options of `python -m docker.build`.
    """

    version: str
    images: tuple[str, ...] = IMAGES
    registry: str = ""
    building: tuple[str, ...] = ()

    @property
    def is_trial(self) -> bool:
        """Whether something is missing that a release has."""
        return set(self.images) != set(IMAGES)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the release that the command line asks for; 0 when it is made."""
    parser = argparse.ArgumentParser(prog="make release", description=__doc__)
    parser.add_argument("version", help="semantic: 1.2.3, or 1.2.3-rc.1")
    parser.add_argument("images", nargs="*", metavar="image", help=f"a trial with only these of {', '.join(IMAGES)}")
    parser.add_argument("--registry", default="", help="where the images will be, for the chart: registry.example.com/team")
    for option in ("base", "tool", "source"):
        parser.add_argument(f"--{option}", default="", help="as `python -m docker.build` takes it")
    given = parser.parse_args(arguments)
    building = [f"--{option}={value}" for option in ("base", "tool", "source") if (value := getattr(given, option))]
    wanted = Wanted(given.version, tuple(given.images) or IMAGES, given.registry.strip("/"), tuple(building))
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        chart.helm()
        folder = release(Repository(REPOSITORY), wanted, datetime.now(UTC).date().isoformat())
    except (ReleaseError, ClusterError) as error:
        print(f"release: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("release: interrupted; nothing has changed", file=sys.stderr)
        return 130
    say(f"{folder.relative_to(REPOSITORY)} is whole" + ("; a trial: nothing is committed or tagged" if wanted.is_trial else ""))
    return 0


def release(repository: Repository, wanted: Wanted, date: str) -> Path:
    """Make the release `wanted` of what `repository` has committed; returns the folder that holds it.

    Raises:
        ReleaseError: it must not be made, or its parts do not fit together.
        ClusterError: a program failed.
    """
    check(repository, wanted)
    with repository.worktree() as tree, _beside(repository.folder / "dist" / f"rewardfl-{wanted.version}") as folder:
        prepare(tree, wanted.version, date)
        commit = tree.commit(f"chore(release): {wanted.version}")
        digests = images.make(tree.folder, folder, wanted.version, wanted.images, wanted.building)
        changes = changelog.section((tree.folder / CHANGELOG).read_text(encoding="utf-8"), wanted.version)
        (folder / NOTES).write_text(changes, encoding="utf-8")
        details = chart.Details(wanted.version, digests, wanted.registry, tree.commit_seconds(), changelog.entries(changes))
        chart.package(tree.folder / "charts" / "rewardfl", details, folder)
        sums.write(folder)
        if not wanted.is_trial:
            repository.advance(commit, versions.tag(wanted.version))
    return repository.folder / "dist" / f"rewardfl-{wanted.version}"


def check(repository: Repository, wanted: Wanted) -> None:
    """Refuse what must not be released.

    Raises:
        ReleaseError: says what is wrong and what to do.
    """
    versions.check(wanted.version, versions.read(repository.folder))
    unknown = sorted({*wanted.images} - {*IMAGES})
    if unknown:
        raise ReleaseError(f"there is no image {', '.join(unknown)}: the images are {', '.join(IMAGES)}")
    changed = repository.changed_files()
    if changed:
        raise ReleaseError(f"files differ from what is committed: commit or remove {', '.join(changed[:3])}{_more(changed[3:])}")
    tag = versions.tag(wanted.version)
    if repository.has_tag(tag):
        raise ReleaseError(f"VERSION={wanted.version}: the tag {tag} exists; a version is released once: take a higher one")
    changelog.release((repository.folder / CHANGELOG).read_text(encoding="utf-8"), wanted.version, "")


def prepare(tree: Repository, version: str, date: str) -> None:
    """Write the version, and what follows from it, into the work tree."""
    versions.write(tree.folder, version)
    text = (tree.folder / CHANGELOG).read_text(encoding="utf-8")
    (tree.folder / CHANGELOG).write_text(changelog.release(text, version, date), encoding="utf-8")
    images.python(tree.folder, "-m", "charts.generate", "--write")


@contextmanager
def _beside(final: Path) -> Iterator[Path]:
    """A folder that takes the place of `final` when all has gone well, and leaves no trace otherwise."""
    final.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=final.parent, prefix=f".{final.name}-") as half_done:
        folder = Path(half_done) / final.name
        folder.mkdir()
        yield folder
        shutil.rmtree(final, ignore_errors=True)
        folder.rename(final)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    """Take SIGTERM for Ctrl-C: what is half done is removed."""
    raise KeyboardInterrupt


def _more(others: Sequence[str]) -> str:
    return f" and {len(others)} more" if others else ""


if __name__ == "__main__":
    sys.exit(main())

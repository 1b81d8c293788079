"""Leases: what the jobs of a cache use, so that nobody removes it. Each is a file that its holder touches every minute.

    <cache>/.rewardfl/leases/<name>      lines of JSON: the holder, the contents and the views that it uses, what it will fetch

The stager writes it before it fetches anything, the trainer goes on with it and removes it at its end. One that nobody has
touched for a while belongs to a process that was killed, and counts no more. That is judged by the times that the volume itself
gives to files, never by comparing the clocks of two nodes.
"""

import contextlib
import json
import logging
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from rewardfl_trainer.staging.folders import FRESH, opened_file, write_whole
from rewardfl_trainer.staging.repeat import every

BEAT_SECONDS = 60.0
DEAD_AFTER_SECONDS = 900.0
"""Without a touch for so long its holder is gone. Many beats, for a node that is suspended or a volume that hangs for minutes."""

KEPT_FILE = "cache-lease.json"
"""Name, in the work folder, of what the trainer needs to go on with the stager's lease."""

LEASES, VIEWS = "leases", "views"
_PROBE = ".now"
_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9.-]+")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Need:
    """What is going to be fetched."""

    size: int
    version: str


@dataclass
class Lease:
    """What one holder uses.

    Attributes:
        path: its file.
        holder: who it is, for people: namespace/job and pod.
        contents: the SHA-256 of each content in use.
        views: the names of the views in use; what they consist of is in use, too.
        needs: what is going to be fetched, by the name of its place.
    """

    path: Path
    holder: str
    contents: set[str] = field(default_factory=set)
    views: set[str] = field(default_factory=set)
    needs: dict[str, Need] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _is_released: bool = field(default=False, repr=False)

    @classmethod
    def new(cls, own_folder: Path, holder: str) -> Self:
        """Return a lease of this process, written to the cache whose own folder is given."""
        name = f"{_NOT_IN_A_NAME.sub('_', holder)[:150]}-{os.urandom(4).hex()}"
        lease = cls(own_folder / LEASES / name, holder)
        lease.write()
        return lease

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return the lease in a file. A line that is cut off, as a killed process leaves it, is left out.

        Raises:
            FileNotFoundError: there is none.
        """
        lease = cls(path, path.name)
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
                lease._take(json.loads(line))
        return lease

    def _take(self, line: dict[str, object]) -> None:
        match line:
            case {"holder": str(holder)}:
                self.holder = holder
            case {"content": str(content), "place": str(place)}:
                self.contents.add(content)
                self.needs.pop(place, None)
            case {"content": str(content)}:
                self.contents.add(content)
            case {"view": str(view)}:
                self.views.add(view)
            case {"need": str(place), "size": int(size), "version": str(version)}:
                self.needs[place] = Need(size, version)

    def text(self) -> str:
        """Return the whole file."""
        lines: list[dict[str, object]] = [{"holder": self.holder}]
        lines += [{"content": content} for content in sorted(self.contents)]
        lines += [{"view": view} for view in sorted(self.views)]
        lines += [{"need": place, "size": need.size, "version": need.version} for place, need in self.needs.items()]
        return "".join(json.dumps(line) + "\n" for line in lines)

    def write(self) -> None:
        """Write the file anew."""
        with self._lock:
            self._write()

    def add_contents(self, contents: Mapping[str, str]) -> None:
        """Note that contents are in use, which satisfies the needs of their places; on the disk when this returns.

        Args:
            contents: the SHA-256 of each, by the name of its place.
        """
        with self._lock:
            self.contents.update(contents.values())
            for place in contents:
                self.needs.pop(place, None)
            self._append([{"content": content, "place": place} for place, content in contents.items()])

    def add_view(self, view: str) -> None:
        """Note that a view is in use; on the disk when this returns."""
        with self._lock:
            self.views.add(view)
            self._append([{"view": view}])

    def _append(self, lines: Sequence[Mapping[str, object]]) -> None:
        text = "".join(json.dumps(line) + "\n" for line in lines).encode()
        try:
            with opened_file(self.path, os.O_WRONLY | os.O_APPEND) as descriptor:
                is_whole = os.write(descriptor, text) == len(text)
        except FileNotFoundError:  # taken for dead and cleared away
            is_whole = False
        if not is_whole:
            self._write()

    def _write(self) -> None:
        if not self._is_released:  # by a thread that was not waited for when the stage failed: it would be a lease of nobody
            write_whole(self.path, self.text())

    def beat(self) -> None:
        """Show that the holder is alive, and that its views are in use."""
        try:
            os.utime(self.path)
        except FileNotFoundError:
            self.write()
        for view in self.views:
            with contextlib.suppress(OSError):  # another user's; a lease protects it, only its age is not known as well
                os.utime(self.path.parent.parent / VIEWS / view)

    def release(self) -> None:
        """Give everything free."""
        with contextlib.suppress(OSError):
            self.beat()
            with self._lock:
                self._is_released = True
                self.path.unlink(missing_ok=True)


def live(own_folder: Path) -> list[Lease]:
    """Return the leases of a cache whose holders are alive; the others are cleared away."""
    folder = own_folder / LEASES
    now_ns = time_of_the_volume(own_folder)
    found = []
    for path in sorted(folder.iterdir()):
        with contextlib.suppress(FileNotFoundError):
            if now_ns - path.lstat().st_mtime_ns > DEAD_AFTER_SECONDS * 1e9:
                path.unlink()
            elif not path.name.startswith(".") and path.suffix != FRESH:
                found.append(Lease.read(path))
    return found


def time_of_the_volume(own_folder: Path) -> int:
    """Return what time it is for the volume, in nanoseconds: the time that it gives to a file that is touched now."""
    probe = own_folder / LEASES / f"{_PROBE}-{os.getpid()}-{threading.get_ident()}"
    probe.touch()
    try:
        return probe.lstat().st_mtime_ns
    finally:
        probe.unlink(missing_ok=True)


def hand_over(lease: Lease, work_dir: Path) -> None:
    """Leave a note for the trainer, which goes on with the lease for its views. One without any is given free."""
    if not lease.views:
        lease.release()
        (work_dir / KEPT_FILE).unlink(missing_ok=True)
        return
    work_dir.mkdir(parents=True, exist_ok=True)
    kept = {"path": str(lease.path), "holder": lease.holder, "views": sorted(lease.views)}
    write_whole(work_dir / KEPT_FILE, json.dumps(kept))


@contextmanager
def kept(work_dir: Path | None) -> Iterator[None]:
    """Go on with the lease of the stager that worked for this folder while the block runs, then give it free.

    Without one, nothing was staged and nothing is done. A beat that fails is logged and stops nobody.
    """
    if work_dir is None:
        yield
        return
    try:
        content = json.loads((work_dir / KEPT_FILE).read_text(encoding="utf-8"))
        lease = Lease(Path(content["path"]), content["holder"], views=set(content["views"]))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        yield
        return
    with contextlib.suppress(OSError):
        lease.write()
    with beating(lease):
        try:
            yield
        finally:
            lease.release()


def beating(lease: Lease, seconds: float = BEAT_SECONDS) -> AbstractContextManager[None]:
    """Touch the lease at an interval, in a thread, while the block runs."""

    def beat() -> None:
        try:
            lease.beat()
        except OSError as error:
            logger.warning("%s: the cache's lease cannot be renewed: %s", lease.path, error)

    return every(seconds, beat)

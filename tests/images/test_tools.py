"""Which tool builds, and with which command."""

from pathlib import Path

import pytest

from docker import build, tools
from docker.tools import Recipe, Tool
from tests.cluster.report import ClusterError

RECIPE = Recipe(
    Path("a/Dockerfile"), Path("a"), ("one:1", "two:1"), {"BASE": "b"}, {"version": "1"}, {"pip.conf": Path("private/pip.conf")}
)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder in which programs are looked for."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(tools, "find_program", lambda name: tmp_path / name if (tmp_path / name).is_file() else None)
    return tmp_path


def put(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_a_docker_client_without_an_engine_is_passed_over(programs: Path) -> None:
    put(programs, "docker", "echo 'Cannot connect to the Docker daemon' >&2; exit 1")
    put(programs, "buildah", "exit 0")
    assert tools.choose() == Tool("buildah")


def test_without_a_tool_the_error_says_what_is_wrong_with_each_and_what_to_do(programs: Path) -> None:
    put(programs, "docker", "echo 'Cannot connect to the Docker daemon' >&2; exit 1")
    wanted = r"docker does not work \(.*Cannot connect.*\); podman is not installed; buildah is not installed. Install one"
    with pytest.raises(ClusterError, match=wanted):
        tools.choose()


def test_a_tool_that_is_asked_for_is_not_replaced_by_another(programs: Path) -> None:
    put(programs, "buildah", "exit 0")
    with pytest.raises(ClusterError, match="podman is not installed"):
        tools.choose("podman")


@pytest.mark.parametrize("name", tools.NAMES)
def test_every_tool_is_given_tags_arguments_and_secrets(name: str) -> None:
    command = Tool(name).build_command(RECIPE)
    assert command[:2] == [name, "build"]
    assert command[-1] == "a"
    for pair in (
        ["--tag", "one:1"],
        ["--tag", "two:1"],
        ["--build-arg", "BASE=b"],
        ["--label", "version=1"],
        ["--secret", "id=pip.conf,src=private/pip.conf"],
    ):
        assert pair == command[(at := command.index(pair[1]) - 1) : at + 2]


def test_a_wrong_image_name_is_answered_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert build.main(["operators"]) == 1
    assert capsys.readouterr().err == "images: there is no image operators: the images are operator, trainer\n"

"""The notebook of the Python client, executed in a kernel of its own against the local cluster, as its reader would."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.cluster.paths import REPOSITORY
from tests.cluster.stack import Stack

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

NOTEBOOK = REPOSITORY / "docs/notebooks/reward-fl-with-python.ipynb"
JOB = "face-notebook"
CELL_TIMEOUT_SECONDS = 900


class Executed:
    """The notebook with its outputs, and the folder in which it ran."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self.opened = folder, folder / "opened"
        browser = folder / "browser"
        browser.write_text(f'#!/bin/sh\necho "$1" > {self.opened}\n', encoding="utf-8")
        browser.chmod(0o755)
        own = {"BROWSER": f"{browser} %s", "IPYTHONDIR": str(folder), "JUPYTER_RUNTIME_DIR": str(folder / "runtime")}
        notebook = nbformat.read(NOTEBOOK, as_version=4)
        client = NotebookClient(
            notebook, timeout=CELL_TIMEOUT_SECONDS, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
        )
        self.cells = client.execute(env=environment | own).cells

    def output_of(self, beginning: str) -> list[dict[str, Any]]:
        """What the cell that has this in it has put out."""
        [cell] = [cell for cell in self.cells if cell.cell_type == "code" and beginning in cell.source]
        return list(cell.outputs)


@pytest.fixture(scope="module")
def executed(stack: Stack, context: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Executed]:
    yield Executed(tmp_path_factory.mktemp("notebook"), context)
    stack.cluster.kubectl("delete", "rewardfljob", JOB, "--ignore-not-found", "--timeout=60s", timeout_seconds=90)


def test_it_shows_the_job_as_it_goes_on_and_where_its_results_are(executed: Executed) -> None:
    outputs = executed.output_of("client.wait(")
    drawn = "".join(output["text"] for output in outputs if output["output_type"] == "stream")
    assert f"{JOB} Training" in drawn
    assert f"{JOB} Succeeded 100%" in drawn
    assert "s3://rewardfl/results/face-notebook/lora.safetensors" in outputs[-1]["data"]["text/plain"]


def test_it_draws_the_reward_of_every_step(executed: Executed) -> None:
    [output] = [output for output in executed.output_of("go.Figure") if "data" in output]
    figure = output["data"]["application/vnd.plotly.v1+json"]
    assert figure["data"][0]["x"] == [1, 2, 3, 4]
    assert all(-1 <= reward <= 1 for reward in figure["data"][0]["y"])


def test_it_fetches_weights_and_videos_and_opens_the_report(executed: Executed) -> None:
    assert (executed.folder / JOB / "lora.safetensors").stat().st_size > 1000
    assert "<video" in executed.output_of("Video(")[0]["data"]["text/html"]
    page = executed.folder / JOB / "report.html"
    assert f"<h1>{JOB}</h1>" in page.read_text(encoding="utf-8")
    assert executed.opened.read_text(encoding="utf-8").strip() == page.as_uri()


def test_it_deletes_its_job(executed: Executed, stack: Stack) -> None:
    assert executed.output_of("client.delete(") == []
    assert stack.cluster.kubectl("get", "rewardfljob", JOB, "--ignore-not-found", "-o", "name") == ""

"""`rewardfl report` of a job whose results lie in a bucket of a real S3 server, and what it says where it cannot be made."""

import json
from pathlib import Path

import pytest

from rewardfl_api.errors import ExitCode
from tests.integration.cli.commands import rewardfl
from tests.integration.operator_harness import manifest
from tests.integration.staging.buckets import Bucket
from tests.unit.report_runs import write_run


@pytest.fixture
def job(bucket: Bucket, tmp_path: Path) -> str:
    """The manifest of a job whose results lie in the bucket."""
    folder = write_run(tmp_path / "run")
    for path in folder.rglob("*"):
        if path.is_file() and path.name != "config.yaml":
            bucket.put(f"results/{path.relative_to(folder).as_posix()}", path.read_bytes())
    file = tmp_path / "job.yaml"
    places = {"output": f"s3://{bucket.name}/results/", "storage": {"endpoint": bucket.endpoint}}
    file.write_text(json.dumps(manifest("face", **places)), encoding="utf-8")
    return str(file)


def test_a_page_is_made_of_a_bucket_with_the_name_and_the_parameters_of_the_job(job: str, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    answer = rewardfl("report", "-f", job, "-o", str(page))
    assert (answer.exit_code, answer.stderr) == (0, "")
    assert answer.stdout == f"wrote {page}: 1 run, {page.stat().st_size / 1e6:.1f} MB\n"
    text = page.read_text(encoding="utf-8")
    assert "<h1>face</h1>" in text
    assert text.count("<video ") == 8


def test_a_folder_and_a_bucket_can_be_compared_and_what_is_damaged_is_told(job: str, tmp_path: Path, bucket: Bucket) -> None:
    bucket.put("results/run.json", b"{")
    page = tmp_path / "page.html"
    answer = rewardfl("report", job, str(tmp_path / "run"), "-o", str(page))
    assert answer.exit_code == 0
    assert answer.stderr.startswith("rewardfl report: face: run.json could not be read: ")
    assert len(answer.stderr.splitlines()) == 1
    assert "2 runs compared" in page.read_text(encoding="utf-8")


def test_a_bucket_without_a_run_a_wrong_key_and_no_job_at_all_are_one_line_each(
    job: str, tmp_path: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = tmp_path / "empty.yaml"
    empty.write_text(Path(job).read_text(encoding="utf-8").replace("/results/", "/nothing/"), encoding="utf-8")
    nothing = rewardfl("report", "-f", str(empty), "-o", str(tmp_path / "page.html"))
    assert nothing.exit_code == ExitCode.MISSING_INPUT
    assert f"s3://{bucket.name}/nothing/: holds neither metrics.jsonl nor samples of a run." in nothing.stderr
    missing = rewardfl("report", "-f", str(tmp_path / "none.yaml"))
    assert missing.exit_code == ExitCode.MISSING_INPUT
    assert rewardfl("report").exit_code == ExitCode.USAGE
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    refused = rewardfl("report", "-f", job, "-o", str(tmp_path / "page.html"))
    assert refused.exit_code == ExitCode.BAD_CONFIGURATION
    assert "wrong" not in refused.stderr
    for answer in (nothing, missing, refused):
        assert len(answer.stderr.splitlines()) == 1, answer.stderr
    assert not (tmp_path / "page.html").exists()

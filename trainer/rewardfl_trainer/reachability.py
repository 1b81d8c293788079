"""Whether a job's object storage can be used from here: what `rewardfl validate --storage` asks before anything is started.

Reads only: the dataset's metadata.csv, whether anything lies where models are looked for, and whether the output's bucket exists.
Credentials are those of this machine (boto3's chain); the Secret that the job names is never read.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import boto3.session
import botocore.exceptions

from rewardfl_api.errors import ExitCode, Reason, RewardFLError
from rewardfl_api.job import RewardFLJob
from rewardfl_api.trainer_config import TrainerConfig
from rewardfl_api.uris import Source, parse_source
from rewardfl_trainer.s3 import Patience, endpoint_of, make_client
from rewardfl_trainer.storage_errors import HTTP_NOT_FOUND, missing_bucket, missing_object, status_of, storage_errors

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

INDEX = "metadata.csv"
PATIENCE = Patience(attempts=2, connect_timeout_seconds=5.0, read_timeout_seconds=10.0)
CREDENTIALS_HINT = "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, to what the job's Secret holds."


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        subject: the field, with its value.
        said: what was found, in a few words.
        error: what is wrong; None where nothing is.
    """

    subject: str
    said: str
    error: RewardFLError | None = None


def check(job: RewardFLJob) -> Iterator[Finding]:
    """Look at everything in object storage that `job` names, and yield a finding of each."""
    endpoint = job.spec.storage.endpoint or "AWS"
    try:
        client = make_client(job.spec.storage, "storage.endpoint", PATIENCE)
        with storage_errors("storage.endpoint", endpoint, endpoint):
            known = boto3.session.Session().get_credentials()
    except RewardFLError as error:
        yield Finding(f"spec.storage.endpoint={endpoint}", "", error)
        return
    if known is None:
        why = f"spec.storage.endpoint={endpoint}: no credentials on this machine to ask with."
        yield Finding(why, "", RewardFLError(Reason.STORAGE_ACCESS_DENIED, why, CREDENTIALS_HINT, ExitCode.BAD_CONFIGURATION))
        return
    yield Finding(f"spec.storage.endpoint={endpoint_of(client)}", f"asked with the credentials of this machine ({known.method})")
    for field, text in _places(job):
        finding = _look(client, field, text)
        yield finding
        if finding.error is not None and finding.error.reason in (Reason.STORAGE_UNAVAILABLE, Reason.STORAGE_ACCESS_DENIED):
            return  # every other place would say the same


def _places(job: RewardFLJob) -> Iterator[tuple[str, str]]:
    """Every field that names a place in object storage, and its value."""
    training = TrainerConfig.from_job(job).training
    fields: list[tuple[str, str | None]] = [
        ("dataset", job.spec.dataset),
        ("output", job.spec.output),
        ("training.evalDataset", training.eval_dataset),
        ("training.rewardModelPath", training.reward_model_path),
        ("training.tokenizerPath", training.tokenizer_path),
        *((f"training.modelPaths[{place}]", path) for place, path in enumerate(training.model_paths or [])),
    ]
    for field, text in fields:
        for part in (text or "").split(","):
            if part.strip().startswith("s3://"):
                yield f"spec.{field}", part.strip()


def _look(client: "S3Client", field: str, text: str) -> Finding:
    subject = f"{field}={text}"
    try:
        source = parse_source(text)
        with storage_errors(field, text, endpoint_of(client)):
            return Finding(subject, _found(client, field, text, source))
    except ValueError as error:
        return Finding(subject, "", RewardFLError(Reason.BAD_CONFIGURATION, f"{field}: {error}", "", ExitCode.BAD_CONFIGURATION))
    except RewardFLError as error:
        hint = CREDENTIALS_HINT if error.reason is Reason.STORAGE_ACCESS_DENIED else error.hint
        return Finding(subject, "", RewardFLError(error.reason, error.message, hint, error.exit_code))


def _found(client: "S3Client", field: str, text: str, source: Source) -> str:
    """Say what is there, or raise what is wrong."""
    subject = f"{field}={text}"
    try:
        client.head_bucket(Bucket=source.location)
    except botocore.exceptions.ClientError as error:
        if status_of(error) == HTTP_NOT_FOUND:
            raise missing_bucket(subject, endpoint_of(client)) from error
        raise
    if field == "spec.output":
        return "the bucket exists"
    if field in ("spec.dataset", "spec.training.evalDataset"):
        return _index(client, subject, source)
    prefix = source.path.partition("*")[0]
    answer = client.list_objects_v2(Bucket=source.location, Prefix=prefix, MaxKeys=1)
    if not answer.get("KeyCount"):
        raise missing_object(subject, "there is nothing")
    return "found"


def _index(client: "S3Client", subject: str, source: Source) -> str:
    """Say that a dataset's metadata.csv is there."""
    key = f"{source.path.rstrip('/')}/{INDEX}".lstrip("/")
    with suppress(botocore.exceptions.ClientError):
        size = client.head_object(Bucket=source.location, Key=key)["ContentLength"]
        return f"{INDEX} is there ({size} bytes)"
    client.list_objects_v2(Bucket=source.location, Prefix=key, MaxKeys=1)  # its answer has a body that says what was refused
    raise missing_object(subject, f"holds no {INDEX}")

"""What the model hubs have in common: a repository's file list, looked at once, and files read over plain HTTP."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from typing import Literal
from urllib.parse import urlsplit

import httpx2

from rewardfl_api.errors import ExitCode, Reason, RewardFLError
from rewardfl_trainer.s3 import Patience, refuse_link_local
from rewardfl_trainer.staging.remote import BLOCK_BYTES, Digest, InterruptedReadError, RemoteFile
from rewardfl_trainer.staging.sources import Kind, Request
from rewardfl_trainer.storage_errors import (
    HTTP_FORBIDDEN,
    HTTP_NOT_FOUND,
    HTTP_PRECONDITION_FAILED,
    HTTP_RANGE_NOT_SATISFIABLE,
    HTTP_SERVER_ERROR,
    HTTP_TOO_MANY_REQUESTS,
    HTTP_UNAUTHORIZED,
    ObjectChangedError,
)

HTTP_OK = 200
ENDPOINT_HASH_CHARACTERS = 12

RepositoryKind = Literal["model", "dataset"]
Repository = tuple[str, str | None, bool]
"""Name, revision, and whether a dataset is looked for."""


class MissingRepositoryError(RewardFLError):
    """The hub has no repository of this name and kind, or only for others."""


class HubRemote(ABC):
    """The repositories of one hub: those of models, and for a dataset those of datasets first.

    Args:
        endpoint: its URL.
        endpoint_variable: the environment variable that changes it, for messages.
    """

    scheme: str

    def __init__(self, endpoint: str, endpoint_variable: str) -> None:
        refuse_link_local(endpoint, endpoint_variable)
        self.endpoint = endpoint.rstrip("/")
        patience = Patience.from_environment()
        timeout = httpx2.Timeout(patience.read_timeout_seconds, connect=patience.connect_timeout_seconds)
        self.client = httpx2.Client(timeout=timeout, follow_redirects=True)
        self._lock = threading.Lock()
        self._listed: dict[Repository, list[RemoteFile]] = {}
        self._kinds: dict[Repository, RepositoryKind] = {}

    @abstractmethod
    def list_repository(self, request: Request, kind: RepositoryKind) -> list[RemoteFile]:
        """Return every file of the request's repository at its revision.

        Raises:
            MissingRepositoryError: the hub has no such repository.
            RewardFLError: it cannot be reached, or the repository has no such revision.
        """

    @abstractmethod
    def url(self, file: RemoteFile) -> str:
        """Return the URL of a file's content."""

    @abstractmethod
    def headers(self) -> Mapping[str, str]:
        """Return the headers of a read, with the token where there is one."""

    def stat(self, request: Request, key: str) -> RemoteFile | None:
        """Return the file with exactly this path; None when the repository has none."""
        return next((file for file in self.list(request, key) if file.key == key), None)

    def list(self, request: Request, prefix: str) -> list[RemoteFile]:
        """Return every file whose path begins with `prefix`, sorted; the repository is looked at once."""
        repository = repository_of(request)
        with self._lock:
            if repository not in self._listed:
                self._listed[repository] = sorted(self._look(request), key=lambda file: file.key)
            found = self._listed[repository]
        return [
            RemoteFile(request, file.key, file.size, file.version, file.digest) for file in found if file.key.startswith(prefix)
        ]

    def place(self, file: RemoteFile) -> tuple[str, ...]:
        """Return <scheme>/<hash of the endpoint>/<org>/<name>/<revision>/<path>, of a dataset with `datasets` before <org>."""
        endpoint = sha256(self.endpoint.encode()).hexdigest()[:ENDPOINT_HASH_CHARACTERS]
        source = file.request.source
        revision = (source.revision or "default").split("/")
        datasets = ("datasets",) if self.kind_of(file.request) == "dataset" else ()
        return (self.scheme, endpoint, *datasets, *source.location.split("/"), *revision, *file.key.split("/"))

    def kind_of(self, request: Request) -> RepositoryKind:
        """Return the kind of the repository that was found for a request."""
        return self._kinds.get(repository_of(request), "model")

    def read(self, file: RemoteFile, start: int, into: memoryview) -> Iterator[int]:
        """Fill `into` with the content from byte `start` on. A server that ignores ranges is read from its beginning.

        Raises:
            RewardFLError, InterruptedReadError, ObjectChangedError: see Remote.read.
        """
        stop = start + len(into)
        headers = {**self.headers(), "Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        try:
            with self.client.stream("GET", self.url(file), headers=headers) as answer:
                self._check(answer, file)
                skip = start if answer.status_code == HTTP_OK else 0
                for block in answer.iter_bytes(BLOCK_BYTES):
                    new = block[skip : skip + len(into)]
                    skip = max(0, skip - len(block))
                    into[: len(new)] = new
                    into = into[len(new) :]
                    if new:
                        yield len(new)
                    if not into:
                        return
        except httpx2.HTTPError as error:
            raise InterruptedReadError(self.unavailable(file.request, error)) from error

    def digests(self, file: RemoteFile) -> Sequence[Digest]:
        """Return the checksum of the listing: hubs know their files' checksums."""
        return [file.digest] if file.digest is not None else []

    def close(self) -> None:
        """Close the connections."""
        self.client.close()

    def unavailable(self, request: Request, why: object) -> RewardFLError:
        """Return the error for a hub that cannot be used from here."""
        text = type(why).__name__ if isinstance(why, Exception) else str(why)
        return RewardFLError(
            Reason.HUB_UNAVAILABLE,
            f"{request.subject}: {self.endpoint} cannot be used: {text}",
            _hint(request),
            ExitCode.UNAVAILABLE,
        )

    def missing(self, request: Request, what: str, error: type[RewardFLError] = RewardFLError) -> RewardFLError:
        """Return the error for a repository or revision that the hub does not have."""
        reason = Reason.OBJECT_NOT_FOUND if request.kind is Kind.DATASET else Reason.MODEL_NOT_FOUND
        return error(reason, f"{request.subject}: {what} at {self.endpoint}", "Check the name.", ExitCode.MISSING_INPUT)

    def denied(self, request: Request, token_variable: str) -> RewardFLError:
        """Return the error for a repository that needs a token, or the acceptance of its terms."""
        return RewardFLError(
            Reason.STORAGE_ACCESS_DENIED,
            f"{request.subject}: {self.endpoint} refuses access",
            f"Accept the repository's terms on the hub and set {token_variable} in the pods, or copy the files to your bucket.",
            ExitCode.BAD_CONFIGURATION,
        )

    def _look(self, request: Request) -> Sequence[RemoteFile]:
        """List the request's repository: a dataset may also lie in a model repository."""
        if request.kind is Kind.DATASET:
            try:
                found = self.list_repository(request, "dataset")
            except MissingRepositoryError:
                return self.list_repository(request, "model")
            self._kinds[repository_of(request)] = "dataset"
            return found
        return self.list_repository(request, "model")

    def _check(self, answer: httpx2.Response, file: RemoteFile) -> None:
        """Raise what the status of an answer means."""
        status = answer.status_code
        if answer.is_success:
            return
        if status in (HTTP_UNAUTHORIZED, HTTP_FORBIDDEN):
            raise self.denied(file.request, "HF_TOKEN" if self.scheme == "hf" else "MODELSCOPE_API_TOKEN")
        if status in (HTTP_NOT_FOUND, HTTP_PRECONDITION_FAILED, HTTP_RANGE_NOT_SATISFIABLE):
            raise ObjectChangedError(file.subject)
        final = self.unavailable(file.request, f"HTTP {status} from {urlsplit(str(answer.url)).hostname}")
        if status >= HTTP_SERVER_ERROR or status == HTTP_TOO_MANY_REQUESTS:
            raise InterruptedReadError(final)
        raise final


def repository_of(request: Request) -> Repository:
    """Return the key of a request's repository."""
    return request.source.location, request.source.revision, request.kind is Kind.DATASET


def _hint(request: Request) -> str:
    """Return what to do where the hub cannot be reached."""
    if request.kind is Kind.TOKENIZER:
        return (
            "Set training.tokenizer_path to a folder (a path or an s3:// URI) with the files of google/umt5-xxl from "
            "Wan-AI/Wan2.1-T2V-1.3B, or let the pods reach the hub."
        )
    parameter = request.parameter.partition("[")[0]
    parameter = "training.model_paths" if parameter.endswith("model_id_with_origin_paths") else parameter
    return f"Copy the files to your bucket and name that in {parameter}, or let the pods reach the hub."

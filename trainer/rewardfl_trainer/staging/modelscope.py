"""ModelScope as a source: ms://org/name[@revision][:pattern], over the HTTP API that its own client uses.

MODELSCOPE_ENDPOINT and MODELSCOPE_API_TOKEN count. The `modelscope` package is not used: importing it imports torch.
"""

import os
import time
from collections.abc import Mapping
from itertools import count
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import httpx2

from rewardfl_api.errors import ExitCode, Reason, RewardFLError
from rewardfl_trainer.s3 import Patience
from rewardfl_trainer.staging.hub import HubRemote, MissingRepositoryError, RepositoryKind
from rewardfl_trainer.staging.remote import Digest, RemoteFile
from rewardfl_trainer.staging.sources import Request
from rewardfl_trainer.storage_errors import HTTP_FORBIDDEN, HTTP_NOT_FOUND, HTTP_UNAUTHORIZED

DEFAULT_ENDPOINT = "https://modelscope.cn"
DEFAULT_REVISION = "master"
TOKEN_VARIABLE = "MODELSCOPE_API_TOKEN"
MAX_PAUSE_SECONDS = 8.0
PAGE_SIZE = 200
"""Entries of a dataset's list that are asked for at once."""

LISTING_LIMIT = 3000
"""The API silently leaves out what is beyond this many entries (modelscope_hub: REPO_FILES_TRUNCATION_LIMIT)."""

Entry = dict[str, Any]


class ModelScopeRemote(HubRemote):
    """Repositories of ModelScope."""

    scheme = "ms"

    def __init__(self) -> None:
        super().__init__(os.environ.get("MODELSCOPE_ENDPOINT") or DEFAULT_ENDPOINT, "MODELSCOPE_ENDPOINT")
        if token := os.environ.get(TOKEN_VARIABLE):
            self.client.cookies.set("m_session_id", token, domain=urlsplit(self.endpoint).hostname or "")

    def list_repository(self, request: Request, kind: RepositoryKind) -> list[RemoteFile]:
        """Return every file of the request's repository at its revision.

        Raises:
            RewardFLError: see HubRemote.list_repository; or the repository has more files than the API lists.
        """
        entries = self._dataset_entries(request) if kind == "dataset" else self._model_entries(request)
        return [_file(request, entry) for entry in entries if entry.get("Type") != "tree"]

    def url(self, file: RemoteFile) -> str:
        """Return the URL of a file's content."""
        parameters = {"Revision": file.request.source.revision or DEFAULT_REVISION, "FilePath": file.key}
        return f"{self._repository_url(file.request, self.kind_of(file.request))}?{urlencode(parameters)}"

    def headers(self) -> Mapping[str, str]:
        """Return the token's header, where there is one."""
        token = os.environ.get(TOKEN_VARIABLE)
        return {"Authorization": f"Bearer {token}"} if token else {}

    def _model_entries(self, request: Request) -> list[Entry]:
        """Return the list of a model repository, which comes in one piece."""
        query = {"Revision": request.source.revision or DEFAULT_REVISION, "Recursive": "True"}
        entries = _entries(self._get(request, f"{self._repository_url(request, 'model')}/files?{urlencode(query)}"))
        if len(entries) >= LISTING_LIMIT:
            message = f"{request.subject}: the repository has {LISTING_LIMIT} or more files, which its API does not list"
            hint = "Copy the files that are needed to your bucket."
            raise RewardFLError(Reason.BAD_CONFIGURATION, message, hint, ExitCode.BAD_CONFIGURATION)
        return entries

    def _dataset_entries(self, request: Request) -> list[Entry]:
        """Return the list of a dataset repository, page by page; the last page is not full."""
        found: list[Entry] = []
        for page in count(1):
            query = {
                "Revision": request.source.revision or DEFAULT_REVISION,
                "Recursive": "True",
                "PageNumber": page,
                "PageSize": PAGE_SIZE,
            }
            entries = _entries(self._get(request, f"{self._repository_url(request, 'dataset')}/tree?{urlencode(query)}"))
            found += entries
            if len(entries) < PAGE_SIZE:
                break
        return found

    def _repository_url(self, request: Request, kind: RepositoryKind) -> str:
        return f"{self.endpoint}/api/v1/{kind}s/{quote(request.source.location)}/repo"

    def _get(self, request: Request, url: str) -> dict[str, Any]:
        """Return the JSON of an answer; tried again while the hub cannot be reached."""
        for failures in range(1, Patience.from_environment().attempts):
            try:
                return self._get_once(request, url)
            except RewardFLError as error:
                if error.reason is not Reason.HUB_UNAVAILABLE:
                    raise
            time.sleep(min(2.0 ** (failures - 1), MAX_PAUSE_SECONDS))
        return self._get_once(request, url)

    def _get_once(self, request: Request, url: str) -> dict[str, Any]:
        try:
            answer = self.client.get(url, headers=self.headers())
            if answer.status_code in (HTTP_UNAUTHORIZED, HTTP_FORBIDDEN):
                raise self.denied(request, TOKEN_VARIABLE)
            if answer.status_code == HTTP_NOT_FOUND:
                raise self.missing(request, "there is no such repository or revision", MissingRepositoryError)
            content = answer.json() if answer.is_success else None
        except (httpx2.HTTPError, ValueError) as error:
            raise self.unavailable(request, error) from error
        if not isinstance(content, dict):
            raise self.unavailable(request, f"HTTP {answer.status_code}")
        return content


def _entries(answer: Mapping[str, Any]) -> list[Entry]:
    """Return the entries of a list, which stand by themselves or below `Files`."""
    data = answer.get("Data") or []
    return list(data.get("Files") or []) if isinstance(data, dict) else list(data)


def _file(request: Request, entry: Mapping[str, Any]) -> RemoteFile:
    checksum = str(entry.get("Sha256") or "")
    version = checksum or str(entry.get("Revision") or "")
    return RemoteFile(request, str(entry["Path"]), int(entry["Size"]), version, Digest("sha256", checksum) if checksum else None)

"""Hugging Face as a source: hf://org/name[@revision][:pattern], listed by huggingface_hub. HF_ENDPOINT and HF_TOKEN count.

`dataset` and `eval_dataset` mean a dataset repository, or where there is none of that name a model repository.
"""

import os
from collections.abc import Mapping

import httpx2
from huggingface_hub import HfApi, close_session, constants, hf_hub_url, set_client_factory
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils._http import default_client_factory

from rewardfl_api.errors import ExitCode, RewardFLError
from rewardfl_trainer.s3 import Patience
from rewardfl_trainer.staging.hub import HubRemote, MissingRepositoryError, Repository, RepositoryKind, repository_of
from rewardfl_trainer.staging.remote import Digest, RemoteFile
from rewardfl_trainer.staging.sources import Request
from rewardfl_trainer.storage_errors import HTTP_FORBIDDEN, HTTP_UNAUTHORIZED


class HuggingFaceRemote(HubRemote):
    """Repositories of Hugging Face, or of a mirror of it.

    Every file is taken at the commit that the revision names when it is first looked at, so a push cannot mix two commits.
    """

    scheme = "hf"

    def __init__(self) -> None:
        super().__init__(os.environ.get("HF_ENDPOINT") or constants.ENDPOINT, "HF_ENDPOINT")
        set_client_factory(_client_with_timeouts)
        self._api = HfApi(endpoint=self.endpoint)
        self._commits: dict[Repository, str] = {}

    def list_repository(self, request: Request, kind: RepositoryKind) -> list[RemoteFile]:
        """Return every file of the request's repository at the commit of its revision.

        Raises:
            RewardFLError: see HubRemote.list_repository.
        """
        repository, revision = request.source.location, request.source.revision
        try:
            commit = self._api.repo_info(repository, revision=revision, repo_type=kind).sha or ""
            self._commits[repository_of(request)] = commit
            tree = self._api.list_repo_tree(repository, recursive=True, revision=commit, repo_type=kind)
            return [_file(request, entry) for entry in tree if isinstance(entry, RepoFile)]
        except OfflineModeIsEnabled as error:
            offline = self.unavailable(request, "HF_HUB_OFFLINE is set")
            raise RewardFLError(offline.reason, offline.message, offline.hint, ExitCode.BAD_CONFIGURATION) from error
        except (GatedRepoError, HfHubHTTPError, httpx2.HTTPError) as error:
            raise self._translate(request, error) from error

    def url(self, file: RemoteFile) -> str:
        """Return the URL of a file's content at the commit that was listed."""
        commit, kind = self._commits[repository_of(file.request)], self.kind_of(file.request)
        return hf_hub_url(file.request.source.location, file.key, repo_type=kind, revision=commit, endpoint=self.endpoint)

    def headers(self) -> Mapping[str, str]:
        """Return huggingface_hub's own headers, with the token where there is one."""
        return build_hf_headers()

    def close(self) -> None:
        """Close the connections, huggingface_hub's own included."""
        close_session()
        super().close()

    def _translate(self, request: Request, error: Exception) -> RewardFLError:
        if isinstance(error, GatedRepoError):
            return self.denied(request, "HF_TOKEN")
        if isinstance(error, RevisionNotFoundError):
            return self.missing(request, f"there is no revision {request.source.revision!r}")
        if isinstance(error, RepositoryNotFoundError):
            what = "there is no such repository, or only for others (HF_TOKEN)"
            return self.missing(request, what, MissingRepositoryError)
        if isinstance(error, HfHubHTTPError):
            if error.response.status_code in (HTTP_UNAUTHORIZED, HTTP_FORBIDDEN):
                return self.denied(request, "HF_TOKEN")
            return self.unavailable(request, f"HTTP {error.response.status_code}")
        return self.unavailable(request, error)


def _file(request: Request, entry: RepoFile) -> RemoteFile:
    if entry.lfs is not None:
        return RemoteFile(request, entry.path, entry.lfs.size, entry.lfs.sha256, Digest("sha256", entry.lfs.sha256))
    return RemoteFile(request, entry.path, entry.size, entry.blob_id, Digest("git-sha1", entry.blob_id))


def _client_with_timeouts() -> httpx2.Client:
    """Return huggingface_hub's own client, which by itself waits for a silent server for ever."""
    patience = Patience.from_environment()
    client = default_client_factory()
    client.timeout = httpx2.Timeout(patience.read_timeout_seconds, connect=patience.connect_timeout_seconds)
    return client

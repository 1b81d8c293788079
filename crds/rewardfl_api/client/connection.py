"""Finds the cluster: a kubeconfig and one of its contexts, or the pod's own service account. Turns its errors into one line."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import urllib3
import yaml
from kubernetes import config
from kubernetes.client import ApiClient, ApiException, Configuration, CustomObjectsApi

from ..job import GROUP, KIND, PLURAL, VERSION
from .errors import (
    ClientError,
    ConfigurationError,
    ExistsError,
    ForbiddenError,
    NotFoundError,
    RefusedError,
    UnreachableError,
)
from .halt import Halt

CONNECT_SECONDS, READ_SECONDS = 5.0, 30.0
CONNECT_RETRIES = 1
MAX_CONNECTIONS = 128
"""Logs of so many pods can be followed over connections of their own."""

SERVICE_ACCOUNT_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
DEFAULT_KUBECONFIG = "~/.kube/config"
DEFAULT_NAMESPACE = "default"
INSTALL_HINT = "install the chart: helm install rewardfl charts/rewardfl"

HTTP_BAD_REQUEST, HTTP_UNAUTHORIZED, HTTP_FORBIDDEN, HTTP_NOT_FOUND = 400, 401, 403, 404
HTTP_CONFLICT, HTTP_GONE, HTTP_UNPROCESSABLE, HTTP_TOO_MANY_REQUESTS, HTTP_SERVER_ERROR = 409, 410, 422, 429, 500


@dataclass(frozen=True)
class Connection:
    """A cluster and the namespace that is meant when none is named."""

    api: ApiClient
    namespace: str
    server: str
    halt: Halt = field(default_factory=Halt)
    """Ends what is waited for over this connection."""

    @property
    def timeouts(self) -> tuple[float, float]:
        """How long a request may take to connect, and to bring something new."""
        return self.halt.at_most(CONNECT_SECONDS), self.halt.at_most(READ_SECONDS)

    def close(self) -> None:
        """Close what is open. A later request opens it again."""
        api: Any = self.api  # the stubs do not know what it is made of
        api.rest_client.pool_manager.clear()

    def with_halt(self, halt: Halt) -> "Connection":
        """Return the same connection, of which the waiting is ended by `halt`."""
        return replace(self, halt=halt)

    @classmethod
    def open(cls, kubeconfig: str | None = None, context: str | None = None, namespace: str | None = None) -> "Connection":
        """Read the configuration. Sends nothing yet.

        Args:
            kubeconfig: file to read instead of $KUBECONFIG or ~/.kube/config.
            context: context of it. None: the current one.
            namespace: instead of the context's own.

        Raises:
            ConfigurationError: there is none, or it cannot be used.
        """
        settings: Any = Configuration()
        settings.retries = urllib3.Retry(connect=CONNECT_RETRIES, read=0, redirect=0, status=0, other=0)
        settings.connection_pool_maxsize = MAX_CONNECTIONS
        files = kubeconfig or os.environ.get("KUBECONFIG") or DEFAULT_KUBECONFIG
        if kubeconfig is None and context is None and not _any_exists(files):
            own = _of_pod(settings, files)
        else:
            own = _of_file(settings, files, context)
        return cls(ApiClient(settings), namespace or own, str(settings.host))

    @contextmanager
    def errors(self, what: str = "") -> Iterator[None]:
        """Raise the client library's errors in the block as ClientError; `what` is being touched, e.g. `RewardFLJob a/b`."""
        try:
            yield
        except ApiException as error:
            raise self._refused(error, what) from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise UnreachableError(
                f"the API server {self.server} cannot be reached: {_root(error)}", "check the kubectl context and the network"
            ) from error

    def _refused(self, error: ApiException, what: str) -> ClientError:  # noqa: PLR0911 - one line a case
        status, answer = int(error.status or 0), _answer(error)
        said = str(answer.get("message") or error.reason or "no reason given").strip()
        if status == HTTP_UNAUTHORIZED:
            return ForbiddenError(f"the API server {self.server} does not accept the credentials", "log in to the cluster again")
        if status == HTTP_FORBIDDEN and not self._knows_jobs():
            return self._not_installed()
        if status == HTTP_FORBIDDEN:
            return ForbiddenError(said, f"ask for a role that allows it, such as {GROUP}'s view or edit")
        if status == HTTP_NOT_FOUND:
            return self._missing(answer, what, said)
        if status == HTTP_CONFLICT and answer.get("reason") == "AlreadyExists":
            return ExistsError(f"{what} exists already")
        if status in (HTTP_BAD_REQUEST, HTTP_CONFLICT, HTTP_UNPROCESSABLE):
            return RefusedError(f"the API server refuses {what}: {said}")
        if status >= HTTP_SERVER_ERROR or status in (HTTP_TOO_MANY_REQUESTS, HTTP_GONE):
            return UnreachableError(f"the API server {self.server} answers with {status}: {said}", "try again")
        return RefusedError(f"the API server answers with {status}: {said}")

    def _missing(self, answer: dict[str, Any], what: str, said: str) -> ClientError:
        details = answer.get("details") or {}
        if details.get("kind") == "namespaces":
            return NotFoundError(f"namespace {details.get('name')} does not exist", "create it, or name another namespace")
        if details.get("kind") in (None, PLURAL, KIND) and not details.get("name"):
            return self._not_installed()
        return NotFoundError(f"{what} does not exist" if what else said)

    def _not_installed(self) -> NotFoundError:
        return NotFoundError(f"the cluster {self.server} does not know {PLURAL}.{GROUP}", INSTALL_HINT)

    def _knows_jobs(self) -> bool:
        """Whether the definition is installed. Whoever may not touch jobs is told "forbidden" where there is none, too."""
        try:
            CustomObjectsApi(self.api).get_api_resources(GROUP, VERSION, _request_timeout=self.timeouts)
        except ApiException as error:
            return error.status != HTTP_NOT_FOUND
        except (urllib3.exceptions.HTTPError, OSError):
            return True
        return True


def _of_file(settings: Configuration, files: str, context: str | None) -> str:
    """Take the settings from kubeconfig files, and return the context's namespace."""
    try:
        config.load_kube_config(config_file=files, context=context, client_configuration=settings, persist_config=False)
        contexts, current = config.list_kube_config_contexts(config_file=files)
    except (config.ConfigException, yaml.YAMLError, OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        why = " ".join(str(error).split()) or type(error).__name__
        which = f"context={context} of {files}" if context else f"kubeconfig {files}"
        raise ConfigurationError(f"{which} cannot be used: {why}", _contexts_hint(files, context)) from error
    chosen = next((item for item in contexts if item["name"] == context), current)
    return str(chosen["context"].get("namespace") or DEFAULT_NAMESPACE)


def _contexts_hint(files: str, context: str | None) -> str:
    """Which contexts there are, when one was named that is not among them."""
    try:
        names = [item["name"] for item in config.list_kube_config_contexts(config_file=files)[0]]
    except Exception:
        names = []
    if context and names and context not in names:
        return f"it has {', '.join(names)}"
    return "name another kubeconfig, or set KUBECONFIG"


def _of_pod(settings: Configuration, files: str) -> str:
    """Take the settings from the pod that this runs in, and return its namespace."""
    try:
        config.load_incluster_config(client_configuration=settings)
    except config.ConfigException as error:
        hint = "set KUBECONFIG, or name a kubeconfig"
        raise ConfigurationError(f"no cluster: there is no kubeconfig at {files}, and this is no pod", hint) from error
    try:
        return SERVICE_ACCOUNT_NAMESPACE.read_text(encoding="utf-8").strip() or DEFAULT_NAMESPACE
    except OSError:
        return DEFAULT_NAMESPACE


def _any_exists(files: str) -> bool:
    return any(Path(name).expanduser().exists() for name in files.split(os.pathsep) if name)


def _answer(error: ApiException) -> dict[str, Any]:
    """The API server's own words; empty where a proxy, or a server without the kind, answered with plain text."""
    try:
        answer = json.loads(error.body or "")
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def _root(error: BaseException) -> str:
    """The innermost reason of a failed connection, without urllib3's wrapping."""
    reason = getattr(error, "reason", None)
    if isinstance(reason, BaseException):
        return _root(reason)
    text = " ".join(str(error).split())
    return text.rpartition(": ")[2] or type(error).__name__

"""The only Kubernetes I/O: a closed list of kinds, a handful of verbs. It decides nothing and remembers nothing.

Built on the kubernetes package's own asyncio client. The kinds are written down here instead of being discovered, so that
start-up asks for nothing that the operator's role does not name.
"""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Self

import aiohttp
from kubernetes.aio import client, config
from kubernetes.aio.dynamic import DynamicClient
from kubernetes.aio.dynamic.exceptions import DynamicApiError

from rewardfl_api.job import GROUP, KIND, PLURAL, VERSION

from .names import FIELD_MANAGER

Raw = dict[str, Any]

_config: Any = config
_DynamicClient: Any = DynamicClient
"""The package's asyncio half carries no types."""

REQUEST_TIMEOUT_SECONDS = 30.0
WATCH_SERVER_SECONDS = 300
WATCH_CLIENT_SECONDS = 330.0
WATCH_SILENCE_SECONDS = 70.0
"""The API server sends a bookmark about once a minute; a watch that is silent for longer is dead."""

CONNECT_SECONDS = 5.0
PAGE_SIZE = 500
GONE, NOT_FOUND, CONFLICT = 410, 404, 409
OPENED = "OPENED"


@dataclass(frozen=True)
class Kind:
    """A kind of object, and where the API server keeps it."""

    group: str
    version: str
    kind: str
    plural: str

    def path(self, namespace: str | None = None, name: str = "", part: str = "") -> str:
        """Return the path of an object (of its `part`, such as status), or of all objects where no name is given."""
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        place = [root, *(["namespaces", namespace] if namespace else []), self.plural, name, part]
        return "/".join(step for step in place if step)


REWARDFLJOBS = Kind(GROUP, VERSION, KIND, PLURAL)
JOBS = Kind("batch", "v1", "Job", "jobs")
PODS = Kind("", "v1", "Pod", "pods")
CONFIG_MAPS = Kind("", "v1", "ConfigMap", "configmaps")
EVENTS = Kind("", "v1", "Event", "events")
KINDS = {
    kind.kind: kind
    for kind in (
        REWARDFLJOBS,
        JOBS,
        PODS,
        CONFIG_MAPS,
        EVENTS,
        Kind("", "v1", "Service", "services"),
        Kind("", "v1", "ServiceAccount", "serviceaccounts"),
        Kind("rbac.authorization.k8s.io", "v1", "Role", "roles"),
        Kind("rbac.authorization.k8s.io", "v1", "RoleBinding", "rolebindings"),
        Kind("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies"),
    )
}


class ApiError(Exception):
    """The API server refused a request.

    Args:
        status: HTTP status.
        message: what it said.
        retry_after: seconds after which it wants to be asked again; None when it does not say.
    """

    def __init__(self, status: int, message: str, retry_after: float | None = None) -> None:
        super().__init__(f"{status}: {message}")
        self.status, self.message, self.retry_after = status, message, retry_after

    @property
    def is_refusal(self) -> bool:
        """Whether the object itself is wrong, so that asking again is of no use before it changes."""
        return self.status in (400, 422)


class WatchExpired(Exception):
    """The watch cannot go on from where it was; list again."""


class Cluster:
    """A connection to the API server."""

    def __init__(self, api: Any) -> None:
        self._api = api
        self._dynamic = _DynamicClient(api)

    @classmethod
    async def connect(cls, kubeconfig: str | None = None) -> Self:
        """Connect with the pod's service account, or with `kubeconfig`.

        Raises:
            kubernetes.aio.config.ConfigException: neither is usable.
        """
        configuration = client.Configuration()
        if kubeconfig is not None:
            await _config.load_kube_config(config_file=kubeconfig, client_configuration=configuration)
        else:
            _config.load_incluster_config(client_configuration=configuration)
        return cls(client.ApiClient(configuration))

    @property
    def configuration(self) -> Any:
        """Server address and credentials, for kopf's own connection."""
        return self._api.configuration

    async def close(self) -> None:
        """Close the connections."""
        await self._api.close()

    async def get(self, kind: Kind, namespace: str, name: str) -> Raw | None:
        """Return an object; None when there is none."""
        try:
            return await self._json(self._request("get", kind.path(namespace, name)))
        except ApiError as error:
            if error.status == NOT_FOUND:
                return None
            raise

    async def list_pages(self, kind: Kind, namespace: str | None = None, selector: str = "") -> AsyncIterator[Raw]:
        """Yield the list of objects page by page, so that it is never in memory twice."""
        token: str | None = None
        while True:
            options = {"label_selector": selector or None, "limit": PAGE_SIZE, "_continue": token}
            page = await self._json(self._request("get", kind.path(namespace), **options))
            yield page
            token = (page.get("metadata") or {}).get("continue")
            if not token:
                return

    async def list_all(self, kind: Kind, namespace: str | None = None, selector: str = "") -> list[Raw]:
        """Return all objects of a kind."""
        return [item async for page in self.list_pages(kind, namespace, selector) for item in page.get("items") or []]

    async def watch(self, kind: Kind, namespace: str | None, selector: str, version: str) -> AsyncIterator[Raw]:
        """Yield watch events (with `type` and `object`), bookmarks included, from `version` on until the server ends them.

        The first one is OPENED, without an object, as soon as the server has accepted the watch.

        Raises:
            WatchExpired: `version` is too old.
            ApiError: the server refuses.
            TimeoutError: it was silent for longer than its bookmarks are apart.
            aiohttp.ClientError: the connection broke.
        """
        options = {"label_selector": selector or None, "resource_version": version, "watch": True}
        query = [("timeoutSeconds", str(WATCH_SERVER_SECONDS)), ("allowWatchBookmarks", "true")]
        timeout = aiohttp.ClientTimeout(total=WATCH_CLIENT_SECONDS, sock_connect=CONNECT_SECONDS, sock_read=WATCH_SILENCE_SECONDS)
        request = self._request("get", kind.path(namespace), query_params=query, _request_timeout=timeout, **options)
        response = await _answer(request)
        try:
            yield {"type": OPENED}
            async for line in response.content:
                event: Raw = json.loads(line)
                if event["type"] == "ERROR":
                    raise _watch_error(event["object"])
                yield event
        finally:
            response.close()

    async def apply(self, manifest: Raw) -> Raw:
        """Apply an object (server-side apply), unknown fields refused, and return it as it is stored now."""
        metadata, kind = manifest["metadata"], KINDS[manifest["kind"]]
        return await self._apply(kind.path(metadata["namespace"], metadata["name"]), manifest)

    async def create(self, manifest: Raw) -> None:
        """Create an object, unknown fields refused.

        Raises:
            ApiError: 409 when there is one of that name.
        """
        path = KINDS[manifest["kind"]].path(manifest["metadata"]["namespace"])
        query = [("fieldValidation", "Strict")]
        await self._json(self._request("post", path, body=manifest, query_params=query, field_manager=FIELD_MANAGER))

    async def apply_status(self, kind: Kind, namespace: str, name: str, uid: str, status: Raw) -> Raw:
        """Apply the status of the object that has this uid, and return the object."""
        metadata = {"name": name, "namespace": namespace, "uid": uid}
        body = {"apiVersion": f"{kind.group}/{kind.version}", "kind": kind.kind, "metadata": metadata, "status": status}
        return await self._apply(kind.path(namespace, name, "status"), body)

    async def patch(self, kind: Kind, namespace: str, name: str, patch: Raw) -> Raw:
        """Apply a JSON merge patch, and return the object."""
        options = {"content_type": "application/merge-patch+json", "field_manager": FIELD_MANAGER}
        return await self._json(self._request("patch", kind.path(namespace, name), body=patch, **options))

    async def delete(self, kind: Kind, namespace: str, name: str, uid: str) -> None:
        """Delete the object that has this uid, its own children in the background. Its absence is no error."""
        body = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background", "preconditions": {"uid": uid}}
        await self._forget_missing(self._request("delete", kind.path(namespace, name), body=body))

    async def evict(self, namespace: str, pod: str, grace_seconds: int | None) -> None:
        """Evict a pod: like a deletion, but the Job controller knows that it was not the pod's fault. Absence is no error."""
        body: Raw = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": namespace}}
        if grace_seconds is not None:
            body["deleteOptions"] = {"gracePeriodSeconds": grace_seconds}
        await self._forget_missing(self._request("post", PODS.path(namespace, pod, "eviction"), body=body))

    def _request(self, method: str, path: str, **options: Any) -> Any:
        """Return a request to be awaited."""
        timeout = aiohttp.ClientTimeout(REQUEST_TIMEOUT_SECONDS, sock_connect=CONNECT_SECONDS)
        return self._dynamic.request(method, path, **{"serialize": False, "_request_timeout": timeout, **options})

    async def _apply(self, path: str, body: Raw) -> Raw:
        options: Raw = {"content_type": "application/apply-patch+yaml", "field_manager": FIELD_MANAGER, "force_conflicts": True}
        query = [("fieldValidation", "Strict")]
        return await self._json(self._request("patch", path, body=body, query_params=query, **options))

    async def _forget_missing(self, request: Any) -> None:
        try:
            await self._json(request)
        except ApiError as error:
            if error.status != NOT_FOUND:
                raise

    async def _json(self, request: Any) -> Raw:
        response = await _answer(request)
        body: Raw = json.loads(await response.read())
        return body


async def _answer(request: Any) -> aiohttp.ClientResponse:
    """Await a request of the dynamic client and turn its error into ours."""
    try:
        response: aiohttp.ClientResponse = await request
    except DynamicApiError as error:
        headers = error.headers or {}
        seconds = headers.get("Retry-After", "")
        raise ApiError(error.status, _summary(error), float(seconds) if seconds.isdigit() else None) from error
    return response


def _summary(error: Any) -> str:
    """Return the message of the API server's Status object."""
    try:
        return str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        return str(error.body or error.reason)


def _watch_error(status: Raw) -> Exception:
    code = int(status.get("code") or 0)
    return WatchExpired() if code == GONE else ApiError(code, str(status.get("message")))

"""The only Kubernetes I/O: a closed list of kinds, a handful of verbs. It decides nothing and remembers nothing.

Built on the connection of the kubernetes package's asyncio client (configuration, credentials, HTTP) without its models:
they cost more time than all the rest. The kinds are written down here instead of being discovered, so that start-up asks for
nothing that the operator's role does not name. Every request is counted.
"""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Self
from urllib.parse import urlencode

import aiohttp
from kubernetes.aio import client, config

from rewardfl_api import __version__
from rewardfl_api.job import GROUP, KIND, PLURAL, VERSION

from .metrics import Metrics
from .names import FIELD_MANAGER
from .yaml_text import as_yaml

Raw = dict[str, Any]
Query = Iterable[tuple[str, str]]

_config: Any = config
"""The package's asyncio half carries no types."""

ConfigException: type[Exception] = _config.ConfigException
"""There is neither a service account nor a usable kubeconfig."""

REQUEST_TIMEOUT_SECONDS = 30.0
WATCH_SERVER_SECONDS = 300
WATCH_CLIENT_SECONDS = 330.0
CONNECT_SECONDS = 5.0
REQUEST_TIMEOUT = aiohttp.ClientTimeout(REQUEST_TIMEOUT_SECONDS, sock_connect=CONNECT_SECONDS)
PAGE_SIZE = 500
GONE, NOT_FOUND, CONFLICT, ERRORS, FORBIDDEN = 410, 404, 409, 400, 403
OPENED = "OPENED"
JSON = "application/json"
PLAIN = {"Accept": JSON, "Content-Type": JSON}
APPLY_PATCH = {**PLAIN, "Content-Type": "application/apply-patch+yaml; charset=utf-8"}
MERGE_PATCH = {**PLAIN, "Content-Type": "application/merge-patch+json"}
METHODS = {
    "get": "GET",
    "list": "GET",
    "watch": "GET",
    "create": "POST",
    "replace": "PUT",
    "evict": "POST",
    "apply": "PATCH",
    "patch": "PATCH",
    "delete": "DELETE",
}
HEADERS = {"User-Agent": f"{FIELD_MANAGER}/{__version__}"}
METADATA_OF_ALL = {**PLAIN, "Accept": f"{JSON};as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"}
METADATA_OF_ONE = {**PLAIN, "Accept": f"{JSON};as=PartialObjectMetadata;g=meta.k8s.io;v=v1"}
READS = ("get", "list", "watch")
STRICT = (("fieldManager", FIELD_MANAGER), ("fieldValidation", "Strict"))
DRY_RUN = (("dryRun", "All"),)


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
LEASES = Kind("coordination.k8s.io", "v1", "Lease", "leases")
SERVICES = Kind("", "v1", "Service", "services")
SERVICE_ACCOUNTS = Kind("", "v1", "ServiceAccount", "serviceaccounts")
ROLES = Kind("rbac.authorization.k8s.io", "v1", "Role", "roles")
ROLE_BINDINGS = Kind("rbac.authorization.k8s.io", "v1", "RoleBinding", "rolebindings")
NETWORK_POLICIES = Kind("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies")
SUPPORTING = (SERVICES, SERVICE_ACCOUNTS, ROLES, ROLE_BINDINGS, NETWORK_POLICIES)
KINDS = {kind.kind: kind for kind in (REWARDFLJOBS, JOBS, PODS, CONFIG_MAPS, EVENTS, LEASES, *SUPPORTING)}


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

    @property
    def is_end_of_namespace(self) -> bool:
        """Whether the object's namespace is being deleted, so that nothing can be made in it any more."""
        return self.status == FORBIDDEN and "because it is being terminated" in self.message


class NotLeading(ApiError):
    """A write that was not sent, because another replica may lead by now."""

    def __init__(self) -> None:
        super().__init__(0, "not sent: this replica does not lead any more")


class WatchExpired(Exception):
    """The watch cannot go on from where it was; list again."""


class Cluster:
    """A connection to the API server."""

    def __init__(self, api: Any, metrics: Metrics | None = None) -> None:
        self._api = api
        self.metrics = metrics if metrics is not None else Metrics()
        self.may_write: Callable[[], bool] = lambda: True
        """Asked before each write, which is refused when the answer is no."""
        if api is not None:
            self._ask_again_before_sending(api)

    @classmethod
    async def connect(cls, kubeconfig: str | None = None, metrics: Metrics | None = None) -> Self:
        """Connect with the pod's service account, or with `kubeconfig`.

        Raises:
            ConfigException: neither is usable.
        """
        configuration = client.Configuration()
        # No limit to the connections: each informer keeps one for its watch, and workers bound the others.
        configuration.connection_pool_maxsize = 0
        # aiohttp would read ~/.netrc for each request, in a thread.
        configuration.client_session_kwargs = {"trust_env": False}
        if kubeconfig is not None:
            await _config.load_kube_config(config_file=kubeconfig, client_configuration=configuration)
        else:
            _config.load_incluster_config(client_configuration=configuration)
        return cls(client.ApiClient(configuration), metrics)

    def _ask_again_before_sending(self, api: Any) -> None:
        """Ask `may_write` once more when a write has its connection: a process can be frozen while one is being made."""

        async def ask(
            _session: aiohttp.ClientSession, _context: SimpleNamespace, sent: aiohttp.TraceRequestHeadersSentParams
        ) -> None:
            if sent.method != "GET" and not self.may_write():
                raise NotLeading

        trace = aiohttp.TraceConfig()
        trace.on_request_headers_sent.append(ask)  # called before they are sent
        api.configuration.trace_configs = [trace]

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
            return await self._json(self._request("get", kind, kind.path(namespace, name)))
        except ApiError as error:
            if error.status == NOT_FOUND:
                return None
            raise

    async def list_pages(
        self, kind: Kind, namespace: str | None = None, selector: str = "", *, metadata_only: bool = False
    ) -> AsyncIterator[Raw]:
        """Yield the list of objects page by page, so that it is never in memory twice."""
        token, headers = "", METADATA_OF_ALL if metadata_only else PLAIN
        while True:
            query = _said(labelSelector=selector, limit=str(PAGE_SIZE), **{"continue": token})
            page = await self._json(self._request("list", kind, kind.path(namespace), query=query, headers=headers))
            yield page
            token = (page.get("metadata") or {}).get("continue") or ""
            if not token:
                return

    async def list_all(self, kind: Kind, namespace: str | None = None, selector: str = "") -> list[Raw]:
        """Return all objects of a kind."""
        return [item async for page in self.list_pages(kind, namespace, selector) for item in page.get("items") or []]

    async def watch(
        self,
        kind: Kind,
        namespace: str | None,
        selector: str,
        version: str,
        silence_seconds: float,
        *,
        metadata_only: bool = False,
    ) -> AsyncIterator[Raw]:
        """Yield watch events (with `type` and `object`), bookmarks included, from `version` on until the server ends them.

        The first one is OPENED, without an object, as soon as the server has accepted the watch.

        Raises:
            WatchExpired: `version` is too old.
            ApiError: the server refuses.
            TimeoutError: it was silent for longer than `silence_seconds`.
            aiohttp.ClientError: the connection broke.
        """
        fixed = {"watch": "true", "allowWatchBookmarks": "true", "timeoutSeconds": str(WATCH_SERVER_SECONDS)}
        query = _said(labelSelector=selector, resourceVersion=version, **fixed)
        timeout = aiohttp.ClientTimeout(total=WATCH_CLIENT_SECONDS, sock_connect=CONNECT_SECONDS, sock_read=silence_seconds)
        headers = METADATA_OF_ONE if metadata_only else PLAIN
        response = await self._request("watch", kind, kind.path(namespace), query=query, headers=headers, timeout=timeout)
        try:
            yield {"type": OPENED}
            async for line in _lines(response.content):
                event: Raw = _parsed(line)
                if event["type"] == "ERROR":
                    raise _watch_error(event["object"])
                yield event
        finally:
            response.close()

    async def apply(self, manifest: Raw) -> Raw:
        """Apply an object (server-side apply), unknown fields refused, and return it as it is stored now."""
        metadata, kind = manifest["metadata"], KINDS[manifest["kind"]]
        return await self._apply(kind, kind.path(metadata["namespace"], metadata["name"]), manifest)

    async def create(self, manifest: Raw, *, dry_run: bool = False) -> Raw:
        """Create an object, unknown fields refused, and return it as it is stored; a dry run only returns what would be.

        Raises:
            ApiError: 409 when there is one of that name.
        """
        kind = KINDS[manifest["kind"]]
        path = kind.path(manifest["metadata"]["namespace"])
        return await self._json(self._request("create", kind, path, manifest, query=(*STRICT, *(DRY_RUN if dry_run else ()))))

    async def replace(self, manifest: Raw) -> Raw:
        """Replace the version of an object that `manifest` names, and return the new one.

        Raises:
            ApiError: 409 when it has changed since.
        """
        kind, metadata = KINDS[manifest["kind"]], manifest["metadata"]
        path = kind.path(metadata["namespace"], metadata["name"])
        return await self._json(self._request("replace", kind, path, manifest, query=STRICT))

    async def apply_status(self, kind: Kind, namespace: str, name: str, uid: str, status: Raw) -> Raw:
        """Apply the status of the object that has this uid, and return the object's metadata."""
        metadata = {"name": name, "namespace": namespace, "uid": uid}
        body = {"apiVersion": f"{kind.group}/{kind.version}", "kind": kind.kind, "metadata": metadata, "status": status}
        headers = {**APPLY_PATCH, "Accept": METADATA_OF_ONE["Accept"]}
        answer = await self._apply(kind, kind.path(namespace, name, "status"), body, headers)
        return dict(answer["metadata"])

    async def patch(self, kind: Kind, namespace: str, name: str, patch: Raw) -> Raw:
        """Apply a JSON merge patch, and return the object."""
        query = _said(fieldManager=FIELD_MANAGER)
        return await self._json(self._request("patch", kind, kind.path(namespace, name), patch, query=query, headers=MERGE_PATCH))

    async def delete(self, kind: Kind, namespace: str, name: str, uid: str, children_first: bool = False) -> None:
        """Delete the object that has this uid. Its absence is no error.

        Its own children go in the background; or, with `children_first`, it stays, being deleted, until they are gone.
        """
        policy = "Foreground" if children_first else "Background"
        body = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": policy, "preconditions": {"uid": uid}}
        await self._forget_missing(self._request("delete", kind, kind.path(namespace, name), body))

    async def evict(self, namespace: str, pod: str, grace_seconds: int | None) -> None:
        """Evict a pod: like a deletion, but the Job controller knows that it was not the pod's fault. Absence is no error."""
        body: Raw = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": namespace}}
        if grace_seconds is not None:
            body["deleteOptions"] = {"gracePeriodSeconds": grace_seconds}
        await self._forget_missing(self._request("evict", PODS, PODS.path(namespace, pod, "eviction"), body))

    async def _request(
        self,
        verb: str,
        kind: Kind,
        path: str,
        body: Raw | str | None = None,
        *,
        query: Query = (),
        headers: Mapping[str, str] = PLAIN,
        timeout: aiohttp.ClientTimeout = REQUEST_TIMEOUT,  # noqa: ASYNC109 - aiohttp keeps it
    ) -> aiohttp.ClientResponse:
        """Send a request, count it, and return the answer, which is not read yet.

        Raises:
            NotLeading: it is a write, and this replica may not write.
            ApiError: the server refuses.
            aiohttp.ClientError, TimeoutError: there is no answer.
        """
        if verb not in READS and not self.may_write():
            raise NotLeading
        url = f"{self.configuration.host}{path}{'?' if query else ''}{urlencode(list(query))}"
        count = self.metrics.api_requests
        try:
            options = {"headers": {**await self._credentials(), **headers}, "body": body, "_request_timeout": timeout}
            answer = await self._api.rest_client.request(METHODS[verb], url, **options)
        except (aiohttp.ClientError, TimeoutError) as error:
            count.labels(verb, kind.plural, "timeout" if isinstance(error, TimeoutError) else "connection").inc()
            raise
        response: aiohttp.ClientResponse = answer.response
        count.labels(verb, kind.plural, response.status).inc()
        if response.status >= ERRORS:
            raise await _refusal(response)
        return response

    async def _credentials(self) -> dict[str, str]:
        """Return the headers that say who asks. A token that is kept in a file is read anew when it has changed."""
        token = await self.configuration.get_api_key_with_prefix("BearerToken")
        return {**HEADERS, "Authorization": token} if token else dict(HEADERS)

    async def _apply(self, kind: Kind, path: str, body: Raw, headers: Mapping[str, str] = APPLY_PATCH) -> Raw:
        query = (*STRICT, ("force", "true"))
        return await self._json(self._request("apply", kind, path, as_yaml(body), query=query, headers=headers))

    async def _forget_missing(self, request: Awaitable[aiohttp.ClientResponse]) -> None:
        try:
            await self._json(request)
        except ApiError as error:
            if error.status != NOT_FOUND:
                raise

    async def _json(self, request: Awaitable[aiohttp.ClientResponse]) -> Raw:
        return _parsed(await (await request).read())


async def _refusal(response: aiohttp.ClientResponse) -> ApiError:
    """Return what the API server says about a request that it refuses."""
    text = await response.text(errors="replace")
    seconds = response.headers.get("Retry-After", "")
    return ApiError(response.status, _summary(text or str(response.reason)), float(seconds) if seconds.isdigit() else None)


def _summary(text: str) -> str:
    """Return the message of the API server's Status object."""
    try:
        return str(json.loads(text)["message"])
    except (TypeError, ValueError, KeyError):
        return text


def _said(**parameters: str) -> list[tuple[str, str]]:
    """Return the query parameters that are not empty."""
    return [(name, value) for name, value in parameters.items() if value]


def _parsed(text: bytes) -> Raw:
    """Parse an answer. One that is cut short counts as a broken connection."""
    try:
        content: Raw = json.loads(text)
    except ValueError as error:
        raise aiohttp.ClientPayloadError(f"the API server's answer is not whole: {error}") from error
    return content


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Yield lines of any length. aiohttp's own iterator fails at 128 KiB: whoever may write an object could stop the watch."""
    parts: list[bytes] = []
    async for chunk in content.iter_any():
        *ended, rest = chunk.split(b"\n")
        for end in ended:
            yield b"".join((*parts, end))
            parts = []
        parts.append(rest)
    if any(parts):
        yield b"".join(parts)


def _watch_error(status: Raw) -> Exception:
    code = int(status.get("code") or 0)
    return WatchExpired() if code == GONE else ApiError(code, str(status.get("message")))

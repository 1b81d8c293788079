"""A proxy that stands between the operator and the real API server and does what networks and overloaded servers do.

The operator speaks HTTP to it with its own token, it speaks HTTPS to the API server. Whatever is not meddled with is the API
server's own. A rule sees a request and may name a `Fault`; a test reads in `seen` what came. It runs in a thread of its own.
"""

import asyncio
import base64
import functools
import json
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import yaml
from aiohttp import web

HOP_HEADERS = {"connection", "keep-alive", "transfer-encoding", "content-length", "host", "content-encoding"}
START_SECONDS = 10.0
LARGEST_BODY = 8 * 1024 * 1024


@dataclass(frozen=True)
class Call:
    """A request of the operator."""

    method: str
    path: str
    query: str
    agent: str
    number: int
    """How many requests came before it."""
    at: float
    """When it came (seconds of the monotonic clock)."""

    @property
    def is_watch(self) -> bool:
        """Whether it asks for a stream of changes."""
        return "watch=true" in self.query.lower()

    @property
    def is_write(self) -> bool:
        """Whether it may change something."""
        return self.method != "GET"

    @property
    def is_kopf(self) -> bool:
        """Whether it is kopf's, and not of the operator's own client."""
        return self.agent.startswith("kopf/")


@dataclass(frozen=True)
class Fault:
    """What becomes of a request. Without anything set it is passed on like any other."""

    status: int = 0
    """Answer with this instead of passing it on."""
    retry_after: int | None = None
    """Say so in the answer."""
    refuse: bool = False
    """Break the connection instead of passing it on."""
    stall: bool = False
    """Take it, and never answer."""
    lose_answer: bool = False
    """Pass it on, and break the connection instead of answering: the operator cannot know that it was carried out."""
    cut_after: int | None = None
    """Break the connection after so many bytes of the answer's body."""
    truncate_after: int | None = None
    """End the body properly after so many bytes."""
    delay_seconds: float = 0.0
    """Wait before it is passed on."""
    trickle_bytes: int = 0
    """Send the body in pieces of this size, a moment apart."""


Rule = Callable[[Call], Fault | None]
TRICKLE_PAUSE_SECONDS = 0.01


@dataclass
class ApiProxy:
    """Where it listens, what it saw, and what it does. Rules are asked in their order; the first that names a fault wins."""

    url: str = ""
    rules: list[Rule] = field(default_factory=list)
    seen: list[Call] = field(default_factory=list)
    frozen: Callable[[Call], bool] = lambda _: False
    """Of which watches nothing more comes through: their connections stay open, without a word."""
    faults: int = 0
    """How many requests were meddled with."""

    def kubeconfig(self, original: str, file: Path) -> str:
        """Write a copy of the kubeconfig `original` that leads here."""
        content = yaml.safe_load(Path(original).read_text(encoding="utf-8"))
        for cluster in content["clusters"]:
            cluster["cluster"] = {"server": self.url}
        file.write_text(yaml.safe_dump(content), encoding="utf-8")
        return str(file)

    def writes(self) -> list[Call]:
        """The requests so far that may have changed something."""
        return [call for call in self.seen if call.is_write]

    @contextmanager
    def with_rule(self, rule: Rule) -> Iterator[None]:
        """Apply `rule` for a while."""
        self.rules.append(rule)
        try:
            yield
        finally:
            self.rules.remove(rule)

    def freeze_open_watches(self, of: Callable[[Call], bool]) -> None:
        """Let nothing more through of the watches that are open now."""
        count = len(self.seen)
        self.frozen = lambda call: call.number < count and of(call)

    def fault_of(self, call: Call) -> Fault:
        """Return what becomes of a request."""
        found = next((fault for rule in list(self.rules) if (fault := rule(call)) is not None), None)
        self.faults += found is not None
        return found or Fault()


@contextmanager
def api_proxy(kubeconfig: str) -> Iterator[ApiProxy]:
    """Run a proxy before the API server that `kubeconfig` names."""
    cluster = yaml.safe_load(Path(kubeconfig).read_text(encoding="utf-8"))["clusters"][0]["cluster"]
    proxy, loop = ApiProxy(), asyncio.new_event_loop()
    started, stop = threading.Event(), asyncio.Event()

    async def serve() -> None:
        async with _serving(proxy, cluster):
            started.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    assert started.wait(START_SECONDS), "the proxy did not start"
    try:
        yield proxy
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(START_SECONDS)
        assert not thread.is_alive(), "the proxy did not stop"
        loop.close()


@asynccontextmanager
async def _serving(proxy: ApiProxy, cluster: dict[str, Any]) -> AsyncIterator[None]:
    """Listen, and pass on."""
    context = ssl.create_default_context()
    if "certificate-authority-data" in cluster:
        context.load_verify_locations(cadata=base64.b64decode(cluster["certificate-authority-data"]).decode())
    else:
        context.load_verify_locations(cafile=cluster["certificate-authority"])
    connector = aiohttp.TCPConnector(ssl=context, limit=0)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False) as session:
        application = web.Application(client_max_size=LARGEST_BODY)
        application.router.add_route("*", "/{path:.*}", functools.partial(_handle, proxy, session, cluster["server"]))
        runner = web.AppRunner(application, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        proxy.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield
        finally:
            await runner.cleanup()


async def _handle(proxy: ApiProxy, session: aiohttp.ClientSession, server: str, request: web.Request) -> web.StreamResponse:
    """Deal with one request."""
    query = urlsplit(request.raw_path).query
    call = Call(request.method, request.path, query, request.headers.get("User-Agent", ""), len(proxy.seen), monotonic())
    body = await request.read()
    proxy.seen.append(call)
    fault = proxy.fault_of(call)
    if fault.stall:
        await asyncio.Event().wait()
    await asyncio.sleep(fault.delay_seconds)
    if fault.refuse:
        return _break(request)
    if fault.status:
        return _answer(fault)
    headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP_HEADERS}
    headers["Accept-Encoding"] = "identity"
    try:
        async with session.request(request.method, server + request.raw_path, data=body or None, headers=headers) as answer:
            return await _pass_back(proxy, call, fault, request, answer)
    except (aiohttp.ClientError, ConnectionError):
        return _break(request)


async def _pass_back(
    proxy: ApiProxy, call: Call, fault: Fault, request: web.Request, answer: aiohttp.ClientResponse
) -> web.StreamResponse:
    """Give the API server's answer to the operator, as far as `fault` lets it through."""
    if fault.lose_answer:
        await answer.read()
        return _break(request)
    kept = {name: value for name, value in answer.headers.items() if name.lower() not in HOP_HEADERS}
    response = web.StreamResponse(status=answer.status, headers=kept)
    await response.prepare(request)
    sent = 0
    async for chunk in answer.content.iter_any():
        if call.is_watch and proxy.frozen(call):
            await asyncio.Event().wait()
        limit = fault.cut_after if fault.cut_after is not None else fault.truncate_after
        piece = chunk if limit is None else chunk[: max(0, limit - sent)]
        await _send(response, piece, fault.trickle_bytes)
        sent += len(piece)
        if limit is not None and sent >= limit:
            break
    if fault.cut_after is not None:
        return _break(request)
    await response.write_eof()
    return response


async def _send(response: web.StreamResponse, data: bytes, piece: int) -> None:
    size = piece or max(1, len(data))
    for start in range(0, len(data), size):
        await response.write(data[start : start + size])
        if piece:
            await asyncio.sleep(TRICKLE_PAUSE_SECONDS)


def _break(request: web.Request) -> web.StreamResponse:
    """Reset the connection."""
    with suppress(AttributeError):
        request.transport.abort()  # type: ignore[union-attr]
    return web.Response(status=500)


def _answer(fault: Fault) -> web.StreamResponse:
    """Answer in the API server's place, as it would."""
    reasons = {409: "Conflict", 429: "TooManyRequests", 500: "InternalError", 503: "ServiceUnavailable"}
    status = {
        "apiVersion": "v1",
        "kind": "Status",
        "status": "Failure",
        "reason": reasons.get(fault.status, "Unknown"),
        "message": f"the test answers {fault.status}",
        "code": fault.status,
    }
    headers = {"Retry-After": str(fault.retry_after)} if fault.retry_after is not None else {}
    return web.json_response(status, status=fault.status, headers=headers, dumps=json.dumps)

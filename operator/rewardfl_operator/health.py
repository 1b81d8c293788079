"""Answers the kubelet on /healthz (would a restart help?) and /readyz (does it work?), and Prometheus on /metrics."""

from collections.abc import Awaitable, Callable

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.aiohttp import make_aiohttp_handler

Check = Callable[[], str | None]
"""Returns what is wrong, or None."""


async def serve(port: int, alive: Check, ready: Check, registry: CollectorRegistry) -> tuple[web.AppRunner, int]:
    """Serve all three until the returned runner is cleaned up. Returns it, and the port that it listens on."""
    application = web.Application()
    checks = [web.get("/healthz", _handler(alive)), web.get("/readyz", _handler(ready))]
    application.add_routes([*checks, web.get("/metrics", make_aiohttp_handler(registry))])
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, port=port).start()
    # With port 0 each address family gets a port of its own; an IPv4 address is a pair.
    addresses = sorted(runner.addresses, key=len)
    return runner, int(addresses[0][1])


def _handler(check: Check) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def answer(_: web.Request) -> web.StreamResponse:
        trouble = check()
        return web.Response(text=f"{trouble or 'ok'}\n", status=503 if trouble else 200)

    return answer

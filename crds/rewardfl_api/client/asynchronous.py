"""The client for asyncio: every method of `Client`, made of it. Has no behaviour of its own (docs/decisions/0141).

A method runs in a thread of the client's; to cancel it ends what the thread waits for. What had been sent is not taken back: a
job whose `submit` was cancelled may have been created.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from .connection import MAX_CONNECTIONS
from .halt import Halt
from .sync import Client

Parameters = ParamSpec("Parameters")
Answer = TypeVar("Answer")

_END = object()
"""Comes after the last value of an iterator."""


def _awaited(
    method: Callable[Concatenate[Client, Parameters], Answer],
) -> Callable[Concatenate["AsyncClient", Parameters], Coroutine[Any, Any, Answer]]:
    """Return a method of `Client` as one to await."""

    @wraps(method)
    async def call(self: "AsyncClient", /, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Answer:
        halt = Halt()
        client = self._client.with_halt(halt)
        return await self._in_thread(halt, lambda: method(client, *args, **kwargs))

    return call


def _iterated(
    method: Callable[Concatenate[Client, Parameters], Iterator[Answer]],
) -> Callable[Concatenate["AsyncClient", Parameters], AsyncGenerator[Answer, None]]:
    """Return a generator method of `Client` as an asynchronous one."""

    @wraps(method)
    async def iterate(
        self: "AsyncClient", /, *args: Parameters.args, **kwargs: Parameters.kwargs
    ) -> AsyncGenerator[Answer, None]:
        halt = Halt()
        values = method(self._client.with_halt(halt), *args, **kwargs)
        try:
            while (value := await self._in_thread(halt, lambda: next(values, _END))) is not _END:
                yield value  # type: ignore[misc] # the end is told by what it is
        finally:
            halt.now()
            with contextlib.suppress(RuntimeError):  # the client was closed, and what it had open
                self._threads.submit(_close, values)

    return iterate


class AsyncClient:
    """`Client` for asyncio: the same methods with `await`, those that yield with `async for`.

    A function that is given as `progress` is called from another thread than the event loop's.

    Args:
        namespace: as `Client`.
        context: as `Client`.
        kubeconfig: as `Client`.
        endpoint: as `Client`.

    Raises:
        ConfigurationError: as `Client`.
    """

    def __init__(
        self,
        namespace: str | None = None,
        *,
        context: str | None = None,
        kubeconfig: str | Path | None = None,
        endpoint: str | None = None,
    ) -> None:
        self._client = Client(namespace, context=context, kubeconfig=kubeconfig, endpoint=endpoint)
        self._threads = ThreadPoolExecutor(MAX_CONNECTIONS, thread_name_prefix="rewardfl")

    @property
    def namespace(self) -> str:
        """The namespace that is meant when none is named."""
        return self._client.namespace

    get = _awaited(Client.get)
    list = _awaited(Client.list)
    submit = _awaited(Client.submit)
    check = _awaited(Client.check)
    suspend = _awaited(Client.suspend)
    resume = _awaited(Client.resume)
    delete = _awaited(Client.delete)
    watch = _iterated(Client.watch)
    wait = _awaited(Client.wait)
    logs = _iterated(Client.logs)
    events = _awaited(Client.events)
    metrics = _iterated(Client.metrics)
    files = _awaited(Client.files)
    download = _awaited(Client.download)
    report = _awaited(Client.report)

    async def close(self) -> None:
        """Close the connections, and let the threads end. Nothing needs it; it is as the end of an `async with` block."""
        self._client.close()
        self._threads.shutdown(wait=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def _in_thread(self, halt: Halt, work: Callable[[], Answer]) -> Answer:
        """Carry out some work in a thread; when this is cancelled, so is what the thread waits for."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        except asyncio.CancelledError:
            halt.now()
            raise


def _close(values: Iterator[Any]) -> None:
    """Let an iterator that nobody wants any more close what it has open, unless it is just doing so in another thread."""
    if isinstance(values, Generator):
        with contextlib.suppress(ValueError):
            values.close()

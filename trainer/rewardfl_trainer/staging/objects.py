"""The data path of S3: reads objects over a few kept connections, straight into the caller's memory. Lists and uploads nothing.

boto3's own path copies every byte several times and makes a hundred objects for every answer; see docs/decisions/0120. What is
kept of it is what must not be written twice: where a bucket lives, credentials and their renewal, the error codes.
"""

import contextlib
import http.client
import io
import os
import re
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import botocore.exceptions
import botocore.httpsession
import botocore.session
import botocore.utils
import urllib3
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.compat import HTTPHeaders

from rewardfl_trainer.s3 import Patience
from rewardfl_trainer.staging.http1 import Answer, Connection
from rewardfl_trainer.staging.sigv4 import signed

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

HTTP_OK, HTTP_PARTIAL = 200, 206
ERROR_BYTES = 64 * 1024
"""So much of an error's text is read; S3's are a few hundred bytes."""

DEFAULT_REGION = "us-east-1"
_SCOPE = re.compile(r"Credential=[^,]*/([^/,]+)/s3[^/,]*/aws4_request")
"""The region in the header of a signature."""

_CODE = re.compile(rb"<Code>([A-Za-z0-9]{1,64})</Code>")
_UNQUOTED = "/~"
"""Characters of a key, beside letters, digits and `_.-`, that stand in a URL as they are (SigV4's canonical URI)."""


@dataclass(frozen=True)
class _Bucket:
    """Where a bucket is: the address to connect to, and what comes before a key in the path."""

    scheme: str
    host: str
    port: int | None
    authority: str
    path: str
    region: str
    proxy: str
    """URL of the proxy that the environment names for it; '' for none."""


class Objects:
    """The objects of the service that a client is for. Safe to use from several threads.

    Args:
        client: says where buckets are.
        patience: how long a server may take to answer.
        session: whose credentials are used. None: one of its own.
    """

    def __init__(
        self, client: "S3Client", patience: Patience | None = None, session: botocore.session.Session | None = None
    ) -> None:
        self._client = client
        self._patience = patience or Patience.from_environment()
        self._lock = threading.Lock()
        self._buckets: dict[str, _Bucket] = {}
        self._idle: dict[_Bucket, list[Connection]] = {}
        self._session = session or botocore.session.get_session()
        self._credentials = self._session.get_credentials()
        self._tls: ssl.SSLContext | None = None

    @contextmanager
    def get(self, bucket: str, key: str, headers: Mapping[str, str]) -> Iterator[Answer]:
        """Ask for an object, and keep the connection when the answer was read to its end.

        Raises:
            botocore.exceptions.ClientError: the service refuses.
            OSError, http.client.HTTPException: it does not answer.
        """
        place = self._place(bucket)
        path = f"{place.path}/{quote(key, safe=_UNQUOTED)}"
        connection: Connection | None
        connection, answer = self._ask(place, path, headers)
        try:
            if answer.status not in (HTTP_OK, HTTP_PARTIAL):
                raise _refusal(answer)
            yield answer
            if answer.is_whole:
                with self._lock:
                    self._idle.setdefault(place, []).append(connection)
                    connection = None
        finally:
            if connection is not None:
                connection.close()

    def close(self) -> None:
        """Close the connections that are not in use."""
        with self._lock:
            for connections in self._idle.values():
                for connection in connections:
                    connection.close()
            self._idle.clear()

    def _ask(self, place: _Bucket, path: str, headers: Mapping[str, str]) -> tuple[Connection, Answer]:
        """Send a request over a kept connection; over a new one where the service has closed that meanwhile."""
        if self._credentials is None:
            raise botocore.exceptions.NoCredentialsError
        while True:
            connection, is_new = self._connection(place)
            try:
                credentials = self._credentials.get_frozen_credentials()
                sent = signed(credentials, place.region, place.authority, path, headers)
                return connection, connection.get(_target(place, path), sent)
            except BaseException as error:
                connection.close()
                if is_new or not isinstance(error, ConnectionError):
                    raise

    def _place(self, bucket: str) -> _Bucket:
        with self._lock:
            if bucket not in self._buckets:
                self._buckets[bucket] = _place_of(self._unsent(bucket))
            return self._buckets[bucket]

    def _unsent(self, bucket: str) -> AWSPreparedRequest:
        """Return a request of the client for a bucket, which is not sent.

        It follows all rules: endpoints, whether the name goes into the host or into the path, and the region in which the
        client has found the bucket when it listed it.
        """
        made: list[AWSPreparedRequest] = []

        def keep(request: AWSPreparedRequest, **_: object) -> Any:
            made.append(request)
            return AWSResponse(request.url, HTTP_OK, HTTPHeaders(), urllib3.HTTPResponse(io.BytesIO(), preload_content=False))

        event = "before-send.s3.GetBucketVersioning"  # nobody else asks for that
        self._client.meta.events.register_first(event, keep)
        try:
            self._client.get_bucket_versioning(Bucket=bucket)
        finally:
            self._client.meta.events.unregister(event, keep)
        return made[0]

    def _connection(self, place: _Bucket) -> tuple[Connection, bool]:
        with self._lock:
            idle = self._idle.get(place, [])
            while idle:
                kept = idle.pop()
                if kept.is_quiet:
                    return kept, False
                kept.close()
        connection = self._new_connection(place)
        connection.connect()
        connection.sock.settimeout(self._patience.read_timeout_seconds)
        return Connection(connection), True

    def _new_connection(self, place: _Bucket) -> http.client.HTTPConnection:
        proxy = urlsplit(place.proxy)
        host, port = (proxy.hostname, proxy.port) if proxy.hostname else (place.host, place.port)
        seconds = self._patience.connect_timeout_seconds
        if place.scheme == "http":
            return http.client.HTTPConnection(host or "", port, timeout=seconds)
        connection = http.client.HTTPSConnection(host or "", port, timeout=seconds, context=self._context())
        if proxy.hostname:
            connection.set_tunnel(place.host, place.port)
        return connection

    def _context(self) -> ssl.SSLContext:
        with self._lock:
            if self._tls is None:
                bundle = os.environ.get("REQUESTS_CA_BUNDLE") or botocore.httpsession.where()
                self._tls = ssl.create_default_context(cafile=self._session.get_config_variable("ca_bundle") or bundle)
            return self._tls


def _place_of(request: AWSPreparedRequest) -> _Bucket:
    """Return where a request for a bucket goes."""
    url, signature = urlsplit(request.url), request.headers.get("Authorization", "")
    signature = signature.decode() if isinstance(signature, bytes) else signature
    found = _SCOPE.search(signature)
    region, proxy = found[1] if found else DEFAULT_REGION, _proxy(f"{url.scheme}://{url.netloc}")
    return _Bucket(url.scheme, url.hostname or "", url.port, url.netloc, url.path.rstrip("/"), region, proxy)


def _target(place: _Bucket, path: str) -> str:
    """Return what is asked for: a proxy of plain HTTP wants the whole URL."""
    return f"http://{place.authority}{path}" if place.scheme == "http" and place.proxy else path


def _proxy(url: str) -> str:
    """Return the URL of the proxy that the environment names for an address; '' for none."""
    proxies: dict[str, str] = botocore.utils.get_environ_proxies(url)
    proxy = proxies.get(urlsplit(url).scheme, "")
    return proxy if "://" in proxy or not proxy else f"http://{proxy}"


def _refusal(answer: Answer) -> botocore.exceptions.ClientError:
    """Return the error that boto3 raises for an answer like this."""
    text = b""
    with contextlib.suppress(OSError, http.client.HTTPException):
        text = answer.read(ERROR_BYTES)
    found = _CODE.search(text)
    code = found[1].decode() if found else str(answer.status)
    metadata = {"HTTPStatusCode": answer.status}
    return botocore.exceptions.ClientError({"Error": {"Code": code}, "ResponseMetadata": metadata}, "GetObject")  # type: ignore[typeddict-item]

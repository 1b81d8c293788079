"""The data path's own connections: TLS, proxies, silent servers, refusals, and where a bucket is asked for."""

import ssl
import time
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from rewardfl_api.errors import Reason
from rewardfl_api.spec import Storage
from rewardfl_trainer.s3 import ATTEMPTS_VARIABLE, TIMEOUT_VARIABLE, make_client
from rewardfl_trainer.staging.objects import Objects
from rewardfl_trainer.staging.stage import stage
from tests.cluster.pki import Authority
from tests.integration.fault_proxy import Exchange, FaultProxy, fault_proxy
from tests.integration.staging.buckets import LOW, SHARD_BYTES, VAE, Bucket, configuration, content_at, failure_of

REFUSED = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>no</Message></Error>"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


@pytest.fixture
def over_tls(bucket: Bucket, authority: Authority) -> Iterator[FaultProxy]:
    pair = authority.server("storage", [IPv4Address("127.0.0.1")])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    with fault_proxy(bucket.endpoint, context) as proxy:
        yield proxy


def test_a_private_authority_is_trusted_that_the_bundle_names(
    tmp_path: Path, bucket: Bucket, authority: Authority, over_tls: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_CA_BUNDLE", str(authority.root.certificate))
    bucket.put(LOW, bytes(SHARD_BYTES))

    local = stage(configuration(tmp_path, bucket, over_tls.endpoint))

    assert content_at(local[f"s3://{bucket.name}/{VAE}"]) == bucket.content[VAE]
    assert content_at(local[f"s3://{bucket.name}/{LOW}"]) == bucket.content[LOW]


def test_nothing_is_read_from_a_server_that_nobody_vouches_for(bucket: Bucket, over_tls: FaultProxy) -> None:
    objects = Objects(make_client(Storage(endpoint=over_tls.endpoint)))

    with pytest.raises(ssl.SSLCertVerificationError), objects.get(bucket.name, VAE, {}):
        pass
    assert over_tls.seen == []


def test_the_proxy_that_the_environment_names_is_used(tmp_path: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    with fault_proxy(bucket.endpoint) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.endpoint)
        monkeypatch.setenv("http_proxy", proxy.endpoint)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        local = stage(configuration(tmp_path, bucket))
        asked = {exchange.path for exchange in proxy.seen if exchange.path.endswith(VAE)}

    assert content_at(local[f"s3://{bucket.name}/{VAE}"]) == bucket.content[VAE]
    assert f"{bucket.endpoint}/{bucket.name}/{VAE}" in asked


def test_a_server_that_falls_silent_is_asked_again(tmp_path: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TIMEOUT_VARIABLE, "0.5")
    silent: list[str] = []

    def fall_silent(exchange: Exchange) -> None:
        if exchange.is_content and exchange.key == VAE and not silent:
            silent.append(exchange.key)
            time.sleep(2)

    with fault_proxy(bucket.endpoint) as proxy:
        proxy.before.append(fall_silent)
        local = stage(configuration(tmp_path, bucket, proxy.endpoint))
        asked = [exchange for exchange in proxy.contents() if exchange.key == VAE]

    assert content_at(local[f"s3://{bucket.name}/{VAE}"]) == bucket.content[VAE]
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("status", "body", "reason", "exit_code"),
    [
        (403, REFUSED, Reason.STORAGE_ACCESS_DENIED, 78),
        (404, REFUSED.replace(b"AccessDenied", b"NoSuchBucket"), Reason.BUCKET_NOT_FOUND, 66),
        (404, REFUSED.replace(b"AccessDenied", b"NoSuchKey"), Reason.OBJECT_NOT_FOUND, 66),
    ],
    ids=["403", "no bucket", "no key"],
)
def test_what_is_refused_while_it_is_read_fails_at_once_and_shows_no_secret(
    tmp_path: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, status: int, body: bytes, reason: Reason, exit_code: int
) -> None:
    monkeypatch.setenv(ATTEMPTS_VARIABLE, "5")

    def refuse(exchange: Exchange) -> None:
        if exchange.is_content and exchange.key == VAE:
            exchange.status, exchange.body = status, body

    with fault_proxy(bucket.endpoint) as proxy:
        proxy.before.append(refuse)
        error = failure_of(configuration(tmp_path, bucket, proxy.endpoint))
        asked = [exchange for exchange in proxy.contents() if exchange.key == VAE]

    assert (error.reason, error.exit_code, len(asked)) == (reason, exit_code, 1)
    assert f"s3://{bucket.name}/{VAE}" in error.message
    assert asked[0].headers["authorization"].rpartition("=")[2] not in f"{error.message} {error.hint}"


@pytest.mark.parametrize(
    ("storage", "bucket_name", "host", "path", "region"),
    [
        (Storage(region="eu-central-1"), "models", "models.s3.eu-central-1.amazonaws.com", "", "eu-central-1"),
        (Storage(region="eu-central-1"), "with.dots", "s3.eu-central-1.amazonaws.com", "/with.dots", "eu-central-1"),
        (Storage(region="eu-west-1", endpoint="http://127.0.0.1:9"), "models", "127.0.0.1", "/models", "eu-west-1"),
    ],
)
def test_a_bucket_is_asked_for_where_boto3_asks_for_it(
    storage: Storage, bucket_name: str, host: str, path: str, region: str
) -> None:
    place = Objects(make_client(storage))._place(bucket_name)

    assert (place.host, place.path, place.region) == (host, path, region)

"""Requests for objects are signed as botocore signs them, to the letter."""

import time
from datetime import UTC, datetime

import pytest
from botocore import auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials, ReadOnlyCredentials
from botocore.exceptions import NoCredentialsError

from rewardfl_trainer.staging.sigv4 import signed

AT = 1_795_400_000.0
HEADERS = [
    {},
    {"If-Match": '"0123"', "Range": "bytes=0-99"},
    {"x-amz-checksum-mode": "ENABLED", "If-Match": '  "a   b" '},
]


@pytest.mark.parametrize("headers", HEADERS)
@pytest.mark.parametrize("token", [None, "a/session+token=="])
@pytest.mark.parametrize("path", ["/bucket/key", "/b/Wan2.2%20I2V/%C3%A4%2B%3D~.safetensors", "/a//b/./c"])
@pytest.mark.parametrize("region", ["us-east-1", "eu-central-1"])
def test_a_signature_is_botocores(
    headers: dict[str, str], token: str | None, path: str, region: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    credentials = Credentials("an access key", "a secret/key+", token)
    monkeypatch.setattr(auth, "get_current_datetime", lambda *_, **__: datetime.fromtimestamp(AT, UTC))
    request = AWSRequest("GET", f"http://s3.example:8333{path}", headers={**headers, "Host": "s3.example:8333"})
    auth.S3SigV4Auth(credentials, "s3", region).add_auth(request)
    wanted = {name.lower(): value for name, value in request.headers.items()}

    found = signed(credentials.get_frozen_credentials(), region, "s3.example:8333", path, headers, AT)

    assert {name.lower(): value for name, value in found.items()} == wanted


def test_the_time_of_a_request_is_now() -> None:
    found = signed(ReadOnlyCredentials("key", "secret", None), "us-east-1", "host", "/b/k", {})["X-Amz-Date"]

    stated = datetime.strptime(found, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
    assert abs(stated - time.time()) < 60


@pytest.mark.parametrize("credentials", [ReadOnlyCredentials("", "secret", None), ReadOnlyCredentials("key", "", None)])
def test_empty_credentials_are_refused_before_anything_is_sent(credentials: ReadOnlyCredentials) -> None:
    with pytest.raises(NoCredentialsError):
        signed(credentials, "us-east-1", "host", "/b/k", {})

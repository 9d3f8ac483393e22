"""OCI image layouts of models, for KServe's ``oci+native://`` and ``oci://``.

A layout (OCI image specification 1.1) of one image: the layers of a base, if there is one, and a
layer with the checkpoint's files under ``/models``, which KServe makes ``/mnt/models``. An image
volume (``oci+native://``) needs no more. A modelcar (``oci://``) runs ``sh``, ``ln`` and ``sleep``
of the image, so it needs a base that has them.

Nothing of the machine, the user or the time is in it: the same checkpoint and base give the same
digest. The layer is an uncompressed tar, as weights hardly compress, and compressors differ.
"""

import hashlib
import json
import os
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any, Final

from clipmill.config import sha256_bytes
from clipmill.errors import ConfigError
from clipmill.models.checkpoint import CheckpointMetadata, read_files
from clipmill.models.export import ExportResult
from clipmill.storage import absolute_uri, atomic_write

_MEDIA: Final = "application/vnd.oci.image"
_MANIFEST: Final = f"{_MEDIA}.manifest.v1+json"
_TITLE: Final = "org.opencontainers.image"
_FOLDER: Final = "models"
_SHELLS: Final = ("bin/sh", "usr/bin/sh")
_LAYOUT: Final = b'{"imageLayoutVersion":"1.0.0"}'
_READABLE_LAYERS: Final = ("tar", "tar+gzip")

Descriptor = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Base:
    """Image under the model's layer; the defaults are of an image without one."""

    config: Mapping[str, Any]
    layers: tuple[Descriptor, ...] = ()
    digest: str = ""


def export_oci_layout(
    metadata: CheckpointMetadata, folder: Path, base: Path | None = None
) -> ExportResult:
    """Write the image layout of a checkpoint into ``folder``, over the image of a layout ``base``.

    Raises:
        ConfigError: ``base`` is no layout of one image with a shell.
        ArtifactError: the checkpoint is cut or changed.
    """
    under = _read_base(base, folder) if base else _Base(config=_platform("amd64"))
    layer = _write_layer(folder, read_files(metadata))
    annotations = _annotations(metadata, under)
    created = annotations[f"{_TITLE}.created"]
    comment = {"created": created, "created_by": f"clipmill export: /{_FOLDER}"}
    rootfs = under.config["rootfs"]
    config = {
        **under.config,
        "created": created,
        "rootfs": {**rootfs, "diff_ids": [*rootfs["diff_ids"], layer["digest"]]},
        "history": [*under.config.get("history", []), comment],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST,
        "config": _write_json(folder, config, f"{_MEDIA}.config.v1+json"),
        "layers": [*under.layers, layer],
        "annotations": annotations,
    }
    tag = metadata.digest[:12]
    described = _write_json(folder, manifest, _MANIFEST)
    index = {
        "schemaVersion": 2,
        "mediaType": f"{_MEDIA}.index.v1+json",
        "manifests": [{**described, "annotations": {f"{_TITLE}.ref.name": tag}}],
    }
    for name, data in (("oci-layout", _LAYOUT), ("index.json", _to_bytes(index))):
        with atomic_write(folder / name) as path:
            path.write_bytes(data)
    name = f"oci:{folder}:{tag}"
    needs_base = "without --base it has no shell: serve it as oci+native://, not as oci://"
    return ExportResult(
        name=name,
        usage=f"skopeo copy --preserve-digests {name} docker://REGISTRY/NAME:{tag}",
        language="bash",
        library="clipmill",
        preprocessing={"by": "the server"},
        notes=(f"image digest {described['digest']}", *([] if base else [needs_base])),
    )


def _platform(architecture: str) -> dict[str, Any]:
    rootfs = {"type": "layers", "diff_ids": []}
    return {"architecture": architecture, "os": "linux", "config": {}, "rootfs": rootfs}


def _annotations(metadata: CheckpointMetadata, base: _Base) -> dict[str, str]:
    # https://reproducible-builds.org/specs/source-date-epoch
    seconds = int(os.environ.get("SOURCE_DATE_EPOCH") or 0)
    created = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    task = str(metadata.architecture.get("task", metadata.kind))
    return {
        f"{_TITLE}.title": f"clipmill {task} model",
        f"{_TITLE}.revision": metadata.digest,
        f"{_TITLE}.source": absolute_uri(metadata.uri),
        f"{_TITLE}.created": created,
        **({f"{_TITLE}.base.digest": base.digest} if base.digest else {}),
    }


def _write_layer(folder: Path, files: Mapping[str, bytes]) -> Descriptor:
    """Write the layer with the files; its digest is that of its content, as it isn't compressed."""
    blobs = folder / "blobs" / "sha256"
    with atomic_write(blobs / "layer") as path:
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
            directory = tarfile.TarInfo(_FOLDER)
            directory.type, directory.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(directory)
            for name in sorted(files):
                entry = tarfile.TarInfo(f"{_FOLDER}/{name}")
                entry.size, entry.mode = len(files[name]), 0o644
                tar.addfile(entry, BytesIO(files[name]))
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    written = blobs / "layer"
    size = written.stat().st_size
    written.replace(blobs / digest)
    return _descriptor(f"{_MEDIA}.layer.v1.tar", digest, size)


def _write_json(folder: Path, value: Mapping[str, Any], media_type: str) -> Descriptor:
    data = _to_bytes(value)
    digest = sha256_bytes(data)
    with atomic_write(folder / "blobs" / "sha256" / digest) as path:
        path.write_bytes(data)
    return _descriptor(media_type, digest, len(data))


def _descriptor(media_type: str, digest: str, size: int) -> Descriptor:
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": size}


def _to_bytes(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _read_base(base: Path, folder: Path) -> _Base:
    """Read the base's image, and copy its layers into the folder."""
    try:
        index = json.loads((base / "index.json").read_bytes())
        descriptors = [d for d in index["manifests"] if d["mediaType"] == _MANIFEST]
        if len(descriptors) != 1 or len(index["manifests"]) != 1:
            raise _base_error(f"{base} holds {len(index['manifests'])} images or an index of them")
        manifest = json.loads(_read_blob(base, descriptors[0]))
        config = json.loads(_read_blob(base, manifest["config"]))
        layers = tuple(manifest["layers"])
        contents = [_read_blob(base, layer) for layer in layers]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _base_error(f"{base} isn't an OCI image layout: {error!r}") from error
    if not any(map(_has_shell, layers, contents)):
        raise _base_error(f"the image of {base} has no shell, which a modelcar runs")
    for layer, data in zip(layers, contents, strict=True):
        with atomic_write(_blob_path(folder, layer)) as path:
            path.write_bytes(data)
    # KServe's arguments, sh -c ..., would become those of an entry point.
    settings = {k: v for k, v in (config.get("config") or {}).items() if k != "Entrypoint"}
    return _Base(
        config={**config, "config": settings}, layers=layers, digest=descriptors[0]["digest"]
    )


def _read_blob(base: Path, descriptor: Descriptor) -> bytes:
    data = _blob_path(base, descriptor).read_bytes()
    if f"sha256:{sha256_bytes(data)}" != descriptor["digest"]:
        raise ValueError(f"{descriptor['digest']} has other content")
    return data


def _blob_path(folder: Path, descriptor: Descriptor) -> Path:
    algorithm, _, digest = str(descriptor["digest"]).partition(":")
    if algorithm != "sha256" or not (len(digest) == 64 and digest.isalnum()):
        raise ValueError(f"{descriptor['digest']} isn't a sha256 digest")
    return folder / "blobs" / algorithm / digest


def _has_shell(layer: Descriptor, data: bytes) -> bool:
    if str(layer["mediaType"]).removeprefix(f"{_MEDIA}.layer.v1.") not in _READABLE_LAYERS:
        raise _base_error(f"a layer has the media type {layer['mediaType']}")
    with tarfile.open(fileobj=BytesIO(data)) as tar:
        return any(name.removeprefix("./") in _SHELLS for name in tar.getnames())


def _base_error(what: str) -> ConfigError:
    return ConfigError(
        what,
        expected="the layout of one image that has sh, ln and sleep, in layers of tar or tar+gzip",
        action="make one with `skopeo copy docker://busybox:1.37 oci:base`, and pass --base base",
    )

"""The chart, rendered for those without Helm: a kustomize base, and an overlay a profile."""

from pathlib import Path
from typing import Any

import yaml

from clipmill.cluster.manifests import yaml_text

Resource = dict[str, Any]
NAMESPACE = "clipmill"
OVERLAYS = ("gpu", "laptop")


def kustomize_files(chart: Path) -> dict[str, str]:
    """Text by path below ``manifests/``; CRDs are taken to be there."""
    base = _rendered(chart, "")
    files = {
        "base/kustomization.yaml": yaml_text(_kustomization(resources=["clipmill.yaml"])),
        "base/clipmill.yaml": yaml_text(*base.values()),
    }
    for name in OVERLAYS:
        overlay = _rendered(chart, name)
        added = [r for key, r in overlay.items() if key not in base]
        patches = [_difference(base[k], r) for k, r in overlay.items() if base.get(k, r) != r]
        patches += [
            _head(r) | {"$patch": "delete"} for key, r in base.items() if key not in overlay
        ]
        folder = f"overlays/{name}"
        files[f"{folder}/kustomization.yaml"] = yaml_text(
            _kustomization(
                # One by one: several in a file crash older kustomize where one of them deletes.
                resources=["../../base", "added.yaml"],
                patches=[{"patch": yaml_text(patch)} for patch in patches],
            )
        )
        files[f"{folder}/added.yaml"] = yaml_text(*added)
    return files


def _rendered(chart: Path, profile: str) -> dict[tuple[str, str, str], Resource]:
    from helm_python import Chart

    file = chart / f"values-{profile}.yaml"
    values = yaml.safe_load(file.read_text()) if profile else {}
    texts = Chart.load(chart).render(
        {**values, "crds": "require"}, name="clipmill", namespace=NAMESPACE
    )
    resources = {}
    for path, text in sorted(texts.items()):
        if "/tests/" in path or path.endswith("NOTES.txt"):
            continue
        for resource in yaml.safe_load_all(text):
            # A secret in a repository is none: docs/cluster.md says how to make it.
            if resource and resource["kind"] != "Secret":
                resource["metadata"]["labels"]["app.kubernetes.io/managed-by"] = "kustomize"
                namespace = resource["metadata"].get("namespace", "")
                resources[resource["kind"], namespace, resource["metadata"]["name"]] = resource
    return resources


def _difference(old: Resource, new: Resource) -> Resource:
    """A patch that makes ``new`` of ``old``: fields that differ are replaced whole."""
    patch = _head(new)
    for key in new.keys() - {"apiVersion", "kind", "metadata"}:
        if old.get(key) != new[key]:
            patch[key] = {"$patch": "replace", **new[key]}
    for key in ("labels", "annotations"):
        if old["metadata"].get(key) != new["metadata"].get(key):
            patch["metadata"][key] = new["metadata"][key]
    return patch


def _head(resource: Resource) -> Resource:
    keys = ("name", "namespace")
    metadata = {k: v for k, v in resource["metadata"].items() if k in keys}
    return {"apiVersion": resource["apiVersion"], "kind": resource["kind"], "metadata": metadata}


def _kustomization(**fields: Any) -> Resource:
    return {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", **fields}

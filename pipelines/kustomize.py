"""``python -m clipmill.pipelines.kustomize``: the chart for those without Helm.

Writes a kustomize base with the chart's defaults, and an overlay for each profile, into a folder.
The registry, the namespace and further values are rendered in: kustomize itself can't reach the
images in pipelines' specifications, nor name a pipeline's version after its content.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from clipmill.cluster.manifests import yaml_text
from clipmill.errors import ClipmillError, ClusterError

CHART = Path(__file__).resolve().parent.parent / "helm" / "clipmill"
OVERLAYS = ("gpu", "kind")

Resource = dict[str, Any]
_Key = tuple[str, str, str]


def kustomize_files(chart: Path, values: Resource, namespace: str) -> dict[str, str]:
    """Return texts by path: a base and its overlays, rendered with the values; all CRDs assumed.

    Raises:
        ClusterError: helm-python-sdk isn't installed, or the chart refuses the values.
    """
    base = _rendered(chart, "", values, namespace)
    files = {
        "base/kustomization.yaml": yaml_text(_kustomization(resources=["clipmill.yaml"])),
        "base/clipmill.yaml": yaml_text(*base.values()),
    }
    for name in OVERLAYS:
        overlay = _rendered(chart, name, values, namespace)
        added = [r for key, r in overlay.items() if key not in base]
        by_file = {
            "added.yaml": [r for r in added if r["kind"] != "Secret"],
            "secrets.yaml": [r for r in added if r["kind"] == "Secret"],
        }
        by_file = {file: resources for file, resources in by_file.items() if resources}
        patches = [_difference(base[k], r) for k, r in overlay.items() if base.get(k, r) != r]
        patches += [
            _head(r) | {"$patch": "delete"} for key, r in base.items() if key not in overlay
        ]
        folder = f"overlays/{name}"
        files[f"{folder}/kustomization.yaml"] = yaml_text(
            _kustomization(
                # One by one: several in a file crash older kustomize where one of them deletes.
                resources=["../../base", *by_file],
                patches=[{"patch": yaml_text(patch)} for patch in patches],
            )
        )
        files |= {f"{folder}/{file}": yaml_text(*made) for file, made in by_file.items()}
    return files


def _rendered(chart: Path, profile: str, values: Resource, namespace: str) -> dict[_Key, Resource]:
    try:
        from helm_python import Chart
        from helm_python.errors import HelmError
    except ImportError as error:
        raise ClusterError(
            "the chart can't be rendered: helm-python-sdk isn't installed",
            expected="Helm's bindings for Python",
            action="pip install helm-python-sdk==0.2.2",
        ) from error

    file = chart / f"values-{profile}.yaml"
    of_profile = yaml.safe_load(file.read_text()) if profile else {}
    merged = _merged(of_profile, values) | {"crds": "require"}
    try:
        texts = Chart.load(chart).render(merged, name="clipmill", namespace=namespace)
    except HelmError as error:
        raise ClusterError(
            f"the chart refuses the values: {error}",
            expected="values as helm/clipmill/values.yaml describes them",
            action="correct the file of --values",
        ) from error
    resources = {}
    for path, text in sorted(texts.items()):
        if "/tests/" in path or path.endswith("NOTES.txt"):
            continue
        for resource in yaml.safe_load_all(text):
            if resource:
                metadata = resource["metadata"]
                metadata["labels"]["app.kubernetes.io/managed-by"] = "kustomize"
                key = (resource["kind"], metadata.get("namespace", ""), metadata["name"])
                resources[key] = resource
    return resources


def _merged(base: Resource, values: Resource) -> Resource:
    """Return the base with the values over it, as Helm merges files of values."""
    merged = dict(base)
    for key, value in values.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def _difference(old: Resource, new: Resource) -> Resource:
    """Return a patch that turns ``old`` into ``new``: fields that differ are replaced."""
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the base and the overlays; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m clipmill.pipelines.kustomize")
    parser.add_argument("--out", type=Path, required=True, help="Folder to write to.")
    parser.add_argument("--registry", help="Registry of the images, HOST[:PORT][/PATH].")
    parser.add_argument("--namespace", default="clipmill", help="Namespace (default clipmill).")
    parser.add_argument(
        "--values", type=Path, action="append", default=[], help="File of values; repeatable."
    )
    chosen = parser.parse_args(arguments)
    values: Resource = {}
    for file in chosen.values:
        values = _merged(values, yaml.safe_load(file.read_text()) or {})
    if chosen.registry is not None:
        values = _merged(values, {"images": {"registry": chosen.registry}})
    try:
        files = kustomize_files(CHART, values, chosen.namespace)
    except ClipmillError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    for name, text in files.items():
        path = chosen.out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    sys.stdout.write(f"kubectl apply -k {chosen.out / 'base'}\n")
    for name in OVERLAYS:
        sys.stdout.write(f"kubectl apply -k {chosen.out / 'overlays' / name}\n")
    secrets = [str(chosen.out / name) for name in files if name.endswith("secrets.yaml")]
    if secrets:
        sys.stdout.write(f"Keep keys of an embedded store out of Git: {', '.join(secrets)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

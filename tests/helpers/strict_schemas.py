"""Strict checks of Kubernetes resources: a field that a schema doesn't name is an error.

API servers drop unknown fields in silence, so a misspelt one would only show in what doesn't work.
Core kinds are held against Kubernetes' own schemas, custom kinds against their definitions in the
folder that CLIPMILL_CRDS names.
"""

import json
import os
from functools import cache
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from jsonschema import Draft202012Validator
from kubernetes_validate.utils import all_versions
from referencing import Registry, Resource

OLDEST = (1, 31)
VERSIONS = [v for v in all_versions() if tuple(map(int, v.split(".")[:2])) >= OLDEST]
CORE_GROUPS = {"", "apps", "batch", "policy", "rbac.authorization.k8s.io", "networking.k8s.io"}
METADATA = {"name", "generateName", "namespace", "labels", "annotations"}


def definitions() -> Path:
    """The folder of custom resource definitions, or a skipped test."""
    folder = os.environ.get("CLIPMILL_CRDS")
    if not folder or not Path(folder).is_dir():
        pytest.skip("CLIPMILL_CRDS names no folder of custom resource definitions")
    return Path(folder)


def findings(resource: dict) -> list[str]:
    """What is wrong with a resource: empty if nothing is."""
    return _findings(json.dumps(resource, sort_keys=True))


@cache
def _findings(text: str) -> list[str]:
    # Kubernetes' schemas take a second each time; most resources come again and again.
    resource = json.loads(text)
    group, _, version = resource["apiVersion"].rpartition("/")
    who = f"{resource['kind']} {resource['metadata'].get('name', '')}"
    found = [f"{who}: metadata.{k} is unknown" for k in resource["metadata"].keys() - METADATA]
    if group in CORE_GROUPS:
        for kubernetes in VERSIONS:
            validator = _core_validator(kubernetes, resource["kind"], resource["apiVersion"])
            found += [f"{who} ({kubernetes}): {e.message}" for e in validator.iter_errors(resource)]
        return found
    validator = _validator(definitions(), group, version, resource["kind"])
    if validator is None:
        return [*found, f"{who}: no definition of {resource['apiVersion']}"]
    return found + [
        f"{who}: {'.'.join(map(str, e.absolute_path))}: {e.message[:300]}"
        for e in validator.iter_errors(resource)
    ]


@cache
def _core_validator(kubernetes: str, kind: str, api_version: str):
    # kubernetes_validate.validate reads both files anew for each resource, which takes a second.
    group, _, version = api_version.rpartition("/")
    name = "-".join([kind.lower(), *([group.split(".")[0]] if group else []), version])
    schema = _core_file(kubernetes, f"{name}.json")
    registry = Resource.from_contents(schema) @ _core_definitions(kubernetes)
    return Draft202012Validator(schema, registry=registry)


@cache
def _core_definitions(kubernetes: str):
    return Resource.from_contents(_core_file(kubernetes, "_definitions.json")) @ Registry()


def _core_file(kubernetes: str, name: str):
    folder = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema"
    return json.loads((folder / f"v{kubernetes}-local-strict" / name).read_text())


@cache
def _validator(folder: Path, group: str, version: str, kind: str):
    for path in sorted(folder.rglob("*.yaml")):
        head = path.read_text()[:100_000]
        if f"group: {group}\n" not in head or f"kind: {kind}\n" not in head:
            continue
        definition = yaml.load(path.read_text(), Loader=yaml.CSafeLoader)["spec"]
        if definition["group"] != group or definition["names"]["kind"] != kind:
            continue
        for served in definition["versions"]:
            if served["name"] == version and served["served"]:
                return Draft202012Validator(_strict(served["schema"]["openAPIV3Schema"]))
    return None


def _strict(schema):
    if not isinstance(schema, dict):
        return schema
    made = {k: v for k, v in schema.items() if k not in {"format", "default", "description"}}
    for key in ("properties", "patternProperties"):
        if key in made:
            made[key] = {name: _strict(value) for name, value in made[key].items()}
    for key in ("items", "additionalProperties", "not"):
        if key in made:
            made[key] = _strict(made[key])
    if made.get("x-kubernetes-int-or-string"):
        made.pop("type", None)
    if made.pop("nullable", False) and "type" in made:
        made["type"] = [made["type"], "null"]
    loose = made.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in made
    if "properties" in made and not loose:
        made["additionalProperties"] = False
    return made

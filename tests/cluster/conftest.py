"""A Kubernetes API that answers over HTTP."""

import pytest
from api_server import ApiServer


@pytest.fixture
def cluster():
    with ApiServer() as server:
        yield server

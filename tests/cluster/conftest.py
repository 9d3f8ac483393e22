"""A Kubernetes API that answers over HTTP."""

import pytest

from helpers.kubernetes_api import ApiServer


@pytest.fixture
def cluster():
    with ApiServer() as server:
        yield server

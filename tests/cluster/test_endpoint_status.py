"""Reasons of pods that don't start, and shares of a route, in Kubernetes' own form."""

import pytest

from clipmill.cluster.endpoint_status import (
    accepted_route,
    are_serving,
    describe_failure,
    is_given_up,
    live_pods,
    traffic_percent,
)
from clipmill.cluster.kserve import MODEL_ANNOTATION, InferenceServiceConfig
from helpers.kserve_cluster import ROUTE

ENDPOINT = InferenceServiceConfig(name="depth", namespace="ml")


def pod(model="m", *, ready="True", phase="Running", containers=(), conditions=(), **metadata):
    labels = {"clipmill.io/endpoint": "depth", "clipmill.io/track": "stable"}
    return {
        "metadata": {
            "name": "p",
            "labels": labels,
            "annotations": {MODEL_ANNOTATION: model},
            **metadata,
        },
        "status": {
            "phase": phase,
            "conditions": [{"type": "Ready", "status": ready}, *conditions],
            "containerStatuses": list(containers),
        },
    }


def container(state, *, last=None, restarts=0):
    return {
        "name": "kserve-container",
        "ready": False,
        "state": state,
        "lastState": last or {},
        "restartCount": restarts,
    }


def test_each_pod_that_isnt_ready_has_its_reason(cluster):
    out_of_memory = container({"terminated": {"reason": "OOMKilled", "exitCode": 137}})
    creating = container({"waiting": {"reason": "ContainerCreating"}})
    pods = [
        pod(ready="False", containers=[one])
        for one in (out_of_memory, creating, container({"running": {}}))
    ]
    reasons = describe_failure(cluster.api(), ENDPOINT, [*pods, pod()]).split("; ")
    assert reasons[0].startswith("pod p: OOMKilled")
    assert reasons[1:] == [
        "pod p: its containers haven't started",
        "pod p: its readiness probe fails",
    ]


def test_pods_serve_when_one_is_ready_and_none_has_another_model():
    assert are_serving([pod()], "m")
    assert are_serving([pod(), pod(ready="False")], "m")
    assert not are_serving([], "m")
    assert not are_serving([pod(ready="False")], "m")
    assert not are_serving([pod(), pod("other")], "m")


def test_a_container_that_restarts_again_and_again_is_given_up():
    waiting = {"waiting": {"reason": "CrashLoopBackOff"}}
    assert is_given_up([pod(containers=[container(waiting, restarts=3)])], "m")
    assert not is_given_up([pod(containers=[container(waiting, restarts=2)])], "m")
    assert not is_given_up([pod("other", containers=[container(waiting, restarts=3)])], "m")
    assert not is_given_up([pod(containers=[container({"running": {}}, restarts=3)])], "m")


def test_pods_that_stop_or_ended_dont_count(cluster):
    cluster.pods = [
        pod("going", deletionTimestamp="2026-01-01T00:00:00Z"),
        pod("evicted", phase="Failed"),
        pod("here"),
    ]
    models = [
        p["metadata"]["annotations"][MODEL_ANNOTATION]
        for p in live_pods(cluster.api(), ENDPOINT, "stable")
    ]
    assert models == ["here"]
    assert live_pods(cluster.api(), ENDPOINT, "canary") == []


ACCEPTED = {"type": "Accepted", "status": "True"}
RESOLVED = {"type": "ResolvedRefs", "status": "True"}


@pytest.mark.parametrize(
    ("parents", "is_accepted"),
    [
        ([{"conditions": [ACCEPTED, RESOLVED]}], True),
        ([{"conditions": [ACCEPTED, {**RESOLVED, "status": "False"}]}], False),
        ([{"conditions": [{**ACCEPTED, "status": "False"}]}], False),
        ([], False),
    ],
)
def test_a_route_counts_once_a_gateway_accepted_it(cluster, parents, is_accepted):
    assert accepted_route(cluster.api(), ENDPOINT) is None
    cluster.resources[ROUTE + "depth"] = {"spec": {}, "status": {"parents": parents}}
    assert (accepted_route(cluster.api(), ENDPOINT) is not None) is is_accepted


def test_the_share_is_the_least_of_a_routes_rules():
    def rule(stable, canary):
        backends = [{"name": "a", "weight": stable}, {"name": "b", "weight": canary}]
        return {"backendRefs": backends}

    grpc_and_http = {"spec": {"rules": [rule(90, 10), rule(50, 50)]}}
    assert traffic_percent(grpc_and_http, "b") == 10
    assert traffic_percent({"spec": {"rules": [{"backendRefs": [{"name": "a"}]}]}}, "b") == 0
    assert traffic_percent({"spec": {"rules": [{"backendRefs": [{"name": "a"}]}]}}, "a") == 100

import pytest

from clipmill.cluster.capacity import StageProfile, plan_capacity
from clipmill.errors import ConfigError


def test_a_case_by_hand():
    load = StageProfile(
        name="score", samples_per_second=100.0, bytes_per_sample=1000.0, pod_hour_price=2.0
    )
    # 3.6 M pairs at 100 a second are 10 pod hours; at half efficiency 20; in 4 hours, 5 pods.
    found = plan_capacity(
        load, num_pairs=3_600_000, samples_per_shard=1000, hours=4, efficiency=0.5
    )
    assert found.pods == 5
    assert found.hours == pytest.approx(4)
    assert found.requests_per_second == pytest.approx(3600 * 4 / (4 * 3600))
    assert found.bytes_per_second == pytest.approx(3_600_000 * 1000 / (4 * 3600))
    assert found.price == pytest.approx(40)


def test_no_more_pods_than_shards():
    load = StageProfile(name="score", samples_per_second=1.0)
    assert plan_capacity(load, num_pairs=1000, samples_per_shard=500, hours=0.01).pods == 2


def test_a_rate_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="samples_per_second of score"):
        StageProfile(name="score", samples_per_second=0)

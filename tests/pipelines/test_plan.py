"""Stages that a pipeline will run, from its compiled form and its arguments."""

from collections import Counter

import yaml
from clipmill.pipelines.compile import MANIFESTS
from clipmill.pipelines.local import planned_stages


def stages(name, **arguments):
    spec, _ = yaml.safe_load_all((MANIFESTS / f"{name}.yaml").read_text())
    return Counter(stage for stage, _ in planned_stages(spec, arguments))


def test_loops_count_and_conditions_that_do_not_hold_are_left_out():
    here = stages("end-to-end")
    assert here["scenes"] == here["captioner"] == here["serve"] == here["report"] == 1
    assert here["shard"] == here["promote"] == 2
    assert here["pretrain"] == here["evaluate"] == 2


def test_a_branch_and_an_optional_task_follow_the_arguments():
    alone = stages("photos", pairs="x")
    assert alone == {"shard": 1, "hold-out": 1, "pretrain": 1, "retrieval": 1, "report": 1}
    more = stages("photos", pairs="x", captioner="blip:y", encoder="open_clip:z")
    assert more == alone + Counter(recaption=1, pretrain=1, retrieval=2)

"""The page of an encoder's tasks."""

import json
from pathlib import Path

import pytest

from clipmill.errors import ConfigError
from clipmill.report.tasks import tasks_report


def test_the_page_says_what_was_reached_and_what_serves(make_run):
    run = make_run()  # promotes the better of both labels
    for label, which in (("G", "another, not beaten"), ("G+S", "this")):
        evaluations = run.inputs.evaluations[label]
        uri = Path(tasks_report("encoders/e", evaluations, run.inputs.promotions, run.store))
        page = (uri / "report.html").read_text()
        assert page.count(f"<td>{which}</td>") == 2
        assert "encoders/e" in page
        found = json.loads((uri / "report.json").read_text())
        assert {parent["role"] for parent in found["parents"]} == {"evaluation", "serving"}
        figure = {"G": "31.2", "G+S": "34.0"}[label]
        assert figure in found["summary"]["verdict"]
        assert "mIoU" in found["summary"]["verdict"]


def test_two_evaluations_of_a_task_are_refused(make_run):
    run = make_run()
    uris = [uri for found in run.inputs.evaluations.values() for uri in found]
    with pytest.raises(ConfigError, match="evaluations of"):
        tasks_report("e", uris, (), run.store)

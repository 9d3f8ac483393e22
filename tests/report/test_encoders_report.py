"""The whole page, of a run on disk."""

import json
import re
import uuid
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from clipmill.errors import NotFoundError
from clipmill.lineage import lineage
from clipmill.report.encoders import encoders_report
from clipmill.report.sections.results import RULE
from clipmill.storage import exists, join, read_bytes, read_json, write_json

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """A page's text by section, its images and all that it refers to; refuses unbalanced tags."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sections: dict[str, str] = {}
        self.images: list[dict[str, str]] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self._section = "header"
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "section":
            self._section = found["id"]
        if tag == "img":
            self.images.append(found)
        self.links += [found[name] for name in ("href", "src", "srcset") if name in found]
        assert not any(name.startswith("on") for name in found)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            text = data.replace("\u00a0", " ")
            self.sections[self._section] = f"{self.sections.get(self._section, '')} {text}"


def read_page(uri: str) -> Page:
    return Page(read_bytes(join(uri, "report.html")).decode())


def test_the_page_tells_the_run(make_run) -> None:
    run = make_run()
    page = read_page(encoders_report(run.inputs, run.store))
    found = page.sections
    assert list(found) == [
        "header",
        "results",
        "samples",
        "losses",
        "predictions",
        "endpoint",
        "quarantine",
        "time",
        "cost",
        "provenance",
    ]
    assert "G+S is better than G on segmentation and depth" in found["header"]
    assert "Do better captions make better features?" in found["header"]
    assert "G was pretrained on the images' real captions" in found["header"]
    assert "G+S was pretrained on both real captions and captions by CoCa" in found["header"]
    assert "encoders with random weights are the baseline" in found["header"]
    assert "One seed (0) in a miniature world" in found["header"]
    for words in ("31.2 %", "34.0 %", "+2.8 points", "0.880 m", "+0.032 m", "pixel accuracy"):
        assert words in found["results"]
    assert found["samples"].count("a red cone in front of a wall") == 4
    assert found["samples"].count("said nothing") == 1
    assert "guessing, ln 64" in found["losses"]
    assert "floor" in found["predictions"]
    assert "10 m" in found["predictions"]
    assert "12.3 ms" in found["endpoint"]
    assert found["endpoint"].count("the promoted one") == 2
    assert "≥ 21.9 %" in found["endpoint"]
    assert "clipmill_serving_images_total" in found["endpoint"]
    assert "3 of 8 items" in found["quarantine"]
    assert "unreadable_image" in found["quarantine"]
    assert "lonely.jpg" in found["quarantine"]
    assert "pretrain G+S" in found["time"]
    assert "as above" in found["provenance"]
    assert "torch" in found["provenance"]
    # Samples; predictions of two labels; sent, answered and one truth.
    assert len(page.images) == 5 + 2 * 2 * 4 + 5


def test_the_results_tell_what_learned_nothing_reaches_and_the_rule(make_run) -> None:
    run = make_run()
    page = " ".join(read_page(encoders_report(run.inputs, run.store)).sections["results"].split())
    assert RULE in page
    # The best and the trivial answers, a spread on top: 21.0 + 0.9 %, 0.95 - 0.02 m.
    assert "20.4 % 3 seeds: 20.1 %, 21.0 % and 20.4 %" in page
    assert "5.3 %: a random class for each pixel 11.6 %: the commonest class everywhere" in page
    assert "≥ 21.9 %" in page
    assert "1.010 m 3 seeds" in page
    assert "1.300 m: the mean depth everywhere 0.950 m: the mean depth of each place" in page
    assert "≤ 0.930 m" in page
    assert "G+S over G segmentation +2.8 points +1.7 to +3.9 0.9 points better" in page
    assert "G+S over random weights segmentation +13.0 points" in page
    assert "G over random weights depth +0.088 m +0.078 to +0.098 0.020 m better" in page
    assert page.count("real 2.90; 4.16 80.0 ± 2.0 % learned") == 2
    assert "The encoders share the same pairs" in page


def test_a_pretraining_that_learned_nothing_is_called_failed(make_run) -> None:
    run = make_run(pair_accuracy={"G": 0.53, "G+S": 0.8})
    uri = encoders_report(run.inputs, run.store)
    found = read_page(uri).sections
    assert "Pretraining failed for G: " in found["header"]
    assert "real 2.90; 4.16 53.0 ± 2.0 % failed: no better than chance" in " ".join(
        found["results"].split()
    )
    pretraining = read_json(join(uri, "report.json"))["results"]["pretraining"]
    assert {label: result["has_failed"] for label, result in pretraining.items()} == {
        "G": True,
        "G+S": False,
    }


def test_without_a_comparison_the_page_gives_no_verdict(make_run) -> None:
    run = make_run()
    uri = encoders_report(replace(run.inputs, comparison=""), run.store)
    found = read_page(uri).sections
    assert "Figures without a verdict" in found["header"]
    assert "No comparison with random weights was given." in found["results"]
    assert "The encoders share the same pairs" in found["results"]
    assert "better than" not in found["header"]
    value = read_json(join(uri, "report.json"))
    assert value["results"]["comparison"] == []
    assert value["results"]["tasks"]["depth"]["metrics"]["G"]["rmse"] == 0.912
    assert "comparison" not in [parent.role for parent in lineage(uri).parents]


def test_the_page_asks_for_nothing_and_runs_nothing(make_run) -> None:
    run = make_run()
    uri = encoders_report(run.inputs, run.store)
    page = read_page(uri)
    assert all(link.startswith(("data:image/", "#")) for link in page.links)
    assert not page.tags & {"script", "link", "iframe", "object"}
    assert all(image["alt"] for image in page.images)
    html = read_bytes(join(uri, "report.html")).decode()
    style = re.search(r"<style>(.*)</style>", html, re.DOTALL)
    assert style is not None
    assert not re.search(r"url\(|@import|<", style[1])


def test_what_people_wrote_is_text(make_run) -> None:
    caption = '<script>alert("x")</script> & <img src=x onerror=alert(1)>'
    run = make_run(caption=caption)
    page = read_page(encoders_report(run.inputs, run.store))
    assert caption in page.sections["samples"]
    assert "script" not in page.tags
    assert "cut<b>.jpg" in page.sections["quarantine"]


def test_the_json_has_the_numbers(make_run) -> None:
    run = make_run()
    uri = encoders_report(run.inputs, run.store)
    value = read_json(join(uri, "report.json"))
    assert (value["format"], value["kind"]) == (1, "report")
    assert uri == join(run.store, "reports", value["digest"][:12])
    assert value["verdict"].startswith(
        "G+S is better than G on segmentation and depth. With CoCa captions"
    )
    assert value["verdict"].endswith("docs/study/results.md has five seeds of the demo.")
    depth = value["results"]["tasks"]["depth"]
    assert depth["metrics"]["G"]["rmse"] == 0.912
    assert depth["gain"] == {"G+S": 0.032}
    compared = {found["task"]: found for found in value["results"]["comparison"]}
    assert compared["depth"]["gate"] == pytest.approx(0.93)
    assert [(d["label"], d["over"], d["outcome"]) for d in compared["depth"]["differences"]] == [
        ("G", "random weights", "better"),
        ("G+S", "G", "better"),
        ("G+S", "random weights", "better"),
    ]
    assert value["results"]["seeds"] == {"G": [0], "G+S": [0]}
    assert value["results"]["quarantine"] == {"missing_caption": 1, "unreadable_image": 2}
    assert value["results"]["request_milliseconds"] == {"segmentation": 12.34, "depth": 12.34}
    node = lineage(uri)
    assert [parent.role for parent in node.parents] == [
        "dataset",
        "captions",
        "captioner",
        "encoder G",
        "encoder G+S",
        "evaluation G",
        "evaluation G+S",
        "evaluation G",
        "evaluation G+S",
        "comparison",
        "promotion",
        "promotion",
        "smoke_test",
    ]
    assert not [parent for parent in node.parents if "problem" in parent.detail]


def test_the_page_is_the_same_but_for_the_time(make_run) -> None:
    run = make_run()

    def timeless() -> tuple[str, str]:
        uri = encoders_report(run.inputs, run.store)
        html = read_bytes(join(uri, "report.html")).decode()
        return uri, re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", "", html)

    assert timeless() == timeless()


def test_missing_pieces_are_said_to_be_missing(make_run) -> None:
    run = make_run()
    inputs = replace(
        run.inputs, layer="", captioner="", promotions=(), smoke_test=join(run.store, "no"), run=""
    )
    found = read_page(encoders_report(inputs, run.store)).sections
    assert "No layer of synthetic captions was given." in found["samples"]
    assert "No training log of a captioner." in found["losses"]
    assert "No model was promoted." in found["endpoint"]
    assert "The endpoint was not probed." in found["endpoint"]
    assert "No stage of a run was recorded." in found["time"]
    assert "Encoder G+S" in found["provenance"]


def test_a_layer_or_log_that_is_gone_is_said_to_be(make_run) -> None:
    run = make_run()
    (Path(run.inputs.encoders["G"]) / "log.jsonl").unlink()
    inputs = replace(run.inputs, layer="captions/coca-00000000")
    found = read_page(encoders_report(inputs, run.store)).sections
    assert "has no layer captions/coca-00000000" in found["samples"]
    assert "G left no log." in found["losses"]


def test_without_any_evaluation_there_is_still_a_page(make_run) -> None:
    run = make_run()
    inputs = replace(run.inputs, evaluations={}, comparison="", promotions=(), smoke_test="")
    found = read_page(encoders_report(inputs, run.store)).sections
    assert "Figures without a verdict" in found["header"]
    assert "No comparison with random weights was given." in found["results"]


def test_a_missing_encoder_is_an_error_and_leaves_no_report(make_run) -> None:
    run = make_run()
    encoders = run.inputs.encoders | {"G": join(run.store, "encoders", "gone")}
    with pytest.raises(NotFoundError):
        encoders_report(replace(run.inputs, encoders=encoders), run.store)
    assert not exists(join(run.store, "reports"))
    assert not (Path(run.store) / "reports").exists()


def test_an_endpoint_that_serves_another_model_is_found_out(make_run) -> None:
    run = make_run()
    place = join(run.inputs.smoke_test, "smoke_test.json")
    probe = read_json(place)
    probe["endpoints"][0]["digest"] = "f" * 64
    write_json(place, probe)
    found = read_page(encoders_report(run.inputs, run.store)).sections
    assert found["endpoint"].count("not the promoted one") == 1


def test_a_promoted_model_that_is_none_of_the_labels_is_called_earlier(make_run) -> None:
    run = make_run()
    evaluations = {"G": run.inputs.evaluations["G"]}
    encoders = {"G": run.inputs.encoders["G"]}
    inputs = replace(run.inputs, encoders=encoders, evaluations=evaluations)
    found = read_page(encoders_report(inputs, run.store)).sections
    assert found["endpoint"].count("an earlier model") == 2


def test_a_changed_ancestor_is_shown(make_run) -> None:
    run = make_run()
    captioner = Path(run.inputs.captioner) / "model.json"
    value = json.loads(captioner.read_text())
    captioner.write_text(json.dumps(value | {"digest": "f" * 64}))
    # Given as an input, its card would be read and refused.
    found = read_page(encoders_report(replace(run.inputs, captioner=""), run.store)).sections
    assert "it has changed since" in found["provenance"]


def test_three_labels(make_run) -> None:
    figures = {
        "G": {"segmentation": 31.2, "depth": 0.9},
        "G+S": {"segmentation": 34.0, "depth": 0.8},
        "G+S2": {"segmentation": 33.0, "depth": 0.9},
    }
    run = make_run(figures=figures)
    page = read_page(encoders_report(run.inputs, run.store))
    for words in ("G+S over G ", "G+S2 over G ", "G+S2 over G+S ", "no difference"):
        assert words in page.sections["results"]
    assert "G+S2 is better than G on segmentation" in page.sections["header"]
    assert (
        "; no difference between G+S2 and G that this run can show on depth"
        in page.sections["header"]
    )


@pytest.mark.usefixtures("s3")
def test_a_run_in_an_object_store(make_run) -> None:
    run = make_run(store=f"s3://tests/{uuid.uuid4().hex}")
    uri = encoders_report(run.inputs, run.store)
    page = read_page(uri)
    assert uri.startswith(f"{run.store}/reports/")
    assert len(page.images) == 5 + 2 * 2 * 4 + 5
    assert "encoders/both-1" in page.sections["provenance"]

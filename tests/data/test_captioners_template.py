"""Captions from labels and boxes."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipmill.data.captioners import CaptionersConfig, open_captioner
from clipmill.data.captioners.base import CaptionInput, CaptionOutput
from clipmill.data.captioners.config import TemplateConfig
from clipmill.data.captioners.template import TemplateCaptioner, describe
from clipmill.errors import ArtifactError, ConfigError, NotFoundError

ROWS = [
    {
        "uid": "a",
        "labels": ["red cube", "orange cone", "red cube"],
        "boxes": [[0.0, 0.0, 0.2, 0.2], [0.3, 0.0, 0.4, 0.9], [0.8, 0.1, 0.2, 0.1]],
    },
    {"uid": "b", "labels": ["dog"], "boxes": None},
    {"uid": "empty", "labels": [], "boxes": []},
]


@pytest.fixture
def labels(tmp_path):
    file = tmp_path / "labels.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), file)
    return file


def say(uri, config=TemplateConfig(), uids=("a", "b", "empty", "unknown")):  # noqa: B008
    samples = [CaptionInput(uid=uid, caption="x") for uid in uids]
    return dict(TemplateCaptioner(str(uri), config).caption(samples))


def test_each_template_is_filled(labels):
    found = say(labels)
    objects = "an orange cone in the middle, a red cube on the left and a red cube on the right"
    assert found[0] == CaptionOutput(
        texts=(objects, f"a picture of {objects}"), scores=(None, None)
    )
    assert found[1].texts == ("a dog", "a picture of a dog")
    assert found[2] == found[3] == CaptionOutput(reason="missing_label")


def test_without_places_objects_are_counted(labels):
    config = TemplateConfig(templates=("{objects}.",), include_positions=False, max_objects=1)
    assert say(labels, config)[0].texts == ("two red cubes.",)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["cube"], "a cube"),
        (["box", "box"], "two boxes"),
        (["owl"] * 12, "12 owls"),
        (["a", "b", "b", "c"], "two bs, an a and a c"),
    ],
)
def test_describe(names, expected):
    assert describe(names) == expected


def test_all_forms_of_labels_say_the_same(labels, tmp_path):
    lines = tmp_path / "labels.jsonl"
    lines.write_text("\n".join(json.dumps(row) for row in ROWS))
    folder = tmp_path / "layer"
    folder.mkdir()
    for k, row in enumerate(ROWS):
        pq.write_table(
            pa.Table.from_pylist([row], pa.Table.from_pylist(ROWS).schema), folder / f"{k}.parquet"
        )
    assert say(lines) == say(folder) == say(labels)


def test_who_it_is(labels, tmp_path):
    config = CaptionersConfig()
    kind, captioner = open_captioner(f"template:{labels}", config)
    assert kind == "template"
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"uid": "a", "labels": ["cat"]}))
    identities = {
        captioner.identity,
        open_captioner(f"template:{other}", config)[1].identity,
        TemplateCaptioner(str(labels), TemplateConfig(include_positions=False)).identity,
    }
    assert len(identities) == 3
    assert captioner.parents[0].uri == str(labels)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not json",
        '{"uid": "a"}',
        "[1]",
        '{"uid": "a", "labels": ["x"], "boxes": [[1, 2, 3]]}',
        '{"uid": "a", "labels": ["x", "y"], "boxes": [[0, 0, 1, 1]]}',
    ],
)
def test_files_that_hold_no_labels(tmp_path, text):
    file = tmp_path / "labels.jsonl"
    file.write_text(text)
    with pytest.raises(ArtifactError, match="holds no labels"):
        say(file)


def test_nothing_there(tmp_path):
    with pytest.raises(NotFoundError):
        say(tmp_path / "none.jsonl")
    with pytest.raises(ArtifactError, match="there is no row"):
        say(tmp_path / "no-folder")


@pytest.mark.parametrize(
    "wrong", [{"templates": ()}, {"templates": ("a cube",)}, {"max_objects": 0}]
)
def test_settings_that_say_nothing(wrong):
    with pytest.raises(ConfigError, match="was"):
        TemplateConfig(**wrong)

"""Relevance by a judge at a real endpoint: numbers, failures, budget and resumption."""

from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from clipmill.cli import app
from clipmill.data.captioners.config import ChatClientConfig
from clipmill.data.dataset import Dataset, cache_folder
from clipmill.data.filters import ClipScoreFilter, ScoreRangeFilter
from clipmill.data.layers import read_layer
from clipmill.data.scoring.relevance import RelevanceScoreConfig, parse_score
from clipmill.data.scoring.score import ScoreConfig, score
from clipmill.data.scoring.scorers import ImageScoreConfig
from clipmill.data.select import CaptionSelectionConfig, SelectConfig, filter_steps, select
from clipmill.data.stats import score_columns
from clipmill.errors import BudgetError, ConfigError, ServerError
from clipmill.images import decode_rgb
from clipmill.lineage import lineage
from helpers.chat_server import ChatServer, image_of, text_of

LAYER = "captions/test-1"


def silent(done, total, words):
    pass


def fail(done, total, words):
    pytest.fail("worked again")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPMILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def judging(server, *, batch_size=4, vlm=None, **endpoint):
    default = RelevanceScoreConfig()
    client = ChatClientConfig(**{"concurrency": 1, "backoff_seconds": 0.0, **endpoint})
    return ScoreConfig(
        batch_size=batch_size,
        relevance=replace(
            default,
            url=server.url,
            vlm=replace(default.vlm, model="judge", **(vlm or {})),
            endpoint=client,
        ),
    )


def caption_of(body):
    return text_of(body).partition("Text: ")[2]


def number_of(body, _=0):
    """A number that depends on the caption."""
    caption = caption_of(body)
    return str(sum(caption.encode()) % 101)


def rows_of(uri, layer):
    dataset = Dataset.open(uri)
    return [
        row
        for index in range(len(dataset.shards))
        for row in read_layer(dataset, layer, index, cache_folder()).to_pylist()
    ]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("85", 0.85),
        (" 85.\n", 0.85),
        ("85%", 0.85),
        ("7,5", 0.075),
        ("**Score:** 85", 0.85),
        ('{"score": 85, "note": "2 dogs of 3"}', 0.85),
        ("The relevance is 40, as 2 of 3 objects are there", 0.4),
        ("I would say 85/100.", 0.85),
        ("85 out of 100", 0.85),
        ("Rating: 85/100", 0.85),
        ("0", 0.0),
        ("100", 1.0),
        ("101", None),
        ("-5", None),
        ("8/10", None),
        ("Score: 8/10", None),
        ("between 70 and 80", None),
        ("70-80", None),
        ("70/100 or 80/100", None),
        ("it fits", None),
        ("v2", None),
        ("", None),
    ],
)
def test_numbers_in_answers(answer, expected):
    assert parse_score(answer, 100) == pytest.approx(expected, abs=1e-6)


def test_every_caption_is_judged_with_its_image(make_dataset, add_captions):
    dataset = add_captions(make_dataset(count=6), LAYER)
    with ChatServer(answer=number_of) as server:
        config = judging(server)
        (layer,) = score(config, dataset.uri, report=silent)
        assert len(server.bodies) == 6 * 4
        for body in server.bodies:
            assert "from 0 to 100" in text_of(body)
            assert body["temperature"] == 0
            assert image_of(body).width <= 8
        assert score(config, dataset.uri, report=fail) == (layer,)
    rows = rows_of(dataset.uri, layer)
    for row in rows:
        texts = [f"synthetic {row['uid']} {k}" for k in range(3)]
        expected = [sum(text.encode()) % 101 / 100 for text in texts]
        assert row[LAYER] == pytest.approx(expected, abs=1e-6)
        assert 0 <= row["real"] <= 1
        assert row["reason"] == ""
    node = lineage(dataset.layer_uri(layer))
    assert (node.detail["model"], node.detail["failed"]) == ("judge", "none")
    table = read_layer(Dataset.open(dataset.uri), layer, 0, cache_folder())
    assert score_columns(table) == ["real", LAYER]
    # Filters and the selection of captions read it as they read CLIP scores.
    best = SelectConfig(
        name="best",
        caption_selection=CaptionSelectionConfig(strategy="best", scores="score/relevance"),
        filters=filter_steps(
            ScoreRangeFilter(layer="score/relevance", min_score=0.2, captions="selected"),
            ClipScoreFilter(layer="score/relevance", threshold=0.2, captions="selected"),
        ),
    )
    kept = rows_of(dataset.uri, select(best, dataset.uri, report=silent))
    highest = [max([row["real"], *row[LAYER]]) for row in rows]
    assert [row["keep"] for row in kept] == [value >= 0.2 for value in highest]


def test_the_address_of_the_endpoint_doesnt_name_the_layer(make_dataset):
    dataset = make_dataset(count=3)
    with ChatServer(answer=number_of) as server:
        (first,) = score(judging(server), dataset.uri, report=silent)
        (again,) = score(judging(server, concurrency=2), dataset.uri, report=fail)
        (other,) = score(judging(server, vlm={"seed": 1}), dataset.uri, report=silent)
    with ChatServer(answer=number_of) as server:
        assert score(judging(server), dataset.uri, report=fail) == (first,)
    assert again == first != other


def test_failures_are_counted_and_judged_again(make_dataset, monkeypatch):
    dataset = make_dataset(count=8, samples_per_shard=4)
    plan = ["ok", (500, {}), (400, {}), "ok"]
    unsure = []

    def answer(body, k):
        if len(unsure) < 1 and len(server.bodies) > 4:
            unsure.append(body)
            return "hard to say"
        return number_of(body)

    messages = []
    with ChatServer(plan, answer=answer) as server:
        config = judging(server, max_attempts=1)
        (first,) = score(
            config, dataset.uri, report=lambda done, total, words: messages.append(words)
        )
        assert len(server.bodies) == 8
        before = rows_of(dataset.uri, first)
        assert sorted(row["reason"] for row in before if row["reason"]) == [
            *("no_score", "refused", "unavailable")
        ]
        assert all((row["real"] is None) == bool(row["reason"]) for row in before)
        assert messages[-1] == "scored, 3 failed"
        detail = lineage(dataset.layer_uri(first)).detail
        assert detail["failed"] == "1 no_score, 1 refused, 1 unavailable"

        (second,) = score(config, dataset.uri, report=silent, retry=True)
        assert second == f"{first}-retry1"
        assert len(server.bodies) == 10
        for old, new in zip(before, rows_of(dataset.uri, second), strict=True):
            if old["reason"] in {"unavailable", "no_score"}:
                assert new["real"] is not None
            else:
                assert new == old
        assert score(config, dataset.uri, report=fail, retry=True) == (second,)


def test_a_spent_budget_resumes_where_it_stopped(make_dataset):
    dataset = make_dataset(count=8, samples_per_shard=8)
    with ChatServer(answer=number_of) as server:
        with pytest.raises(BudgetError):
            score(judging(server, max_requests=5), dataset.uri, report=silent)
        assert len(server.bodies) == 5
        (layer,) = score(judging(server), dataset.uri, report=silent)
        assert len(server.bodies) == 8
        assert max(server.counts().values()) == 1
    assert all(row["real"] is not None for row in rows_of(dataset.uri, layer))
    folder = dataset.layer_uri(layer)
    assert not list(Path(folder).glob("*.part.json"))


def test_an_endpoint_that_is_down_ends_the_run_and_keeps_what_was_judged(make_dataset):
    dataset = make_dataset(count=8, samples_per_shard=8)
    with ChatServer(["ok"] * 2 + [(500, {})] * 50, answer=number_of) as server:
        config = judging(server, max_attempts=1, max_consecutive_failures=3)
        with pytest.raises(ServerError, match="3 samples in a row"):
            score(config, dataset.uri, report=silent)
    with ChatServer(answer=number_of) as server:
        (layer,) = score(judging(server), dataset.uri, report=silent)
        assert len(server.bodies) == 6
    assert all(row["real"] is not None for row in rows_of(dataset.uri, layer))


def test_a_broken_image_is_not_sent(make_dataset, monkeypatch):
    dataset = make_dataset(count=4)
    decoded = []

    def decode(data):
        decoded.append(data)
        return None if len(decoded) == 2 else decode_rgb(data)

    monkeypatch.setattr("clipmill.data.scoring.score._decode", decode)
    with ChatServer(answer=number_of) as server:
        config = replace(judging(server), num_threads=1)
        (layer,) = score(config, dataset.uri, report=silent)
        assert len(server.bodies) == 3
    (broken,) = [row for row in rows_of(dataset.uri, layer) if row["reason"]]
    assert (broken["reason"], broken["real"]) == ("unreadable_image", None)


def test_the_command_line(make_dataset):
    dataset = make_dataset(count=3)
    with ChatServer(answer=number_of) as server:
        arguments = ["data", "score", dataset.uri, "--recipe", "score-relevance"]
        sets = ["--set", f"relevance.url={server.url}", "--set", "relevance.vlm.model=judge"]
        result = CliRunner().invoke(app, [*arguments, *sets])
        assert result.exit_code == 0, result.output
        assert len(server.bodies) == 3
    assert "score/relevance-" in result.output
    result = CliRunner().invoke(app, [*arguments, *sets, "--retry"])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale": 0}, r"relevance\.scale was 0"),
        ({"vlm": {"prompt": "how good?"}}, r"relevance\.vlm\.prompt was 'how good\?'"),
        ({"vlm": {"num_captions": 2}}, r"relevance\.vlm\.num_captions was 2"),
    ],
)
def test_settings_of_a_judge(settings, message):
    default = RelevanceScoreConfig()
    if "vlm" in settings:
        settings = {"vlm": replace(default.vlm, **settings["vlm"])}
    with pytest.raises(ConfigError, match=message):
        replace(default, **settings)


def test_what_a_judge_needs(make_dataset):
    dataset = make_dataset(count=2)
    with pytest.raises(ConfigError, match=r"relevance\.url was empty"):
        score(ScoreConfig(relevance=RelevanceScoreConfig()), dataset.uri, report=silent)
    unnamed = RelevanceScoreConfig(url="http://127.0.0.1:1/v1")
    with pytest.raises(ConfigError, match=r"relevance\.vlm\.model was empty"):
        score(ScoreConfig(relevance=unnamed), dataset.uri, report=silent)
    with pytest.raises(ConfigError, match="the recipe asks no endpoint"):
        score(ScoreConfig(image=ImageScoreConfig()), dataset.uri, report=silent, retry=True)

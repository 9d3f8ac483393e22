"""A study of a few pictures, whole, stopped and resumed."""

from dataclasses import replace

import pytest

from clipmill.data.scenes.source import ScenesSourceConfig
from clipmill.errors import ConfigError
from clipmill.recipes.study import study_captions
from clipmill.study.config import ConditionConfig, StudyConfig
from clipmill.study.page import markdown, rows, study_page, verdict
from clipmill.study.result import StudyResult, StudyRun, read_study
from clipmill.study.run import run_study
from clipmill.study.scene_captions import DOSES, SCENE_CAPTIONS, draw_captions, true_share
from clipmill.tasks.evaluation import read_evaluation

SCENES = ScenesSourceConfig(num_pairs=24, num_captioning=8, num_labelled=4, num_test=2)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPMILL_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def scenes():
    return draw_captions(replace(SCENES, num_pairs=200))


def tiny() -> StudyConfig:
    """The recipe with two steps of everything."""
    whole = study_captions()

    def short(config):
        train = replace(config.train, steps=2, batch_size=2)
        return replace(config, train=train)

    return replace(
        whole,
        scenes=SCENES,
        captioner=short(whole.captioner),
        pretrain=short(whole.pretrain),
        finetunes=tuple(short(finetune) for finetune in whole.finetunes),
        conditions=(
            ConditionConfig(name="G"),
            ConditionConfig(name="G+S", captions="both", layer="coca"),
            ConditionConfig(name="rich", captions="synthetic", layer="rich"),
        ),
        seeds=(0, 1),
    )


def quietly(done, total, words):
    pass


def test_a_stopped_study_goes_on_to_the_same_figures(tmp_path):
    config = tiny()

    def stop(done, total, words):
        if words.startswith("runs") and done == 2:
            raise KeyboardInterrupt

    store = str(tmp_path / "store")
    with pytest.raises(KeyboardInterrupt):
        run_study(config, store, report=stop)
    made = sorted((tmp_path / "store" / "encoders").glob("*/model.json"))
    before = {path: path.stat().st_mtime_ns for path in made}
    assert len(before) == 2
    result = read_study(run_study(config, store, report=quietly))
    assert before.items() <= {p: p.stat().st_mtime_ns for p in before}.items()
    assert [(run.condition, run.seed) for run in result.runs] == [
        (name, seed) for name in ("G", "G+S", "rich") for seed in (0, 1)
    ]
    assert len({run.encoder for run in result.runs}) == 6
    assert result.quality.keys() == {"real", "coca", "rich"}
    assert result.quality["rich"].true_share == 100
    assert result.quality["real"].true_share < 60
    for run in result.runs:
        for task, uri in run.evaluations.items():
            assert read_evaluation(uri).metrics == run.metrics[task]
    page = study_page(result)
    for name in ("G+S", "rich"):
        assert name in page
    assert read_study(result.uri) == result
    assert len(rows(result)) == sum(len(m) for run in result.runs for m in run.metrics.values())


def known(figures: dict[str, list[float]]) -> StudyResult:
    """A result whose depth errors are given, segmentation being without any difference."""
    config = replace(
        tiny(), conditions=tuple(ConditionConfig(name=n) for n in figures), seeds=(0, 1, 2, 3)
    )
    runs = tuple(
        StudyRun(
            condition=name,
            seed=seed,
            encoder=f"encoders/{name}-{seed}",
            evaluations={"segmentation": "s", "depth": "d"},
            metrics={"segmentation": {"mIoU": 10.0 + seed}, "depth": {"rmse": value}},
        )
        for name, values in figures.items()
        for seed, value in enumerate(values)
    )
    return StudyResult(uri="studies/x", config=config, runs=runs, quality={}, seconds=1.0)


def test_verdict_speaks_of_what_the_interval_leaves_no_doubt_about():
    first = [0.80, 0.82, 0.81, 0.83]
    found = known({"G": first, "less": [x - 0.1 for x in first], "same": first[::-1]})
    assert verdict(found) == ["less is better than G at depth by 0.100 m."]
    page = study_page(found)
    assert "+0.100 m (+0.100 to +0.100), +12.3 %, p = 0.125" in page
    assert "| less | 11.500 % [" in markdown(found)
    assert verdict(known({"G": first, "same": first})) == [
        "No condition differs from G by more than its interval."
    ]


def test_scene_captions_are_as_good_as_their_names_say(scenes):
    said = {
        name: [say(scenes, i) for i in range(len(scenes))] for name, say in SCENE_CAPTIONS.items()
    }
    assert true_share(said["rich"], scenes) == 100
    assert true_share(said["terse"], scenes) > 95
    assert said["rewrite"] != [scene.alt for scene in scenes]
    wrong = {
        percent: {i for i, text in enumerate(said[f"wrong-{percent}"]) if text != said["terse"][i]}
        for percent in DOSES
    }
    for percent, chosen in wrong.items():
        assert len(chosen) == pytest.approx(2 * percent, abs=20)
    assert wrong[25] <= wrong[50] <= wrong[75] <= wrong[100]


def test_a_layer_that_nobody_makes_is_refused():
    with pytest.raises(ConfigError, match="takes the layer 'nonsense'"):
        ConditionConfig(name="x", captions="synthetic", layer="nonsense")
    with pytest.raises(ConfigError, match="no labels are drawn for depth"):
        replace(tiny(), scenes=replace(SCENES, tasks=("segmentation",)))
    with pytest.raises(ConfigError, match="conditions was"):
        replace(tiny(), conditions=())

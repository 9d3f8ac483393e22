"""A study of a few pictures, whole, stopped and resumed."""

import csv
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from clipmill.cli import app
from clipmill.errors import ArtifactError, ConfigError
from clipmill.models.checkpoint import read_metadata
from clipmill.recipes.study import study_captions
from clipmill.report.sections.provenance import environment
from clipmill.storage import join, read_json, write_json
from clipmill.study.config import ConditionConfig, StudyConfig, TableBudget
from clipmill.study.page import study_page
from clipmill.study.result import RESULT, Cost, StudyResult, merge_studies, read_study
from clipmill.study.run import run_study
from clipmill.study.scene_captions import (
    NOISE_LEVELS,
    SCENE_CAPTIONS,
    CaptionAccuracy,
    caption_accuracy,
    draw_captions,
)
from clipmill.study.tables import StudyRun, comparison, csv_rows, latex, markdown, summary_sentences
from clipmill.tasks.evaluation import read_evaluation
from helpers.tiny_study import SCENES, tiny


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPMILL_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def scenes():
    return draw_captions(replace(SCENES, num_pairs=200))


def uris(result: StudyResult, condition: str) -> list[str]:
    return [
        uri for run in result.runs if run.condition == condition for uri in run.evaluations.values()
    ]


def segmented(result: StudyResult) -> list[str]:
    return [run.evaluations["segmentation"] for run in result.runs]


def uri_of(evaluation: str) -> str:
    return read_evaluation(evaluation).model.uri


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
    (saved,) = (tmp_path / "store" / "studies").glob("*/wall_time.json")
    first_start = read_json(str(saved))["seconds"]
    result = read_study(run_study(config, store, report=quietly))
    (part,) = result.parts
    assert part.seconds > first_start > 0
    assert part.digest == config.digest
    assert part.environment == environment()
    assert before.items() <= {p: p.stat().st_mtime_ns for p in before}.items()
    names = [c.name for c in config.conditions]
    mobile = "mobile, CLIP G+S, distilled"
    asked = [(n, s) for s in (0, 1) for n in names if (n, s) != (mobile, 1)]
    assert [(r.condition, r.seed) for r in result.runs] == asked
    assert [[*r.evaluations] for r in result.runs if r.condition == mobile] == [["segmentation"]]
    assert result.table("mobile").seeds == (0,)
    assert result.table("sources").seeds == (0, 1)
    # Each condition and seed has an encoder of its own, but for random weights, which have none.
    assert len({run.encoder for run in result.runs}) == len(asked) - 1
    assert result.quality.keys() == {"real", "coca", "rich"}
    assert result.quality["rich"].truth == CaptionAccuracy(pictures=100, words=100, named=100)
    assert result.quality["real"].truth.pictures < 60
    assert all(-100 <= quality.clip_score <= 100 for quality in result.quality.values())
    learnt = [c.name for c in config.conditions if c.encoder in config.clip_runs]
    assert result.costs.keys() == set(learnt)
    assert result.costs["G"].captioning == 0 < result.costs["G"].pretraining
    assert result.costs["G"].pretraining == result.costs["G, 10%"].pretraining
    assert result.costs["G+S (CoCa)"].captioning > 0
    assert result.costs["G+S (CoCa)"].pretraining > result.costs["G"].pretraining
    for run in result.runs:
        for name, uri in run.evaluations.items():
            assert read_evaluation(uri).metrics == run.metrics[name]
            assert read_metadata(uri_of(uri)).recipe["model"]["freeze_encoder"] == (
                "frozen" in name
            )
    assert read_metadata(result.runs[-1].encoder).kind == "mae"
    student = next(r for r in result.runs if r.condition.endswith("distilled"))
    teacher = next(r for r in result.runs if r.condition == config.teacher)
    (layer,) = (p for p in read_metadata(student.encoder).parents if p.role == "teacher")
    taught = read_json(f"{layer.uri}/layer.json")["parents"]
    assert read_metadata(teacher.encoder).digest in [p["digest"] for p in taught]
    assert [sample.captions.keys() for sample in result.samples] == [result.quality.keys()] * 8
    assert result.attention.keys() == set(config.attention)
    page = study_page(result)
    for name in names:
        assert name in page
    assert read_study(result.uri) == result
    assert len(csv_rows(result.table())) == sum(
        len(m) for run in result.runs for m in run.metrics.values()
    )
    report_has_the_same_figures(result, tmp_path / "tables.html")
    parts_are_the_whole(result, tmp_path)


def parts_are_the_whole(result, folder):
    """The mobile table with its seed; the second seed of the rest, and the first."""
    rest = result.config.subset(("sources", "objectives", "scaling"))
    configs = [
        result.config.subset(("mobile",)),
        *(rest.subset(seeds=(seed,)) for seed in result.config.seeds[::-1]),
    ]
    parts = [part_of(result, config, str(folder / config.digest)) for config in configs]
    studies = [read_study(uri) for uri in parts]
    assert all("<h1>" in study_page(part) for part in studies)
    joined = merge_studies(studies)
    assert sorted(joined.runs, key=str) == sorted(result.runs, key=str)
    for table in ("sources", "objectives", "scaling", "mobile"):
        assert joined.table(table) == replace(result.table(table), runs=joined.runs)
    for name in ("quality", "attention", "costs", "num_pairs", "samples"):
        assert getattr(joined, name) == getattr(result, name)
    assert joined.parts == result.parts * 3
    assert joined.varying_captions == ()
    told = studies[1].quality["coca"]
    others = {"coca": replace(told, num_different=told.num_different + 1)}
    elsewhere = merge_studies([replace(studies[1], quality=others), *studies[::2]])
    assert elsewhere.varying_captions == ("coca",)
    assert "Not every part has the same coca captions" in study_page(elsewhere)
    page = folder / "joined.html"
    assert reported(*parts, "--output", str(page)) == by_place(csv_rows(result.headline_table))
    assert all(c.name in page.read_text() for c in result.config.conditions)
    mobile = read_study(parts[0])
    empty = replace(mobile, runs=())
    with pytest.raises(ConfigError, match="no seed has all of the table 'mobile'"):
        merge_studies([empty, empty])
    clip = mobile.config.clip_runs["clip"]
    longer = replace(clip, train=replace(clip.train, steps=3))
    other = replace(mobile.config, clip_runs={**mobile.config.clip_runs, "clip": longer})
    with pytest.raises(ConfigError, match=r"the studies differ in clip_runs\.clip"):
        merge_studies([mobile, replace(mobile, config=other)])
    write_json(join(parts[0], RESULT), {**mobile.to_json(), "format": 1})
    with pytest.raises(ArtifactError, match="of format 1"):
        read_study(parts[0])


def test_a_part_of_a_study_is_what_its_tables_need():
    whole = study_captions()
    part = whole.subset(("mobile",))
    mobile = [c.name for c in whole.conditions_of("mobile")]
    assert [c.name for c in part.conditions_of("mobile")] == mobile
    assert {c.name for c in part.conditions} == {*mobile, whole.teacher}
    assert (part.scoring_clip, part.attention, part.table_budgets.keys()) == ("", (), {"mobile"})
    assert part.transfers_for(part.condition(whole.teacher), 0) == {}
    sources = whole.subset(("sources", "dose"))
    assert sources.scoring_clip == whole.scoring_clip
    for condition in sources.conditions_of("dose"):
        assert sources.transfers_for(condition, 1) == whole.transfers_for(condition, 1)
    with pytest.raises(ConfigError, match="no table 'sizes'"):
        whole.subset(("sizes",))


def test_a_part_of_a_study_is_what_its_seeds_need():
    whole = study_captions()
    second = whole.subset(("sources", "objectives"), (1,))
    assert (second.seeds, second.attention, second.scoring_clip) == ((1,), (), whole.scoring_clip)
    for table in ("sources", "objectives"):
        assert second.seeds_of(table) == (1,)
        for condition in second.conditions_of(table):
            assert second.transfers_for(condition, 1) == whole.transfers_for(condition, 1)
    # The first two seeds have every table, the others the caption sources alone.
    assert whole.subset(seeds=(0, 1)).conditions_of("dose") == whole.conditions_of("dose")
    later = whole.subset(seeds=(3, 4))
    assert {t for c in later.conditions for t in c.tables} == {"sources"}
    assert whole.subset(("objectives",), (0,)).attention == whole.attention
    for tables, seeds, complaint in (
        ((), (7,), "no seed 7"),
        (("dose",), (3,), "no selected table has the seeds 3"),
        ((), (1,), r"'mobile, CLIP G\+S, distilled' learns from 'G\+S \(CoCa\)' of seed 0"),
    ):
        with pytest.raises(ConfigError, match=complaint):
            whole.subset(tables, seeds)


def part_of(result, config, uri):
    """Where the study of a part of a config lies, as if it were run alone."""
    runs = tuple(
        run
        for run in result.runs
        if config.transfers_for(result.config.condition(run.condition), run.seed)
    )
    quality = result.quality
    if not config.scoring_clip:
        quality = {name: replace(found, clip_score=None) for name, found in quality.items()}
    part = replace(result, config=config, runs=runs, quality=quality)
    write_json(join(uri, RESULT), part.to_json())
    return uri


def report_has_the_same_figures(result, page):
    """From a study beside an evaluation, and from evaluations: what all conditions have."""
    ours = by_place(
        row
        for row in csv_rows(result.table())
        if (row["seed"], row["transfer"]) == (0, "segmentation")
    )
    again = {("again", *place): v for (name, *place), v in ours.items() if name == "G"}
    assert reported(result.uri, f"again={segmented(result)[0]}") == ours | again
    kept = ("rich, true", "G")
    named = [f"{c}={uri}" for c in kept for uri in uris(result, c)]
    found = reported(*named, "--output", str(page))
    assert found == by_place(r for r in csv_rows(result.table()) if r["condition"] in kept)
    assert "rich, true" in page.read_text()
    answer = CliRunner().invoke(app, ["study", "compare", "=x"])
    assert isinstance(answer.exception, ConfigError)


def reported(*arguments):
    answer = CliRunner().invoke(app, ["study", "compare", *arguments, "--csv"])
    assert answer.exit_code == 0, answer.output
    return by_place(csv.DictReader(answer.stdout.splitlines()))


def by_place(found):
    places = ("condition", "seed", "transfer", "metric")
    return {tuple(str(row[name]) for name in places): float(row["value"]) for row in found}


def result_of(config, runs, costs=None) -> StudyResult:
    return StudyResult(
        uri="studies/x",
        config=config,
        runs=runs,
        num_pairs=24,
        quality={},
        samples=(),
        attention={},
        costs=costs or {},
        parts=(),
    )


def known(figures: dict[str, list[float]]) -> StudyResult:
    """A result whose depth errors are given, segmentation being without any difference."""
    tables = ("sources", "objectives")
    conditions = tuple(ConditionConfig(name=n, tables=tables) for n in figures)
    config = replace(study_of(*conditions), seeds=(0, 1, 2, 3))
    runs = tuple(
        StudyRun(
            condition=name,
            seed=seed,
            encoder=f"encoders/{name}-{seed}",
            evaluations={"segmentation": "s", "depth, frozen": "d"},
            metrics={"segmentation": {"mIoU": 10.0 + seed}, "depth, frozen": {"rmse": value}},
        )
        for name, values in figures.items()
        for seed, value in enumerate(values)
    )
    return result_of(config, runs)


def test_verdict_speaks_of_what_the_interval_leaves_no_doubt_about():
    first = [0.80, 0.82, 0.81, 0.83]
    found = known({"G": first, "less": [x - 0.1 for x in first], "same": first[::-1]})
    assert summary_sentences(found.table()) == [
        "less is better than G at depth, frozen (by 0.100 m).",
        "4 seeds are a hint: no test is sure of so few.",
    ]
    page = study_page(found)
    assert (
        "+0.100 (+0.100 to +0.100)</small><small>+12.3 %, p = 0.125</small><small>0.705 to 0.725"
        in page
    )
    # The paper's figures stand where whole encoders are fine-tuned.
    assert '<td class="paper">43.9</td></tr>' in page
    assert page.index("Fine-tuned as a whole") < page.index("43.9") < page.index("Heads on frozen")
    assert '<td class="paper">0.383</td>' not in page
    assert "| less | 11.5 [" in markdown(found.table())
    assert r"less & 11.5 [10.5, 12.5] & 0.715 [0.705, 0.725] \\" in latex(found.table())
    mixed = known({"G": first, "split": [x - 0.1 for x in first]})
    worse = [
        replace(run, metrics={**run.metrics, "segmentation": {"mIoU": 5.0 + run.seed}})
        if run.condition == "split"
        else run
        for run in mixed.runs
    ]
    assert summary_sentences(replace(mixed.table(), runs=tuple(worse)))[0] == (
        "split is better than G at depth, frozen (by 0.100 m) and worse at segmentation "
        "(by 5.0 points)."
    )
    # One that has a reference of its own is compared with that.
    findings = found.table()
    matched = replace(findings, baselines={"less": "less", "same": "less"})
    assert summary_sentences(matched)[0] == "same is worse than less at depth, frozen (by 0.100 m)."
    told = str(comparison(matched))
    assert "<span>same</span><small>against less</small>" in told
    assert told.count("against") == 2  # fine-tuned, and frozen
    assert "(+0.100 to +0.100)" not in told
    one = replace(known({"G": first, "worse": [1.8, 1.8, 1.8, 1.8]}).table(), seeds=(0,))
    assert summary_sentences(one) == ["One seed, which can't tell an effect from noise."]
    assert summary_sentences(known({"G": first, "same": first}).table()) == [
        "No condition differs from G by more than its interval."
    ]


def test_scene_captions_are_as_good_as_their_names_say(scenes):
    said = {
        name: [say(scenes, i) for i in range(len(scenes))] for name, say in SCENE_CAPTIONS.items()
    }
    assert caption_accuracy(said["rich"], scenes) == CaptionAccuracy(
        pictures=100, words=100, named=100
    )
    terse = caption_accuracy(said["terse"], scenes)
    assert terse.words == 100 > terse.named > 60
    assert caption_accuracy(said["wrong-100"], scenes).named < 50
    assert caption_accuracy([""] * len(scenes), scenes) == CaptionAccuracy(
        pictures=0, words=0, named=0
    )
    assert said["rewrite"] != [scene.alt for scene in scenes]
    wrong = {
        percent: {i for i, text in enumerate(said[f"wrong-{percent}"]) if text != said["terse"][i]}
        for percent in NOISE_LEVELS
    }
    for percent, chosen in wrong.items():
        assert len(chosen) == pytest.approx(2 * percent, abs=20)
    assert wrong[25] <= wrong[50] <= wrong[75] <= wrong[100]


def study_of(*conditions: ConditionConfig) -> StudyConfig:
    return replace(tiny(), attention=(), scoring_clip="", teacher="", conditions=conditions)


def test_a_study_of_alt_text_alone(tmp_path):
    whole = tiny()
    config = replace(
        study_of(whole.conditions[0]),
        transfers={"depth, frozen": whole.transfers["depth, frozen"]},
        table_budgets={},
        seeds=(0,),
    )
    result = read_study(run_study(config, str(tmp_path), report=quietly))
    assert result.quality.keys() == {"real"}
    assert [run.condition for run in result.runs] == ["G"]


def test_a_layer_that_nobody_makes_is_refused():
    with pytest.raises(ConfigError, match="takes the layer 'nonsense'"):
        study_of(ConditionConfig(name="x", captions="synthetic", layer="nonsense"))
    with pytest.raises(ConfigError, match="takes the layer ''"):
        study_of(ConditionConfig(name="x", captions="both"))
    with pytest.raises(ConfigError, match=r"has a fraction of 1\.5"):
        ConditionConfig(name="x", compute_budget=1.5)
    with pytest.raises(ConfigError, match="is compared with 'y'"):
        study_of(ConditionConfig(name="x", baseline="y"))
    with pytest.raises(ConfigError, match="takes the encoder 'nothing'"):
        study_of(ConditionConfig(name="x", encoder="nothing"))
    unlabeled = replace(tiny().synthetic_data, scenes=replace(SCENES, tasks=("segmentation",)))
    with pytest.raises(ConfigError, match="no labels are generated for depth"):
        replace(tiny(), synthetic_data=unlabeled)
    with pytest.raises(ConfigError, match="conditions was"):
        study_of()
    with pytest.raises(ConfigError, match="one source of data"):
        replace(tiny(), synthetic_data=None)
    for effort, complaint in (
        (TableBudget(seeds=(1,)), r"table_budgets\.dose\.seeds was \(1,\)"),
        (TableBudget(seeds=(0, 2)), r"table_budgets\.dose\.seeds was \(0, 2\)"),
        (TableBudget(transfers=("x",)), r"table_budgets\.dose\.transfers names 'x'"),
    ):
        with pytest.raises(ConfigError, match=complaint):
            replace(tiny(), table_budgets={"dose": effort})
    with pytest.raises(ConfigError, match="names the table 'x'"):
        replace(tiny(), table_budgets={"x": TableBudget()})


def scaled(figures: dict[str, dict[float, float]], share="fraction", costs=None) -> StudyResult:
    """A result of two kinds of captions, by the share of pictures or of seen samples."""
    conditions = tuple(
        ConditionConfig(
            name=f"{name} {fraction}",
            tables=("scaling" if share == "fraction" else "objectives",),
            captions="real" if name == "G" else "synthetic",
            layer="" if name == "G" else "terse",
            **{share: fraction},
        )
        for name, values in figures.items()
        for fraction in values
    )
    config = replace(study_of(*conditions), seeds=(0,))
    runs = tuple(
        StudyRun(
            condition=f"{name} {fraction}",
            seed=0,
            encoder="e",
            evaluations={"segmentation": "s", "depth, frozen": "d"},
            metrics={"segmentation": {"mIoU": value}, "depth, frozen": {"rmse": 1 - value / 100}},
        )
        for name, values in figures.items()
        for fraction, value in values.items()
    )
    return result_of(config, runs, costs)


def test_scaling_says_how_many_pictures_quality_saves():
    """By power laws that double from a tenth to all, twice as much is worth the other nine."""
    found = scaled({"G": {0.1: 10.0, 1.0: 20.0}, "S": {0.1: 20.0, 1.0: 40.0}})
    page = study_page(found)
    assert page.count("<td>2</td><td>12.0</td>") == 2  # a tenth of 24 pictures is 2
    falling = scaled({"G": {0.1: 10.0, 1.0: 20.0}, "S": {0.1: 30.0, 1.0: 20.0}})
    assert "more pictures don&#x27;t help here" in study_page(falling)
    assert page.count("both axes logarithmic") == 2
    # A figure of 0 has no logarithm.
    none = study_page(scaled({"G": {0.1: 0.0, 1.0: 20.0}, "S": {0.1: 20.0, 1.0: 30.0}}))
    assert none.count("both axes logarithmic") == none.count('class="fit"') // 2 == 1


def test_equal_cost_says_what_captions_would_have_bought_otherwise():
    """By a power law that doubles each decade, ten times the cost would have bought 40 points."""
    costs = {
        "G 0.1": Cost(pretraining=1e12, captioning=0.0),
        "G 1.0": Cost(pretraining=1e13, captioning=0.0),
        "S 0.1": Cost(pretraining=1e12, captioning=9e13),
        "S 1.0": Cost(pretraining=1e13, captioning=9e13),
    }
    figures = {"G": {0.1: 10.0, 1.0: 20.0}, "S": {0.1: 20.0, 1.0: 25.0}}
    page = study_page(scaled(figures, "compute_budget", costs))
    assert "<td>100</td><td>40.0</td><td>25.0</td><td>-15.0</td>" in page
    assert "<td>100</td><td>0.711</td><td>0.750</td><td>-0.039</td>" in page
    assert "Equal cost" not in study_page(scaled(figures, "compute_budget"))

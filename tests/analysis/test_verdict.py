"""The words for every outcome, and the comparison that they rest on."""

from collections.abc import Mapping
from dataclasses import replace

import pytest

from clipmill.analysis.comparison import TaskComparison, compare
from clipmill.analysis.verdict import Circumstances, Verdict, judge, listed, seeds_of
from clipmill.errors import ConfigError
from clipmill.storage import Parent
from clipmill.tasks.evaluation import EvaluationResult
from clipmill.tasks.registry import task_named

NOBODY = Parent(role="model", uri="m", digest="0")
G = {"segmentation": 31.2, "depth": 0.912}
AHEAD = {"segmentation": 34.0, "depth": 0.88}
USUAL = Circumstances(
    captions={"G": "real", "G+S": "both", "S": "synthetic"},
    captioner="CoCa",
    seeds={"G": (0,), "G+S": (0,)},
    drawn=True,
)


def tasks(**figures: Mapping[str, float]) -> tuple[TaskComparison, ...]:
    """Comparisons of these figures by label (``_`` for ``+``) and task."""
    by_label = {label.replace("_", "+"): found for label, found in figures.items()}
    return tuple(
        TaskComparison(
            task=name,
            metric=task_named(name).metric,
            labels=tuple(by_label),
            evaluations={
                label: EvaluationResult(
                    uri="e",
                    digest="0",
                    task=name,
                    model=NOBODY,
                    data=NOBODY,
                    metrics={task_named(name).metric.name: found[name]},
                    num_samples=0,
                )
                for label, found in by_label.items()
                if name in found
            },
        )
        for name in ("segmentation", "depth")
    )


def verdict(**figures: Mapping[str, float]) -> Verdict:
    found = judge(tasks(**figures), USUAL)
    return replace(found, findings=found.findings.replace("\u00a0", " "))


def test_ahead_on_both() -> None:
    found = verdict(G=G, G_S=AHEAD)
    assert found.headline == "G+S came out ahead on both tasks"
    assert found.findings == (
        "With CoCa captions beside the real ones (G+S) instead of the real ones alone (G), "
        "segmentation mIoU went from 31.2 % to 34.0 % (+2.8 points) and "
        "depth RMSE went from 0.912 m to 0.880 m (better by 0.032 m)."
    )
    assert found.caveat == (
        "One seed (0) in a miniature world of drawn scenes: "
        "a single pair of runs can't tell an effect from luck."
    )


def test_behind_on_both() -> None:
    found = verdict(G=AHEAD, G_S=G)
    assert found.headline == "G+S came out behind on both tasks"
    assert "from 34.0 % to 31.2 % (\u22122.8 points)" in found.findings
    assert "from 0.880 m to 0.912 m (worse by 0.032 m)" in found.findings


@pytest.mark.parametrize(
    ("figures", "headline"),
    [
        (
            {"segmentation": 34.0, "depth": 1.0},
            "The results split: G+S is ahead on segmentation, behind on depth",
        ),
        (
            {"segmentation": 30.0, "depth": 0.5},
            "The results split: G+S is ahead on depth, behind on segmentation",
        ),
        (
            {"segmentation": 31.24, "depth": 0.5},
            "G+S came out ahead on depth, level on segmentation",
        ),
        (
            {"segmentation": 31.2, "depth": 1.0},
            "G+S came out behind on depth, level on segmentation",
        ),
        (G, "G+S came out level with the baseline on both tasks"),
        ({"depth": 0.5}, "G+S came out ahead on depth"),
    ],
)
def test_other_outcomes(figures: dict[str, float], headline: str) -> None:
    assert verdict(G=G, G_S=figures).headline == headline


def test_a_tie_is_said() -> None:
    assert "segmentation mIoU stayed at 31.2 %" in verdict(G=G, G_S=G).findings


def test_nothing_to_compare() -> None:
    for figures in ({"G": G}, {"G": {"depth": 1.0}, "G_S": {"segmentation": 1.0}}):
        assert verdict(**figures).headline == "Nothing could be compared"
    assert judge((), USUAL).headline == "Nothing could be compared"


def test_every_label_is_judged_against_the_first() -> None:
    found = verdict(G=G, G_S=AHEAD, S={"segmentation": 20.0, "depth": 2.0})
    assert found.headline == ("G+S came out ahead on both tasks; S came out behind on both tasks")
    assert "With CoCa captions alone (S) instead of the real ones alone (G)" in found.findings


def test_seeds_that_differ_are_said() -> None:
    seeds = {"G": (0,), "G+S": (1, 2)}
    caveat = judge(tasks(G=G, G_S=AHEAD), replace(USUAL, seeds=seeds, drawn=False)).caveat
    assert "(G 0, G+S 1 and 2)" in caveat
    assert "differ" in caveat
    assert "miniature" not in caveat


def test_seeds_are_those_of_the_recipes() -> None:
    assert seeds_of({"train": {"seed": 3}}, {"train": {"seed": 3}}, {"train": {}}, {}) == (3,)
    assert "aren't recorded" in judge(tasks(G=G, G_S=G), replace(USUAL, seeds={"G": ()})).caveat


def test_best_of_three() -> None:
    segmentation, depth = tasks(G=G, G_S=AHEAD, S={"segmentation": 34.04, "depth": 0.7})
    assert segmentation.best() == ("G+S", "S")
    assert depth.best() == ("S",)
    assert tasks(G=G, G_S=G)[0].best() == ()
    assert tasks(G=G)[0].best() == ()


def test_two_evaluations_of_a_task_are_refused(make_run) -> None:
    uri = make_run().inputs.evaluations["G"][0]
    with pytest.raises(ConfigError, match="at most one"):
        compare({"G": (uri, uri)})


def test_lists_read_as_sentences_do() -> None:
    assert [listed(w) for w in (["a"], ["a", "b"], ["a", "b", "c"])] == [
        "a",
        "a and b",
        "a, b and c",
    ]

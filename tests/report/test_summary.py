"""The words for every outcome of a comparison."""

from collections.abc import Mapping
from dataclasses import replace

import pytest

from clipmill.errors import ConfigError
from clipmill.report.comparison import compare
from clipmill.report.sections.results import (
    RunContext,
    Summary,
    difference,
    format_gain,
    join_words,
    seeds_of,
    summarize,
)
from clipmill.tasks.comparison import RANDOM, Comparison, PretrainingResult
from helpers.comparisons import RANDOM_FIGURES, task_result

G = {"segmentation": 31.2, "depth": 0.912}
AHEAD = {"segmentation": 34.0, "depth": 0.88}
USUAL = RunContext(
    captions={"G": "real", "G+S": "both", "S": "synthetic"},
    captioner="CoCa",
    seeds={"G": (0,), "G+S": (0,)},
    uses_synthetic_scenes=True,
)


def comparison(
    pretraining: Mapping[str, PretrainingResult] | None = None,
    half_width: float | None = None,
    **figures: Mapping[str, float],
) -> Comparison:
    """Of these figures by label (``_`` for ``+``) and task."""
    by_label = {label.replace("_", "+"): found for label, found in figures.items()}
    return Comparison(
        uri="c",
        digest="0",
        tasks=tuple(
            task_result(
                name, {k: found[name] for k, found in by_label.items()}, half_width=half_width
            )
            for name in ("segmentation", "depth")
            if any(name in found for found in by_label.values())
        ),
        pretraining=dict(pretraining or {}),
    )


def verdict(**figures: Mapping[str, float]) -> Summary:
    return spaced(summarize(comparison(**figures), USUAL))


def spaced(found: Summary) -> Summary:
    return replace(found, findings=found.findings.replace("\u00a0", " "))


def test_better_on_both() -> None:
    found = verdict(G=G, G_S=AHEAD)
    assert found.headline == "G+S is better than G on segmentation and depth"
    assert found.findings == (
        "With CoCa captions in addition to the real ones (G+S) instead of the real ones alone (G), "
        "segmentation mIoU went from 31.2 % to 34.0 %, +2.8 points [+1.7, +3.9] and "
        "depth RMSE went from 0.912 m to 0.880 m, +0.032 m [+0.022, +0.042]. "
        "Random weights reach segmentation 20.1 % to 21.0 %; depth 1.000 m to 1.020 m."
    )
    assert found.caveat == (
        "One seed (0) in a miniature world of procedural scenes: the rule weighs test images and "
        "the spread of random seeds; docs/study/results.md has five seeds of the demo."
    )
    assert found.text == f"{found.headline}. {found.findings} {found.caveat}"


def test_worse_on_both() -> None:
    found = verdict(G=AHEAD, G_S=G)
    assert found.headline == "G+S is worse than G on segmentation and depth"
    assert "from 34.0 % to 31.2 %, \u22122.8 points [\u22123.9, \u22121.7]" in found.findings
    assert "from 0.880 m to 0.912 m, \u22120.032 m" in found.findings


NONE = "no difference between G+S and G that this run can show on "


@pytest.mark.parametrize(
    ("figures", "headline"),
    [
        (
            {"segmentation": 34.0, "depth": 1.0},
            "G+S is better than G on segmentation; G+S is worse than G on depth",
        ),
        (
            {"segmentation": 30.0, "depth": 0.5},
            "G+S is worse than G on segmentation; G+S is better than G on depth",
        ),
        # 1 point is more than the spread of 0.9, but the interval reaches below zero.
        (
            {"segmentation": 32.2, "depth": 0.5},
            f"N{NONE[1:]}segmentation; G+S is better than G on depth",
        ),
        # The interval is all above zero, but 0.015 m is what a seed does.
        ({"segmentation": 31.2, "depth": 0.897}, f"N{NONE[1:]}segmentation and depth"),
        (
            {"segmentation": 31.2, "depth": 1.0},
            f"N{NONE[1:]}segmentation; G+S is worse than G on depth",
        ),
        (G, f"N{NONE[1:]}segmentation and depth"),
    ],
)
def test_other_outcomes(figures: dict[str, float], headline: str) -> None:
    assert verdict(G=G, G_S=figures).headline == headline


def test_one_task() -> None:
    found = verdict(G={"depth": 0.912}, G_S={"depth": 0.5})
    assert found.headline == "G+S is better than G on depth"
    assert "segmentation" not in found.findings


def test_a_tie_is_said() -> None:
    assert "from 31.2 % to 31.2 %, ±0.0 points [\u22121.1, +1.1]" in verdict(G=G, G_S=G).findings


def test_nothing_to_compare() -> None:
    assert verdict(G=G).headline == "Nothing could be compared"
    assert summarize(comparison(), USUAL).headline == "Nothing could be compared"


def test_without_random_weights_there_is_no_verdict() -> None:
    found = summarize(None, USUAL)
    assert found.headline == "Figures without a verdict"
    assert "can't be told from chance" in found.findings
    assert "One seed (0)" in found.caveat


def test_pretraining_that_learned_nothing_is_said() -> None:
    pretraining = {
        label: PretrainingResult(
            losses={"loss/real": 4.1},
            chance_loss=4.159,
            pair_accuracy=accuracy,
            pair_accuracy_error=0.02,
        )
        for label, accuracy in (("G", 0.53), ("G+S", 0.8))
    }
    found = summarize(comparison(pretraining, G=G, G_S=AHEAD), USUAL)
    assert found.caveat.startswith(
        "Pretraining failed for G: it is no better than chance. One seed"
    )
    fine = summarize(comparison({"G+S": pretraining["G+S"]}, G=G, G_S=AHEAD), USUAL)
    assert "failed" not in fine.caveat


def test_every_label_is_judged_against_the_first() -> None:
    found = verdict(G=G, G_S=AHEAD, S={"segmentation": 20.0, "depth": 2.0})
    assert found.headline == (
        "G+S is better than G on segmentation and depth; "
        "S is worse than G on segmentation and depth"
    )
    assert "With CoCa captions alone (S) instead of the real ones alone (G)" in found.findings


def test_differences_are_found_by_their_labels() -> None:
    (segmentation, _) = comparison(G=G, G_S=AHEAD).tasks
    assert difference(segmentation, "G+S", "G").gain == pytest.approx(2.8)
    best = max(RANDOM_FIGURES["segmentation"])
    assert difference(segmentation, "G", RANDOM).gain == pytest.approx(31.2 - best)


def test_gains_are_signed_for_better() -> None:
    segmentation, depth = comparison(G=G).tasks
    assert format_gain(segmentation, -2.84) == "\u22122.8\u00a0points"
    assert format_gain(depth, 0.0316, with_unit=False) == "+0.032"


def test_seeds_that_differ_are_said() -> None:
    seeds = {"G": (0,), "G+S": (1, 2)}
    circumstances = replace(USUAL, seeds=seeds, uses_synthetic_scenes=False)
    assert summarize(comparison(G=G, G_S=AHEAD), circumstances).caveat == "Seeds 0, 1 and 2."


def test_seeds_are_those_of_the_recipes() -> None:
    assert seeds_of({"train": {"seed": 3}}, {"train": {"seed": 3}}, {"train": {}}, {}) == (3,)
    found = summarize(comparison(G=G, G_S=G), replace(USUAL, seeds={"G": ()}))
    assert "aren't recorded" in found.caveat


def test_evaluations_are_lined_up_by_task(make_run) -> None:
    found = compare(make_run().inputs.evaluations)
    assert [task.task for task in found] == ["segmentation", "depth"]
    assert [task.value("G+S") for task in found] == [34.0, 0.88]
    assert [task.improvement("G+S") for task in found] == [2.8, 0.032]


def test_two_evaluations_of_a_task_are_refused(make_run) -> None:
    uri = make_run().inputs.evaluations["G"][0]
    with pytest.raises(ConfigError, match="at most one"):
        compare({"G": (uri, uri)})


def test_lists_read_as_sentences_do() -> None:
    assert [join_words(w) for w in (["a"], ["a", "b"], ["a", "b", "c"])] == [
        "a",
        "a and b",
        "a, b and c",
    ]

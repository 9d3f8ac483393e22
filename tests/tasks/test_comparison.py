"""Encoders compared: the rule, the gate, the interval, and what learned nothing."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
from safetensors.numpy import save_file

from clipmill.data.labeled.dense import DepthFolder, SegmentationFolder
from clipmill.engine.result import log_lines
from clipmill.errors import ConfigError
from clipmill.lineage import Parent, lineage
from clipmill.models.checkpoint import CheckpointMetadata, save_checkpoint
from clipmill.models.config import ClipConfig, TextConfig, VisionConfig
from clipmill.models.towers import build_clip
from clipmill.pretrain.clip import random_encoder
from clipmill.recipes.pretrain import clip_tiny
from clipmill.recipes.registry import get_recipe
from clipmill.scenes import CLASSES as SCENE_CLASSES
from clipmill.storage import write_bytes
from clipmill.tasks.comparison import (
    RANDOM,
    Comparison,
    ComparisonConfig,
    PretrainingResult,
    TaskResult,
    compare_encoders,
    outcome,
    paired_interval,
)
from clipmill.tasks.evaluation import EvaluationResult, evaluate, read_evaluation
from clipmill.tasks.finetune import FinetuneConfig, finetune
from clipmill.tasks.training_registry import get_training_task
from helpers.tiny_tasks import DEPTH, SEGMENTATION

SEGMENT, MEASURE = get_training_task("segmentation"), get_training_task("depth")


def silent(done, total, words):
    pass


def fail(done, total, words):
    pytest.fail("worked again")


@pytest.mark.parametrize(
    ("gain", "low", "high", "expected"),
    [
        (2.0, 1.0, 3.0, "better"),
        (2.0, -0.1, 4.1, "no difference"),  # other images might say the opposite
        (2.0, 0.0, 4.0, "no difference"),
        (0.9, 0.5, 1.3, "no difference"),  # another seed might
        (1.0, 0.5, 1.5, "no difference"),
        (0.0, 0.0, 0.0, "no difference"),
        (-0.9, -1.3, -0.5, "no difference"),
        (-2.0, -4.1, 0.1, "no difference"),
        (-2.0, -3.0, -1.0, "worse"),
    ],
)
def test_the_rule(gain, low, high, expected):
    assert outcome(gain, low, high, spread=1.0) == expected


def result(task, random, trivial):
    return TaskResult(
        task=task,
        values={},
        evaluations={},
        random=random,
        random_evaluations=(),
        trivial=trivial,
        differences=(),
    )


@pytest.mark.parametrize(
    ("task", "random", "trivial", "gate"),
    [
        ("segmentation", (20.0, 23.0, 21.0), {"chance": 3.0, "constant": 11.0}, 26.0),
        ("segmentation", (20.0, 23.0, 21.0), {"chance": 3.0, "constant": 25.0}, 28.0),
        ("depth", (0.8, 0.75, 0.77), {"chance": 1.7, "mean map": 0.9}, 0.7),
        ("depth", (0.8, 0.75, 0.77), {"chance": 1.7, "mean map": 0.6}, 0.55),
    ],
)
def test_the_gate_is_a_spread_better_than_all_that_learned_nothing(task, random, trivial, gate):
    found = result(task, random, trivial)
    assert found.gate == pytest.approx(gate)
    for known in (*random, *trivial.values()):
        assert found.metric.improvement(found.gate, known) >= found.spread - 1e-9


@pytest.mark.parametrize(
    ("losses", "accuracy", "error", "has_failed"),
    [
        ({"loss/real": 2.9}, 0.8, 0.01, False),
        ({"loss/real": 2.9}, 0.51, 0.01, True),  # two standard errors reach chance
        ({"loss/real": 2.9}, 0.53, 0.01, False),
        ({"loss/real": 4.2, "loss/synthetic": 2.0}, 0.8, 0.01, True),
        ({"loss": 2.9}, None, 0.0, False),
        ({"loss": 4.16}, None, 0.0, True),
    ],
)
def test_pretraining_fails_at_chance(losses, accuracy, error, has_failed):
    found = PretrainingResult(
        losses=losses,
        chance_loss=math.log(64),
        pair_accuracy=accuracy,
        pair_accuracy_error=error,
    )
    assert found.has_failed == has_failed


NOBODY = Parent(role="model", uri="m", digest="0")


def evaluation(folder, task, rows):
    """Of these figures by image."""
    folder.mkdir()
    save_file(rows, folder / "per_image.safetensors")
    return EvaluationResult(
        uri=str(folder),
        digest="0",
        task=task.name,
        model=NOBODY,
        data=NOBODY,
        metrics={task.metric.name: task.metric_from_rows(rows)},
        num_samples=0,
    )


def depth_rows(generator, number=40):
    return {"rmse": generator.gamma(4.0, 0.2, number)}


def segmentation_rows(generator, number=40):
    union = generator.integers(1, 900, (number, 5)).astype(float)
    return {"intersection": np.floor(union * generator.random((number, 5))), "union": union}


@pytest.mark.parametrize(("task", "rows"), [(MEASURE, depth_rows), (SEGMENT, segmentation_rows)])
def test_the_interval_is_scipys_paired_bootstrap(task, rows, tmp_path):
    generator = np.random.default_rng(7)
    ours, theirs = rows(generator), rows(generator)
    config = ComparisonConfig(num_resamples=4000)
    pair = [evaluation(tmp_path / n, task, r) for n, r in (("a", ours), ("b", theirs))]
    low, high = paired_interval(task, *pair, config)

    def gain(drawn):
        figures = [
            task.metric_from_rows({k: v[drawn] for k, v in r.items()}) for r in (ours, theirs)
        ]
        return figures[0] - figures[1] if task.metric.higher_is_better else figures[1] - figures[0]

    expected = scipy.stats.bootstrap(
        (np.arange(40),),
        gain,
        vectorized=False,
        method="percentile",
        n_resamples=4000,
        rng=np.random.default_rng(1),
    ).confidence_interval
    width = expected.high - expected.low
    assert low == pytest.approx(expected.low, abs=0.06 * width)
    assert high == pytest.approx(expected.high, abs=0.06 * width)
    assert paired_interval(task, *pair, config) == (low, high)
    # The other way round it is the mirror image.
    assert paired_interval(task, *pair[::-1], config) == pytest.approx((-high, -low))


def test_images_are_paired(tmp_path):
    """Where each image gains the same, there is no doubt, however much the images differ."""
    rows = depth_rows(np.random.default_rng(0))
    ours = evaluation(tmp_path / "a", MEASURE, {"rmse": rows["rmse"] - 0.1})
    theirs = evaluation(tmp_path / "b", MEASURE, rows)
    found = paired_interval(MEASURE, ours, theirs, ComparisonConfig(num_resamples=50))
    assert found == pytest.approx((0.1, 0.1))
    narrow, wide = (
        paired_interval(
            MEASURE,
            evaluation(tmp_path / f"{c}", MEASURE, depth_rows(np.random.default_rng(5))),
            theirs,
            ComparisonConfig(num_resamples=500, confidence=c),
        )
        for c in (0.5, 0.99)
    )
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def predictions(folder, task):
    """Any prediction, right in part."""
    generator = np.random.default_rng(0)

    def predict(image_HW3):
        side = image_HW3.shape[:2]
        if task is MEASURE:
            return {"depth_meters": generator.uniform(0.5, 6, side).astype(np.float32)}
        return {"classes": generator.integers(0, 4, side, dtype=np.uint8)}

    config = DEPTH if task is MEASURE else SEGMENTATION
    return task.evaluate(predict, config, folder, num_samples=0, report=silent)


def test_figures_by_image_make_the_metric(ade20k_folder, nyu_folder):
    """mmseg's mIoU of all images, and the mean RMSE."""
    for task, folder in ((SEGMENT, ade20k_folder), (MEASURE, nyu_folder)):
        found = predictions(folder, task)
        assert {len(rows) for rows in found.per_image.values()} == {2}
        assert task.metric_from_rows(found.per_image) == pytest.approx(
            found.metrics[task.metric.name]
        )


def judged(task, folder):
    """Metrics of the task's trivial answers."""
    config = DEPTH if task is MEASURE else SEGMENTATION
    return {
        name: task.evaluate(answer, config, folder, num_samples=0, report=silent).metrics[
            task.metric.name
        ]
        for name, answer in task.trivial_predictors(folder).items()
    }


def test_trivial_answers_to_segmentation(ade20k_folder):
    found = judged(SEGMENT, ade20k_folder)
    assert set(found) == {"chance", "constant"}
    splits = {
        split: np.stack([folder.classes_HW(i) for i in range(len(folder))])
        for split in ("training", "validation")
        for folder in (SegmentationFolder.open(ade20k_folder, split),)
    }
    values, counts = np.unique(splits["training"], return_counts=True)
    commonest = values[counts.argmax()]
    truth = splits["validation"]
    num_classes, total = len(SCENE_CLASSES), truth.size
    seen = np.unique(truth)
    share = (truth == commonest).mean()
    union = len({*seen, commonest})
    assert found["constant"] == pytest.approx(100 * share / union)
    # Of a class of n pixels a random answer hits n / K, and says it of N / K.
    ious = [
        (n / num_classes) / (n + total / num_classes - n / num_classes)
        for n in ((truth == c).sum() for c in seen)
    ]
    assert found["chance"] == pytest.approx(100 * sum(ious) / num_classes, rel=0.15)


def test_trivial_answers_to_depth(nyu_folder):
    found = judged(MEASURE, nyu_folder)
    train, test = (
        np.stack([folder.depth_HW(i) for i in range(len(folder))])
        for folder in (DepthFolder.open(nyu_folder, split) for split in ("train", "test"))
    )
    assert (train > 0).all()
    assert test.max() < 10  # nothing is left out of the judgement

    def rmse(answer):
        return float(np.sqrt(((test - answer) ** 2).mean((1, 2))).mean())

    assert found["constant"] == pytest.approx(rmse(train.mean()), rel=1e-4)
    assert found["mean map"] == pytest.approx(rmse(train.mean(0)), rel=1e-4)
    possible = [rmse(np.stack(pair)) for pair in itertools.product(train, repeat=2)]
    assert any(found["chance"] == pytest.approx(value, rel=1e-4) for value in possible)


TOWERS = ClipConfig(
    embed_dim=16,
    vision=VisionConfig(image_size=32, timm_model="test_vit"),
    text=TextConfig(context_length=12, vocab_size=600, width=16, heads=2, layers=1),
)
PROBE = ["train.steps=2", "train.batch_size=2", "model.crop_size=32", "train.log_every=1"]


def save_encoder(uri, log, weights):
    """A CLIP checkpoint with the log of its training."""
    recipe = {"train": {"batch_size": 8}}
    metadata = CheckpointMetadata(kind="clip", architecture=TOWERS.to_json(), recipe=recipe)
    save_checkpoint(uri, metadata, weights)
    write_bytes(f"{uri}/log.jsonl", log_lines(log))
    return uri


@pytest.fixture(scope="module")
def made(tmp_path_factory, nyu_folder):
    """Two encoders and two seeds of random weights, evaluated at depth."""
    folder = tmp_path_factory.mktemp("comparison")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLIPMILL_CACHE", str(folder / "cache"))
        store = str(folder / "store")
        weights = build_clip(TOWERS).state_dict()
        log = [
            {"step": 1, "loss": 2.2},
            {
                "step": 2,
                "loss": 1.5,
                "retrieval/pair_accuracy": 0.7,
                "retrieval/pair_accuracy_error": 0.04,
            },
        ]
        poor = [*log[:1], log[1] | {"retrieval/pair_accuracy": 0.55}]
        encoders = {
            "G": save_encoder(f"{store}/encoders/g", poor, weights),
            "G+S": save_encoder(
                f"{store}/encoders/gs", log, {k: v * 1.01 for k, v in weights.items()}
            ),
        }
        untrained = replace(clip_tiny(), model=TOWERS)
        random = [
            random_encoder(replace(untrained, train=replace(untrained.train, seed=seed)), store)
            for seed in (0, 1)
        ]
        data = str(nyu_folder)
        config = get_recipe("linear-depth-tiny", FinetuneConfig, PROBE)
        evaluations = {
            uri: evaluate(
                finetune(config, uri, data, store, report=silent), data, store, report=silent
            )
            for uri in (*encoders.values(), *random)
        }
        yield store, encoders, [evaluations[uri] for uri in random], evaluations, data


def compared(made, report=silent, **changes):
    store, encoders, random, evaluations, data = made
    given = {
        "encoders": encoders,
        "evaluations": [evaluations[uri] for uri in encoders.values()],
        "random_evaluations": random,
        "data": [data],
        **changes,
    }
    config = ComparisonConfig(num_resamples=100)
    return compare_encoders(config, **given, store=store, report=report)


def test_a_comparison_says_what_the_evaluations_do(made):
    _, encoders, random, evaluations, _ = made
    uri = compared(made)
    found = Comparison.read(uri)
    (task,) = found.tasks
    assert found.task("depth") is task
    rmse = {
        label: read_evaluation(evaluations[uri]).metrics["rmse"] for label, uri in encoders.items()
    }
    untrained = [read_evaluation(uri).metrics["rmse"] for uri in random]
    assert task.values == rmse
    assert list(task.values) == ["G", "G+S"]
    assert task.random == tuple(untrained)
    assert task.random_evaluations == tuple(random)
    assert task.spread == max(untrained) - min(untrained)
    best = min(untrained)
    gains = {(d.label, d.over): d.gain for d in task.differences}
    assert gains == pytest.approx(
        {
            ("G", RANDOM): best - rmse["G"],
            ("G+S", "G"): rmse["G"] - rmse["G+S"],
            ("G+S", RANDOM): best - rmse["G+S"],
        }
    )
    for d in task.differences:
        assert d.low <= d.gain <= d.high  # of two images, all resamples lie about the whole
        assert d.outcome == outcome(d.gain, d.low, d.high, task.spread)
    assert found.pretraining["G"] == PretrainingResult(
        losses={"loss": 1.5},
        chance_loss=math.log(8),
        pair_accuracy=0.55,
        pair_accuracy_error=0.04,
    )
    assert {label: p.has_failed for label, p in found.pretraining.items()} == {
        "G": True,
        "G+S": False,
    }
    node = lineage(uri)
    assert node.kind == "comparison"
    roles = [parent.role for parent in node.parents]
    assert roles == ["encoder G", "encoder G+S", *["evaluation"] * 4]
    assert compared(made, report=fail) == uri


def test_trivial_answers_are_in_a_comparison(made, nyu_folder):
    assert Comparison.read(compared(made)).task("depth").trivial == pytest.approx(
        judged(MEASURE, nyu_folder)
    )


def test_a_comparison_that_lacks_something(made):
    _, encoders, random, evaluations, _ = made
    with pytest.raises(ConfigError, match=r"G\+S wasn't evaluated at depth"):
        compared(made, evaluations=[evaluations[encoders["G"]]])
    with pytest.raises(ConfigError, match="evaluated with 1 seeds at depth"):
        compared(made, random_evaluations=random[:1])
    with pytest.raises(ConfigError, match="which wasn't given"):
        compared(made, data=[], encoders={"G": encoders["G"]})
    with pytest.raises(ConfigError, match="compares no encoders at segmentation"):
        Comparison.read(compared(made)).task("segmentation")

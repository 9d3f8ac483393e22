"""The page about photographs: intervals against scipy's, verdicts, and a run made small."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from clipmill import stages
from clipmill.data.dataset import Dataset
from clipmill.data.loading.view import in_subset
from clipmill.demo import check_captioner
from clipmill.errors import ConfigError
from clipmill.report.photos import (
    EncoderRetrieval,
    Share,
    deciding_rank,
    photos_report,
    recall_difference,
)
from clipmill.scenes.formats import write_caption_folder
from clipmill.scenes.geometry import SceneConfig
from clipmill.tasks.evaluation import EvaluationResult, read_evaluation
from clipmill.tasks.zero_shot import RetrievalConfig, read_ranks

TINY = [
    "train.steps=4", "train.batch_size=16", "train.log_every=1", "train.num_threads=1",
    "model.vision.image_size=32", "model.text.vocab_size=600",
]  # fmt: skip


@pytest.mark.parametrize(("found", "total"), [(0, 7), (3, 15), (15, 15), (180, 1000)])
def test_intervals_are_wilsons(found, total):
    reference = binomtest(found, total).proportion_ci(method="wilson")
    low, high = Share(rank=1, num_hits=found, total=total).interval
    assert low == pytest.approx(100 * reference.low, abs=1e-9)
    assert high == pytest.approx(100 * reference.high, abs=1e-9)


def test_chance_is_k_of_n_and_the_rank_that_decides_leaves_room_above_it():
    assert Share(rank=5, num_hits=0, total=50).chance == 10
    assert Share(rank=10, num_hits=7, total=7).chance == 100
    assert [deciding_rank(n) for n in (5, 49, 50, 99, 100, 1000)] == [1, 1, 5, 5, 10, 10]


def judged(image_to_text, text_to_image):
    evaluation = EvaluationResult.__new__(EvaluationResult)
    ranks = {"image_to_text": image_to_text, "text_to_image": text_to_image}
    return EncoderRetrieval(label="", evaluation=evaluation, ranks=ranks, metadata=None)


def test_guessing_is_not_better_than_chance_and_one_way_alone_does_not_count():
    random = np.random.default_rng(0)
    guesses = [judged(*random.integers(0, 200, (2, 200)).tolist()) for _ in range(200)]
    assert sum(g.beats_chance for g in guesses) <= 2
    known, guessed = [0] * 200, guesses[0].ranks["text_to_image"]
    assert judged(known, known).beats_chance
    assert not judged(known, guessed).beats_chance


def test_paired_differences_have_three_outcomes():
    half, all_, none = [0] * 50 + [90] * 50, [0] * 100, [90] * 100
    better = recall_difference(judged(all_, all_), judged(half, half))
    assert (better.mean, better.outcome) == (50, "better")
    assert recall_difference(judged(none, none), judged(half, half)).outcome == "worse"
    same = recall_difference(judged(half, half), judged(half, half))
    assert (same.low, same.high) == (0, 0)
    assert same.outcome.startswith("no difference")


def test_retrieval_outside_a_fraction_needs_a_dataset_and_a_fraction_in_range():
    with pytest.raises(ConfigError, match="outside_fraction was 1"):
        RetrievalConfig(outside_fraction=1.0)


def test_a_small_run_from_a_folder_to_the_page(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPMILL_CACHE", str(tmp_path / "cache"))
    store, images = str(tmp_path / "store"), tmp_path / "images"
    write_caption_folder(SceneConfig(size=32, seed=3), range(24), images, "alt")
    (images / "mute.jpg").write_bytes((images / "000000.jpg").read_bytes())
    data = stages.shard("shards-tiny", ["duplicates=drop"], str(images), store)
    pretraining, judging = stages.hold_out("clip-tiny", TINY, data, store)
    encoder = stages.pretrain("clip-tiny", pretraining, data, store)
    (fraction,) = (float(text.partition("=")[2]) for text in judging)
    with pytest.raises(ConfigError, match="is no dataset"):
        stages.retrieval("retrieval", judging, encoder, str(images), store)
    evaluation = stages.retrieval("retrieval", judging, encoder, data, store)

    dataset = Dataset.open(data)
    held_out = [u for i in range(len(dataset.shards)) for u in dataset.uids(i)]
    held_out = [uid for uid in held_out if not in_subset(uid, fraction)]
    ranks = read_ranks(evaluation)
    assert len(ranks["image_to_text"]) == len(ranks["text_to_image"]) == len(held_out) == 6
    recall = 100 * np.mean(np.array(ranks["image_to_text"]) < 5)
    assert read_evaluation(evaluation).metrics["image_to_text_r5"] == pytest.approx(recall)

    uri = photos_report(data, [evaluation], store)
    results = json.loads(Path(uri, "report.json").read_text())["results"]
    assert results["num_held_out"] == 6
    assert results["quarantine"] == {"missing_caption": 1}
    (training,) = results["training"].values()
    assert training["chance"] == pytest.approx(math.log(8))
    (found,) = results["retrieval"].values()
    assert found["text_to_image_r1"]["chance"] == pytest.approx(100 / 6)
    page = Path(uri, "report.html").read_text()
    assert "18 of your image-caption pairs" in page
    assert "Recaptioning was skipped" in page
    assert "mug" not in page.partition("Samples")[0]


def test_captioners_of_drawn_scenes_are_refused_for_photographs(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPMILL_CACHE", str(tmp_path / "cache"))
    check_captioner("vlm:http://host/v1")
    with pytest.raises(ConfigError, match="labels"):
        check_captioner("template:/labels")
    small = ["size=32", "num_pairs=4", "num_captioner_pairs=4", "num_labeled=2", "num_test=2"]
    store = str(tmp_path / "store")
    drawn = stages.scenes("scenes-tiny", small, store)
    data = stages.shard("shards-tiny", [], f"{drawn}/captioning.tar", store)
    sizes = ["model.clip.vision.image_size=32", "model.clip.text.vocab_size=600"]
    steps = [*TINY[:4], "train.batch_size=4"]
    captioner = stages.train_captioner("coca-tiny", [*steps, *sizes], data, store)
    with pytest.raises(ConfigError, match="drawn scenes"):
        check_captioner(captioner)

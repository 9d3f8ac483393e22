"""Every stage with its tiny recipe, one after the other, as a pipeline runs them."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from clipmill import stages
from clipmill.data.dataset import Dataset
from clipmill.errors import ConfigError
from clipmill.lineage import lineage
from clipmill.models.checkpoint import read_metadata
from clipmill.stage_records import EVENTS_VARIABLE, read_stages
from clipmill.stages.pretrain import caption_label
from clipmill.storage import join, read_json

SCENES = ["size=32", "num_pairs=12", "num_captioner_pairs=6", "num_labeled=4", "num_test=2"]
SMALL = ["train.steps=2", "train.batch_size=4", "train.log_every=1"]
COCA = [
    *SMALL,
    "model.clip.vision.image_size=32",
    "model.clip.text.vocab_size=600",
    "train.num_threads=1",
]
CLIP = [*SMALL, "model.vision.image_size=32", "model.text.vocab_size=600"]
DENSE = [*SMALL, "model.crop_size=32"]


@pytest.fixture(scope="module")
def journey(tmp_path_factory):
    """Run all stages, twice; what each returned, by name."""
    folder = tmp_path_factory.mktemp("run")
    store = str(folder / "store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLIPMILL_CACHE", str(folder / "cache"))
        patch.setenv(EVENTS_VARIABLE, str(folder / "events.jsonl"))
        first, second = (_all_stages(store, name) for name in ("first", "second"))
        yield store, first, second


def _all_stages(store, name):
    made = {"scenes": stages.scenes("scenes-tiny", SCENES, store, name)}
    folder = made["scenes"]
    for label, tar in (("", "pairs.tar"), ("good", "captioning.tar")):
        shards = ["samples_per_shard=5"]
        made[f"shard {label}"] = stages.shard(
            "shards-tiny", shards, join(folder, tar), store, name, label
        )
    made["captioner"] = stages.train_captioner("coca-tiny", COCA, made["shard good"], store, name)
    dataset = made["shard "]
    layer = made["layer"] = stages.recaption(
        "recaption-tiny", ["num_threads=1"], dataset, made["captioner"], store, name
    )
    for captions in ("real", "synthetic", "both"):
        made[f"pretrain {captions}"] = stages.pretrain(
            "clip-tiny", CLIP, dataset, store, name, captions=captions, layer=layer
        )
    for recipe, tar in (("upernet", "ade20k.tar"), ("depth", "nyu_depth_v2.tar")):
        encoder, data = made["pretrain both"], join(folder, tar)
        model = made[f"finetune {recipe}"] = stages.finetune(
            f"{recipe}-tiny", DENSE, encoder, data, store, name, "both"
        )
        judged = made[f"evaluate {recipe}"] = stages.evaluate(model, data, store, name, "both")
        task, threshold = ("depth", 99.0) if recipe == "depth" else ("segmentation", 0.0)
        made[f"promote {recipe}"] = stages.promote(task, threshold, [judged], store, name)
    return made


def test_a_second_run_makes_nothing_anew(journey):
    store, first, second = journey
    assert second == first
    # But promotion, which looks at what serves each time.
    assert [r.name for r in read_stages(store, "second") if not r.reused] == ["promote", "promote"]


def test_finding_a_result_loads_nothing_heavy(journey):
    """A pipeline's reused stages are processes that should last no longer than a look."""
    store, first, _ = journey
    nyu = join(first["scenes"], "nyu_depth_v2.tar")
    light = [
        (
            "recaption",
            ["recaption-tiny", ["num_threads=1"], first["shard "], first["captioner"], store],
        ),
        ("finetune", ["depth-tiny", DENSE, first["pretrain both"], nyu, store]),
        ("evaluate", [first["finetune depth"], nyu, store]),
    ]
    # Pretraining methods are modules that import torch.
    others = [
        ("train_captioner", ["coca-tiny", COCA, first["shard good"], store]),
        ("pretrain", ["clip-tiny", CLIP, first["shard "], store]),
    ]
    code = f"""
import json, sys
from clipmill import stages
found = [getattr(stages, name)(*arguments) for name, arguments in {light!r}]
heavy = [m for m in ("torch", "open_clip", "timm", "kserve", "mmseg") if m in sys.modules]
found += [getattr(stages, name)(*arguments) for name, arguments in {others!r}]
heavy += [m for m in ("open_clip", "timm", "kserve", "mmseg") if m in sys.modules]
print(json.dumps([found, heavy]))
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    found, heavy = json.loads(done.stdout)
    names = ("layer", "finetune depth", "evaluate depth", "captioner", "pretrain real")
    assert found == [first[name] for name in names]
    assert heavy == []


def test_each_stage_leaves_its_time_and_place(journey):
    store, first, _ = journey
    records = {f"{r.name} {r.label}".strip(): r for r in read_stages(store, "first")}
    assert list(records) == [
        "scenes",
        "shard",
        "shard good",
        "captioner",
        "recaption",
        "pretrain G",
        "pretrain S",
        "pretrain G+S",
        "finetune segmentation G+S",
        "evaluate segmentation G+S",
        "promote segmentation",
        "finetune depth G+S",
        "evaluate depth G+S",
        "promote depth",
    ]
    assert not any(r.reused for r in records.values())
    assert records["pretrain S"].output == first["pretrain synthetic"]
    assert records["recaption"].output == join(first["shard "], "layers", first["layer"])


def test_captions_choose_what_an_encoder_saw(journey):
    _, first, _ = journey
    layer = Dataset.open(first["shard "]).layers[first["layer"]]
    for captions in ("real", "synthetic", "both"):
        metadata = read_metadata(first[f"pretrain {captions}"])
        assert metadata.recipe["view"]["captions"] == captions
        assert metadata.recipe["view"]["layer"] == ("" if captions == "real" else layer.name)
        found = {p.role: p.digest for p in metadata.parents}.get("captions")
        assert found == (None if captions == "real" else layer.digest)


def test_a_served_model_knows_from_which_captions_it_came(journey):
    """The lineage of what is promoted leads to the scenes and the captioner."""
    _, first, _ = journey

    def roles(node):
        return {(node.kind, node.uri)} | {x for parent in node.parents for x in roles(parent)}

    found = roles(lineage(first["promote depth"]))
    assert ("coca", first["captioner"]) in found
    assert ("clip", first["pretrain both"]) in found
    assert ("task", first["finetune depth"]) in found
    assert ("dataset", first["shard good"]) in found
    assert (
        read_json(join(first["promote depth"], "promotion.json"))["evaluation"]
        == (first["evaluate depth"])
    )


def test_overrides_come_after_the_choice_of_captions(journey, monkeypatch):
    """A fraction of the view can be set beside it."""
    store, first, _ = journey
    uri = stages.pretrain(
        "clip-tiny",
        [*CLIP, "view.subset_fraction=0.9"],
        first["shard "],
        store,
        captions="synthetic",
        layer=first["layer"],
    )
    view = read_metadata(uri).recipe["view"]
    assert (view["captions"], view["subset_fraction"]) == ("synthetic", 0.9)


def test_an_encoder_that_saw_no_captions_has_no_label(journey):
    _, made, _ = journey
    encoder = read_metadata(made["pretrain both"])
    assert caption_label(encoder) == "G+S"
    with pytest.raises(ConfigError, match="wasn't pretrained on captions by clipmill"):
        caption_label(replace(encoder, recipe={}))

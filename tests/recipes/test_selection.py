"""Scoring and selecting as a person runs them, on procedural scenes."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from clipmill import stages
from clipmill.data.dataset import Dataset
from clipmill.data.layers import read_layer
from clipmill.data.select import SelectConfig
from clipmill.errors import ConfigError
from clipmill.lineage import lineage
from clipmill.models.checkpoint import CheckpointMetadata, read_metadata, save_checkpoint
from clipmill.models.config import ClipConfig, TextConfig, VisionConfig
from clipmill.models.towers import build_clip
from clipmill.recipes.registry import RECIPES
from clipmill.storage import join

CLIP = ClipConfig(
    embed_dim=8,
    vision=VisionConfig(image_size=16, patch_size=8, width=8, layers=1, head_width=8),
    text=TextConfig(context_length=12, vocab_size=600, width=8, heads=2, layers=1),
)
SCENES = ["size=32", "num_pairs=40", "num_captioner_pairs=6", "num_labeled=4", "num_test=2"]


@pytest.fixture(scope="module")
def journey(tmp_path_factory):
    """A dataset of scenes with captions and scores, and the layers' names."""
    folder = tmp_path_factory.mktemp("selection")
    store = str(folder / "store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLIPMILL_CACHE", str(folder / "cache"))
        scenes = stages.scenes("scenes-tiny", SCENES, store)
        small = ["samples_per_shard=16"]
        dataset = stages.shard("shards-tiny", small, join(scenes, "pairs.tar"), store)
        opened = Dataset.open(dataset)
        uids = [uid for index in range(len(opened.shards)) for uid in opened.uids(index)]
        captions = [f"a scene with number {n}" for n in range(len(uids))]
        table = pa.table({"uid": uids[::-1], "text": captions})
        pq.write_table(table, folder / "captions.parquet")
        tables = [str(folder / "captions.parquet")]
        stages.import_layer(dataset, "captions/x", tables, columns=["captions=text"])
        torch.manual_seed(0)
        metadata = CheckpointMetadata(kind="clip", architecture=CLIP.to_json(), recipe={})
        judge = save_checkpoint(str(folder / "judge"), metadata, build_clip(CLIP).state_dict()).uri
        (folder / "concepts").write_text("red\nblue\nsphere\na\n")
        concepts = f"concepts.concepts={folder / 'concepts'}"
        torch.save(torch.nn.Linear(CLIP.embed_dim, 1).state_dict(), folder / "head.pth")
        head = f"head.file={folder / 'head.pth'}"
        layers = [
            "captions/x",
            *stages.score("score-basic", [], dataset, ""),
            *stages.score("score-clip", [], dataset, "", model=judge),
            *stages.score("score-concepts", [concepts], dataset, ""),
            *stages.score("score-embedding", [], dataset, "", model=judge),
            *stages.score("score-nsfw", [head], dataset, ""),
            *stages.score("score-aesthetic", [head], dataset, ""),
            *stages.score("score-watermark", [head], dataset, ""),
        ]
        yield folder, dataset, layers


def rows_of(dataset, layer, folder):
    opened = Dataset.open(dataset)
    tables = [
        read_layer(opened, layer, index, folder / "cache") for index in range(len(opened.shards))
    ]
    return pa.concat_tables(tables)


@pytest.mark.parametrize(
    "name", [name for name in RECIPES if isinstance(RECIPES[name](), SelectConfig)]
)
def test_every_rule_runs(journey, name):
    folder, dataset, _ = journey
    layer = stages.select(name, [], dataset, "")
    table = rows_of(dataset, layer, folder)
    assert len(table) == 40
    assert stages.select(name, [], dataset, "") == layer
    kept = np.array(table["keep"].to_pylist())
    if name == "select-clip-top30":
        assert kept.sum() == 13  # the place int(40 * 0.3), counted from 0, is in
    if name in {"select-curated", "select-datacomp-basic", "select-deduplicated"}:
        assert not kept.any()  # scenes of 32 pixels
    if name == "select-semdedup":
        assert 1 <= kept.sum() < 40  # random weights embed scenes alike
    if name == "select-best-captions":
        assert set(table["caption"].to_pylist()) == {"real", "captions/x"}


def test_settings_of_a_filter_are_overridden(journey):
    folder, dataset, _ = journey
    sets = ["filters.1.settings.epsilon=0.9999", "filters.1.settings.num_clusters=1"]
    layer = stages.select("select-semdedup", sets, dataset, "")
    assert sum(rows_of(dataset, layer, folder)["keep"].to_pylist()) == 1
    with pytest.raises(ConfigError, match="epsilon was 2"):
        stages.select("select-semdedup", ["filters.1.settings.epsilon=2"], dataset, "")


def test_an_encoder_trains_on_what_was_chosen(journey):
    folder, dataset, _ = journey
    layer = stages.select("select-mixed-captions", [], dataset, "")
    small = ["train.steps=2", "train.batch_size=4", "train.log_every=1"]
    tower = ["model.vision.image_size=32", "model.text.vocab_size=600"]
    uri = stages.pretrain(
        "clip-tiny",
        [*small, *tower],
        dataset,
        str(folder / "store"),
        captions="selected",
        select=[layer],
    )
    view = read_metadata(uri).recipe["view"]
    assert (view["captions"], view["selection_layers"]) == ("selected", [layer])

    def kinds(node):
        return {node.kind} | {kind for parent in node.parents for kind in kinds(parent)}

    roles = {p.role: p for p in lineage(uri).parents}
    assert roles["select"].detail["of"] == "40"
    assert "clip" in kinds(roles["select"])


def test_parts_of_a_score(journey):
    _, dataset, layers = journey
    for start, stop in ((0, 0), (-1, 1), (0, 99)):
        with pytest.raises(ConfigError, match="the range of shards was"):
            stages.score("score-basic", [], dataset, "", start=start, stop=stop)
    assert stages.score("score-basic", [], dataset, "", start=0, stop=1) == layers[1:3]

"""From teachers to a layer to a student: reinforced data, whole."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from clipmill.data.dataset import Dataset, cache_folder
from clipmill.data.layers import read_layer
from clipmill.data.loading.config import DataLoaderConfig
from clipmill.data.loading.dataloader import PairDataLoader, TeacherLayer
from clipmill.data.loading.view import View, ViewConfig
from clipmill.data.shards.read import read_shard
from clipmill.data.transforms.augmentation import (
    CropTransform,
    RandomResizedCropConfig,
    ReplayTransform,
    StoredAugmentationConfig,
    replay,
)
from clipmill.engine.config import ScheduleConfig, TrainConfig
from clipmill.engine.distributed import DistributedContext
from clipmill.engine.result import read_log
from clipmill.errors import ArtifactError, ConfigError
from clipmill.images import decode_rgb
from clipmill.models.checkpoint import CheckpointMetadata, load_checkpoint, save_checkpoint
from clipmill.models.config import VisionConfig
from clipmill.models.tokenizer import Tokenizer
from clipmill.models.towers import build_clip
from clipmill.pretrain.clip import pretrain_clip
from clipmill.pretrain.config import DistillationConfig, PretrainConfig, TeacherConfig
from clipmill.pretrain.teacher import embed_with_teachers, load_teacher, teacher_parent
from helpers.tiny_clip import CLIP

CAPTIONS = "captions/test-1"
BIG = replace(CLIP, embed_dim=12, vision=replace(CLIP.vision, image_size=24))
LOAD = DataLoaderConfig(num_workers=0, shuffle_shards=2)
TRAIN = TrainConfig(
    steps=4,
    batch_size=6,
    grad_accum_steps=2,
    schedule=ScheduleConfig(lr=1e-3),
    checkpoint_every=2,
    log_every=1,
)


def silent(done, total, words):
    pass


def fail(done, total, words):
    pytest.fail("worked again")


@pytest.fixture(scope="session")
def teachers(tmp_path_factory):
    """Two CLIP checkpoints of other widths and sizes."""
    folder, found = tmp_path_factory.mktemp("teachers"), []
    for number, config in enumerate((CLIP, BIG)):
        torch.manual_seed(number)
        metadata = CheckpointMetadata(kind="clip", architecture=config.to_json(), recipe={})
        tensors = build_clip(config).state_dict()
        found.append(save_checkpoint(str(folder / str(number)), metadata, tensors).uri)
    return tuple(found)


@pytest.fixture
def config(teachers):
    return TeacherConfig(
        models=teachers,
        num_augmentations=3,
        augmentation=StoredAugmentationConfig(crop=RandomResizedCropConfig(scale=(0.5, 1.0))),
        batch_size=2,
    )


@pytest.fixture
def layer(config, dataset_uri):
    return embed_with_teachers(config, dataset_uri, CAPTIONS, report=silent)


@pytest.fixture
def distillation(layer):
    return DistillationConfig(
        layer=layer, contrastive_weight=0.25, weight=0.75, teacher_widths=(16, 12)
    )


def view_of(dataset_uri, captions="both"):
    config = ViewConfig(captions=captions, layer="" if captions == "real" else CAPTIONS)
    return View(Dataset.open(dataset_uri), config)


ALONE = DistributedContext()


def batches(view, distillation, dist=ALONE, cursor=0):
    return iter(
        PairDataLoader(
            view,
            LOAD,
            batch_size=TRAIN.batch_size,
            seed=TRAIN.seed,
            transform=CropTransform(16, RandomResizedCropConfig()),
            teacher=TeacherLayer(distillation.layer, ReplayTransform(16)),
            tokenize=Tokenizer.from_config(CLIP.text),
            rank=dist.rank,
            world_size=dist.world_size,
            start_step=cursor,
        )
    )


def test_rows_are_what_the_teachers_make_of_them(config, layer, dataset_uri):
    dataset = Dataset.open(dataset_uri)
    table = read_layer(dataset, layer, 1, cache_folder())
    made = [load_teacher(name) for name in config.models]
    assert [teacher.width for teacher in made] == [16, 12]
    with read_shard(dataset, 1, cache_folder()) as reader:
        assert table["uid"].to_pylist() == reader.uids
        for row in range(len(reader)):
            numbers = table["augmentation"][row].as_py()
            assert len(numbers) == 3
            picture = decode_rgb(reader.image(row))
            columns = [
                t.embed_images([replay(picture, t.image_size, n) for n in numbers]) for t in made
            ]
            found = np.array(table["image"][row].as_py(), np.float32)
            np.testing.assert_allclose(found, np.concatenate(columns, 1), atol=1e-3)
            texts = [reader.caption(row), f"picture {reader.uid(row)}"]
            columns = [t.embed_texts(texts) for t in made]
            found = np.array(table["text"][row].as_py(), np.float32)
            np.testing.assert_allclose(found, np.concatenate(columns, 1), atol=1e-3)


def test_embeddings_are_half_floats_and_unit_by_teacher(layer, dataset_uri):
    table = read_layer(Dataset.open(dataset_uri), layer, 0, cache_folder())
    for name in ("image", "text"):
        assert str(table[name].type) in {
            "list<element: fixed_size_list<element: halffloat>[28]>",
            "list<item: fixed_size_list<item: halffloat>[28]>",
            "list<element: fixed_size_list<element: halffloat not null>[28]>",
        }
        rows = np.array(table[name][0].as_py(), np.float32)
        for part in (rows[:, :16], rows[:, 16:]):
            np.testing.assert_allclose(np.linalg.norm(part, axis=1), 1, atol=2e-3)


def test_the_stage_is_done_once(config, layer, dataset_uri):
    assert embed_with_teachers(config, dataset_uri, CAPTIONS, report=fail) == layer
    # How many at a time is no property of the layer; the seed is.
    other = replace(config, batch_size=7)
    assert embed_with_teachers(other, dataset_uri, CAPTIONS, report=fail) == layer
    assert embed_with_teachers(replace(config, seed=1), dataset_uri, report=silent) != layer


def test_a_batch_holds_what_the_teachers_saw(distillation, config, dataset_uri):
    batch = next(batches(view_of(dataset_uri), distillation))
    assert batch.images_B3HW.shape == (6, 3, 16, 16)
    # The first teacher's input has the student's size, so it must see the very same pixels.
    teacher = load_teacher(config.models[0])
    pictures = [Image.fromarray(p.permute(1, 2, 0).numpy()) for p in batch.images_B3HW]
    found = batch.teacher_image_BE[:, :16].float().numpy()
    np.testing.assert_allclose(found, teacher.embed_images(pictures), atol=1e-3)
    expected = teacher.embed_texts([f"picture {uid}" for uid in batch.uids])
    np.testing.assert_allclose(
        batch.teacher_synthetic_BE[:, :16].float().numpy(), expected, atol=1e-3
    )


@pytest.mark.parametrize("captions", ["real", "synthetic", "both"])
def test_a_batch_holds_the_views_captions(distillation, dataset_uri, captions):
    batch = next(batches(view_of(dataset_uri, captions), distillation))
    assert (batch.real_BT is None) == (captions == "synthetic")
    assert (batch.teacher_real_BE is None) == (captions == "synthetic")
    assert (batch.synthetic_BT is None) == (captions == "real")
    assert (batch.teacher_synthetic_BE is None) == (captions == "real")


def test_batches_are_the_same_for_any_number_of_ranks_and_from_any_step(distillation, dataset_uri):
    view = view_of(dataset_uri)
    whole = batches(view, distillation)
    parts = [
        batches(view, distillation, DistributedContext(rank=r, world_size=2)) for r in range(2)
    ]
    seen = []
    for _ in range(5):
        expected, found = next(whole), [next(p) for p in parts]
        seen.append(expected)
        assert expected.uids == found[0].uids + found[1].uids
        for name in ("images_B3HW", "synthetic_BT", "teacher_image_BE", "teacher_real_BE"):
            together = torch.cat([getattr(f, name) for f in found])
            assert torch.equal(together, getattr(expected, name)), name
    resumed = next(batches(view, distillation, cursor=3))
    assert resumed.uids == seen[3].uids
    assert torch.equal(resumed.images_B3HW, seen[3].images_B3HW)
    assert sorted(seen[0].uids + seen[1].uids) == sorted(set(seen[0].uids + seen[1].uids))


def test_a_mobile_student_learns_from_the_layer(distillation, dataset_uri, tmp_path):
    config = PretrainConfig(
        model=replace(CLIP, vision=VisionConfig(image_size=16, timm_model="test_resnet")),
        view=ViewConfig(captions="both", layer=CAPTIONS),
        distillation=distillation,
        dataloader=LOAD,
        train=TRAIN,
    )

    def stop(done, total, words):
        if done == 3:
            raise KeyboardInterrupt

    uri = pretrain_clip(config, dataset_uri, str(tmp_path / "a"), report=silent)
    metadata, expected = load_checkpoint(uri)
    assert {p.role for p in metadata.parents} == {"dataset", "captions", "teacher"}
    assert {"loss/real", "loss/real_distillation", "loss/synthetic_distillation"} <= set(
        read_log(uri)[0]
    )
    with pytest.raises(KeyboardInterrupt):
        pretrain_clip(config, dataset_uri, str(tmp_path / "b"), report=stop)
    _, found = load_checkpoint(
        pretrain_clip(config, dataset_uri, str(tmp_path / "b"), report=silent)
    )
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_layers_that_dont_fit(config, distillation, dataset_uri):
    view = view_of(dataset_uri)
    assert teacher_parent(view, distillation).role == "teacher"
    with pytest.raises(ConfigError, match=r"distillation\.layer was 'teacher/none'"):
        teacher_parent(view, replace(distillation, layer="teacher/none"))
    with pytest.raises(ConfigError, match=r"teacher_widths was \(768, 768\)"):
        teacher_parent(view, replace(distillation, teacher_widths=(768, 768)))
    bare = embed_with_teachers(config, dataset_uri, report=silent)
    view = view_of(dataset_uri)  # lists the new layer
    with pytest.raises(ConfigError, match="has no embeddings of captions/test-1"):
        teacher_parent(view, replace(distillation, layer=bare))
    assert teacher_parent(view_of(dataset_uri, "real"), replace(distillation, layer=bare))


def test_ensembles_that_cannot_be(config, dataset_uri):
    with pytest.raises(ConfigError, match="models was empty"):
        embed_with_teachers(TeacherConfig(), dataset_uri, report=silent)
    with pytest.raises(ConfigError, match="has no layer 'captions/none'"):
        embed_with_teachers(config, dataset_uri, "captions/none", report=silent)
    towers = replace(config, models=("random:timm/resnet18",))
    with pytest.raises(ArtifactError, match="no text tower"):
        embed_with_teachers(towers, dataset_uri, report=silent)


def test_siglips_loss_has_no_distillation(distillation):
    with pytest.raises(ConfigError, match="with distillation"):
        PretrainConfig(model=replace(CLIP, loss="sigmoid"), distillation=distillation, train=TRAIN)


def test_an_open_clip_teacher_from_a_file(tmp_path):
    import open_clip
    from safetensors.torch import save_file

    torch.manual_seed(0)
    path = tmp_path / "weights.safetensors"
    model = open_clip.create_model("ViT-S-32-alt").eval()
    save_file(model.state_dict(), path)
    teacher = load_teacher(f"file:{path}#open_clip/ViT-S-32-alt")
    with torch.no_grad():
        tokens = open_clip.get_tokenizer("ViT-S-32-alt")(["a red hat"])
        expected = model.encode_text(tokens, normalize=True)
    np.testing.assert_allclose(teacher.embed_texts(["a red hat"]), expected, atol=1e-5)
    assert (teacher.image_size, teacher.width) == (224, 256)

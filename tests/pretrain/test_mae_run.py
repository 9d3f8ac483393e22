"""A masked autoencoder's whole run, and CLIP that starts from it."""

from dataclasses import replace

import pytest
import torch

from clipmill.data.dataset import Dataset
from clipmill.data.loading.config import DataLoaderConfig
from clipmill.data.loading.dataloader import PairBatch
from clipmill.engine.config import ScheduleConfig, TrainConfig
from clipmill.engine.distributed import DistributedContext
from clipmill.models.checkpoint import load_checkpoint
from clipmill.models.config import MaeConfig
from clipmill.models.encoders import build_dense
from clipmill.models.pretrained import open_encoder
from clipmill.pretrain.clip import pretrain_clip
from clipmill.pretrain.config import MaePretrainConfig, PretrainConfig
from clipmill.pretrain.mae import MaeObjective, MaskedAutoencoder, pretrain_mae
from helpers.tiny_clip import CLIP

VISION = replace(CLIP.vision, has_input_norm=False)
CONFIG = MaePretrainConfig(
    model=MaeConfig(
        vision=VISION, mask_ratio=0.5, decoder_width=16, decoder_layers=1, decoder_heads=2
    ),
    dataloader=DataLoaderConfig(num_workers=0, shuffle_shards=2),
    train=TrainConfig(
        steps=4, batch_size=6, schedule=ScheduleConfig(lr=1e-3), checkpoint_every=2, log_every=1
    ),
)


def silent(done, total, words):
    pass


def fail(done, total, words):
    pytest.fail("worked again")


def test_a_run_and_clip_after_it(dataset_uri, tmp_path):
    uri = pretrain_mae(CONFIG, dataset_uri, str(tmp_path), report=silent)
    assert pretrain_mae(CONFIG, dataset_uri, str(tmp_path), report=fail) == uri
    metadata, tensors = load_checkpoint(uri)
    assert (metadata.kind, metadata.architecture) == ("mae", CONFIG.model.to_json())
    assert [p.digest for p in metadata.parents] == [Dataset.open(dataset_uri).digest]
    MaskedAutoencoder(CONFIG.model).load_state_dict(tensors)  # strict
    clip = PretrainConfig(
        model=replace(CLIP, vision=VISION),
        init=uri,
        dataloader=CONFIG.dataloader,
        train=replace(CONFIG.train, steps=1, schedule=ScheduleConfig(lr=0.0, min_lr=0.0)),
    )
    started = pretrain_clip(clip, dataset_uri, str(tmp_path), report=silent)
    metadata, begun = load_checkpoint(started)
    assert {"start", "dataset"} == {p.role for p in metadata.parents}
    name = "visual.transformer.resblocks.0.attn.in_proj_weight"
    assert torch.equal(begun[name], tensors[name])


def test_an_interrupted_run_ends_with_the_same_weights(dataset_uri, tmp_path):
    def stop(done, total, words):
        if done == 3:
            raise KeyboardInterrupt

    straight = pretrain_mae(CONFIG, dataset_uri, str(tmp_path / "a"), report=silent)
    with pytest.raises(KeyboardInterrupt):
        pretrain_mae(CONFIG, dataset_uri, str(tmp_path / "b"), report=stop)
    resumed = pretrain_mae(CONFIG, dataset_uri, str(tmp_path / "b"), report=silent)
    expected, found = (load_checkpoint(uri)[1] for uri in (straight, resumed))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_its_tower_can_be_fine_tuned(dataset_uri, tmp_path):
    """The dense encoder's map is the tower's own, after its last norm."""
    uri = pretrain_mae(CONFIG, dataset_uri, str(tmp_path), report=silent)
    pretrained = open_encoder(uri)
    assert pretrained.config.vision == VISION
    encoder = build_dense(pretrained.config).eval()
    pretrained.load_weights(encoder)
    mae = MaskedAutoencoder(CONFIG.model).eval()
    mae.load_state_dict(load_checkpoint(uri)[1])
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        (found_BDhw,) = encoder(images)
        tokens_BND = mae.visual.ln_post(
            mae.visual.transformer(mae.visual._embeds(encoder.normalize(images)))
        )
    torch.testing.assert_close(found_BDhw.flatten(2).transpose(1, 2), tokens_BND[:, 1:])


def test_it_learns_a_picture():
    torch.manual_seed(0)
    objective = MaeObjective(CONFIG, DistributedContext())
    rows = torch.arange(16.0).mul(15).to(torch.uint8)
    picture = rows.expand(3, 16, 16)
    batch = PairBatch(picture.expand(8, 3, 16, 16), None, None, ())
    optimizer = torch.optim.AdamW(objective.parameters(), 1e-2)
    losses = []
    for _ in range(80):
        loss = objective(batch)["reconstruction"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_half_of_the_pictures_are_mirrored(monkeypatch):
    objective, seen = MaeObjective(CONFIG, DistributedContext()), []
    forward = objective.mae.forward

    def noting(images):
        seen.append(images)
        return forward(images)

    monkeypatch.setattr(objective.mae, "forward", noting)
    picture = torch.arange(16).mul(15).to(torch.uint8).expand(400, 3, 16, 16)
    objective(PairBatch(picture, None, None, ()))
    is_mirrored = seen[0][:, 0, 0, 0] > seen[0][:, 0, 0, -1]
    assert 150 < is_mirrored.sum() < 250

"""CoCa's objective against open_clip's loss, and a captioner from training to captions."""

import pytest
import torch
from open_clip.loss import CoCaLoss
from PIL import Image

from clipmill.data.captioners import CaptionersConfig, CaptionInput, CocaCaptioner, GenerateConfig
from clipmill.data.dataset import Dataset
from clipmill.data.layers import read_layer
from clipmill.data.loading.config import DataLoaderConfig
from clipmill.data.recaption import recaption
from clipmill.engine.config import ScheduleConfig, TrainConfig
from clipmill.engine.distributed import DistributedContext
from clipmill.models.checkpoint import CheckpointMetadata, load_checkpoint, save_checkpoint
from clipmill.models.coca import build_coca
from clipmill.models.encoders import Normalize
from clipmill.pretrain.coca import CocaObjective, train_coca
from clipmill.pretrain.config import CocaTrainConfig
from helpers.tiny_clip import CAPTIONS, CLIP, COCA, pair_batch

CONFIG = CocaTrainConfig(
    model=COCA,
    dataloader=DataLoaderConfig(num_workers=0),
    train=TrainConfig(
        steps=3,
        batch_size=6,
        schedule=ScheduleConfig(lr=1e-3),
        checkpoint_every=2,
        log_every=1,
    ),
)


def silent(done, total, words):
    pass


def fail(done, total, words):
    pytest.fail("worked again")


@pytest.mark.parametrize("weights", [(1.0, 2.0), (0.5, 1.0), (0.0, 1.0)])
def test_losses_are_open_clips(weights):
    contrastive, captioning = weights
    torch.manual_seed(0)
    config = CocaTrainConfig(
        model=COCA,
        contrastive_weight=contrastive,
        captioning_weight=captioning,
        train=CONFIG.train,
    )
    objective, batch = CocaObjective(config, DistributedContext()), pair_batch(("real",))
    found = objective(batch)
    outputs = objective.coca(Normalize()(batch.images_B3HW / 255), batch.real_BT)
    if "labels" not in outputs:  # open_clip 4, whose CoCaTask shifts them
        outputs["logits"] = outputs["logits"][:, :-1]
        outputs["labels"] = batch.real_BT[:, 1:]
    expected = CoCaLoss(caption_loss_weight=captioning, clip_loss_weight=contrastive)(
        outputs["image_features"],
        outputs["text_features"],
        outputs["logits"],
        outputs["labels"],
        outputs["logit_scale"],
    )
    assert tuple(found) == ("contrastive", "captioning")
    for ours, theirs in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(ours, theirs.float())
    sum(found.values()).backward()
    # DistributedContext that average gradients wait for all of them.
    assert [n for n, p in objective.named_parameters() if p.grad is None] == []


def test_each_token_is_predicted_from_those_before_it():
    """Against the mean log loss of token t + 1 when the model is given tokens 0 to t alone."""
    torch.manual_seed(0)
    objective, batch = CocaObjective(CONFIG, DistributedContext()).eval(), pair_batch(("real",))
    coca, losses = objective.coca, []
    with torch.no_grad():
        for parameter in coca.text_decoder.parameters():
            parameter.mul_(3)  # or predictions would hardly depend on the tokens
        found = objective(batch)["captioning"].item() / CONFIG.captioning_weight
        images = Normalize()(batch.images_B3HW / 255)
        for image, text in zip(images, batch.real_BT, strict=True):
            for t in range(int((text != 0).sum()) - 1):
                image_tokens = coca._encode_image(image[None])[1]
                prefix = coca._encode_text(text[None, : t + 1])[1]
                logits = coca.text_decoder(image_tokens, prefix)[0, -1]
                losses.append(-logits.log_softmax(-1)[text[t + 1]].item())
    assert found == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_a_caption_learnt_by_heart_is_said(tmp_path):
    """From the objective through a checkpoint to the captioner: one token off says another text."""
    torch.manual_seed(0)
    objective, batch = (
        CocaObjective(CONFIG, DistributedContext()),
        pair_batch(("real",), num_samples=1),
    )
    optimizer = torch.optim.Adam(objective.parameters(), 1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        objective(batch)["captioning"].backward()
        optimizer.step()
    metadata = CheckpointMetadata(kind="coca", architecture=COCA.to_json(), recipe={})
    uri = save_checkpoint(str(tmp_path), metadata, objective.coca.state_dict()).uri
    image = Image.fromarray(batch.images_B3HW[0].permute(1, 2, 0).numpy())
    for generate in (
        GenerateConfig(max_tokens=11),
        GenerateConfig(method="top_k", max_tokens=11),
    ):
        captioner = CocaCaptioner(uri, generate)
        ((_, said),) = captioner.caption([CaptionInput(uid="0", caption="", image=image)])
        assert said.texts == (CAPTIONS[0],)


def test_padding_is_not_learnt():
    """Captions are judged up to their end: at chance, each of their tokens costs log V."""
    torch.manual_seed(0)
    objective, batch = CocaObjective(CONFIG, DistributedContext()), pair_batch(("real",))
    with torch.no_grad():
        objective.coca.text_decoder.text_projection.zero_()
    found = objective(batch)["captioning"].item()
    assert found == pytest.approx(2.0 * torch.tensor(float(CLIP.text.vocab_size)).log().item())


@pytest.mark.parametrize(("before", "after"), [(6.0, 4.6051702), (-1.0, 0.0)])
def test_logit_scale_stays_within_clips_bounds(before, after):
    objective = CocaObjective(CONFIG, DistributedContext())
    with torch.no_grad():
        objective.coca.logit_scale.fill_(before)
    objective.after_step()
    assert objective.coca.logit_scale.item() == pytest.approx(after)


def test_from_training_to_a_layer_of_captions(dataset_uri, tmp_path):
    uri = train_coca(CONFIG, dataset_uri, str(tmp_path), report=silent)
    assert train_coca(CONFIG, dataset_uri, str(tmp_path), report=fail) == uri
    metadata, tensors = load_checkpoint(uri)
    assert (metadata.kind, CocaTrainConfig.from_json(metadata.recipe)) == ("coca", CONFIG)
    build_coca(COCA).load_state_dict(tensors)  # strict
    config = CaptionersConfig().override(["generate.method=top_k", "generate.max_tokens=11"])
    layer = recaption(config, dataset_uri, uri, report=silent)
    dataset = Dataset.open(dataset_uri)
    assert layer in dataset.layers
    rows = read_layer(dataset, layer, 0, tmp_path / "cache").to_pylist()
    assert [row["uid"] for row in rows] == dataset.uids(0)


def test_an_interrupted_run_ends_with_the_same_weights(dataset_uri, tmp_path):
    def stop(done, total, words):
        if done == 3:
            raise KeyboardInterrupt

    straight = train_coca(CONFIG, dataset_uri, str(tmp_path / "a"), report=silent)
    with pytest.raises(KeyboardInterrupt):
        train_coca(CONFIG, dataset_uri, str(tmp_path / "b"), report=stop)
    resumed = train_coca(CONFIG, dataset_uri, str(tmp_path / "b"), report=silent)
    assert load_checkpoint(resumed)[0].digest == load_checkpoint(straight)[0].digest

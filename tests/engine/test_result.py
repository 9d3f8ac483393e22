"""Addresses and files of results."""

import pytest
import torch

from clipmill.data.loading.config import DataLoaderConfig
from clipmill.engine.config import TrainConfig
from clipmill.engine.result import TrainResult, read_log, result_uri, save_run
from clipmill.errors import ArtifactError, NotFoundError
from clipmill.lineage import Parent
from clipmill.models.checkpoint import load_checkpoint, read_embedding
from clipmill.models.embedding_stats import EmbeddingStatistics

CONFIG = TrainConfig(steps=3, batch_size=2)
DATA = Parent(role="data", uri="/data", digest="d" * 64)
ENCODER = Parent(role="encoder", uri="/encoder", digest="e" * 64)


def uri_of(config=CONFIG, parents=(DATA, ENCODER)):
    return result_uri("s3://bucket/", "models", "depth", config, parents)


def test_address():
    folder, _, name = uri_of().rpartition("/")
    assert folder == "s3://bucket/models"
    assert name.startswith("depth-")
    assert len(name) == len("depth-") + 12


def test_same_work_has_the_same_address():
    moved = Parent(role="data", uri="/elsewhere", digest=DATA.digest)
    assert (
        uri_of() == uri_of(parents=(ENCODER, moved)) == uri_of(TrainConfig(steps=3, batch_size=2))
    )


@pytest.mark.parametrize(
    ("config", "parents"),
    [
        (TrainConfig(steps=4, batch_size=2), (DATA, ENCODER)),
        (CONFIG, (DATA,)),
        (CONFIG, (DATA, Parent(role="encoder", uri="/encoder", digest="f" * 64))),
        (CONFIG, (DATA, Parent(role="captions", uri="/encoder", digest=ENCODER.digest))),
    ],
)
def test_other_work_has_another(config, parents):
    assert uri_of(config, parents) != uri_of()


def test_saved_result(tmp_path):
    uri = str(tmp_path)
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "step-00000001.json").write_text("{}")
    log = ({"step": 1, "loss": 0.5}, {"step": 2, "loss": 1e-9, "learning_rate": 0.1})
    tensors = {"w": torch.arange(3.0)}
    embedding = EmbeddingStatistics(mean=(0.5, 1e-9), spread=2.0, num_images=3)
    saved = save_run(
        uri,
        TrainResult(tensors=tensors, log=log),
        kind="clip",
        architecture={},
        config=CONFIG,
        parents=(DATA,),
        summary={},
        tensors=tensors,
        embed=lambda metadata: embedding,
    )
    assert saved == uri
    loaded, found = load_checkpoint(uri)
    assert read_embedding(loaded) == embedding
    assert (loaded.kind, loaded.recipe, loaded.uri) == ("clip", CONFIG.to_json(), uri)
    assert (loaded.metrics, loaded.parents) == ({"loss": 1e-9}, (DATA,))
    assert torch.equal(found["w"], tensors["w"])
    assert read_log(uri) == list(log)
    assert not list(tmp_path.glob("state/*"))


def test_no_log(tmp_path):
    with pytest.raises(NotFoundError):
        read_log(str(tmp_path))


def test_only_the_first_rank_writes(tmp_path):
    save_run(
        str(tmp_path),
        TrainResult(tensors={}, log=(), rank=1),
        kind="clip",
        architecture={},
        config=CONFIG,
        parents=(),
        summary={},
        tensors={},
        embed=lambda metadata: pytest.fail("another rank embeds"),
    )
    assert not list(tmp_path.iterdir())


def test_a_model_is_saved_though_its_embeddings_cannot_be_computed(tmp_path, caplog):
    def embed(metadata):
        assert load_checkpoint(str(tmp_path))[0] == metadata
        raise ArtifactError("00001.tar is damaged", expected="", action="")

    uri = save_run(
        str(tmp_path),
        TrainResult(tensors={"w": torch.arange(3.0)}, log=({"step": 1, "loss": 0.5},)),
        kind="clip",
        architecture={},
        config=CONFIG,
        parents=(),
        summary={},
        tensors={"w": torch.arange(3.0)},
        embed=embed,
    )
    metadata, tensors = load_checkpoint(uri)
    assert torch.equal(tensors["w"], torch.arange(3.0))
    assert read_embedding(metadata) is None
    assert "00001.tar is damaged" in caplog.text


def test_workers_leave_the_address_alone():
    configs = [DataLoaderConfig(num_workers=k, prefetch_batches=1 + k) for k in (0, 2)]
    assert configs[0].digest == configs[1].digest != DataLoaderConfig(shuffle_shards=1).digest

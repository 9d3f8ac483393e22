"""Pretraining on a mixture: its address, its resumption, and metrics of each source."""

from dataclasses import replace

import pytest
import torch
from test_pretrain import CONFIG, silent
from torch.nn import functional as F

from clipmill.data.dataset import Dataset
from clipmill.data.loading.mixture import MixtureSource
from clipmill.data.loading.view import ViewConfig
from clipmill.data.shards.plan import ShardConfig
from clipmill.data.shards.write import write_dataset
from clipmill.engine.distributed import DistributedContext
from clipmill.engine.objective import split_batch
from clipmill.engine.result import read_log
from clipmill.errors import ConfigError
from clipmill.lineage import lineage
from clipmill.models.checkpoint import load_checkpoint
from clipmill.pretrain.clip import ClipObjective, pretrain_clip
from clipmill.scenes import SceneConfig, write_caption_folder
from helpers.tiny_clip import CLIP, pair_batch

PLAIN = replace(CONFIG, view=ViewConfig())


@pytest.fixture(scope="module")
def other_uri(tmp_path_factory):
    """Six other scenes."""
    folder = tmp_path_factory.mktemp("others")
    write_caption_folder(SceneConfig(size=32), range(100, 106), folder / "source", "rich")
    config = ShardConfig(samples_per_shard=4)
    return write_dataset(config, str(folder / "source"), str(folder / "store"))


@pytest.fixture
def mixture(dataset_uri, other_uri):
    return (
        MixtureSource(dataset=dataset_uri, weight=2, name="many"),
        MixtureSource(dataset=other_uri, weight=1, name="few"),
    )


def test_a_run(mixture, dataset_uri, other_uri, tmp_path):
    config = replace(PLAIN, mixture=mixture)
    uri = pretrain_clip(config, store=str(tmp_path), report=silent)
    metadata, _ = load_checkpoint(uri)
    digests = {Dataset.open(u).digest for u in (dataset_uri, other_uri)}
    assert {(p.role, p.digest) for p in metadata.parents} == {("dataset", d) for d in digests}
    assert {parent.kind for parent in lineage(uri).parents} == {"dataset"}
    assert {s["dataset"]: s["weight"] for s in metadata.recipe["mixture"]} == {
        Dataset.open(dataset_uri).digest: 0.66667,
        Dataset.open(other_uri).digest: 0.33333,
    }
    assert "0.6667 many" in metadata.summary["mixture"]
    last = read_log(uri)[-1]
    assert last["source/many/samples"] + last["source/few/samples"] == 4 * 6
    assert last["source/few/epochs"] == last["source/few/samples"] / 6
    assert 0 <= last["source/many/accuracy"] <= 1
    again = replace(PLAIN, mixture=tuple(replace(s, weight=10 * s.weight) for s in mixture[::-1]))
    assert pretrain_clip(again, store=str(tmp_path), report=pytest.fail) == uri


def test_weights_and_datasets_are_part_of_the_address(mixture, dataset_uri, tmp_path):
    short = PLAIN.override(["train.steps=1"])
    many, few = mixture
    mixtures = [mixture, (replace(many, weight=1), replace(few, weight=2)), (), (many,)]
    found = {
        pretrain_clip(
            replace(short, mixture=sources),
            "" if sources else dataset_uri,
            str(tmp_path),
            report=silent,
        )
        for sources in mixtures
    }
    assert len(found) == 4


def test_an_interrupted_run_ends_with_the_same_weights(mixture, tmp_path):
    def stop(done, total, words):
        if done == 3:
            raise KeyboardInterrupt

    config = replace(PLAIN, mixture=mixture)
    straight = pretrain_clip(config, store=str(tmp_path / "a"), report=silent)
    with pytest.raises(KeyboardInterrupt):
        pretrain_clip(config, store=str(tmp_path / "b"), report=stop)
    resumed = pretrain_clip(config, store=str(tmp_path / "b"), report=silent)
    expected, found = (load_checkpoint(uri)[1] for uri in (straight, resumed))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    logs = [
        [{k: v for k, v in record.items() if k.startswith(("loss", "source"))} for record in log]
        for log in map(read_log, (straight, resumed))
    ]
    assert logs[0] == logs[1]


def test_a_dataset_or_a_mixture(mixture, dataset_uri, tmp_path):
    with pytest.raises(ConfigError, match="the mixture had 2 sources"):
        pretrain_clip(replace(PLAIN, mixture=mixture), dataset_uri, str(tmp_path), report=silent)
    with pytest.raises(ConfigError, match="the mixture had 0 sources"):
        pretrain_clip(PLAIN, "", str(tmp_path), report=silent)


def test_configs_without_a_mixture_keep_their_digest():
    assert "mixture" not in PLAIN.to_json()
    config = PLAIN.override(["train.steps=1"])
    assert config.digest == replace(config, mixture=()).digest


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
@pytest.mark.parametrize("num_micro_batches", [1, 4])
def test_losses_and_accuracies_of_sources(loss, num_micro_batches):
    """Against the whole matrix, as a mean over each source's samples of two batches."""
    torch.manual_seed(0)
    names = ("a", "b", "unseen")
    objective = ClipObjective(replace(CLIP, loss=loss), DistributedContext(), sources=names)
    expected = {name: {"loss": [], "accuracy": []} for name in names}
    totals = []
    for seed in range(2):
        batch = pair_batch(seed=seed)
        batch.source_B = torch.tensor([0, 1, 1, 0, 0, 0, 1, 0])
        losses = objective.accumulate(split_batch(batch, num_micro_batches), objective)
        totals.append(float(sum(losses.values())))
        features = {k: v.detach() for k, v in objective.features(batch).items()}
        scale, bias = objective.clip.logit_scale.exp(), objective.clip.logit_bias
        per_sample, hits = torch.zeros(8), torch.zeros(8)
        for kind in ("real", "synthetic"):
            logits = (scale * features["image"] @ features[kind].T).detach()
            own = torch.arange(8)
            hits += (logits.argmax(1) == own) / 2
            if loss == "softmax":
                rows, columns = (
                    F.cross_entropy(m, own, reduction="none") for m in (logits, logits.T)
                )
                per_sample += (rows + columns) / 2
            else:
                signs = 2 * torch.eye(8) - 1
                per_sample += -F.logsigmoid(signs * (logits + bias.detach())).sum(1)
        for index, source in enumerate(batch.source_B.tolist()):
            expected[names[source]]["loss"].append(float(per_sample[index]))
            expected[names[source]]["accuracy"].append(float(hits[index]))
    found = objective.extra_metrics()
    for name in ("a", "b"):
        for metric, values in expected[name].items():
            assert float(found[f"source/{name}/{metric}"]) == pytest.approx(
                sum(values) / len(values), rel=1e-4
            )
    assert found["source/unseen/loss"].isnan()
    by_source = [float(found[f"source/{name}/loss"]) for name in ("a", "b")]
    assert (5 * by_source[0] + 3 * by_source[1]) / 8 == pytest.approx(sum(totals) / 2, rel=1e-4)
    assert objective.extra_metrics()["source/a/loss"].isnan()

"""A small run on disk: every artifact that a report reads, written by the libraries themselves."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from clipmill.config import digest_json
from clipmill.data.dataset import Dataset
from clipmill.data.layers import commit_layer, write_layer_shard
from clipmill.data.loading.view import View, ViewConfig
from clipmill.data.shards.plan import ShardConfig
from clipmill.data.shards.write import write_dataset
from clipmill.engine.result import log_lines
from clipmill.lineage import LOG_FILE, Parent
from clipmill.models.checkpoint import CheckpointMetadata, read_metadata, save_checkpoint
from clipmill.recipes.data import coca_tiny
from clipmill.recipes.finetune import depth_tiny, upernet_tiny
from clipmill.recipes.pretrain import clip_tiny
from clipmill.report.encoders import ReportInputs
from clipmill.scenes.formats import write_caption_folder
from clipmill.scenes.geometry import CLASSES, SceneConfig
from clipmill.scenes.scene import Scene, draw
from clipmill.storage import join, write_bytes, write_json
from clipmill.tasks.comparison import Comparison
from clipmill.tasks.promotion import PromotionConfig, promote
from clipmill.tasks.registry import get_task
from clipmill.tasks.visualization import encode_png
from helpers.comparisons import task_result

LAYER = "captions/coca-1a2b3c4d"
FIGURES = {
    "G": {"segmentation": 31.2, "depth": 0.912},
    "G+S": {"segmentation": 34.0, "depth": 0.88},
}
_RECIPES = {"segmentation": upernet_tiny(), "depth": depth_tiny()}
_OTHERS: dict[str, dict[str, float]] = {
    "segmentation": {"mAcc": 48.5, "aAcc": 80.25},
    "depth": {"d1": 0.513, "abs_rel": 0.271, "silog": 0.3},
}


@dataclass(frozen=True, kw_only=True)
class MadeRun:
    """A run's store, and its report's inputs."""

    store: str
    inputs: ReportInputs
    models: Mapping[tuple[str, str], CheckpointMetadata]


@pytest.fixture
def make_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., MadeRun]:
    """Make a run of tiny pictures with these figures by label and task."""
    monkeypatch.setenv("CLIPMILL_CACHE", str(tmp_path / "cache"))

    def make(figures: Mapping[str, Mapping[str, float]] = FIGURES, **options: Any) -> MadeRun:
        return write_run(tmp_path, figures, **{"size": 32, "num_pairs": 5, **options})

    return make


def write_run(
    root: Path,
    figures: Mapping[str, Mapping[str, float]] = FIGURES,
    *,
    size: int,
    num_pairs: int,
    seeds: Mapping[str, int] | None = None,
    steps: Mapping[str, int] | None = None,
    caption: str = "",
    store: str = "",
    pair_accuracy: Mapping[str, float] | None = None,
) -> MadeRun:
    """Write a run to ``store``, or below ``root``.

    ``seeds`` and ``steps`` are those of a label's encoder; ``caption`` replaces that of the first
    picture; ``pair_accuracy`` is that of a label's pretraining, on held-out pairs. Three more items
    of the source are bad.
    """
    store = store or str(root / "store")
    dataset = _dataset(root, store, size, num_pairs, caption)
    scenes = _scenes(size, 6 if size > 32 else 2)
    view = View(dataset, ViewConfig())
    recipe = coca_tiny().to_json()
    metadata = CheckpointMetadata(kind="coca", architecture={}, recipe=recipe, parents=view.parents)
    captioner = _save(store, "captioners/coca", metadata, ("contrastive", "captioning"))
    dataset = _recaption(dataset, captioner)
    encoders: dict[str, CheckpointMetadata] = {}
    models: dict[tuple[str, str], CheckpointMetadata] = {}
    evaluations: dict[str, tuple[str, ...]] = {}
    for number, (label, by_task) in enumerate(figures.items()):
        seed, length = (seeds or {}).get(label, 0), (steps or {}).get(label, 120)
        encoders[label] = _encoder(store, dataset, number, seed=seed, steps=length)
        uris = []
        for task, value in by_task.items():
            models[label, task] = _task_model(store, label, task, encoders[label])
            uris.append(_evaluation(store, models[label, task], value, scenes, reach=number + 1))
        evaluations[label] = tuple(uris)
    accuracy = pair_accuracy or dict.fromkeys(figures, 0.8)
    comparison = _comparison(store, encoders, figures, evaluations, accuracy)
    promotions = []
    for result in Comparison.read(comparison).tasks:
        gate = PromotionConfig(task=result.task, threshold=result.gate)
        promotions.append(promote(gate, list(result.evaluations.values()), store).uri)
    _stages(store, "demo")
    inputs = ReportInputs(
        dataset=dataset.uri,
        layer=LAYER,
        captioner=captioner.uri,
        encoders={label: metadata.uri for label, metadata in encoders.items()},
        evaluations=evaluations,
        comparison=comparison,
        promotions=tuple(promotions),
        smoke_test=_probe(store, scenes[0], models),
        run="demo",
    )
    return MadeRun(store=store, inputs=inputs, models=models)


@cache
def _scenes(size: int, count: int) -> tuple[Scene, ...]:
    return tuple(draw(SceneConfig(size=size), 900 + i) for i in range(count))


def _dataset(root: Path, store: str, size: int, num_pairs: int, caption: str) -> Dataset:
    folder = root / "pairs"
    write_caption_folder(SceneConfig(size=size), range(num_pairs), folder, "alt")
    if caption:
        (folder / "000000.txt").write_text(caption)
    (folder / "lonely.jpg").write_bytes((folder / "000000.jpg").read_bytes())
    for name in ("cut<b>", "torn"):
        (folder / f"{name}.jpg").write_bytes((folder / "000000.jpg").read_bytes()[:120])
        (folder / f"{name}.txt").write_text("cut")
    source = join(store, "sources", "scenes")
    value = {"format": 1, "kind": "source", "digest": "5" * 64, "parents": []}
    write_json(join(source, "source.json"), value | {"summary": {"scenes": f"seed 0, {size} px"}})
    parent = Parent(role="source", uri=source, digest="5" * 64)
    config = ShardConfig(samples_per_shard=4)
    return Dataset.open(write_dataset(config, str(folder), store, source_parents=(parent,)))


def _recaption(dataset: Dataset, captioner: CheckpointMetadata) -> Dataset:
    for index in range(len(dataset.shards)):
        uids = dataset.uids(index)
        captions = [[f"a red cone in front of a wall {uid[:4]}"] for uid in uids]
        fallback = [index == 0 and row == 1 for row in range(len(uids))]
        table = pa.table({"uid": uids, "captions": captions, "fallback": fallback})
        write_layer_shard(dataset, LAYER, index, table)
    parents = (captioner.as_parent("captioner"),)
    return commit_layer(dataset, LAYER, parents=parents, detail={"method": "top_k"})


def _encoder(
    store: str, dataset: Dataset, number: int, *, seed: int, steps: int
) -> CheckpointMetadata:
    kinds = ("real",) if number == 0 else ("real", "synthetic")
    captions = "real" if number == 0 else "both"
    config = clip_tiny()
    config = replace(
        config,
        view=ViewConfig(captions=captions, layer="" if number == 0 else LAYER),
        train=replace(config.train, seed=seed, steps=steps),
    )
    metadata = CheckpointMetadata(
        kind="clip",
        architecture=config.model.to_json(),
        recipe=config.to_json(),
        parents=View(dataset, config.view).parents,
        summary={"captions": captions, "seen samples": f"{config.train.num_seen_samples:,}"},
    )
    return _save(store, f"encoders/{captions}-{number}", metadata, kinds, seed=number)


def _task_model(
    store: str, label: str, task: str, encoder: CheckpointMetadata
) -> CheckpointMetadata:
    config = _RECIPES[task]
    metadata = CheckpointMetadata(
        kind="task",
        architecture={
            "task": task,
            "classes": list(CLASSES) if task == "segmentation" else [],
            "config": config.model.to_json(),
        },
        recipe=config.to_json(),
        parents=(
            encoder.as_parent("encoder"),
            Parent(role="data", uri=join(store, "sources", "scenes"), digest="5" * 64),
        ),
        summary={"task": task},
    )
    return _save(store, f"models/{task}-{encoder.digest[:12]}", metadata, (), seed=len(label))


def _save(
    store: str, place: str, metadata: CheckpointMetadata, kinds: Sequence[str], seed: int = 0
) -> CheckpointMetadata:
    """Save a checkpoint with a log that falls, as a run's does."""
    random = np.random.default_rng([seed, len(kinds)])
    log = []
    for step in range(2, 122, 2):
        terms = {
            kind: math.log(64) * math.exp(-step / (90 + 40 * i)) + float(random.normal(0, 0.09))
            for i, kind in enumerate(kinds or ("only",))
        }
        named = {f"loss/{kind}": value for kind, value in terms.items()} if len(terms) > 1 else {}
        log.append({"step": step, "loss": sum(terms.values()), **named})
    tensors = {"weight": torch.full((2,), float(seed))}
    write_bytes(join(store, place, LOG_FILE), log_lines(log))
    save_checkpoint(join(store, place), metadata, tensors)
    return read_metadata(join(store, place))


def _evaluation(
    store: str, model: CheckpointMetadata, value: float, scenes: Sequence[Scene], *, reach: int
) -> str:
    task = model.architecture["task"]
    contract = get_task(task)
    digest = digest_json([task, model.digest])
    uri = join(store, "evaluations", f"{task}-{digest[:12]}")
    for index, scene in enumerate(scenes):
        truth = scene.classes_HW - 1 if task == "segmentation" else scene.depth_HW
        pictures = {
            "image": scene.image_HW3,
            "truth": _drawn(task, truth),
            "prediction": _drawn(task, _blurred(truth, reach)),
        }
        for name, picture_HW3 in pictures.items():
            write_bytes(join(uri, f"{index:02d}-{name}.png"), encode_png(picture_HW3))
    others = {name: figure + 0.01 * reach for name, figure in _OTHERS[task].items()}
    write_json(
        join(uri, "evaluation.json"),
        {
            "format": 1,
            "kind": "evaluation",
            "digest": digest,
            "task": task,
            "metrics": {contract.metric.name: value, **others},
            "num_samples": len(scenes),
            "parents": [
                model.as_parent("model").to_json(),
                {"role": "data", "uri": join(store, "sources", "scenes"), "digest": "5" * 64},
            ],
            "summary": {},
        },
    )
    return uri


def _comparison(
    store: str,
    encoders: Mapping[str, CheckpointMetadata],
    figures: Mapping[str, Mapping[str, float]],
    evaluations: Mapping[str, Sequence[str]],
    pair_accuracy: Mapping[str, float],
) -> str:
    tasks = [
        task_result(
            name,
            {label: by_task[name] for label, by_task in figures.items()},
            evaluations={
                label: uri for label, uris in evaluations.items() for uri in uris if name in uri
            },
        )
        for name in next(iter(figures.values()))
    ]
    parents = [
        metadata.as_parent(f"encoder {label}").to_json() for label, metadata in encoders.items()
    ]
    digest = digest_json([parents, figures])
    uri = join(store, "comparisons", digest[:12])
    write_json(
        join(uri, "comparison.json"),
        {
            "format": 1,
            "kind": "comparison",
            "digest": digest,
            "config": {},
            "tasks": [asdict(task) for task in tasks],
            "pretraining": {
                label: {
                    "losses": {"loss/real": 2.9},
                    "chance_loss": math.log(64),
                    "pair_accuracy": accuracy,
                    "pair_accuracy_error": 0.02,
                }
                for label, accuracy in pair_accuracy.items()
            },
            "parents": parents,
            "summary": {},
        },
    )
    return uri


def _drawn(task: str, array_HW: np.ndarray) -> np.ndarray:
    contract = get_task(task)
    return contract.visualize(
        {contract.outputs[0].name: array_HW}, np.zeros((*array_HW.shape, 3)), ()
    )


def _blurred(truth_HW: np.ndarray, reach: int) -> np.ndarray:
    """A prediction that is nearly right: the truth, coarser and shifted."""
    coarse = np.kron(truth_HW[::4, ::4], np.ones((4, 4), truth_HW.dtype))
    return np.roll(coarse, 4 - reach, axis=1)


def _stages(store: str, run: str) -> None:
    lengths = {"scenes": 31, "shard": 2, "captioner": 74, "recaption": 38, "pretrain G": 61}
    lengths |= {"pretrain G+S": 83, "finetune G": 52, "finetune G+S": 51, "evaluate": 9}
    started = 1.8e9
    for number, (words, seconds) in enumerate(lengths.items()):
        name, _, label = words.partition(" ")
        reused = number < 2
        record = {"name": name, "label": label, "started": started, "output": store}
        record |= {"seconds": 0.1 if reused else float(seconds), "reused": reused}
        write_json(join(store, "runs", run, f"{number}.json"), record)
        if not words.endswith(" G"):
            started += float(record["seconds"]) + 0.4


def _probe(store: str, scene: Scene, models: Mapping[tuple[str, str], CheckpointMetadata]) -> str:
    uri = join(store, "smoke_tests", "one")
    endpoints = []
    last = {task: metadata for (_, task), metadata in models.items()}
    for task, metadata in last.items():
        path = f"/v2/models/{task}/infer"
        endpoints.append(
            {
                "name": task,
                "task": task,
                "model": metadata.uri,
                "digest": metadata.digest,
                "milliseconds": 12.34,
                "request": f"POST {path}",
                "curl": f"curl -s http://127.0.0.1:8080{path} "
                "-H 'content-type: application/json' -d @request.json",
            }
        )
        truth = scene.classes_HW - 1 if task == "segmentation" else scene.depth_HW
        write_bytes(join(uri, f"{task}-image.png"), encode_png(scene.image_HW3))
        write_bytes(join(uri, f"{task}-answer.png"), encode_png(_drawn(task, _blurred(truth, 3))))
        if task == "segmentation":
            write_bytes(join(uri, f"{task}-truth.png"), encode_png(_drawn(task, truth)))
    value = {
        "format": 1,
        "kind": "smoke_test",
        "digest": digest_json(endpoints),
        "endpoints": endpoints,
        "metrics": 'clipmill_serving_images_total{model="segmentation"} 8.0\n',
        "parents": [metadata.as_parent("model").to_json() for metadata in last.values()],
    }
    write_json(join(uri, "smoke_test.json"), value)
    return uri

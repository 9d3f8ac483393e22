"""What pretraining is worth: each task from a pretrained encoder and from random weights.

A CLIP encoder is pretrained once on scenes with rich captions; each task's miniature is then
fine-tuned from it and from random weights of the same architecture, for the same steps on the same
batches, and judged, once a seed. All of it lies in ``--store``, so a run that was killed goes on:
``python benchmarks/from_scratch.py --store out``.
"""

import argparse
import json
import statistics
import time

from rich.console import Console
from rich.table import Table
from towers import hardware

from clipmill.data.scenes.source import LABELS, PAIRS
from clipmill.recipes import run, run_data
from clipmill.storage import join
from clipmill.tasks.evaluation import read_evaluation
from clipmill.tasks.registry import task_named

# The architecture of ``clip-miniature``'s image tower.
SCRATCH = "timm:test_resnet"
RECIPES = {
    "classification": "classification-miniature",
    "detection": "mask-rcnn-miniature",
    "segmentation": "upernet-miniature",
    "depth": "depth-miniature",
}
# A rich caption is longer than the miniature's texts.
PRETRAINING = ("model.text.context_length=64", "train.batch_size=64", "train.average_decay=0.99")


def pretrained(options: argparse.Namespace, source: str) -> str:
    """The URI of an encoder that has seen the pairs."""
    dataset = run_data.shard("shards-miniature", [], join(source, PAIRS), options.store)
    changes = [*PRETRAINING, f"train.steps={options.pretraining_steps}"]
    return run.pretrain("clip-miniature", changes, dataset, options.store)


def figure(options: argparse.Namespace, task: str, encoder: str, source: str, seed: int) -> float:
    """The task's metric after fine-tuning this encoder."""
    recipe, data = RECIPES[task], LABELS[task]
    changes = [f"train.seed={seed}", *options.set]
    model = run.finetune(recipe, changes, encoder, join(source, data), options.store)
    judged = read_evaluation(run.evaluate(model, join(source, data), options.store))
    return judged.metrics[task_named(task).metric.name]


def main() -> None:
    """Pretrain, fine-tune, judge; print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", required=True, help="folder or s3:// URI to keep everything in")
    parser.add_argument("--pairs", type=int, default=8192, help="pictures to pretrain on")
    parser.add_argument("--pretraining-steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tasks", nargs="+", choices=sorted(RECIPES), default=list(RECIPES))
    parser.add_argument("--set", action="append", default=[], help="change of every fine-tuning")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    started = time.perf_counter()
    scenes = [f"num_pairs={options.pairs}", "num_captioning=0", "quality=rich"]
    source = run_data.scenes("scenes-every-task", scenes, options.store)
    starts = {"pretrained": pretrained(options, source), "from scratch": SCRATCH}
    found: dict[str, dict[str, list[float]]] = {t: {n: [] for n in starts} for t in options.tasks}
    for seed in options.seeds:
        for task, rows in found.items():
            for name, encoder in starts.items():
                rows[name].append(figure(options, task, encoder, source, seed))
    if options.json:
        print(json.dumps({"seeds": options.seeds, "metrics": found, "hardware": hardware()}))
        return
    table = Table(title=f"Seeds {options.seeds}", caption=hardware())
    for heading in ("task", "metric", *starts, "gain", "gain by seed"):
        table.add_column(heading, justify="left" if heading in {"task", "metric"} else "right")
    for task, rows in found.items():
        metric = task_named(task).metric
        means = [statistics.mean(values) for values in rows.values()]
        gains = [metric.gain(a, b) for a, b in zip(*rows.values(), strict=True)]
        table.add_row(
            task,
            f"{metric.name}, {metric.unit}",
            *(f"{mean:.3f}" for mean in means),
            f"{statistics.mean(gains):+.3f}",
            ", ".join(f"{gain:+.3f}" for gain in gains),
        )
    console = Console()
    console.print(table)
    console.print(f"{time.perf_counter() - started:.0f} s in this run")


if __name__ == "__main__":
    main()

"""Each rank of a study on given data: ``helpers.study_ranks STORE DATASET LABELS``."""

import sys
from dataclasses import replace

from clipmill.recipes.finetune import upernet_tiny
from clipmill.recipes.pretrain import clip_vit_tiny
from clipmill.recipes.study import study_paper
from clipmill.stage_records import no_progress
from clipmill.study.config import StudyConfig
from clipmill.study.run import run_study

SHORT = ["train.steps=2", "train.batch_size=4", "train.num_threads=1"]
NAMES = ("G", "S", "G+S")


def small_paper() -> StudyConfig:
    """The paper's first table and its attention, at the size of a test."""
    whole = study_paper()
    return replace(
        whole,
        clip_runs={"vit": clip_vit_tiny().override(SHORT)},
        mae_runs={},
        transfers={"segmentation": upernet_tiny().override(SHORT)},
        conditions=tuple(c for c in whole.conditions if c.name in NAMES),
    )


if __name__ == "__main__":
    store, dataset, labels = sys.argv[1:]
    given = [
        f"user_data.dataset={dataset}",
        "user_data.layers.synthetic=captions/scenes-terse",
        f"user_data.labels.segmentation={labels}",
    ]
    run_study(small_paper().override(given), store, report=no_progress)

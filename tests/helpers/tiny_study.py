"""A study of a few images; ``helpers.tiny_study STORE`` carries it out with two workers."""

import sys
from dataclasses import replace

from clipmill.recipes.study import study_captions
from clipmill.scenes.source import ScenesSourceConfig
from clipmill.stage_records import no_progress
from clipmill.study.config import StudyConfig, TableBudget
from clipmill.study.run import run_study

SCENES = ScenesSourceConfig(
    num_pairs=24,
    num_captioner_pairs=8,
    num_labeled=4,
    num_test=2,
    tasks=("segmentation", "depth", "classification"),
)


def tiny() -> StudyConfig:
    """The recipe with two steps of everything, and some of its conditions."""
    whole = study_captions()
    kept = (
        *("G", "G+S (CoCa)", "rich, true", "from scratch", "labels", "G, 10%"),
        "mobile, CLIP G+S, distilled",
    )

    def short(config):
        train = replace(config.train, steps=2, batch_size=2)
        return replace(config, train=train)

    return replace(
        whole,
        synthetic_data=replace(
            whole.synthetic_data, scenes=SCENES, captioner=short(whole.synthetic_data.captioner)
        ),
        clip_runs={name: short(clip) for name, clip in whole.clip_runs.items()},
        mae_runs={name: short(mae) for name, mae in whole.mae_runs.items()},
        supervised={name: short(labels) for name, labels in whole.supervised.items()},
        transfers={
            name: short(whole.transfers[name]) for name in ("segmentation", "depth, frozen")
        },
        conditions=(
            *(c for c in whole.conditions if c.name in kept),
            next(c for c in whole.conditions if c.encoder == "mae"),
        ),
        scoring_clip="rich, true",
        attention=tuple(c.name for c in whole.conditions if c.encoder == "mae")[:1],
        seeds=(0, 1),
        table_budgets={"mobile": TableBudget(seeds=(0,), transfers=("segmentation",))},
    )


if __name__ == "__main__":
    run_study(tiny(), sys.argv[1], workers=2, report=no_progress)

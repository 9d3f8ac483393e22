"""Pipeline stages: a recipe and URIs in, the URI of an artifact out.

The CLI, the Kubeflow components and notebooks call a stage by the same name, as in
``stages.pretrain("clip-tiny", [], dataset, store)``. A stage resolves the recipe, calls one
library function with progress, and records its time in the store if ``run`` is given.
"""

from clipmill.stages.data import (
    export,
    finalize,
    hold_out,
    import_layer,
    import_reinforcements,
    pack,
    plan,
    recaption,
    scenes,
    score,
    select,
    shard,
    shard_part,
    stats,
    teacher,
    train_captioner,
    verify,
)
from clipmill.stages.evaluate import attention, retrieval, study, zero_shot
from clipmill.stages.predict import plan_predict, predict, predict_part
from clipmill.stages.pretrain import import_weights, pretrain, pretrain_mae, pretrain_supervised
from clipmill.stages.report import curation_report, report, report_photos, report_tasks, view
from clipmill.stages.tasks import (
    TaskSpec,
    best_of_sweep,
    check_data,
    compare,
    evaluate,
    evaluate_features,
    finetune,
    promote,
    promote_compared,
    random_weights,
    smoke_test,
    sweep,
    sweep_point,
)

__all__ = [
    "TaskSpec",
    "attention",
    "best_of_sweep",
    "check_data",
    "compare",
    "curation_report",
    "evaluate",
    "evaluate_features",
    "export",
    "finalize",
    "finetune",
    "hold_out",
    "import_layer",
    "import_reinforcements",
    "import_weights",
    "pack",
    "plan",
    "plan_predict",
    "predict",
    "predict_part",
    "pretrain",
    "pretrain_mae",
    "pretrain_supervised",
    "promote",
    "promote_compared",
    "random_weights",
    "recaption",
    "report",
    "report_photos",
    "report_tasks",
    "retrieval",
    "scenes",
    "score",
    "select",
    "shard",
    "shard_part",
    "smoke_test",
    "stats",
    "study",
    "sweep",
    "sweep_point",
    "teacher",
    "train_captioner",
    "verify",
    "view",
    "zero_shot",
]

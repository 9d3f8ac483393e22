"""A task that an encoder is wanted for: an entry of a pipeline's list ``tasks``."""

from dataclasses import dataclass

from clipmill.config import Config
from clipmill.recipes.registry import RECIPES, recipe
from clipmill.stage_records import Stage
from clipmill.tasks.evaluation import EvaluationResult, read_evaluation
from clipmill.tasks.finetune import FinetuneConfig
from clipmill.tasks.sweep_config import Point, SweepConfig

_RATE = "train.schedule.peak"


@dataclass(frozen=True, kw_only=True, slots=True)
class WantedTask(Config):
    """What to tune for, on which data, and what must be reached."""

    recipe: str
    """Name of a recipe, of a fine-tuning or of a sweep."""
    data: str
    """Folder of labelled data, or URI of one as .tar."""
    gate: float
    """Value of the task's metric from which on a model may serve, in its unit."""
    overrides: tuple[str, ...] = ()
    """``path=value`` for the recipe's config."""

    @property
    def sweep(self) -> SweepConfig:
        """The recipe as a sweep: a fine-tuning is one of a single point.

        Raises:
            ConfigError: there is no such recipe, or an override is wrong.
        """
        if self.recipe not in RECIPES or not isinstance(RECIPES[self.recipe](), FinetuneConfig):
            return recipe(self.recipe, SweepConfig, self.overrides)
        config = recipe(self.recipe, FinetuneConfig, self.overrides)
        return SweepConfig(
            finetune=config, grid={_RATE: (config.train.schedule.peak,)}, rungs=(1.0,)
        )


def sweep_point(wanted: WantedTask, point: Point, encoder: str, store: str, run: str = "") -> str:
    """Try a point at the sweep's first rung; its evaluation's URI, empty where it diverged."""
    from clipmill.tasks.sweep_point import run_point

    config = wanted.sweep.at(point, 0)
    label = f"{config.task}-{config.digest[:8]}"
    with Stage("sweep point", store=store, run=run, label=label) as stage:
        return stage.made(run_point(config, encoder, wanted.data, store, stage.report))


def best_of_sweep(
    wanted: WantedTask, encoder: str, store: str, run: str = ""
) -> tuple[str, EvaluationResult]:
    """The sweep's URI and the evaluation of its best; points that were tried before are found."""
    from clipmill.recipes.run import drawn_sweep
    from clipmill.tasks.sweep import read_sweep

    uri = drawn_sweep(wanted.sweep, encoder, wanted.data, store, run)
    return uri, read_evaluation(read_sweep(uri).best.evaluation)

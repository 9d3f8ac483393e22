"""The caption study: encoders by caption source and seed, with confidence intervals."""

from clipmill.components.deployment.record_run_status import record_run_status
from clipmill.components.evaluation.study import study as compare_sources
from clipmill.pipelines.common import on_pool
from kfp import dsl


@dsl.pipeline(name="study")
def study(
    store: str,
    run: str,
    study_recipe: str = "study-captions-quick",
    study_overrides: list = [],  # noqa: B006  # KFP reads the default, nothing changes it
) -> None:
    """Pretrain and fine-tune for each caption source and seed, and write a page of the results.

    A study that was stopped resumes.
    """
    at = {"store": store, "run": run}
    with dsl.ExitHandler(on_pool(record_run_status(**at), "cpu", cached=False), name="run"):
        on_pool(compare_sources(recipe=study_recipe, overrides=study_overrides, **at), "gpu")

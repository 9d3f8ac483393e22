"""The caption study: encoders by caption source and seed, with confidence intervals."""

from clipmill.components.evaluation.study import study as compare_sources
from clipmill.pipelines.common import on_pool, pipeline


@pipeline("study")
def study(
    store: str,
    study_recipe: str = "study-captions-quick",
    study_overrides: list = [],  # noqa: B006  # KFP reads the default, nothing changes it
) -> None:
    """Pretrain and fine-tune for each caption source and seed, and write a page of the results.

    A study that was stopped resumes.
    """
    on_pool(compare_sources(recipe=study_recipe, overrides=study_overrides, store=store), "gpu")

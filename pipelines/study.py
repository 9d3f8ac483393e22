"""The paper's question with error bars: what encoders learn from which captions."""

from clipmill.components.finish_run import finish_run
from clipmill.components.study import study as compare_sources
from clipmill.pipelines.common import on_pool
from kfp import dsl


@dsl.pipeline(name="study")
def study(
    store: str,
    run: str,
    study_recipe: str = "study-captions-quick",
    study_overrides: list = [],  # noqa: B006  # KFP reads the default, nothing changes it
) -> None:
    """Pretrain and fine-tune once a source of captions and seed, and draw one page about it.

    A study that was stopped goes on where it was.
    """
    at = {"store": store, "run": run}
    with dsl.ExitHandler(on_pool(finish_run(**at), "cpu", cached=False), name="all"):
        on_pool(compare_sources(recipe=study_recipe, overrides=study_overrides, **at), "gpu")

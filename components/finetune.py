"""Component: a task model from an encoder."""

from clipmill.components import IMAGE
from kfp import dsl


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def finetune(
    encoder: str, data: str, recipe: str, overrides: list, store: str, run: str, label: str,
    made: dsl.Output[dsl.Model],
) -> str:  # fmt: skip
    """Fine-tune ``encoder`` on labelled data; the model's URI."""
    from clipmill.cluster.artifacts import recorded
    from clipmill.stages.run import finetune as stage

    return recorded(stage(recipe, overrides, encoder, data, store, run, label), made)

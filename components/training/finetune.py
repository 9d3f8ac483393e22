"""Fine-tuning of an encoder for a task."""

from clipmill.components import IMAGE
from kfp import dsl


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def finetune(
    encoder: str, data: str, recipe: str, overrides: list, store: str, label: str,
    task_model: dsl.Output[dsl.Model], metrics: dsl.Output[dsl.Metrics],
) -> str:  # fmt: skip
    """Fine-tune an encoder on labeled data.

    Args:
        encoder: Address of the encoder.
        data: Folder of labeled data, or URI of one as .tar.
        recipe: Name of the recipe.
        overrides: path=value changes of the recipe.
        store: URI of the store to write to.
        label: Label of the encoder, such as a caption source.
        task_model: The model as an artifact with its metadata.
        metrics: The last record of the training's log, for the UI.

    Returns:
        URI of the model.
    """
    from clipmill import stages
    from clipmill.lineage import log_artifact

    uri = stages.finetune(recipe, overrides, encoder, data, store, label=label)
    return log_artifact(uri, task_model, metrics)

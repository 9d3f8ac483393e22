"""Training of a captioner."""

from clipmill.components import IMAGE
from kfp import dsl


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def train_captioner(
    dataset: str, recipe: str, overrides: list, store: str,
    trained: dsl.Output[dsl.Model], metrics: dsl.Output[dsl.Metrics], captioner: str = "",
) -> str:  # fmt: skip
    """Train a CoCa captioner, unless one is given.

    Args:
        dataset: URI of the dataset.
        recipe: Name of the recipe.
        overrides: path=value changes of the recipe.
        store: URI of the store to write to.
        trained: The trained captioner as an artifact with its metadata.
        metrics: The last record of the training's log, for the UI.
        captioner: Address of a captioner to use instead; may be empty.

    Returns:
        URI of the captioner.
    """
    from clipmill import stages
    from clipmill.lineage import log_artifact

    if captioner:
        return captioner
    return log_artifact(stages.train_captioner(recipe, overrides, dataset, store), trained, metrics)

"""Teacher embeddings of a dataset."""

from clipmill.components import IMAGE
from kfp import dsl


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def embed_teacher(dataset: str, captions: str, recipe: str, overrides: list, store: str) -> str:
    """Embed images and captions with a teacher ensemble.

    Args:
        dataset: URI of the dataset.
        captions: Layer of synthetic captions to embed too; empty for none.
        recipe: Name of the recipe.
        overrides: path=value changes of the recipe.
        store: URI of the store to write to.

    Returns:
        Name of the embedding layer.
    """
    from clipmill import stages

    return stages.teacher(recipe, overrides, dataset, captions, store)

"""Component: a captioner from well-captioned pairs."""

from clipmill.components import IMAGE
from kfp import dsl


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def train_captioner(
    dataset: str, recipe: str, overrides: list, store: str, run: str, captioner: str = ""
) -> str:
    """Train a CoCa, unless ``captioner`` is given; the captioner's URI."""
    from clipmill.recipes.run_data import train_captioner as stage

    return captioner or stage(recipe, overrides, dataset, store, run)

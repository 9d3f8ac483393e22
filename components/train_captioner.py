"""Component: a captioner from well-captioned pairs."""

from clipmill.components import IMAGE
from kfp import dsl


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def train_captioner(
    dataset: str, recipe: str, overrides: list, store: str, run: str,
    made: dsl.Output[dsl.Model], captioner: str = "",
) -> str:  # fmt: skip
    """Train a CoCa, unless ``captioner`` is given; the captioner's URI."""
    from clipmill.cluster.artifacts import recorded
    from clipmill.stages.data import train_captioner as stage

    return captioner or recorded(stage(recipe, overrides, dataset, store, run), made)

"""Component: what a run starts from."""

from typing import NamedTuple

from clipmill.components import IMAGE
from kfp import dsl


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def source(pairs: str, recipe: str, overrides: list, store: str, run: str) -> NamedTuple(
    "Sources", [("pairs", str), ("captioning", str), ("ade20k", str), ("nyu", str)]
):
    """Draw scenes; ``pairs``, where given, takes the place of theirs."""
    from typing import NamedTuple

    from clipmill.scenes import source as files
    from clipmill.stages.data import scenes as stage

    drawn = stage(recipe, overrides, store, run)
    names = (files.PAIRS, files.CAPTIONING, files.LABELS["segmentation"], files.LABELS["depth"])
    uris = [f"{drawn}/{name}" for name in names]
    made = NamedTuple("Sources", [(name, str) for name in ("pairs", "captioning", "ade20k", "nyu")])
    return made(pairs or uris[0], *uris[1:])

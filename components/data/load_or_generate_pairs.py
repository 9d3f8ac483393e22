"""Image-text pairs of a run: those given, or generated scenes."""

from typing import NamedTuple

from clipmill.components import IMAGE
from kfp import dsl


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def load_or_generate_pairs(pairs: str, recipe: str, overrides: list, store: str) -> NamedTuple(  # type: ignore[valid-type]  # KFP reads no other form
    "Sources", [("pairs", str), ("captioner_pairs", str), ("ade20k", str), ("nyu", str)]
):
    """Return the given image-text pairs, or generate some, and generate labeled scenes.

    Args:
        pairs: Address of a source of pairs; empty to generate scenes.
        recipe: Name of the recipe.
        overrides: path=value changes of the recipe.
        store: URI of the store to write to.

    Returns:
        URIs of the pairs, of the captioner's pairs, and of the labeled data.
    """
    from typing import NamedTuple

    from clipmill import stages
    from clipmill.scenes.source import CAPTIONING, LABELS, PAIRS

    folder = stages.scenes(recipe, overrides, store)
    names = (PAIRS, CAPTIONING, LABELS["segmentation"], LABELS["depth"])
    uris = [f"{folder}/{name}" for name in names]

    class Sources(NamedTuple):
        pairs: str
        captioner_pairs: str
        ade20k: str
        nyu: str

    return Sources(pairs or uris[0], *uris[1:])

"""Caption-quality study."""

from clipmill.components import IMAGE
from kfp import dsl


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def study(
    recipe: str, overrides: list, store: str, report: dsl.Output[dsl.HTML]
) -> str:  # fmt: skip
    """Run the caption-quality study and write its page.

    Args:
        recipe: Name of the recipe.
        overrides: path=value changes of the recipe.
        store: URI of the store to write to.
        report: HTML page for the UI's viewer.

    Returns:
        URI of the study.
    """
    from pathlib import Path

    from clipmill import stages
    from clipmill.storage import read_bytes

    uri = stages.study(recipe, overrides, store)
    Path(report.path).write_bytes(read_bytes(f"{uri}/study.html"))
    report.metadata["store_uri"] = uri
    return uri

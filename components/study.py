"""Component: the study of what captions do, with error bars."""

from clipmill.components import IMAGE
from kfp import dsl


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def study(
    recipe: str, overrides: list, store: str, run: str, page: dsl.Output[dsl.HTML]
) -> str:  # fmt: skip
    """Carry the study out, its page for the UI's viewer too; the study's URI."""
    from pathlib import Path

    from clipmill.stages.run import study as stage
    from clipmill.storage import read_bytes

    uri = stage(recipe, overrides, store, run)
    Path(page.path).write_bytes(read_bytes(f"{uri}/study.html"))
    return uri

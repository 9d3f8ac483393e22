"""Component: one page about a folder of photographs."""

from clipmill.components import IMAGE
from kfp import dsl


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def report_photos(
    dataset: str, layer: str, captioner: str, evaluations: list, given: str, store: str, run: str,
    page: dsl.Output[dsl.HTML],
) -> str:  # fmt: skip
    """Draw the page, for the UI's viewer too; the report's URI."""
    from pathlib import Path

    from clipmill.stages.run import report_photos as stage
    from clipmill.storage import read_bytes

    uri = stage(dataset, layer, captioner, evaluations, given, store, run)
    Path(page.path).write_bytes(read_bytes(f"{uri}/report.html"))
    return uri

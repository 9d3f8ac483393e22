"""Component: one page about an encoder's tasks."""

from clipmill.components import IMAGE
from kfp import dsl


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def report_tasks(
    encoder: str, evaluations: list, promotions: list, store: str, run: str,
    page: dsl.Output[dsl.HTML],
) -> str:  # fmt: skip
    """Draw the page, for the UI's viewer too; the report's URI."""
    from pathlib import Path

    from clipmill.stages.run import report_tasks as stage
    from clipmill.storage import read_bytes

    uri = stage(encoder, evaluations, promotions, store, run)
    Path(page.path).write_bytes(read_bytes(f"{uri}/report.html"))
    return uri

"""HTML report of an encoder's tasks."""

from clipmill.components import IMAGE
from kfp import dsl


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def task_report(
    encoder: str, evaluations: list, promotions: list, store: str,
    report: dsl.Output[dsl.HTML],
) -> str:  # fmt: skip
    """Write the report of an encoder's tasks.

    Args:
        encoder: Address of the encoder.
        evaluations: URIs of evaluations.
        promotions: URIs of promotions.
        store: URI of the store to write to.
        report: HTML page for the UI's viewer.

    Returns:
        URI of the report.
    """
    from pathlib import Path

    from clipmill import stages
    from clipmill.storage import read_bytes

    uri = stages.report_tasks(encoder, evaluations, promotions, store)
    Path(report.path).write_bytes(read_bytes(f"{uri}/report.html"))
    report.metadata["store_uri"] = uri
    return uri

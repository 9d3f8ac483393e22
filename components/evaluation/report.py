"""HTML report of a run that compares encoders."""

from clipmill.components import IMAGE
from kfp import dsl


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def report(
    dataset: str,
    layer: str,
    captioner: str,
    encoders: list,
    evaluations: list,
    comparison: str,
    promotions: list,
    smoke_test: str,
    store: str,
    report: dsl.Output[dsl.HTML],
) -> str:
    """Write the report of a run.

    Args:
        dataset: URI of the dataset.
        layer: Layer of synthetic captions.
        captioner: Address of the captioner; may be empty.
        encoders: URIs of the encoders.
        evaluations: URIs of the evaluations of all encoders.
        comparison: URI of the comparison; may be empty.
        promotions: URIs of the promotions; may be empty.
        smoke_test: URI of the smoke test's result; may be empty.
        store: URI of the store to write to.
        report: HTML page for the UI's viewer.

    Returns:
        URI of the report.
    """
    from pathlib import Path

    from clipmill import stages
    from clipmill.storage import read_bytes

    inputs = (dataset, layer, captioner, encoders, evaluations)
    uri = stages.report(
        *inputs, store, comparison=comparison, promotions=promotions, smoke_test=smoke_test
    )
    Path(report.path).write_bytes(read_bytes(f"{uri}/report.html"))
    report.metadata["store_uri"] = uri
    return uri

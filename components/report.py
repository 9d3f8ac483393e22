"""Component: one page about a run."""

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
    segmentation: str,
    depth: str,
    probed: str,
    store: str,
    run: str,
    page: dsl.Output[dsl.HTML],
) -> str:
    """Draw the page, for the UI's viewer too; the report's URI."""
    from pathlib import Path

    from clipmill.stages.run import report as stage
    from clipmill.storage import read_bytes

    evaluated = [uri for of_one_encoder in evaluations for uri in of_one_encoder]
    made_of = (dataset, layer, captioner, encoders, evaluated)
    served = {"promotions": [segmentation, depth], "probe_uri": probed}
    uri = stage(*made_of, store, run, comparison=comparison, **served)
    Path(page.path).write_bytes(read_bytes(f"{uri}/report.html"))
    return uri

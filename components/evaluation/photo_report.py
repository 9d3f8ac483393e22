"""HTML report of retrieval on photographs."""

from clipmill.components import IMAGE
from kfp import dsl


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def photo_report(
    dataset: str, layer: str, captioner: str, evaluations: list, public: str, store: str,
    report: dsl.Output[dsl.HTML],
) -> str:  # fmt: skip
    """Write the report of retrieval on photographs.

    Args:
        dataset: URI of the dataset.
        layer: Layer of synthetic captions.
        captioner: Address of the captioner; may be empty.
        evaluations: URIs of retrieval evaluations.
        public: URI of the evaluation of a public encoder; may be empty.
        store: URI of the store to write to.
        report: HTML page for the UI's viewer.

    Returns:
        URI of the report.
    """
    from pathlib import Path

    from clipmill import stages
    from clipmill.storage import read_bytes

    uri = stages.report_photos(dataset, layer, captioner, evaluations, public, store)
    Path(report.path).write_bytes(read_bytes(f"{uri}/report.html"))
    report.metadata["store_uri"] = uri
    return uri

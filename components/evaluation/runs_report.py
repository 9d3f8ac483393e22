"""HTML report of a store's training runs."""

from clipmill.components import IMAGE
from kfp import dsl


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def runs_report(store: str, report: dsl.Output[dsl.HTML]) -> int:
    """Write a page that compares all training runs of a store.

    Args:
        store: URI of the store with the runs.
        report: HTML page for the UI's viewer.

    Returns:
        Number of runs.
    """
    from pathlib import Path

    from clipmill.report.runs import list_runs, runs_page

    runs = list_runs(store)
    Path(report.path).write_text(runs_page(store, runs), encoding="utf-8")
    return len(runs)

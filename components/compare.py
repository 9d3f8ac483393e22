"""Component: training runs side by side."""

from clipmill.components import IMAGE
from kfp import dsl


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def compare(store: str, page: dsl.Output[dsl.HTML]) -> int:
    """Draw the settings and curves of all runs of ``store``; how many there are."""
    from pathlib import Path

    from clipmill.report.runs import list_runs, runs_page

    runs = list_runs(store)
    Path(page.path).write_text(runs_page(store, runs), encoding="utf-8")
    return len(runs)

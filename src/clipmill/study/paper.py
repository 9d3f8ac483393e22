"""What the paper found, to stand in grey beside what a study finds (CLIP-QC's tables)."""

from dataclasses import dataclass

from clipmill.study.config import TableName


@dataclass(frozen=True, kw_only=True, slots=True)
class PaperRow:
    """An encoder of the paper."""

    name: str
    """Data and captions, or method and budget."""
    figures: dict[str, float]
    """By task, in its metric's unit: box mAP of detection, mIoU, RMSE in metres, top-1."""


def _dense(box: float, miou: float, rmse: float | None = None) -> dict[str, float]:
    found = {"detection": box, "segmentation": miou}
    return found if rmse is None else {**found, "depth": rmse}


PAPER: dict[TableName, tuple[PaperRow, ...]] = {
    "sources": (
        PaperRow(name="DataComp-12M, real (G)", figures=_dense(42.4, 43.9)),
        PaperRow(name="DataComp-12M, CoCa (G+S)", figures=_dense(44.6, 47.8)),
        PaperRow(name="CC-12M, real (G)", figures=_dense(43.8, 45.5)),
        PaperRow(name="CC-12M, LLM rewrites (S)", figures=_dense(43.9, 46.1)),
        PaperRow(name="WIT-12M, real (G)", figures=_dense(41.4, 42.5)),
        PaperRow(name="WIT-12M, LLaVA and Vicuna (G+S)", figures=_dense(42.7, 45.6)),
    ),
    "objectives": (
        PaperRow(name="MAE, 2.05 B seen", figures=_dense(54.0, 48.1, 0.383)),
        PaperRow(name="CLIP, DataComp, 2.05 B seen", figures=_dense(52.1, 49.1, 0.398)),
        PaperRow(name="CLIP, DataCompDR, 2.05 B seen", figures=_dense(53.1, 51.7, 0.366)),
        PaperRow(name="MAE, 5 B seen", figures=_dense(53.8, 47.2, 0.348)),
        PaperRow(name="CLIP, DataComp, 5 B seen", figures=_dense(53.3, 50.7, 0.374)),
        PaperRow(name="CLIP, DataCompDR, 5 B seen", figures=_dense(54.1, 52.5, 0.351)),
        PaperRow(name="CLIP, DataComp, 12.8 B seen", figures=_dense(53.9, 52.5, 0.358)),
        PaperRow(name="CLIP, DataCompDR, 12.8 B seen", figures=_dense(54.6, 53.9, 0.339)),
    ),
    "mobile": tuple(
        PaperRow(name=f"{name}, {how}", figures=_dense(box, miou))
        for name, rows in (
            ("MCi0", (("labels", 41.8, 44.8), ("CLIP, DataCompDR, distilled", 44.2, 48.1))),
            ("MCi1", (("labels", 45.2, 47.7), ("CLIP, DataCompDR, distilled", 47.7, 49.8))),
            ("MCi2", (("labels", 46.6, 48.9), ("CLIP, DataCompDR, distilled", 49.5, 52.2))),
        )
        for how, box, miou in rows
    ),
}
"""ViT-B/16 and mobile encoders; with Mask R-CNN 1x, but the objectives with Cascade 3x."""

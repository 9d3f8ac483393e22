"""The items that the dataset left out, by reason."""

from clipmill.analysis.page import Html, Section, paragraph, section, table, tag
from clipmill.data.dataset import MANIFEST, Dataset
from clipmill.data.sources import REASONS
from clipmill.storage import join, read_json

_NUM_NAMES = 3


def quarantine_section(dataset: Dataset) -> Section:
    """The section ``Bad samples``."""
    if not dataset.quarantine:
        return section("quarantine", "Bad samples", paragraph("None: every item could be used."))
    names: dict[str, list[str]] = {}
    for bad in read_json(join(dataset.uri, MANIFEST))["quarantined"]:
        names.setdefault(bad["reason"], []).append(bad["origin"])
    rows = [
        [
            tag("span", reason, tag("small", REASONS.get(reason, ""))),
            f"{count:,}",
            _names(names.get(reason, []), count),
        ]
        for reason, count in sorted(dataset.quarantine.items(), key=lambda item: (-item[1], item))
    ]
    left_out = sum(dataset.quarantine.values())
    total = left_out + dataset.num_samples
    caption = f"{left_out:,} of {total:,} items were set aside; the others make up the dataset."
    return section(
        "quarantine",
        "Bad samples",
        table(caption, ["Reason", "Items", "Among them"], rows),
    )


def _names(names: list[str], count: int) -> Html:
    shown = names[:_NUM_NAMES]
    codes = [tag("code", name) for name in shown]
    spaced = [part for code in codes for part in (code, Html(", "))][:-1]
    return tag("td", spaced, " …" if count > len(shown) else "")

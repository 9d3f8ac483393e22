"""Section of provenance: lineage of artifacts, versions, machine."""

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version

from clipmill.lineage import Node, lineage
from clipmill.processes import available_cpus, cpu_model
from clipmill.report.html.page import Html, Section, paragraph, section, tag

_PACKAGES = (
    "clipmill",
    "torch",
    "open_clip_torch",
    "timm",
    "onedl-mmsegmentation",
    "kfp",
    "kserve",
)


def environment() -> dict[str, str]:
    """Return versions and machine of this process, without packages that aren't installed."""
    facts = {}
    for name in _PACKAGES:
        try:
            facts[name] = version(name)
        except PackageNotFoundError:
            continue
    cores = available_cpus()
    facts["Python"] = platform.python_version()
    facts["CPU"] = f"{cpu_model()}, {cores} core{'s' if cores > 1 else ''}"
    return facts


def provenance_section(
    artifacts: Sequence[tuple[str, str]], store: str, known: Mapping[str, str], date: str
) -> Section:
    """Return the section ``Provenance``.

    ``artifacts`` pair a heading with the URI of an artifact; ``known`` is the environment.
    """
    seen: set[str] = set()
    trees = [
        (tag("h3", heading), tag("ul", _tree(lineage(uri), store, seen), class_="tree"))
        for heading, uri in artifacts
    ]
    pairs = {**known, "Date": date}
    return section(
        "provenance",
        "Provenance",
        paragraph(
            "Each artifact names its parents by digest. Places are within ", tag("code", store), "."
        ),
        trees,
        tag("h3", "Versions and machine that wrote this report"),
        tag(
            "dl",
            ((tag("dt", name), tag("dd", value)) for name, value in pairs.items()),
            class_="pairs",
        ),
    )


def _tree(node: Node, store: str, seen: set[str]) -> Html:
    role = f"{node.role}: " if node.role not in {"", node.kind} else ""
    path = node.uri.removeprefix(f"{store.rstrip('/')}/")
    line = [tag("b", f"{role}{node.kind}"), " ", tag("code", f"{path} ({node.digest[:12]})")]
    if node.parents and node.uri in seen:
        return tag("li", line, tag("span", " · as above", class_="soft"))
    seen.add(node.uri)
    parents = [_tree(parent, store, seen) for parent in node.parents]
    return tag("li", line, _detail(node), tag("ul", parents) if parents else "")


def _detail(node: Node) -> Html:
    detail = dict(node.detail)
    problem = detail.pop("problem", "")
    text = "".join(f" · {name}: {value}" for name, value in detail.items())
    return tag(
        "span",
        tag("span", text, class_="soft") if text else "",
        tag("span", f" · {problem}", class_="worse") if problem else "",
    )

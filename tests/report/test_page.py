"""Escaping, and the frame of a page."""

from xml.etree import ElementTree as ET

from hypothesis import given
from hypothesis import strategies as st

from clipmill.report.html.page import concat, document, paragraph, section, table, tag

# What XML can hold, so that its parser can be the judge.
texts = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Cn")))


@given(texts, texts)
def test_text_comes_back_as_it_went_in(text: str, value: str) -> None:
    found = ET.fromstring(tag("p", text, title=f"x{value}"))
    assert (found.text or "", found.get("title")) == (text, f"x{value}")
    assert not len(found)


def test_markup_is_kept_and_text_beside_it_is_not_markup() -> None:
    assert concat("<b>", tag("b", "&"), ["<", ("i", ">")]) == "&lt;b&gt;<b>&amp;</b>&lt;i&gt;"


def test_attributes_are_spelled_as_in_html() -> None:
    found = tag("line", class_="grid", stroke_width=2, viewBox="0 0 1 1", title="")
    assert found == '<line class="grid" stroke-width="2" viewBox="0 0 1 1"></line>'


def test_a_row_begins_with_its_heading() -> None:
    found = table("Sizes", ["Name", "Size"], [["a < b", tag("td", "1", class_="best")]])
    tree = ET.fromstring(found)
    assert [e.tag for e in tree.find("table/tbody/tr") or ()] == ["th", "td"]
    assert tree.find("table/tbody/tr/th[@scope='row']").text == "a < b"
    assert tree.find("table/caption").text == "Sizes"


def test_contents_lead_to_the_sections() -> None:
    page = document("T & t", paragraph("head"), [section("one", "First <1>", "body")])
    assert '<a href="#one">First &lt;1&gt;</a>' in page
    assert '<section id="one"><h2>First &lt;1&gt;</h2>body</section>' in page
    assert "<title>T &amp; t</title>" in page
    assert "default-src &#x27;none&#x27;" in page

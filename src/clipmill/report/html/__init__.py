"""Building blocks of self-contained HTML pages: elements, style sheets, charts."""

"""The page's one style sheet: light and dark, wide and narrow, screen and paper."""

# Colours of the labels, the baseline first. Blue and orange stay apart for colour-blind readers.
NUM_SERIES = 6

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fcfbf9; --ink: #1c1e21; --soft: #5c636e; --line: #e4e1da; --card: #f4f2ed;
  --accent: #b4500f; --good: #1c7347; --bad: #ab3526;
  --series-0: #44658f; --series-1: #c05a16; --series-2: #23795a;
  --series-3: #7a4fb0; --series-4: #a8385d; --series-5: #5b6570;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --paper: #14161a; --ink: #e9e7e2; --soft: #9ba2ad; --line: #2c3037; --card: #1c1f25;
    --accent: #f09a5c; --good: #62c493; --bad: #ee8778;
    --series-0: #8fb2e0; --series-1: #f09a5c; --series-2: #62c4a0;
    --series-3: #bc9aee; --series-4: #ee86ab; --series-5: #aab3bf;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; scroll-behavior: smooth; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
main { max-width: 1100px; margin: 0 auto; padding: 72px 32px 96px; }
a { color: inherit; text-decoration-color: var(--soft); text-underline-offset: 3px; }
a:focus-visible, summary:focus-visible {
  outline: 2px solid var(--accent); outline-offset: 3px; border-radius: 2px;
}
h1, h2, h3 { line-height: 1.2; letter-spacing: -0.015em; text-wrap: balance; margin: 0; }
h1 { font-size: clamp(1.9rem, 4.6vw, 2.9rem); font-weight: 650; max-width: 24ch; }
h2 { font-size: 1.5rem; font-weight: 620; margin-bottom: 14px; }
h3 { font-size: 1.08rem; font-weight: 620; margin: 34px 0 12px; }
p { margin: 0 0 14px; max-width: 72ch; text-wrap: pretty; }
.kicker { color: var(--soft); font-size: .85rem; margin-bottom: 16px; }
.lead { font-size: 1.16rem; line-height: 1.6; margin-top: 22px; }
.caveat { color: var(--soft); }
.missing { color: var(--soft); font-style: italic; }
nav {
  display: flex; flex-wrap: wrap; gap: 4px 20px; margin-top: 34px; padding: 13px 0;
  border-block: 1px solid var(--line); font-size: .9rem;
}
nav a { color: var(--soft); text-decoration: none; }
nav a:hover { color: var(--ink); text-decoration: underline; }
section { margin-top: 78px; scroll-margin-top: 24px; }

.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(142px, 1fr));
  gap: 20px 28px; margin: 34px 0 0; }
.facts dt { color: var(--soft); font-size: .82rem; }
.facts dd { margin: 2px 0 0; font-size: 1.2rem; font-weight: 600; line-height: 1.3;
  font-variant-numeric: tabular-nums; }

.scroll { overflow-x: auto; container-type: inline-size; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); font-size: .88rem; padding-bottom: 10px;
  max-width: 100cqw; position: sticky; left: 0; }
th, td { text-align: left; vertical-align: baseline; padding: 9px 22px 9px 0;
  border-bottom: 1px solid var(--line); }
th:last-child, td:last-child { padding-right: 0; }
thead th { color: var(--soft); font-weight: 500; font-size: .85rem; }
tbody th { font-weight: 600; }
td.best { font-weight: 680; }
td.best::before { content: ""; display: inline-block; width: .5em; height: .5em;
  margin: 0 .5em .1em 0; border-radius: 50%; background: var(--good); }
.better { color: var(--good); } .worse { color: var(--bad); } .soft { color: var(--soft); }
th small, td small { display: block; color: var(--soft); font-size: .84rem; font-weight: 400; }
table.large td, table.large tbody th { font-size: 1.22rem; padding-block: 14px; }
table.large td, table.tight td { white-space: nowrap; }
table.large td small { white-space: normal; max-width: 15em; }
table.small { font-size: .9rem; }

details { margin-top: 22px; }
summary { cursor: pointer; color: var(--soft); font-size: .94rem; padding: 4px 0; }
summary:hover { color: var(--ink); }
details[open] > summary { margin-bottom: 12px; }
ul.checks { list-style: none; margin: 0; padding: 0; max-width: 84ch; }
ul.checks li { padding: 5px 0 5px 1.8em; text-indent: -1.8em; }
ul.checks li > b { display: inline-block; width: 1.8em; text-indent: 0; }
ul.checks .ok > b { color: var(--good); } ul.checks .no > b { color: var(--bad); }

figure { margin: 0; }
img { display: block; max-width: 100%; height: auto; }
img.picture { width: 100%; border-radius: 4px; background: var(--card); }
img.pixels { image-rendering: pixelated; }
.samples { display: grid; grid-template-columns: repeat(4, 1fr); gap: 34px 24px; }
.samples dl { margin: 12px 0 0; font-size: .9rem; line-height: 1.45; }
.samples dt { color: var(--soft); font-size: .76rem; }
.samples dd { margin: 0 0 8px; overflow-wrap: anywhere; }
.samples dd.synthetic { color: var(--series-1); font-weight: 500; }

.strips { display: grid; grid-template-columns: 1fr 1fr; gap: 20px 40px; }
.strip { display: grid; grid-auto-flow: column; grid-auto-columns: 1fr; gap: 6px; }
.strip figcaption { color: var(--soft); font-size: .78rem; line-height: 1.35; margin-bottom: 5px;
  white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
.key { display: flex; flex-wrap: wrap; gap: 6px 18px; list-style: none; margin: 0 0 18px;
  padding: 0; font-size: .86rem; color: var(--soft); }
.key i { display: inline-block; width: .95em; height: .95em; border-radius: 3px; margin-right: .5em;
  vertical-align: -.1em; }
.bar { max-width: 420px; margin: 0 0 18px; font-size: .82rem; color: var(--soft); }
.bar > i { display: block; height: 12px; border-radius: 3px; }
.bar > span { display: flex; justify-content: space-between; }

.charts { display: grid; grid-template-columns: 1fr 1fr; gap: 44px 44px; }
.charts + * { margin-top: 44px; }
.charts figcaption { font-weight: 600; margin-bottom: 6px; }
.charts small { display: block; color: var(--soft); font-weight: 400; font-size: .85rem; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { fill: var(--soft); font-size: 12px; font-variant-numeric: tabular-nums; }
svg .grid { stroke: var(--line); stroke-width: 1; }
svg .reference { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 3 4; }
svg polyline { fill: none; stroke-linejoin: round; stroke-linecap: round; stroke-width: 2; }
svg polyline.fit { stroke-width: 1.5; stroke-dasharray: 5 4; }
svg polyline.raw { stroke-width: 1; opacity: .3; }
svg text.end { font-weight: 600; }

.endpoint .strip { grid-auto-flow: row; grid-template-columns: repeat(3, 1fr); }
.endpoint > .wide { grid-column: 1 / -1; }
.endpoint { display: grid; grid-template-columns: minmax(0, 3fr) minmax(0, 2fr); gap: 18px 40px;
  margin-bottom: 40px; align-items: start; }
.endpoint h3 { grid-column: 1 / -1; margin-bottom: 0; }
.pairs { display: grid; grid-template-columns: auto 1fr; gap: 6px 18px; margin: 0;
  font-size: .94rem; }
.pairs dt { color: var(--soft); }
.pairs dd { margin: 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
code, pre { font: .86em/1.55 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
pre { background: var(--card); border-radius: 6px; padding: 14px 16px; margin: 10px 0 0;
  overflow-x: auto; max-height: 420px; }
pre.copy { user-select: all; -webkit-user-select: all; margin-top: 4px; }
pre:focus-visible { outline: 2px solid var(--accent); }

.time td, .time tbody th { padding-block: 6px; vertical-align: middle; }
.time td:nth-child(2) { width: 58%; padding-right: 22px; }
.time td:last-child, .time th:last-child { text-align: right; white-space: nowrap; }
.time tbody th { font-weight: 500; white-space: nowrap; }
.track { position: relative; height: 18px; color: var(--soft); }
.track i { position: absolute; inset-block: 2px; min-width: 3px; border-radius: 3px;
  background: currentColor; }
.track i.reused {
  background: repeating-linear-gradient(135deg, currentColor 0 2px, transparent 2px 6px);
  outline: 1px solid currentColor; outline-offset: -1px; min-width: 14px; }
.track span { position: absolute; transform: translateX(-50%); white-space: nowrap; }
.track span:first-child { transform: none; }

.tree, .tree ul { list-style: none; margin: 0; padding: 0; }
.tree ul { margin-left: 9px; padding-left: 22px; border-left: 1px solid var(--line); }
.tree li { padding: 5px 0; font-size: .92rem; overflow-wrap: anywhere; }
.tree code { color: var(--soft); }
footer { margin-top: 60px; color: var(--soft); font-size: .86rem; }

@media (max-width: 760px) {
  main { padding: 40px 18px 64px; }
  section { margin-top: 58px; }
  .lead { font-size: 1.06rem; }
  .samples { grid-template-columns: 1fr 1fr; gap: 26px 16px; }
  .strips, .charts, .endpoint { grid-template-columns: minmax(0, 1fr); }
  .facts { grid-template-columns: 1fr 1fr; }
  table.large td, table.large tbody th { font-size: .92rem; }
  td.best::before { margin-right: .3em; }
  table.two td:last-child, table.two th:last-child { display: none; }
  th, td { padding-right: 9px; }
  svg text { font-size: 14px; }
  .track span:nth-child(even) { display: none; }
  .tree ul { margin-left: 4px; padding-left: 12px; }
  .time td:nth-child(2) { width: 44%; padding-right: 12px; }
  .time tbody th { white-space: normal; }
}
@media print {
  :root { color-scheme: light; --paper: #fff; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  main { max-width: none; padding: 0; }
  body { font-size: 11pt; }
  nav { display: none; }
  section { margin-top: 36px; }
  h2, h3 { break-after: avoid; }
  figure, tr, .strip, .endpoint { break-inside: avoid; }
  details::details-content { content-visibility: visible; block-size: auto; }
}
"""


def series_color(index: int) -> str:
    """Return the CSS color of a label, the same in all of the page."""
    return f"var(--series-{index % NUM_SERIES})"


DATASET_STYLE = """
main { max-width: 1240px; }
.histograms { display: grid; grid-template-columns: repeat(auto-fill, minmax(210px, 1fr));
  gap: 26px 34px; align-items: end; }
.histogram figcaption { font-weight: 600; font-size: .9rem; line-height: 1.35; margin-bottom: 8px;
  overflow-wrap: anywhere; }
.histogram small { display: block; color: var(--soft); font-weight: 400; font-size: .8rem; }
.histogram rect { fill: currentColor; }
.histogram figcaption span { color: var(--ink); }
.histogram .median { stroke: var(--ink); stroke-width: 1.5; stroke-dasharray: 3 3; }

.sample { display: grid; grid-template-columns: 268px minmax(0, 1fr); gap: 10px 32px;
  padding: 30px 0; border-top: 1px solid var(--line); break-inside: avoid; }
.sample:target { background: linear-gradient(90deg, var(--card), transparent); }
.sample > .shown { position: relative; }
.sample img.picture { width: 100%; max-height: 340px; object-fit: contain;
  object-position: left top; background: none; }
.sample .broken { padding: 40px 16px; border-radius: 4px; background: var(--card);
  color: var(--bad); font-size: .88rem; overflow-wrap: anywhere; }
.sample .rank { color: var(--soft); font-size: .82rem; margin-bottom: 8px;
  font-variant-numeric: tabular-nums; }
.kinds { display: grid; grid-template-columns: repeat(auto-fit, minmax(176px, 1fr));
  gap: 22px 26px; align-content: start; }
.kind h3 { font-size: .82rem; font-weight: 600; letter-spacing: 0; margin: 0 0 7px;
  overflow-wrap: anywhere; }
.kind h3 i { display: inline-block; width: .7em; height: .7em; border-radius: 50%;
  margin-right: .55em; background: currentColor; }
.kind p, .kind li { font-size: 1rem; line-height: 1.5; overflow-wrap: anywhere; }
.kind p { margin: 0; max-width: 60ch; }
.kind ol { margin: 0; padding-left: 1.5em; }
.kind li { padding-left: .2em; margin-bottom: 7px; }
.kind li::marker { color: var(--soft); font-size: .8em; font-variant-numeric: tabular-nums; }
.kind li small, .kind p small { color: var(--soft); font-size: .8rem; }
.kind .rest { color: var(--soft); font-size: .82rem; }
.kind p.facts-line { color: var(--soft); font-size: .8rem; margin-top: 7px; }
.scores { list-style: none; margin: 11px 0 0; padding: 0; font-size: .82rem; }
.scores li { display: grid; grid-template-columns: minmax(0, 1fr) auto; gap: 0 10px;
  padding: 2px 0; font-size: .82rem; margin: 0 0 4px; line-height: 1.4; }
.scores .name { color: var(--soft); overflow-wrap: anywhere; }
.scores .missing { font-size: .8rem; }
.scores b { font-weight: 620; font-variant-numeric: tabular-nums; }
.scores .gauge { grid-column: 1 / -1; height: 4px; margin-top: 3px; border-radius: 2px;
  background: var(--line); overflow: hidden; }
.scores .gauge i { display: block; height: 100%; border-radius: 2px; background: currentColor; }
.about { grid-column: 1 / -1; display: flex; flex-wrap: wrap; gap: 7px 22px;
  align-items: baseline; color: var(--soft); font-size: .8rem; }
.about code { font-size: 1em; overflow-wrap: anywhere; }
.about a { color: inherit; text-decoration: none; }
.about a:hover { text-decoration: underline; }
.pill { display: inline-block; padding: 1px 10px; border-radius: 99px; font-weight: 560;
  border: 1px solid currentColor; overflow-wrap: anywhere; }
.pill.kept { color: var(--good); } .pill.refused { color: var(--bad); }

@media (max-width: 760px) {
  .sample { grid-template-columns: minmax(0, 1fr); padding: 24px 0; gap: 14px; }
  .sample img.picture { max-height: 60vh; }
  .kinds { grid-template-columns: minmax(0, 1fr); }
  .histograms { grid-template-columns: 1fr 1fr; gap: 24px 20px; }
}
@media (max-width: 420px) { .histograms { grid-template-columns: minmax(0, 1fr); } }
"""

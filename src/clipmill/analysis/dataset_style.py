"""What a page of samples adds to the style sheet."""

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

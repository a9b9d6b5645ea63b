// An answer: shown with its facts, filtered by label and score, taken away. Nothing here asks the endpoint.

import { colour } from "./colours.js";
import { hideDetails } from "./details.js";
import { placeEntities, renderMarked, showMark } from "./marks.js";
import { formatCount, formatMs, make, page, readMinScore, tellEntities, tellStatus } from "./page.js";
import { renderRedacted } from "./redaction.js";
import { state } from "./state.js";
import { renderRows } from "./table.js";

/** Apply labels and minimum score to all that shows entities. No request. */
export function applyFilters() {
  if (!state.answer) return;
  const least = readMinScore();
  for (const item of state.items) showMark(item, !state.hidden.has(item.entity.label) && item.entity.score >= least);
  const inOrder = page.marked.querySelector("mark[tabindex='0']");
  if (inOrder) inOrder.tabIndex = -1;
  const first = page.marked.querySelector("mark:not(.off)");
  if (first) first.tabIndex = 0;
  hideDetails();
  renderLegend(least);
  renderRedacted();
  renderRows();
  const shown = state.items.filter((item) => item.shown).length;
  page.reset.hidden = shown === state.items.length;
  tellStatus(shown === state.items.length ? tellEntities(shown) : `${formatCount(shown)} of ${tellEntities(state.items.length)}`);
}

/** A button a label, with how many entities of it the minimum score lets through. */
function renderLegend(least) {
  const counts = new Map();
  for (const { entity } of state.items) {
    counts.set(entity.label, (counts.get(entity.label) || 0) + (entity.score >= least ? 1 : 0));
  }
  const labels = [...counts.keys()].sort();
  const present = [...page.legend.children];
  if (labels.join("\n") !== present.map((button) => button.dataset.label).join("\n")) {
    page.legend.replaceChildren(...labels.map(makeLegendButton)); // kept otherwise, as it may hold the focus
  }
  for (const button of page.legend.children) {
    button.setAttribute("aria-pressed", String(!state.hidden.has(button.dataset.label)));
    button.querySelector(".count").textContent = formatCount(counts.get(button.dataset.label));
  }
}

function makeLegendButton(label) {
  const button = colour(make("button", "label-chip"), label);
  button.type = "button";
  button.dataset.label = label;
  button.append(make("span", "dot"), make("bdi", "label-name", label), make("span", "count"));
  button.addEventListener("click", () => {
    if (!state.hidden.delete(label)) state.hidden.add(label);
    applyFilters();
  });
  return button;
}

function renderFacts(coverage, elapsed, timing) {
  const formatFraction = (fraction) => `${formatCount(Math.floor(fraction * 1000) / 10)} %`; // never rounded up to 100
  const facts = [
    ["Text read", coverage.fraction, formatFraction],
    ["Words", coverage.num_words, formatCount],
    ["Sub-tokens", coverage.num_tokens, formatCount],
    ["Windows", coverage.num_windows, formatCount],
    ["Round trip", elapsed, formatMs],
    ["Queue", timing.queue, formatMs],
    ["Engine", timing.engine, formatMs],
  ].filter(([, value]) => Number.isFinite(value));
  page.facts.replaceChildren(
    ...facts.map(([name, value, format]) => {
      const fact = make("div", format === formatFraction && value < 1 ? "low" : "");
      fact.append(make("dt", "", name), make("dd", "", format(value)));
      return fact;
    }),
  );
}

/** Show an answer; `elapsed` is the round trip in ms, `timing` what the endpoint tells of its parts. */
export function showAnswer(text, answer, elapsed, timing) {
  state.answer = answer;
  state.text = text;
  state.items = placeEntities(text, answer.entities);
  renderMarked(text, state.items);
  renderFacts(answer.coverage || {}, elapsed, timing);
  const unplaced = state.items.filter((item) => !item.placed).length;
  page.unplaced.hidden = !unplaced;
  page.unplaced.textContent = `${tellEntities(unplaced)} could not be marked; see the table.`;
  page.empty.hidden = true;
  page.answer.hidden = false;
  page.copy.disabled = false;
  applyFilters();
}

export function dropAnswer() {
  hideDetails();
  state.answer = null;
  state.items = [];
  page.answer.hidden = true;
  page.copy.disabled = true;
  page.marked.replaceChildren();
  page.redacted.replaceChildren();
  page.rows.replaceChildren();
}

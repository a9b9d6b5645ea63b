// The table of entities.

import { colour } from "./colours.js";
import { focusMark } from "./marks.js";
import { formatCount, formatScore, make, page, tellEntities } from "./page.js";
import { state } from "./state.js";

const MOST_ROWS = 1000; // of the table

function compareBy(key, falling) {
  const sign = falling ? -1 : 1;
  return ({ entity: one }, { entity: other }) => {
    if (one[key] === other[key]) return one.start - other.start;
    return one[key] < other[key] ? -sign : sign;
  };
}

/** The table, if it is open: it is long for a long text, and most never look. */
export function renderRows() {
  const shown = state.items.filter((item) => item.shown);
  const first = shown.length > MOST_ROWS ? `the first ${formatCount(MOST_ROWS)} of ` : "";
  page.tableCount.textContent = first + tellEntities(shown.length);
  for (const head of page.tablePart.querySelectorAll("th")) {
    const sorted = head.dataset.key === state.sort.key;
    if (sorted) head.setAttribute("aria-sort", state.sort.falling ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  }
  if (!page.tablePart.open) {
    page.rows.replaceChildren();
    return;
  }
  const content = document.createDocumentFragment();
  const sorted = shown.sort(compareBy(state.sort.key, state.sort.falling));
  for (const item of sorted.slice(0, MOST_ROWS)) content.append(makeRow(item));
  page.rows.replaceChildren(content);
}

function makeRow(item) {
  const { entity } = item;
  const row = make("tr");
  const text = make("td", "entity-text");
  if (item.node) {
    const jump = make("button", "jump");
    jump.type = "button";
    jump.title = "Show in the text";
    jump.append(make("bdi", "", entity.text));
    jump.addEventListener("click", () => {
      item.node.scrollIntoView({ block: "center" });
      focusMark(item.node);
    });
    text.append(jump);
  } else text.append(make("bdi", "", entity.text));
  const label = make("td");
  label.append(colour(make("span", "tag", entity.label), entity.label));
  row.append(text, label);
  for (const value of [entity.start, entity.end, formatScore(entity.score)]) row.append(make("td", "number", value));
  return row;
}

export function sortBy(key) {
  state.sort = { key, falling: state.sort.key === key ? !state.sort.falling : key === "score" };
  renderRows();
}

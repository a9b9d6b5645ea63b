// The text with its entities marked.

import { mapCodePoints } from "./codepoints.js";
import { colour } from "./colours.js";
import { make, page } from "./page.js";

const BLOCK_SIZE = 4000; // UTF-16 units of the marked text that are laid out together

/** Find each entity's place; one that does not fit the text, or lies over one before it, gets none. */
export function placeEntities(text, entities) {
  const toUnit = mapCodePoints(text);
  const items = entities.map((entity, index) => {
    const from = toUnit(entity.start);
    const to = toUnit(entity.end);
    const fits = from < to && text.slice(from, to) === entity.text;
    return { entity, index, from, to, node: null, shown: false, placed: fits };
  });
  let end = 0;
  for (const item of sortByPlace(items)) {
    item.placed = item.from >= end;
    if (item.placed) end = item.to;
  }
  return items;
}

export const sortByPlace = (items) => items.filter((item) => item.placed).sort((one, other) => one.from - other.from);

/** Nodes in a row of blocks that end with a line, so that the browser lays out only those in sight (see style.css). */
export class Blocks {
  content = document.createDocumentFragment();

  constructor() {
    this.begin();
  }

  begin() {
    this.block = this.content.appendChild(make("div", "block"));
    this.size = 0;
  }

  addText(text) {
    let rest = text;
    for (;;) {
      const line = rest.indexOf("\n", Math.max(0, BLOCK_SIZE - this.size));
      if (line < 0 || line + 1 === rest.length) break;
      this.block.append(rest.slice(0, line + 1));
      rest = rest.slice(line + 1);
      this.begin();
    }
    if (rest) this.block.append(rest);
    this.size += rest.length;
  }

  addNode(node) {
    this.block.append(node);
    this.size += node.textContent.length;
  }
}

/** Put the text and its marks into the page, in one go. */
export function renderMarked(text, items) {
  const blocks = new Blocks();
  let end = 0;
  for (const item of sortByPlace(items)) {
    blocks.addText(text.slice(end, item.from));
    item.node = make("mark", "off", text.slice(item.from, item.to));
    item.node.dataset.label = item.entity.label;
    item.node.dataset.index = item.index;
    blocks.addNode(colour(item.node, item.entity.label));
    end = item.to;
  }
  blocks.addText(text.slice(end));
  page.marked.replaceChildren(blocks.content);
  page.marked.scrollTop = 0;
}

/** Switch a mark on or off. Only one mark is in the tab order; the arrow keys reach the others. */
export function showMark(item, shown) {
  if (item.shown === shown) return;
  item.shown = shown;
  if (!item.node) return;
  item.node.className = shown ? "" : "off";
  if (shown) {
    item.node.tabIndex = -1;
    item.node.setAttribute("role", "button");
    item.node.setAttribute("aria-describedby", "details");
  } else {
    for (const name of ["tabindex", "role", "aria-describedby"]) item.node.removeAttribute(name);
  }
}

export function listShownMarks() {
  return [...page.marked.querySelectorAll("mark:not(.off)")];
}

/** The mark under an event, if it is switched on. */
export function findMark(event) {
  const mark = event.target instanceof Element ? event.target.closest("mark") : null;
  return mark && !mark.classList.contains("off") ? mark : null;
}

export function focusMark(mark) {
  const inOrder = page.marked.querySelector("mark[tabindex='0']");
  if (inOrder) inOrder.tabIndex = -1;
  mark.tabIndex = 0;
  mark.focus();
}

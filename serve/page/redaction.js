// The redacted text, under the filters set in the page.

import { countCodePoints, mapCodePoints } from "./codepoints.js";
import { colour } from "./colours.js";
import { Blocks, sortByPlace } from "./marks.js";
import { make, page, tellEntities } from "./page.js";
import { state } from "./state.js";

/**
 * The redacted text as pieces, for the entities that the filters leave: the endpoint replaced all, so those filtered out
 * get their own text back. Null where the answer's spans do not allow it.
 */
function assembleRedacted() {
  const { redacted } = state.answer;
  const fits = Array.isArray(redacted.spans) && redacted.spans.length === state.items.length;
  if (!fits || state.items.some((item) => !item.placed)) return null;
  const toUnit = mapCodePoints(redacted.text);
  const pieces = [];
  let end = 0;
  for (const item of sortByPlace(state.items)) {
    const span = redacted.spans[item.index];
    const [from, to] = [toUnit(span.start), toUnit(span.end)];
    if (!(from <= to)) return null;
    pieces.push({ text: state.text.slice(end, item.from) });
    pieces.push(
      item.shown ? { text: redacted.text.slice(from, to), item } : { text: state.text.slice(item.from, item.to) },
    );
    end = item.to;
  }
  pieces.push({ text: state.text.slice(end) });
  return pieces;
}

export function renderRedacted() {
  const redacted = state.answer.redacted;
  page.redactedPart.hidden = !redacted;
  if (!redacted) return;
  const pieces = assembleRedacted();
  const readable = state.items.filter((item) => !item.shown).length;
  page.redactedNote.textContent = readable && pieces ? `${tellEntities(readable)} left readable by the filters` : "";
  const blocks = new Blocks();
  for (const { text, item } of pieces || [{ text: redacted.text }]) {
    if (item) blocks.addNode(colour(make("span", "gap", text), item.entity.label));
    else blocks.addText(text);
  }
  page.redacted.replaceChildren(blocks.content);
}

/** The answer as the endpoint would give it under the filters set here. */
export function buildShownAnswer() {
  const answer = { ...state.answer, entities: state.items.filter((item) => item.shown).map((item) => item.entity) };
  const pieces = answer.redacted && assembleRedacted();
  if (pieces) {
    const spans = new Map();
    let start = 0;
    for (const { text, item } of pieces) {
      const end = start + countCodePoints(text);
      if (item) spans.set(item, { start, end, label: item.entity.label });
      start = end;
    }
    const text = pieces.map((piece) => piece.text).join("");
    answer.redacted = { text, spans: state.items.filter((item) => item.shown).map((item) => spans.get(item)) };
  }
  return answer;
}

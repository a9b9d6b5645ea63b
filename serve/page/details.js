// The details of one entity, beside its mark, by pointer or by key.

import { colour } from "./colours.js";
import { findMark, focusMark, listShownMarks } from "./marks.js";
import { formatCount, formatScore, page } from "./page.js";
import { state } from "./state.js";

let detailed = null; // the mark whose details are open

function showDetails(mark) {
  const { entity } = state.items[Number(mark.dataset.index)];
  detailed = mark;
  colour(page.details, entity.label);
  page.detailsLabel.textContent = entity.label;
  page.detailsText.textContent = entity.text;
  page.detailsScore.textContent = formatScore(entity.score);
  page.detailsMeter.value = entity.score;
  page.detailsPlace.textContent = `${formatCount(entity.start)} – ${formatCount(entity.end)}`;
  page.details.hidden = false;
  placeDetails();
}

/** Under the mark's first line, or over it where there is no room; inside the window. */
function placeDetails() {
  if (!detailed) return;
  const line = detailed.getClientRects()[0];
  const frame = page.marked.getBoundingClientRect();
  if (!line || line.bottom < frame.top || line.top > frame.bottom) {
    page.details.classList.add("away");
    return;
  }
  page.details.classList.remove("away");
  const { width, height } = page.details.getBoundingClientRect();
  const { clientWidth, clientHeight } = document.documentElement;
  const below = line.bottom + 6;
  const top = below + height > clientHeight - 8 && line.top > height + 6 ? line.top - height - 6 : below;
  page.details.style.top = `${top}px`;
  page.details.style.left = `${Math.max(8, Math.min(line.left, clientWidth - width - 8))}px`;
}

export function hideDetails() {
  detailed = null;
  page.details.hidden = true;
}

function moveByKey(event) {
  const mark = findMark(event);
  if (!mark || event.ctrlKey || event.metaKey || event.altKey) return;
  const marks = listShownMarks();
  const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
  let target = null;
  if (event.key in steps) target = marks[marks.indexOf(mark) + steps[event.key]];
  else if (event.key === "Home") target = marks[0];
  else if (event.key === "End") target = marks[marks.length - 1];
  else if (event.key === "Enter" || event.key === " ") {
    if (detailed === mark) hideDetails();
    else showDetails(mark);
  } else return;
  event.preventDefault();
  if (target) focusMark(target);
}

export function watchMarks() {
  const onMark = (event) => {
    const mark = findMark(event);
    if (mark) showDetails(mark);
  };
  for (const kind of ["pointerover", "focusin", "click"]) page.marked.addEventListener(kind, onMark);
  // The pointer may move on to the details, to read or to copy from them.
  const leave = (event) => {
    const to = event.relatedTarget;
    if (to instanceof Element && (page.details.contains(to) || to.closest("mark:not(.off)"))) return;
    const focused = document.activeElement;
    if (focused instanceof Element && focused.matches("#marked mark:not(.off)")) showDetails(focused);
    else hideDetails();
  };
  page.marked.addEventListener("pointerout", leave);
  page.details.addEventListener("pointerleave", leave);
  page.marked.addEventListener("focusout", () => {
    if (!page.details.matches(":hover")) hideDetails();
  });
  page.marked.addEventListener("keydown", moveByKey);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") hideDetails();
  });
  document.addEventListener("scroll", placeDetails, { capture: true, passive: true });
  window.addEventListener("resize", placeDetails);
}

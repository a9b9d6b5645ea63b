// The page's nodes, what its controls say, and how it writes numbers.

import { makeWellFormed } from "./codepoints.js";
import { state } from "./state.js";

export const page = Object.fromEntries(
  [...document.querySelectorAll("[id]")].map((node) => [node.id.replace(/-(\w)/g, (_, c) => c.toUpperCase()), node]),
);

export function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

export const formatCount = (number) => Number(number).toLocaleString("en");
export const formatMs = (ms) => (ms < 10 ? ms.toFixed(1) : formatCount(Math.round(ms))) + " ms";
export const formatScore = (score) => Number(score).toFixed(3);
export const tellEntities = (count) => `${formatCount(count)} ${count === 1 ? "entity" : "entities"}`;

export function tellStatus(text) {
  if (page.status.textContent !== text) page.status.textContent = text;
}

/** The text to ask about: the file's own where the field still shows it unchanged. */
export function readText() {
  const shown = page.text.value;
  return makeWellFormed(state.file && state.file.shown === shown ? state.file.text : shown);
}

export const readRedaction = () => document.querySelector("input[name=redact]:checked").value;
export const readMinScore = () => Number(page.minScore.value);

// The API key.

import { page } from "./page.js";
import { showProblem } from "./problem.js";
import { state } from "./state.js";

const KEY_NAME = "rayner-api-key";

/** Kept in sessionStorage: it outlives a reload, but neither the tab nor, as localStorage would, the day. */
export function keepKey(key) {
  state.key = key;
  page.forgetKey.hidden = !key;
  try {
    if (key) sessionStorage.setItem(KEY_NAME, key);
    else sessionStorage.removeItem(KEY_NAME);
  } catch {
    // Storage is switched off: the key lives as long as the page.
  }
}

export function recallKey() {
  try {
    keepKey(sessionStorage.getItem(KEY_NAME) || "");
  } catch {
    keepKey("");
  }
}

export function askForKey(told) {
  const title = state.key ? "The API key was refused" : "This endpoint needs an API key";
  const detail = told && typeof told === "object" && told.detail ? String(told.detail) : "";
  showProblem(title, [detail], []);
  keepKey("");
  page.keyForm.hidden = false;
  if (!page.text.matches(":focus")) page.key.focus(); // who is still typing is not interrupted
}

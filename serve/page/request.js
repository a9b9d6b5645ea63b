// The request for entities: now, after a pause, or given up; its answer or refusal is shown.

import { dropAnswer, showAnswer } from "./answer.js";
import { call, readJson, readRetryAfter, readServerTiming } from "./endpoint.js";
import { askForKey } from "./key.js";
import { formatCount, page, readRedaction, readText, tellStatus } from "./page.js";
import { clearProblem, showProblem } from "./problem.js";
import { state } from "./state.js";

const PAUSE_MS = 400; // of typing, before a request
export const LONGEST_AUTOMATIC = 20000; // characters; a longer text waits for the button, to spare the endpoint

function cancelAsked() {
  clearTimeout(state.pause);
  if (state.asked) state.asked.abort();
  state.asked = null;
  page.result.setAttribute("aria-busy", "false");
}

const nameRequest = (text) => JSON.stringify([text, readRedaction(), page.model.value]);

/** Ask after a pause, if there is something new to ask. */
export function askSoon() {
  clearTimeout(state.pause);
  const text = readText();
  if (!text) {
    forgetAnswer();
    return;
  }
  if (text.length > LONGEST_AUTOMATIC || !page.keyForm.hidden) return;
  const wait = Math.max(PAUSE_MS, state.quietUntil - Date.now());
  state.pause = setTimeout(() => {
    if (nameRequest(text) !== state.askedFor) ask();
  }, wait);
}

/** Ask now. A request under way is given up, and its answer, should it still come, is not shown. */
export async function ask() {
  cancelAsked();
  const text = readText();
  if (!text) {
    forgetAnswer();
    tellStatus("Write a text first");
    page.text.focus();
    return;
  }
  const asked = new AbortController();
  state.asked = asked;
  state.askedFor = nameRequest(text);
  page.result.setAttribute("aria-busy", "true");
  const redact = readRedaction();
  const model = page.model.value;
  const path = model && model !== state.defaultModel ? `v1/models/${encodeURIComponent(model)}/entities` : "v1/entities";
  const began = performance.now();
  try {
    const response = await call(path, { signal: asked.signal, body: redact ? { text, redact } : { text } });
    const answer = await readJson(response);
    if (state.asked !== asked) return;
    const elapsed = performance.now() - began;
    if (response.ok && answer && Array.isArray(answer.entities)) {
      clearProblem();
      page.keyForm.hidden = true;
      state.quietUntil = 0;
      showAnswer(text, answer, elapsed, readServerTiming(response.headers.get("server-timing")));
    } else showRefusal(response, answer);
  } catch (error) {
    if (state.asked !== asked) return;
    showUnreachable(error);
  } finally {
    if (state.asked === asked) {
      state.asked = null;
      page.result.setAttribute("aria-busy", "false");
    }
  }
}

export function forgetAnswer() {
  cancelAsked();
  dropAnswer();
  clearProblem();
  state.askedFor = "";
  page.empty.hidden = false;
  tellStatus("");
}

function showRefusal(response, told) {
  if (response.status === 401) {
    askForKey(told);
    return;
  }
  const problem = told && typeof told === "object" && !response.ok ? told : {};
  const title = response.ok ? "The answer is not a rayner endpoint's" : problem.title || response.statusText || "Error";
  const wait = readRetryAfter(response.headers.get("retry-after"));
  if (wait !== null) state.quietUntil = Date.now() + wait * 1000;
  const requestId = response.headers.get("x-request-id");
  showProblem(
    response.ok ? title : `${title} (${response.status})`,
    [
      problem.detail && String(problem.detail),
      wait !== null && `The endpoint asks to wait ${formatCount(wait)} ${wait === 1 ? "second" : "seconds"}.`,
      requestId && `Request ${requestId}`,
    ],
    Array.isArray(problem.errors) ? problem.errors : [],
    ask,
  );
}

function showUnreachable(error) {
  console.warn(error);
  showProblem(
    "The endpoint cannot be reached",
    ["It may be stopped or starting, or the connection is down. Your text is still here."],
    [],
    ask,
  );
}

// The endpoint's page. Text becomes nodes by textContent only, so nothing in a text, a label or an error is ever HTML.

import { applyFilters } from "./answer.js";
import { copyText } from "./clipboard.js";
import { watchMarks } from "./details.js";
import { keepKey, recallKey } from "./key.js";
import { describeModel, loadModels } from "./models.js";
import { page, readMinScore, readText } from "./page.js";
import { clearProblem, showProblem } from "./problem.js";
import { buildShownAnswer } from "./redaction.js";
import { ask } from "./request.js";
import { state } from "./state.js";
import { renderRows, sortBy } from "./table.js";
import { describeText, watchFiles, watchText } from "./text.js";

async function useKey(event) {
  event.preventDefault();
  const key = page.key.value.trim();
  page.key.value = "";
  if (!/^[\x21-\x7e]+$/.test(key)) {
    showProblem("That is not an API key", ["A key has visible ASCII characters only."], []);
    page.key.focus();
    return;
  }
  keepKey(key);
  page.keyForm.hidden = true;
  clearProblem();
  await loadModels();
  if (!page.keyForm.hidden) return;
  if (readText()) await ask();
  else page.empty.hidden = false;
}

function watchAnswer() {
  let frame = 0;
  page.minScore.addEventListener("input", () => {
    page.minScoreValue.textContent = readMinScore().toFixed(2);
    cancelAnimationFrame(frame);
    frame = requestAnimationFrame(applyFilters); // a fast hand moves the slider oftener than the screen shows it
  });
  page.redact.addEventListener("change", () => readText() && ask());
  page.model.addEventListener("change", () => {
    describeModel().catch(console.warn);
    if (readText()) ask();
  });
  page.reset.addEventListener("click", () => {
    state.hidden.clear();
    page.minScore.value = "0";
    page.minScoreValue.textContent = "0.00";
    applyFilters();
    page.marked.focus();
  });
  page.copy.addEventListener("click", () => copyText(JSON.stringify(buildShownAnswer(), null, 2), page.copy));
  page.copyRedacted.addEventListener("click", () => copyText(page.redacted.textContent, page.copyRedacted));
  page.tablePart.addEventListener("toggle", renderRows);
  for (const head of page.tablePart.querySelectorAll("th")) {
    head.firstElementChild.addEventListener("click", () => sortBy(head.dataset.key));
  }
}

recallKey();
watchText();
watchFiles();
watchMarks();
watchAnswer();
page.keyForm.addEventListener("submit", useKey);
page.forgetKey.addEventListener("click", () => {
  keepKey("");
  page.text.focus();
});
describeText();
loadModels();

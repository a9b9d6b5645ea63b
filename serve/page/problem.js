// What went wrong, in place of an answer.

import { dropAnswer } from "./answer.js";
import { make, page, tellStatus } from "./page.js";
import { state } from "./state.js";

export function clearProblem() {
  page.problem.replaceChildren();
}

/** Tell what went wrong, in place of an answer; `again` is what a button to try again does, if there is to be one. */
export function showProblem(title, lines, mistakes, again) {
  dropAnswer();
  page.empty.hidden = true;
  state.askedFor = "";
  tellStatus("");
  const box = make("div", "problem");
  box.append(make("h3", "", title), ...lines.filter(Boolean).map((line) => make("p", "", line)));
  if (mistakes.length) {
    const list = make("ul");
    for (const { pointer, detail } of mistakes) {
      const entry = make("li");
      if (pointer) entry.append(make("code", "", String(pointer)), " ");
      entry.append(String(detail ?? ""));
      list.append(entry);
    }
    box.append(list);
  }
  if (again) {
    const button = make("button", "", "Try again");
    button.type = "button";
    button.addEventListener("click", again);
    box.append(button);
  }
  page.problem.replaceChildren(box);
}

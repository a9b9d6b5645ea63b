// The models of the endpoint.

import { call, readJson } from "./endpoint.js";
import { askForKey } from "./key.js";
import { make, page } from "./page.js";
import { state } from "./state.js";

/** Offer a choice where there is one. An endpoint that does not tell still answers. */
export async function loadModels() {
  try {
    const response = await call("v1/models");
    const told = await readJson(response);
    if (response.status === 401) {
      askForKey(told);
      return;
    }
    if (!response.ok || !told || !Array.isArray(told.models)) return;
    state.defaultModel = String(told.default);
    const options = told.models.map((name) => {
      const option = make("option", "", String(name));
      option.value = String(name);
      option.selected = name === told.default;
      return option;
    });
    page.model.replaceChildren(...options);
    page.modelChoice.hidden = options.length < 2;
    await describeModel();
  } catch (error) {
    console.warn(error); // told where it matters: on the next request for entities
  }
}

export async function describeModel() {
  const name = page.model.value;
  if (!name) return;
  const response = await call(`v1/models/${encodeURIComponent(name)}`);
  const info = response.ok ? await readJson(response) : null;
  if (!info || page.model.value !== name) return;
  const facts = [`Model ${info.name}`];
  if (Array.isArray(info.labels)) facts.push(`labels ${info.labels.join(", ")}`);
  if (info.runtime) facts.push(`${info.runtime} ${info.precision || ""} on ${info.device || "?"}`);
  if (info.window) facts.push(`window ${info.window} sub-tokens`);
  page.modelFacts.textContent = facts.join(" · ");
}

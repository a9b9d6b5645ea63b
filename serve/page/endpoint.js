// Calls to the endpoint, and what the headers of its answers say.

import { state } from "./state.js";

/** Call the endpoint, relative to this page so that it also works under a path prefix. */
export function call(path, { signal, body } = {}) {
  const headers = { Accept: "application/json" };
  if (state.key) headers.Authorization = `Bearer ${state.key}`;
  if (body) headers["Content-Type"] = "application/json";
  const method = body ? "POST" : "GET";
  return fetch(path, { method, headers, signal, body: body && JSON.stringify(body), cache: "no-store" });
}

/** The body as JSON; null where it is none. A connection that breaks midway is still an error. */
export async function readJson(response) {
  const body = await response.text();
  try {
    return JSON.parse(body);
  } catch {
    return null;
  }
}

/** `queue;dur=1.5, engine;dur=20` → {queue: 1.5, engine: 20}. */
export function readServerTiming(header) {
  const found = {};
  for (const [, name, ms] of (header || "").matchAll(/([\w-]+)\s*;\s*dur=([\d.]+)/g)) found[name] = Number(ms);
  return found;
}

/** A Retry-After header in seconds: it holds a number or a date. */
export function readRetryAfter(header) {
  if (!header) return null;
  const seconds = /^\s*\d+\s*$/.test(header) ? Number(header) : (Date.parse(header) - Date.now()) / 1000;
  return Number.isFinite(seconds) ? Math.max(0, Math.ceil(seconds)) : null;
}

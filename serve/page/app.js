// The endpoint's page. Text becomes nodes by textContent only, so nothing in a text, a label or an error is ever HTML.
// Positions of the API are Unicode code points, JavaScript's are UTF-16 units: mapCodePoints() stands between them.
"use strict";

const PAUSE_MS = 400; // of typing, before a request
const LONGEST_AUTOMATIC = 20000; // characters; a longer text waits for the button, to spare the endpoint
const BLOCK_SIZE = 4000; // UTF-16 units of the marked text that are laid out together
const MOST_ROWS = 1000; // of the table
const LARGEST_FILE = 2 * 1024 * 1024; // bytes
const KEY_NAME = "rayner-api-key";

const EXAMPLES = {
  english:
    "Ada Lovelace wrote to Charles Babbage from London in the summer of 1843. Her notes were printed in Taylor's " +
    "Scientific Memoirs, and a century later Alan Turing answered them at the University of Manchester.",
  chinese:
    "去年秋天，陈晓雯从北京搬到上海，在复旦大学跟随李文博教授研究计算语言学。\n今年三月，她和清华大学的同事去杭州参加了阿里巴巴举办的会议。",
  arabic:
    "زارت ليلى حداد 🌍 متحف اللوفر في باريس مع يوسف منصور من جامعة القاهرة 🎓.\nثم سافرا بالقطار إلى Berlin للقاء فريق Siemens 🚆.",
  mixed:
    "👩🏽‍🚀 Mae Jemison flew with NASA 🚀 from Florida.\nדנה לוי עובדת באוניברסיטת תל אביב 📚 וגרה בחיפה.\n田中花子 joined Sony in Tokyo 🗼.",
};

// Degrees on the colour wheel for the labels of most corpora; any other label takes its own from a hash.
const HUES = {
  PER: 255, PERSON: 255, ORG: 150, ORGANIZATION: 150, LOC: 55, LOCATION: 55, GPE: 80, MISC: 310, NORP: 285,
  FAC: 35, PRODUCT: 15, EVENT: 345, WORK_OF_ART: 330, LAW: 270, LANGUAGE: 120, DATE: 200, TIME: 220,
  MONEY: 105, PERCENT: 130, QUANTITY: 180, CARDINAL: 235, ORDINAL: 165,
};

const byId = (id) => document.getElementById(id);
const page = Object.fromEntries(
  [...document.querySelectorAll("[id]")].map((node) => [node.id.replace(/-(\w)/g, (_, c) => c.toUpperCase()), node]),
);

const state = {
  file: null, // {text, shown}: a file's text as it was read, and as the text field shows it (there CRLF becomes LF)
  asked: null, // AbortController of the request under way
  askedFor: "", // what the last request asked, to not ask the same again while typing
  pause: 0, // the timer
  quietUntil: 0, // no request of its own accord before this time (Retry-After)
  answer: null, // the endpoint's answer, as it came
  text: "", // what it is the answer to
  items: [], // the answer's entities in its order, with their places (UTF-16), marks, and whether they are shown
  hidden: new Set(), // labels switched off; outlives an answer
  sort: { key: "start", falling: false },
  key: "",
  defaultModel: "",
};

// ---- Code points

/** A function from a code point's position in `text` to its UTF-16 position; undefined where there is none. */
function mapCodePoints(text) {
  if (!/[\ud800-\udfff]/.test(text)) {
    return (point) => (Number.isInteger(point) && point >= 0 && point <= text.length ? point : undefined);
  }
  const units = new Uint32Array(text.length + 1);
  let points = 0;
  for (let unit = 0; unit < text.length; unit += text.codePointAt(unit) > 0xffff ? 2 : 1) units[points++] = unit;
  units[points] = text.length;
  return (point) => (Number.isInteger(point) && point >= 0 && point <= points ? units[point] : undefined);
}

/** The number of code points in `text`. */
function countCodePoints(text) {
  let surrogatePairs = 0;
  for (let unit = 0; unit + 1 < text.length; unit++) {
    if (text.codePointAt(unit) > 0xffff) {
      surrogatePairs++;
      unit++;
    }
  }
  return text.length - surrogatePairs;
}

/** `text` with each half of a broken surrogate pair replaced by U+FFFD: JSON in UTF-8 cannot carry it. */
function makeWellFormed(text) {
  return text.replace(/[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g, "\ufffd");
}

// ---- Small things

const hues = new Map();

/** The label's colour: always the same for the same label (FNV-1a). */
function chooseHue(label) {
  if (!hues.has(label)) {
    let hash = 0x811c9dc5;
    for (let i = 0; i < label.length; i++) hash = Math.imul(hash ^ label.charCodeAt(i), 0x01000193);
    const known = label.toUpperCase();
    hues.set(label, Object.hasOwn(HUES, known) ? HUES[known] : (hash >>> 0) % 360);
  }
  return hues.get(label);
}

function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function colour(node, label) {
  node.style.setProperty("--hue", chooseHue(label)); // through the object model, which the policy allows
  return node;
}

const formatCount = (number) => Number(number).toLocaleString("en");
const formatMs = (ms) => (ms < 10 ? ms.toFixed(1) : formatCount(Math.round(ms))) + " ms";
const formatScore = (score) => Number(score).toFixed(3);
const tellEntities = (count) => `${formatCount(count)} ${count === 1 ? "entity" : "entities"}`;

/** The text to ask about: the file's own where the field still shows it unchanged. */
function readText() {
  const shown = page.text.value;
  return makeWellFormed(state.file && state.file.shown === shown ? state.file.text : shown);
}

const readRedaction = () => document.querySelector("input[name=redact]:checked").value;
const readMinScore = () => Number(page.minScore.value);

// ---- The marked text

/** Find each entity's place; one that does not fit the text, or lies over one before it, gets none. */
function placeEntities(text, entities) {
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

const sortByPlace = (items) => items.filter((item) => item.placed).sort((one, other) => one.from - other.from);

/** Nodes in a row of blocks that end with a line, so that the browser lays out only those in sight (see style.css). */
class Blocks {
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
function renderMarked(text, items) {
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
function showMark(item, shown) {
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

function listShownMarks() {
  return [...page.marked.querySelectorAll("mark:not(.off)")];
}

/** Apply labels and minimum score to all that shows entities. No request. */
function applyFilters() {
  if (!state.answer) return;
  const least = readMinScore();
  for (const item of state.items) showMark(item, !state.hidden.has(item.entity.label) && item.entity.score >= least);
  const inOrder = page.marked.querySelector("mark[tabindex='0']");
  if (inOrder) inOrder.tabIndex = -1;
  const first = page.marked.querySelector("mark:not(.off)");
  if (first) first.tabIndex = 0;
  hideDetails();
  renderLegend(least);
  renderRedacted();
  renderRows();
  const shown = state.items.filter((item) => item.shown).length;
  page.reset.hidden = shown === state.items.length;
  tellStatus(shown === state.items.length ? tellEntities(shown) : `${formatCount(shown)} of ${tellEntities(state.items.length)}`);
}

function tellStatus(text) {
  if (page.status.textContent !== text) page.status.textContent = text;
}

/** A button a label, with how many entities of it the minimum score lets through. */
function renderLegend(least) {
  const counts = new Map();
  for (const { entity } of state.items) {
    counts.set(entity.label, (counts.get(entity.label) || 0) + (entity.score >= least ? 1 : 0));
  }
  const labels = [...counts.keys()].sort();
  const present = [...page.legend.children];
  if (labels.join("\n") !== present.map((button) => button.dataset.label).join("\n")) {
    page.legend.replaceChildren(...labels.map(makeLegendButton)); // kept otherwise, as it may hold the focus
  }
  for (const button of page.legend.children) {
    button.setAttribute("aria-pressed", String(!state.hidden.has(button.dataset.label)));
    button.querySelector(".count").textContent = formatCount(counts.get(button.dataset.label));
  }
}

function makeLegendButton(label) {
  const button = colour(make("button", "label-chip"), label);
  button.type = "button";
  button.dataset.label = label;
  button.append(make("span", "dot"), make("bdi", "label-name", label), make("span", "count"));
  button.addEventListener("click", () => {
    if (!state.hidden.delete(label)) state.hidden.add(label);
    applyFilters();
  });
  return button;
}

// ---- Redaction

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

function renderRedacted() {
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
function buildShownAnswer() {
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

// ---- Details of one entity

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

function hideDetails() {
  detailed = null;
  page.details.hidden = true;
}

/** The mark under an event, if it is switched on. */
function findMark(event) {
  const mark = event.target instanceof Element ? event.target.closest("mark") : null;
  return mark && !mark.classList.contains("off") ? mark : null;
}

function focusMark(mark) {
  const inOrder = page.marked.querySelector("mark[tabindex='0']");
  if (inOrder) inOrder.tabIndex = -1;
  mark.tabIndex = 0;
  mark.focus();
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

function watchMarks() {
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

// ---- Facts and table

/** `queue;dur=1.5, engine;dur=20` → {queue: 1.5, engine: 20}. */
function readServerTiming(header) {
  const found = {};
  for (const [, name, ms] of (header || "").matchAll(/([\w-]+)\s*;\s*dur=([\d.]+)/g)) found[name] = Number(ms);
  return found;
}

function renderFacts(coverage, elapsed, timing) {
  const formatFraction = (fraction) => `${formatCount(Math.floor(fraction * 1000) / 10)} %`; // never rounded up to 100
  const facts = [
    ["Text read", coverage.fraction, formatFraction],
    ["Words", coverage.num_words, formatCount],
    ["Sub-tokens", coverage.num_tokens, formatCount],
    ["Windows", coverage.num_windows, formatCount],
    ["Round trip", elapsed, formatMs],
    ["Queue", timing.queue, formatMs],
    ["Engine", timing.engine, formatMs],
  ].filter(([, value]) => Number.isFinite(value));
  page.facts.replaceChildren(
    ...facts.map(([name, value, format]) => {
      const fact = make("div", format === formatFraction && value < 1 ? "low" : "");
      fact.append(make("dt", "", name), make("dd", "", format(value)));
      return fact;
    }),
  );
}

function compareBy(key, falling) {
  const sign = falling ? -1 : 1;
  return ({ entity: one }, { entity: other }) => {
    if (one[key] === other[key]) return one.start - other.start;
    return one[key] < other[key] ? -sign : sign;
  };
}

/** The table, if it is open: it is long for a long text, and most never look. */
function renderRows() {
  const shown = state.items.filter((item) => item.shown);
  const first = shown.length > MOST_ROWS ? `the first ${formatCount(MOST_ROWS)} of ` : "";
  page.tableCount.textContent = first + tellEntities(shown.length);
  for (const head of page.tablePart.querySelectorAll("th")) {
    const sorted = head.dataset.key === state.sort.key;
    if (sorted) head.setAttribute("aria-sort", state.sort.falling ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  }
  if (!page.tablePart.open) {
    page.rows.replaceChildren();
    return;
  }
  const content = document.createDocumentFragment();
  const sorted = shown.sort(compareBy(state.sort.key, state.sort.falling));
  for (const item of sorted.slice(0, MOST_ROWS)) content.append(makeRow(item));
  page.rows.replaceChildren(content);
}

function makeRow(item) {
  const { entity } = item;
  const row = make("tr");
  const text = make("td", "entity-text");
  if (item.node) {
    const jump = make("button", "jump");
    jump.type = "button";
    jump.title = "Show in the text";
    jump.append(make("bdi", "", entity.text));
    jump.addEventListener("click", () => {
      item.node.scrollIntoView({ block: "center" });
      focusMark(item.node);
    });
    text.append(jump);
  } else text.append(make("bdi", "", entity.text));
  const label = make("td");
  label.append(colour(make("span", "tag", entity.label), entity.label));
  row.append(text, label);
  for (const value of [entity.start, entity.end, formatScore(entity.score)]) row.append(make("td", "number", value));
  return row;
}

function sortBy(key) {
  state.sort = { key, falling: state.sort.key === key ? !state.sort.falling : key === "score" };
  renderRows();
}

// ---- Asking

function cancelAsked() {
  clearTimeout(state.pause);
  if (state.asked) state.asked.abort();
  state.asked = null;
  page.result.setAttribute("aria-busy", "false");
}

const nameRequest = (text) => JSON.stringify([text, readRedaction(), page.model.value]);

/** Ask after a pause, if there is something new to ask. */
function askSoon() {
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
async function ask() {
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

/** Call the endpoint, relative to this page so that it also works under a path prefix. */
function call(path, { signal, body } = {}) {
  const headers = { Accept: "application/json" };
  if (state.key) headers.Authorization = `Bearer ${state.key}`;
  if (body) headers["Content-Type"] = "application/json";
  const method = body ? "POST" : "GET";
  return fetch(path, { method, headers, signal, body: body && JSON.stringify(body), cache: "no-store" });
}

/** The body as JSON; null where it is none. A connection that breaks midway is still an error. */
async function readJson(response) {
  const body = await response.text();
  try {
    return JSON.parse(body);
  } catch {
    return null;
  }
}

function showAnswer(text, answer, elapsed, timing) {
  clearProblem();
  page.keyForm.hidden = true;
  state.quietUntil = 0;
  state.answer = answer;
  state.text = text;
  state.items = placeEntities(text, answer.entities);
  renderMarked(text, state.items);
  renderFacts(answer.coverage || {}, elapsed, timing);
  const unplaced = state.items.filter((item) => !item.placed).length;
  page.unplaced.hidden = !unplaced;
  page.unplaced.textContent = `${tellEntities(unplaced)} could not be marked; see the table.`;
  page.empty.hidden = true;
  page.answer.hidden = false;
  page.copy.disabled = false;
  applyFilters();
}

function dropAnswer() {
  hideDetails();
  state.answer = null;
  state.items = [];
  page.answer.hidden = true;
  page.copy.disabled = true;
  page.marked.replaceChildren();
  page.redacted.replaceChildren();
  page.rows.replaceChildren();
}

function forgetAnswer() {
  cancelAsked();
  dropAnswer();
  clearProblem();
  state.askedFor = "";
  page.empty.hidden = false;
  tellStatus("");
}

// ---- What goes wrong

function clearProblem() {
  page.problem.replaceChildren();
}

/** Tell what went wrong, in place of an answer. */
function showProblem(title, lines, mistakes, { again = true } = {}) {
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
    button.addEventListener("click", ask);
    box.append(button);
  }
  page.problem.replaceChildren(box);
}

/** A Retry-After header in seconds: it holds a number or a date. */
function readRetryAfter(header) {
  if (!header) return null;
  const seconds = /^\s*\d+\s*$/.test(header) ? Number(header) : (Date.parse(header) - Date.now()) / 1000;
  return Number.isFinite(seconds) ? Math.max(0, Math.ceil(seconds)) : null;
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
  );
}

function showUnreachable(error) {
  console.warn(error);
  showProblem(
    "The endpoint cannot be reached",
    ["It may be stopped or starting, or the connection is down. Your text is still here."],
    [],
  );
}

// ---- API key

/** Kept in sessionStorage: it outlives a reload, but neither the tab nor, as localStorage would, the day. */
function keepKey(key) {
  state.key = key;
  page.forgetKey.hidden = !key;
  try {
    if (key) sessionStorage.setItem(KEY_NAME, key);
    else sessionStorage.removeItem(KEY_NAME);
  } catch {
    // Storage is switched off: the key lives as long as the page.
  }
}

function recallKey() {
  try {
    keepKey(sessionStorage.getItem(KEY_NAME) || "");
  } catch {
    keepKey("");
  }
}

function askForKey(told) {
  const title = state.key ? "The API key was refused" : "This endpoint needs an API key";
  const detail = told && typeof told === "object" && told.detail ? String(told.detail) : "";
  showProblem(title, [detail], [], { again: false });
  keepKey("");
  page.keyForm.hidden = false;
  if (!page.text.matches(":focus")) page.key.focus(); // who is still typing is not interrupted
}

async function useKey(event) {
  event.preventDefault();
  const key = page.key.value.trim();
  page.key.value = "";
  if (!/^[\x21-\x7e]+$/.test(key)) {
    showProblem("That is not an API key", ["A key has visible ASCII characters only."], [], { again: false });
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

// ---- Models

/** Offer a choice where there is one. An endpoint that does not tell still answers. */
async function loadModels() {
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

async function describeModel() {
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

// ---- The text field

function describeText() {
  const text = readText();
  page.size.textContent = text ? `${formatCount(countCodePoints(text))} characters` : "";
  const keys = /Mac|iPhone|iPad/.test(navigator.userAgent) ? "⌘ Enter" : "Ctrl Enter";
  page.hint.textContent = text.length > LONGEST_AUTOMATIC ? `Long text: press the button, or ${keys}` : keys;
}

function setText(text) {
  page.text.value = text;
  state.file = { text, shown: page.text.value };
  tellNotice("");
  describeText();
  if (text) ask();
  else forgetAnswer();
}

function tellNotice(text) {
  page.notice.hidden = !text;
  page.notice.textContent = text;
}

/** Read a dropped or chosen file; say why where it cannot be. */
async function readFile(file) {
  if (file.size > LARGEST_FILE) {
    const kib = formatCount(Math.ceil(file.size / 1024));
    tellNotice(`“${file.name}” is too large: ${kib} KiB, and this page takes ${formatCount(LARGEST_FILE / 1024)} KiB.`);
    return;
  }
  let text;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
  } catch {
    tellNotice(`“${file.name}” is not a text file in UTF-8. Save it as UTF-8 and try again.`);
    return;
  }
  if (text.includes("\0")) tellNotice(`“${file.name}” is a binary file, not a text.`);
  else if (!text) tellNotice(`“${file.name}” is empty.`);
  else setText(text);
}

function watchFiles() {
  let depth = 0; // dragenter and dragleave also come for every child
  const carriesFile = (event) => event.dataTransfer && [...event.dataTransfer.types].includes("Files");
  const settle = (change) => {
    depth = change === null ? 0 : Math.max(0, depth + change);
    page.source.classList.toggle("dropping", depth > 0);
  };
  document.addEventListener("dragenter", (event) => carriesFile(event) && settle(1));
  document.addEventListener("dragleave", (event) => carriesFile(event) && settle(-1));
  document.addEventListener("dragover", (event) => {
    if (carriesFile(event)) event.preventDefault();
  });
  document.addEventListener("drop", (event) => {
    settle(null);
    if (!carriesFile(event)) return;
    event.preventDefault(); // else the browser leaves the page for the file
    const { files } = event.dataTransfer;
    if (files.length === 1) readFile(files[0]);
    else tellNotice("Drop one file at a time.");
  });
  page.open.addEventListener("click", () => page.file.click());
  page.file.addEventListener("change", () => {
    const [file] = page.file.files;
    if (file) readFile(file).finally(() => (page.file.value = "")); // so that the same file can be chosen again
  });
}

function watchText() {
  page.text.addEventListener("input", (event) => {
    describeText();
    tellNotice("");
    if (event.isComposing) return; // half a Chinese word is nothing to ask about
    if (event.inputType === "insertFromPaste" && readText()) ask();
    else askSoon();
  });
  page.text.addEventListener("compositionend", askSoon);
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey) || event.isComposing) return;
    event.preventDefault();
    ask();
  });
  page.send.addEventListener("click", ask);
  page.clear.addEventListener("click", () => {
    setText("");
    page.text.focus();
  });
  page.examples.addEventListener("click", (event) => {
    const button = event.target.closest("[data-example]");
    if (button) setText(EXAMPLES[button.dataset.example]);
  });
}

// ---- Copying

async function copyText(text, button) {
  let copied = true;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    copied = copyOldWay(text); // plain HTTP has no clipboard API
  }
  button.dataset.name ||= button.textContent;
  button.textContent = copied ? "Copied" : "Not allowed";
  page.told.textContent = copied ? "Copied" : "The browser does not allow copying";
  setTimeout(() => {
    button.textContent = button.dataset.name;
    page.told.textContent = "";
  }, 1600);
}

function copyOldWay(text) {
  const field = make("textarea", "unseen");
  field.value = text;
  document.body.append(field);
  const focused = document.activeElement;
  field.select();
  const copied = document.execCommand("copy");
  field.remove();
  if (focused instanceof HTMLElement) focused.focus();
  return copied;
}

// ---- Start

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

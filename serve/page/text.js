// The text field: typed, pasted, dropped, or an example.

import { countCodePoints } from "./codepoints.js";
import { formatCount, page, readText } from "./page.js";
import { LONGEST_AUTOMATIC, ask, askSoon, forgetAnswer } from "./request.js";
import { state } from "./state.js";

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

const LARGEST_FILE = 2 * 1024 * 1024; // bytes

export function describeText() {
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

export function watchFiles() {
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

export function watchText() {
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

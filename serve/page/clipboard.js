// Copying.

import { make, page } from "./page.js";

export async function copyText(text, button) {
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

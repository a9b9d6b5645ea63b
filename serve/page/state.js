// What all parts of the page know: the text, the request under way, the answer shown.

export const state = {
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

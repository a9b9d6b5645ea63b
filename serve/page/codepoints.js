// Positions of the API are Unicode code points, JavaScript's are UTF-16 units: mapCodePoints() stands between them.

/** A function from a code point's position in `text` to its UTF-16 position; undefined where there is none. */
export function mapCodePoints(text) {
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
export function countCodePoints(text) {
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
export function makeWellFormed(text) {
  return text.replace(/[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g, "\ufffd");
}

// The colours of labels.

// Degrees on the colour wheel for the labels of most corpora; any other label takes its own from a hash.
const HUES = {
  PER: 255, PERSON: 255, ORG: 150, ORGANIZATION: 150, LOC: 55, LOCATION: 55, GPE: 80, MISC: 310, NORP: 285,
  FAC: 35, PRODUCT: 15, EVENT: 345, WORK_OF_ART: 330, LAW: 270, LANGUAGE: 120, DATE: 200, TIME: 220,
  MONEY: 105, PERCENT: 130, QUANTITY: 180, CARDINAL: 235, ORDINAL: 165,
};

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

export function colour(node, label) {
  node.style.setProperty("--hue", chooseHue(label)); // through the object model, which the policy allows
  return node;
}

// @ts-check
// Numbers as the page writes them.

/** A share as a percentage with two or three digits. */
export function percent(/** @type {number | null | undefined} */ value) {
  if (value === null || value === undefined) return "?";
  const scaled = 100 * value;
  if (scaled >= 1e5) return "10" + raised(Math.round(Math.log10(scaled))) + " %";
  return `${scaled >= 100 || Number.isInteger(scaled) ? Math.round(scaled).toLocaleString("en") : scaled.toFixed(1)} %`;
}

/** A number with three significant digits. */
export function short(/** @type {number | null | undefined} */ value) {
  if (value === null || value === undefined) return "?";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e5)) {
    const power = Math.floor(Math.log10(size));
    return `${(value / 10 ** power).toFixed(1)}\u00b710${raised(power)}`;
  }
  return size >= 100 ? Math.round(value).toLocaleString("en") : value.toFixed(size >= 10 ? 1 : size >= 1 ? 2 : 3);
}

function raised(/** @type {number} */ power) {
  const digits = "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079";
  return [...String(power)].map((c) => (c === "-" ? "\u207b" : digits[Number(c)])).join("");
}

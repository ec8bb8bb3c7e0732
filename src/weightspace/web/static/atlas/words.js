// @ts-check
// Numbers, sizes, times and kinds of origin in words.

/** A number of four digits: 0.9104, 12.31, 1.2e-7. */
export function number(/** @type {number | null | undefined} */ value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "-";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-4 || size >= 1e7)) return value.toExponential(2);
  return String(Number(value.toPrecision(4)));
}

/** A standard error: two digits say enough. */
export const error = (/** @type {number | null} */ value) => (value === null
  ? "-" : number(Number(value.toPrecision(2))));

export function percent(/** @type {number | null | undefined} */ share) {
  return share === null || share === undefined ? "" : `${Math.round(share * 100)}%`;
}

export function size(/** @type {number} */ bytes) {
  const units = ["bytes", "kB", "MB", "GB", "TB"];
  let step = 0;
  while (bytes >= 1000 && step < units.length - 1) [bytes, step] = [bytes / 1000, step + 1];
  return `${step === 0 || bytes >= 100 ? Math.round(bytes) : bytes.toFixed(1)} ${units[step]}`;
}

/** 12 networks, 1 network. */
export function count(/** @type {number} */ n, /** @type {string} */ one, many = one + "s") {
  return `${n.toLocaleString("en")} ${n === 1 ? one : many}`;
}

export function day(/** @type {number | null} */ seconds) {
  if (seconds === null) return "";
  return new Date(seconds * 1000).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
}

/** How a parent is known, in words: stated by whom added it, or found by a map. */
export function origin(/** @type {{kind: string, confidence: number | null, share?: number | null}} */ parent) {
  if (parent.kind === "stated") return "stated";
  if (parent.kind === "path") return "stated, next on a path";
  const known = !parent.kind.startsWith("copy") && parent.confidence !== null && parent.confidence > 0.5;
  const sure = known ? `, ${percent(parent.confidence)} sure` : "";
  const part = parent.kind === "average" && parent.share !== null && parent.share !== undefined
    ? `, share ${percent(parent.share)}` : "";
  return `found: ${parent.kind}${part}${sure}`;
}

/** Whether an origin was said when the network was added. */
export const stated = (/** @type {string} */ kind) => kind === "stated" || kind === "path";

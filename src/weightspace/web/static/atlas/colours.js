// @ts-check
// Colours of networks on the map: by family, tag, measure or the answer to a question, and the legend that says so.

import { measured } from "./networks.js";
import { number } from "./words.js";

/** @typedef {import("./networks.js").Networks} Networks */
/** @typedef {import("./networks.js").Row} Row */
/** @typedef {import("./networks.js").Space} Space */
/** @typedef {[number, number, number]} Colour */
/**
 * @typedef {{of: (row: Row) => Colour, key: string, title: string,
 *   entries: {colour: Colour, text: string, count: number, family?: string}[],
 *   scale: null | {low: string, high: string, stops: Colour[], missing: number}}} Colouring
 */

/** Seven hues of the palette of Okabe and Ito, which colour-blind people tell apart; no family shares one. */
const HUES = /** @type {Colour[]} */ ([
  [0, 114, 178], [230, 140, 0], [0, 150, 110], [204, 102, 160], [86, 170, 233], [200, 75, 0], [178, 160, 0],
]);
const DARK_HUES = /** @type {Colour[]} */ ([
  [60, 150, 225], [240, 165, 40], [20, 185, 140], [225, 130, 185], [140, 205, 250], [240, 110, 50], [225, 210, 70],
]);
/** From low to high through one rise of lightness: readable without its hues. */
const STOPS = /** @type {Colour[]} */ ([
  [68, 30, 110], [59, 82, 139], [33, 144, 141], [93, 201, 99], [230, 215, 40],
]);

/** The same for dark paper, where the low end must not vanish. */
const DARK_STOPS = /** @type {Colour[]} */ ([
  [122, 84, 190], [84, 122, 200], [40, 165, 160], [110, 210, 110], [240, 228, 80],
]);

export const css = (/** @type {Colour} */ c) => `rgb(${c[0]} ${c[1]} ${c[2]})`;
const grey = (/** @type {boolean} */ dark) => /** @type {Colour} */ (dark ? [112, 124, 133] : [164, 172, 179]);
const faint = (/** @type {boolean} */ dark) => /** @type {Colour} */ (dark ? [72, 82, 90] : [205, 210, 214]);

function between(/** @type {Colour[]} */ stops, /** @type {number} */ t) {
  const place = Math.max(0, Math.min(1, t)) * (stops.length - 1);
  const k = Math.min(Math.floor(place), stops.length - 2);
  return /** @type {Colour} */ (stops[k].map((v, i) => Math.round(v + (stops[k + 1][i] - v) * (place - k))));
}

/**
 * The colouring that the address asks for.
 * @param {Networks} all @param {Space} space @param {string} by @param {boolean} dark
 * @param {{title: string, values: Map<string, number>} | null} answer
 * @returns {Colouring}
 */
export function colouring(all, space, by, dark, answer) {
  if (by.startsWith("tag:")) return byTag(space, by.slice(4), dark);
  if (by.startsWith("measure:")) {
    const name = by.slice(8);
    return byValue(space, name, (row) => measured(all, row, name), dark);
  }
  if (by.startsWith("job:") && answer) return byValue(space, answer.title, (row) =>
    answer.values.get(row.id) ?? null, dark);
  return byFamily(space, dark);
}

/** @returns {Colouring} */
function byFamily(/** @type {Space} */ space, /** @type {boolean} */ dark) {
  const hues = dark ? DARK_HUES : HUES;
  const large = space.families.filter((family) => family.size > 1);
  const own = new Map(large.slice(0, hues.length).map((family, k) => [family.key, hues[k]]));
  const sizes = new Map(space.families.map((family) => [family.key, family.size]));
  /** @type {Colouring["entries"]} */
  const entries = large.slice(0, hues.length).map((family, k) => (
    { colour: hues[k], text: `${family.number}: ${family.name}`, count: family.size, family: family.key }));
  const more = large.slice(hues.length);
  if (more.length) {
    const total = more.reduce((sum, family) => sum + family.size, 0);
    entries.push({ colour: grey(dark), text: `${more.length} smaller families`, count: total });
  }
  const alone = space.families.length - large.length;
  if (alone) entries.push({ colour: faint(dark), text: "without relatives", count: alone });
  const of = (/** @type {Row} */ row) => own.get(row.kin) ?? ((sizes.get(row.kin) ?? 1) > 1 ? grey(dark) : faint(dark));
  return { of, key: "family", title: "Families", entries, scale: null };
}

/** @returns {Colouring} */
function byTag(/** @type {Space} */ space, /** @type {string} */ tag, /** @type {boolean} */ dark) {
  const [yes, no] = [(dark ? DARK_HUES : HUES)[1], faint(dark)];
  const has = space.points.filter((row) => row.tags.includes(tag)).length;
  const entries = [{ colour: yes, text: `tagged ${tag}`, count: has },
    { colour: no, text: "others", count: space.points.length - has }];
  return { of: (row) => (row.tags.includes(tag) ? yes : no), key: "tag:" + tag, title: "Tag", entries, scale: null };
}

/**
 * @param {Space} space @param {string} title @param {(row: Row) => number | null} value @param {boolean} dark
 * @returns {Colouring}
 */
function byValue(space, title, value, dark) {
  const known = space.points.map(value).filter((v) => v !== null);
  const low = known.reduce((m, v) => Math.min(m, v), Infinity);
  const high = known.reduce((m, v) => Math.max(m, v), -Infinity);
  const missing = space.points.length - known.length;
  const span = high - low || 1;
  const stops = dark ? DARK_STOPS : STOPS;
  const of = (/** @type {Row} */ row) => {
    const v = value(row);
    return v === null ? faint(dark) : between(stops, (v - low) / span);
  };
  const entries = missing ? [{ colour: faint(dark), text: "not measured", count: missing }] : [];
  const scale = known.length ? { low: number(low), high: number(high), stops, missing } : null;
  return { of, key: `${title} ${low} ${high}`, title, entries, scale };
}

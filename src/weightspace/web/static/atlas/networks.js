// @ts-check
// The networks of the atlas as the page uses them: rows with their place on the map, filters, order, families.

import { api } from "../connection.js";

/** @typedef {{id: string, kind: string, confidence: number | null, share: number | null}} Parent */
/**
 * @typedef {{id: string, name: string, architecture: number, dtype: string, bytes: number, added: number, tags: string[],
 *   family: number | null, copies: number, parents: Parent[], measures: Record<string, number | null>, at: number,
 *   arch: string, kin: string, lower: string, x: number, y: number, placed: boolean, children: Row[]}} Row
 */
/** @typedef {{key: string, arch: string, number: number, size: number, middle: Row | null, name: string}} Family */
/**
 * @typedef {{arch: string, architecture: string, name: string, stress: number | null, points: Row[], families: Family[],
 *   edges: {from: Row, to: Row, kind: string}[], notes: string[]}} Space
 */
/**
 * @typedef {{atlas: any, map: any, rows: Row[], byId: Map<string, Row>, spaces: Space[], families: Map<string, Family>,
 *   measures: string[], left: Map<string, string>}} Networks
 */
/** @typedef {import("./address.js").At} At */

/** Ask for all of it. Rejects with a `Refused` of status 404 where no atlas is open. */
export async function load() {
  const [atlas, networks, map] = await Promise.all([
    api("/api/atlas"), api("/api/atlas/networks"), api("/api/atlas/map"),
  ]);
  return joined(atlas, networks, map);
}

/** The short name of an architecture in addresses. */
const short = (/** @type {string} */ id) => id.slice(0, 10);

/**
 * Three answers of the server as one.
 * @param {any} atlas @param {any} networks @param {any} map
 * @returns {Networks}
 */
export function joined(atlas, networks, map) {
  /** @type {Row[]} */
  const rows = networks.networks.map((/** @type {any} */ n, /** @type {number} */ at) => {
    const arch = short(networks.architectures[n.architecture] ?? "");
    const kin = n.family === null ? "" : `${arch}.${n.family}`;
    return { ...n, at, arch, kin, lower: n.name.toLowerCase(), x: 0, y: 0, placed: false, children: [] };
  });
  const byId = new Map(rows.map((row) => [row.id, row]));
  for (const row of rows) {
    for (const id of new Set(row.parents.map((p) => p.id))) byId.get(id)?.children.push(row);
  }
  const families = new Map();
  const spaces = map.spaces.map((/** @type {any} */ space) => placed(space, byId, families));
  spaces.sort((/** @type {Space} */ a, /** @type {Space} */ b) => b.points.length - a.points.length);
  const left = new Map(map.left.map((/** @type {any} */ one) => [one.id, one.why]));
  return { atlas, map, rows, byId, spaces, families, measures: networks.measures, left };
}

/** @returns {Space} */
function placed(/** @type {any} */ space, /** @type {Map<string, Row>} */ byId, /** @type {Map<string, Family>} */ all) {
  const points = [];
  for (const point of space.points) {
    const row = byId.get(point.id);
    if (!row || point.x === null || point.y === null) continue;
    Object.assign(row, { x: point.x, y: point.y, placed: true });
    points.push(row);
  }
  const arch = short(space.architecture);
  /** @type {Family[]} */
  const families = space.families.map((/** @type {any} */ f) => {
    const middle = byId.get(f.middle) ?? null;
    const others = f.networks - 1;
    const name = (middle?.name ?? `family ${f.family + 1}`) + (others > 0 ? ` and ${others} more` : "");
    return { key: `${arch}.${f.family}`, arch, number: f.family + 1, size: f.networks, middle, name };
  });
  families.sort((a, b) => b.size - a.size || a.number - b.number);
  for (const family of families) all.set(family.key, family);
  const edges = [];
  for (const edge of space.edges) {
    const [from, to] = [byId.get(edge.parent), byId.get(edge.child)];
    if (from?.placed && to?.placed) edges.push({ from, to, kind: edge.kind });
  }
  const seen = new Set(edges.map((edge) => edge.from.id + edge.to.id));
  for (const to of points) {
    for (const { id, kind } of to.parents) {
      const from = byId.get(id);
      if (from?.placed && from.arch === arch && !seen.has(id + to.id)) {
        seen.add(id + to.id);
        edges.push({ from, to, kind });
      }
    }
  }
  const { name, stress, notes, architecture } = space;
  return { arch, architecture, name, stress, points, families, edges, notes };
}

/** How well the plane shows the distances, in words. */
export function fit(/** @type {number | null} */ stress) {
  if (stress === null) return "";
  const off = `distances are off by about ${Math.round(stress * 100)}%`;
  if (stress < 0.005) return "The plane shows all distances as they are.";
  if (stress < 0.1) return `The plane is close to true: ${off}.`;
  if (stress < 0.25) return `The plane shows the gist: ${off}. Near points may be less near than they look.`;
  return `The plane is a rough sketch: ${off}. Trust families and the tree more than places.`;
}

/** The space that is drawn: of the open network, else of the filter, else the largest. */
export function spaceOf(/** @type {Networks} */ all, /** @type {At} */ at) {
  const open = all.byId.get(at.network);
  if (open?.placed && (!at.arch || at.arch === open.arch)) {
    const own = all.spaces.find((s) => s.arch === open.arch && s.points.includes(open));
    if (own) return own;
  }
  return all.spaces.find((s) => !at.arch || s.arch === at.arch) ?? null;
}

/** What an address asks for, without filters, columns and colours that this atlas does not have. */
export function present(/** @type {Networks} */ all, /** @type {At} */ at) {
  const { tags, architectures } = all.atlas;
  const tagged = (/** @type {string} */ tag) => tags.some((/** @type {any} */ t) => t.tag === tag);
  const [kind, , name] = at.colour.split(/(:)(.*)/s);
  const coloured = kind === "job" || (kind === "tag" ? tagged(name) : kind === "measure" && all.measures.includes(name));
  return {
    ...at,
    arch: architectures.some((/** @type {any} */ a) => short(a.id) === at.arch) ? at.arch : "",
    tag: tagged(at.tag) ? at.tag : "",
    family: all.families.has(at.family) ? at.family : "",
    colour: coloured ? at.colour : "family",
  };
}

/** The rows that all filters let through. */
export function filtered(/** @type {Networks} */ all, /** @type {At} */ at) {
  const words = at.q.toLowerCase().split(/\s+/).filter(Boolean);
  return all.rows.filter((row) => {
    if (at.arch && row.arch !== at.arch) return false;
    if (at.tag && !row.tags.includes(at.tag)) return false;
    if (at.family && row.kin !== at.family) return false;
    return words.every((word) => row.lower.includes(word) || row.tags.some((tag) => tag.toLowerCase().includes(word)));
  });
}

/** The value of a measure, by its name; null where it was not measured. */
export function measured(/** @type {Networks} */ all, /** @type {Row} */ row, /** @type {string} */ name) {
  const place = all.measures.indexOf(name);
  return place < 0 ? null : row.measures[String(place)] ?? null;
}

/** Rows in the order of a column; what has no value comes last either way. */
export function sorted(/** @type {Networks} */ all, /** @type {Row[]} */ rows, /** @type {string} */ sort) {
  if (!sort) return rows;
  const down = sort.startsWith("-");
  const by = down ? sort.slice(1) : sort;
  const keys = new Map(rows.map((row) => [row, keyOf(all, row, by)]));
  const words = new Intl.Collator(undefined, { numeric: true });
  return [...rows].sort((one, other) => {
    const [a, b] = [keys.get(one) ?? null, keys.get(other) ?? null];
    if (a === null || b === null) return a === b ? one.at - other.at : a === null ? 1 : -1;
    const order = typeof a === "string" ? words.compare(a, String(b)) : a - Number(b);
    return (down ? -order : order) || one.at - other.at;
  });
}

/** @returns {string | number | null} */
function keyOf(/** @type {Networks} */ all, /** @type {Row} */ row, /** @type {string} */ by) {
  if (by === "name") return row.name;
  if (by === "family") return row.family;
  if (by === "tags") return row.tags.join(", ") || null;
  if (by === "from") return all.byId.get(row.parents[0]?.id ?? "")?.name ?? null;
  if (by === "arch") return row.arch;
  if (by === "bytes") return row.bytes;
  if (by === "added") return row.added;
  return measured(all, row, by.replace(/^measure:/, ""));
}

/** The architecture of a row, as the atlas lists it. */
export function architecture(/** @type {Networks} */ all, /** @type {string} */ arch) {
  return all.atlas.architectures.find((/** @type {any} */ one) => short(one.id) === arch) ?? null;
}

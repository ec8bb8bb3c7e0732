// @ts-check
// The tree of who came from whom, stated or found, as a list that folds.

import { html, useEffect, useMemo, useState } from "../vendor/htm-preact.js";
import { useRows } from "./rows.js";
import { count, origin } from "./words.js";

/** @typedef {import("./networks.js").Networks} Networks */
/** @typedef {import("./networks.js").Row} Row */
/** @typedef {import("./networks.js").Parent} Parent */
/** @typedef {{row: Row, depth: number, own: number, below: number, via: Parent | null, others: string[]}} Line */

const HEIGHT = 34;
const OPEN = 300; // networks up to which all is unfolded at first

/** What was stated weighs more than what was found. */
const weight = (/** @type {Parent | null | undefined} */ p) => (p ? (p.share ?? 1) * (p.confidence ?? 2) : 9);

/** The parent under which a network stands: the largest share of an average, else the surest, else the one stated. */
export function under(/** @type {Row} */ row, /** @type {Map<string, Row>} */ byId) {
  const there = row.parents.filter((p) => byId.has(p.id) && p.id !== row.id);
  return there.reduce((/** @type {Parent | null} */ best, p) => (best && weight(best) >= weight(p) ? best : p), null);
}

/**
 * The forest: roots, children of each, and how many stand below each. A ring of origins is cut where it is least sure.
 * @param {Row[]} rows @param {Map<string, Row>} byId
 */
export function forest(rows, byId) {
  const via = new Map(rows.map((row) => [row, under(row, byId)]));
  const up = (/** @type {Row} */ row) => byId.get(via.get(row)?.id ?? "") ?? null;
  const state = new Map();
  for (const row of rows) {
    let at = /** @type {Row | null} */ (row);
    for (; at && !state.has(at); at = up(at)) state.set(at, row);
    if (!at || state.get(at) !== row) continue;
    let [weak, next] = [at, up(at)];
    for (; next && next !== at; next = up(next)) if (weight(via.get(next)) < weight(via.get(weak))) weak = next;
    via.set(weak, null);
  }
  /** @type {Map<Row, Row[]>} */
  const children = new Map(rows.map((row) => [row, []]));
  const roots = [];
  for (const row of rows) {
    const parent = up(row);
    if (parent && children.has(parent)) children.get(parent)?.push(row);
    else roots.push(row);
  }
  const below = new Map();
  const stack = roots.map((row) => /** @type {[Row, boolean]} */ ([row, false]));
  for (let top = stack.pop(); top; top = stack.pop()) {
    const [row, done] = top;
    const own = children.get(row) ?? [];
    if (done) below.set(row, own.reduce((sum, child) => sum + 1 + below.get(child), 0));
    else stack.push([row, true], ...own.map((child) => /** @type {[Row, boolean]} */ ([child, false])));
  }
  const large = (/** @type {Row} */ a, /** @type {Row} */ b) => below.get(b) - below.get(a) || a.at - b.at;
  roots.sort(large);
  for (const own of children.values()) own.sort(large);
  return { roots, children, below, via };
}

/** @returns {Line[]} */
function lines(/** @type {ReturnType<typeof forest>} */
  { roots, children, below, via }, /** @type {Set<string>} */ folded, /** @type {Networks} */ all) {
  const out = [];
  const stack = [...roots].reverse().map((row) => /** @type {[Row, number]} */ ([row, 0]));
  for (let top = stack.pop(); top; top = stack.pop()) {
    const [row, depth] = top;
    const own = children.get(row) ?? [];
    const first = depth > 0 ? via.get(row) ?? null : null;
    const more = new Map(row.parents.filter((p) => p.id !== first?.id).map((p) => [p.id, p]));
    const others = [...more.values()].map((p) => `${all.byId.get(p.id)?.name ?? "one that is gone"} (${origin(p)})`);
    out.push({ row, depth, own: own.length, below: below.get(row), via: first, others });
    if (!folded.has(row.id)) stack.push(...[...own].reverse().map((child) => /** @type {[Row, number]} */
      ([child, depth + 1])));
  }
  return out;
}

/**
 * @param {{all: Networks, rows: Row[], at: import("./address.js").At, choose: (row: Row) => void, pointed: Row | null,
 *   point: (row: Row | null) => void}} how `rows` those that filters let through
 */
export function Tree({ all, rows, at, choose, pointed, point }) {
  const kin = useMemo(() => forest(rows, all.byId), [rows, all]);
  const [folded, setFolded] = useState(() => new Set(rows.length > OPEN ? rows.map((row) => row.id) : []));
  const [cursor, setCursor] = useState(-1);
  const shown = useMemo(() => lines(kin, folded, all), [kin, folded, all]);
  const list = useRows(shown.length, HEIGHT);
  useEffect(() => {
    const open = all.byId.get(at.network);
    if (!open) return;
    const above = /** @type {string[]} */ ([]);
    let up = kin.via.get(open) ?? null;
    for (; up && !above.includes(up.id); up = kin.via.get(/** @type {Row} */
      (all.byId.get(up.id))) ?? null) above.push(up.id);
    if (above.some((id) => folded.has(id))) setFolded(new Set([...folded].filter((id) => !above.includes(id))));
    else {
      const k = shown.findIndex((line) => line.row === open);
      [list.reveal(k), setCursor(k)];
    }
  }, [at.network, kin, shown]);
  const fold = (/** @type {Row} */ row, /** @type {boolean} */ shut) => {
    const next = new Set(folded);
    if (shut) next.add(row.id);
    else next.delete(row.id);
    setFolded(next);
  };
  const pressed = (/** @type {KeyboardEvent} */ event) => {
    const line = shown[cursor];
    const to = (/** @type {number} */ k) => [setCursor(k), list.reveal(k), point(shown[k].row)];
    if (event.key === "ArrowDown" && cursor < shown.length - 1) to(cursor + 1);
    else if (event.key === "ArrowUp" && cursor > 0) to(cursor - 1);
    else if (event.key === "Home") to(0);
    else if (event.key === "End") to(shown.length - 1);
    else if (event.key === "ArrowRight" && line?.own) fold(line.row, false);
    else if (event.key === "ArrowLeft" && line?.own && !folded.has(line.row.id)) fold(line.row, true);
    else if (event.key === "ArrowLeft" && line?.depth) to(shown.findIndex((l) => l.row.id === line.via?.id));
    else if (event.key === "Enter" && line) choose(line.row);
    else return;
    event.preventDefault();
  };
  const origins = rows.filter((row) => row.parents.length).length;
  const parents = shown.filter((l) => l.own > 0).map((l) => l.row.id);
  if (rows.length === 0) return html`<div class="empty">No network passes the filters below.</div>`;
  return html`<div class="map-bar">
      <span class="soft" role="status">${origins === 0
        ? "No origins are known yet: state them with --parent, or let a map find them."
        : `${count(origins, "network")} with an origin, ${rows.length - origins} without.`}</span>
      <span class="buttons"><button disabled=${folded.size === 0}
        onClick=${() => setFolded(new Set())}>Unfold all</button>
      <button disabled=${parents.length === 0}
        onClick=${() => setFolded(new Set(rows.map((row) => row.id)))}>Fold all</button></span>
    </div>
    <div class="tree-box scroll" ref=${list.box} role="tree"
      tabindex="0" data-own-keys aria-label="Who came from whom: arrows move and fold, Enter opens"
      aria-activedescendant=${shown[cursor] ? "tree-" + shown[cursor].row.id : undefined} onKeyDown=${pressed}
        onBlur=${() => point(null)}>
      <div style=${{ height: list.above + "px" }} role="presentation"></div>
      ${shown.slice(list.first, list.last).map((line, k) => {
        const { row, depth, own, via, others } = line;
        const shut = folded.has(row.id);
        return html`<div key=${row.id} id=${"tree-" + row.id} role="treeitem" aria-level=${depth + 1}
          aria-expanded=${own ? !shut : undefined}
          aria-selected=${row.id === at.network}
            class="leaf ${row === pointed || list.first + k === cursor ? "pointed" : ""}"
          style=${{ paddingLeft: `${8 + Math.min(depth, 14) * 22}px` }} onMouseEnter=${() => point(row)}
            onMouseLeave=${() => point(null)}
          onClick=${() => [setCursor(list.first + k), choose(row)]}>
          ${own ? html`<button class="plain fold" tabindex="-1" aria-label=${shut ? "Unfold" : "Fold"}
            onClick=${(/** @type {any} */ e) => [e.stopPropagation(), fold(row, !shut)]}>${shut ? "\u25b8"
              : "\u25be"}</button>` : html`<span class="fold"></span>`}
          <span class="name">${row.name}</span>
          ${own > 0 && shut && html`<span class="badge">+${line.below}</span>`}
          ${via && html`<span class="soft">${origin(via)}</span>`}
          ${others.length > 0 && html`<span class="soft">${via ? "also from"
            : "from"} ${others.slice(0, 3).join(", ")}${others.length > 3 ? ` and ${others.length - 3} more`
            : ""}</span>`}
        </div>`;
      })}
      <div style=${{ height: list.below + "px" }} role="presentation"></div>
    </div>`;
}

// @ts-check
// The table of all networks: sorted, filtered, with the measures that are wanted; and as a CSV file.

import { html, useEffect, useState } from "../vendor/htm-preact.js";
import { architecture, measured } from "./networks.js";
import { useRows } from "./rows.js";
import { count, day, number, origin, size } from "./words.js";

/** @typedef {import("./networks.js").Networks} Networks */
/** @typedef {import("./networks.js").Row} Row */
/** @typedef {import("./address.js").At} At */
/** @typedef {import("./address.js").Go} Go */
/** @typedef {{key: string, title: string, wide: number, number?: boolean, text: (row: Row) => string, raw?: (row: Row) => string}} Column */

const HEIGHT = 36;
const FIRST = 3; // measures shown where none were chosen

/** The measures shown as columns. */
export function chosen(/** @type {Networks} */ all, /** @type {At} */ at) {
  if (at.columns === "none") return [];
  const wanted = at.columns.split("|");
  return at.columns ? all.measures.filter((name) => wanted.includes(name)) : all.measures.slice(0, FIRST);
}

/** @returns {Column[]} */
export function columns(/** @type {Networks} */ all, /** @type {string[]} */ measures) {
  const plain = (/** @type {number | null} */ v) => (v === null ? "" : String(v));
  const several = all.atlas.architectures.length > 1;
  const family = (/** @type {Row} */ row) => (row.family === null ? "" : String(row.family + 1));
  return [
    { key: "name", title: "Network", wide: 260, text: (row) => row.name },
    { key: "family", title: "Family", wide: 96, number: true, text: family },
    ...(several ? [{ key: "arch", title: "Architecture", wide: 190,
      text: (/** @type {Row} */ row) => architecture(all, row.arch)?.name ?? "" }] : []),
    { key: "from", title: "Came from", wide: 250, text: (row) => from(all, row) },
    { key: "tags", title: "Tags", wide: 150, text: (row) => row.tags.join(", ") },
    ...measures.map((name) => ({ key: "measure:" + name, title: name, wide: 130, number: true,
      text: (/** @type {Row} */ row) => number(measured(all, row, name)),
      raw: (/** @type {Row} */ row) => plain(measured(all, row, name)) })),
    { key: "bytes", title: "Size", wide: 96, number: true, text: (row) => size(row.bytes), raw: (row) =>
      plain(row.bytes) },
    { key: "added", title: "Added", wide: 180, text: (row) => day(row.added),
      raw: (row) => (row.added ? new Date(row.added * 1000).toISOString() : "") },
  ];
}

function from(/** @type {Networks} */ all, /** @type {Row} */ row) {
  const [first] = row.parents;
  if (!first) return "";
  const more = new Set(row.parents.map((p) => p.id)).size - 1;
  const name = all.byId.get(first.id)?.name ?? "one that is gone";
  return `${name} (${origin(first)})${more > 0 ? ` and ${more} more` : ""}`;
}

/** Rows as CSV. A text that a spreadsheet would run as a formula gets a ' before it. */
export function csv(/** @type {Column[]} */ shown, /** @type {Row[]} */ rows) {
  const cell = (/** @type {string} */ text) => {
    const safe = /^[=+\-@\t\r]/.test(text) && Number.isNaN(Number(text)) ? "'" + text : text;
    return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };
  const lines = [shown.map((c) => c.title), ...rows.map((row) => shown.map((c) => (c.raw ?? c.text)(row)))];
  return lines.map((line) => line.map(cell).join(",")).join("\r\n") + "\r\n";
}

function download(/** @type {string} */ text, /** @type {string} */ name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** Filters of networks: they dim the map, and shorten the tree and the table. */
export function Filters(/** @type {{all: Networks, at: At, go: Go, rows: Row[]}} */ { all, at, go, rows }) {
  const set = (/** @type {keyof At} */ key) => (/** @type {any} */ e) => go({ [key]: e.target.value });
  const kin = at.family ? all.families.get(at.family) : null;
  const large = [...all.families.values()].filter((f) => f.size > 1 && (!at.arch || f.arch === at.arch)).slice(0, 200);
  const any = at.q || at.tag || at.family || at.arch;
  return html`<div class="filters" role="search" aria-label="Filter networks">
    <input type="search" aria-label="Filter by name or tag" placeholder="Filter by name or tag" value=${at.q}
      onInput=${(/** @type {any} */ e) => go({ q: e.target.value }, true)} />
    ${all.atlas.architectures.length > 1 && html`<label><span>Architecture</span>
      <select aria-label="Architecture" value=${at.arch}
        onChange=${(/** @type {any} */ e) => go({ arch: e.target.value, family: "" })}>
        <option value="">all</option>
        ${all.atlas.architectures.map((/** @type {any} */ a) => html`<option value=${a.id.slice(0, 10)}>
          ${a.name} (${a.networks})</option>`)}
      </select></label>`}
    ${all.atlas.tags.length > 0 && html`<label><span>Tag</span> <select aria-label="Tag" value=${at.tag}
      onChange=${set("tag")}>
      <option value="">all</option>
      ${all.atlas.tags.map((/** @type {any} */ t) => html`<option value=${t.tag}>${t.tag} (${t.networks})</option>`)}
    </select></label>`}
    ${(large.length > 0 || kin) && html`<label><span>Family</span> <select aria-label="Family" value=${at.family}
      onChange=${set("family")}>
      <option value="">all</option>
      ${kin && !large.includes(kin) && html`<option value=${kin.key}>${kin.number}: ${kin.name}</option>`}
      ${large.map((f) => html`<option value=${f.key}>${f.number}: ${f.name}</option>`)}
    </select></label>`}
    <span class="soft count" role="status">${rows.length === all.rows.length ? count(rows.length, "network")
      : `${rows.length.toLocaleString("en")} of ${count(all.rows.length, "network")}`}</span>
    ${any && html`<button onClick=${() => go({ q: "", tag: "", family: "", arch: "" })}>Show all</button>`}
  </div>`;
}

function Choice(/** @type {{all: Networks, at: At, go: Go}} */ { all, at, go }) {
  const now = chosen(all, at);
  const set = (/** @type {string} */ name, /** @type {boolean} */ on) => {
    const next = all.measures.filter((m) => (m === name ? on : now.includes(m)));
    go({ columns: next.join("|") || "none" }, true);
  };
  return html`<details class="choice" onFocusOut=${(/** @type {any} */ e) => {
    if (e.relatedTarget && !e.currentTarget.contains(e.relatedTarget)) e.currentTarget.open = false;
  }}><summary>Columns</summary><div class="sheet">
    ${all.measures.length === 0 && html`<p class="soft">Nothing is measured yet: ask the networks with data.</p>`}
    ${all.measures.map((name) => html`<label><input type="checkbox" checked=${now.includes(name)}
      onChange=${(/** @type {any} */ e) => set(name, e.target.checked)} /> ${name}</label>`)}
  </div></details>`;
}

/**
 * @param {{all: Networks, rows: Row[], at: At, go: Go, choose: (row: Row) => void, pointed: Row | null,
 *   point: (row: Row | null) => void}} how `rows` filtered and in order
 */
export function Table({ all, rows, at, go, choose, pointed, point }) {
  const shown = columns(all, chosen(all, at));
  const list = useRows(rows.length, HEIGHT, HEIGHT);
  const [cursor, setCursor] = useState(-1);
  useEffect(() => list.reveal(rows.findIndex((row) => row.id === at.network)), [at.network, at.sort]);
  const sort = (/** @type {string} */ key) => go({ sort: at.sort === key ? "-" + key : at.sort === "-" + key
    ? "" : key }, true);
  const order = (/** @type {string} */ key) => (at.sort === key ? "ascending" : at.sort === "-" + key
    ? "descending" : undefined);
  const arrow = (/** @type {string} */ key) => (at.sort === key ? "\u25b4" : at.sort === "-" + key ? "\u25be" : "");
  const pressed = (/** @type {KeyboardEvent} */ event) => {
    const steps = /** @type {Record<string, number>} */ ({ ArrowDown: 1, ArrowUp: -1, PageDown: 12, PageUp: -12,
      Home: -1e9, End: 1e9 });
    const now = cursor >= 0 ? cursor : rows.findIndex((row) => row.id === at.network);
    if (event.key === "Enter" && /** @type {HTMLElement} */ (event.target).tagName !== "BUTTON" &&
      rows[now]) choose(rows[now]);
    else if (event.key in steps) {
      const next = Math.max(0, Math.min(rows.length - 1, now + steps[event.key]));
      setCursor(next);
      point(rows[next] ?? null);
      list.reveal(next);
    } else return;
    event.preventDefault();
  };
  const total = shown.reduce((sum, c) => sum + c.wide, 0);
  return html`<div class="table-bar"><${Choice} all=${all} at=${at} go=${go} />
      <button onClick=${() => download(csv(columns(all, all.measures), rows), "networks.csv")}
        title="The networks of this list with all measures">Download CSV</button></div>
    ${rows.length === 0 ? html`<div class="empty card">No network passes these filters.</div>` : html`
    <div class="table-box card scroll" ref=${list.box} tabindex="0" data-own-keys role="region" onKeyDown=${pressed}
      aria-label="Networks: arrows move, Enter opens" onBlur=${() => [setCursor(-1), point(null)]}>
      <table aria-rowcount=${rows.length + 1} style=${{ minWidth: total + "px" }}>
        <colgroup>${shown.map((c) => html`<col style=${{ width: c.wide + "px" }} />`)}</colgroup>
        <thead><tr aria-rowindex="1">${shown.map((c) => html`<th key=${c.key} class=${c.number ? "number" : ""}
          scope="col"
          aria-sort=${order(c.key)} title=${c.title}><button class="plain sort" onClick=${() => sort(c.key)}>
          <span>${c.title}</span><span aria-hidden="true">${arrow(c.key)}</span></button></th>`)}</tr></thead>
        <tbody>
          ${list.above > 0 && html`<tr key="above" aria-hidden="true" style=${{ height: list.above + "px" }}></tr>`}
          ${rows.slice(list.first, list.last).map((row, k) => html`<tr key=${row.id} aria-rowindex=${list.first + k + 2}
            aria-selected=${row.id === at.network}
              class=${row === pointed || list.first + k === cursor ? "pointed" : ""}
            onClick=${() => choose(row)} onMouseEnter=${() => point(row)} onMouseLeave=${() => point(null)}>
            ${shown.map((c) => html`<td key=${c.key} class=${c.number ? "number" : ""}
              title=${c.text(row)}>${c.key === "name"
              ? html`<button class="plain name" tabindex="-1"
                onClick=${(/** @type {any} */ e) => [e.stopPropagation(), choose(row)]}>${row.name}</button>`
              : c.text(row)}</td>`)}</tr>`)}
          ${list.below > 0 && html`<tr key="below" aria-hidden="true" style=${{ height: list.below + "px" }}></tr>`}
        </tbody>
      </table>
    </div>`}`;
}

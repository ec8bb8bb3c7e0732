// @ts-check
// A field that finds a network by its name.

import { html, useState } from "../vendor/htm-preact.js";

/** @typedef {import("./networks.js").Row} Row */

/** Rows whose name holds the text: those that begin with it first. */
export function matching(/** @type {Row[]} */ rows, /** @type {string} */ text, most = 8) {
  const wanted = text.trim().toLowerCase();
  if (!wanted) return [];
  const begins = [];
  const holds = [];
  for (const row of rows) {
    const place = row.lower.indexOf(wanted);
    if (place === 0) begins.push(row);
    else if (place > 0 && holds.length < most) holds.push(row);
    if (begins.length >= most) break;
  }
  begins.sort((a, b) => a.lower.length - b.lower.length);
  return [...begins, ...holds].slice(0, most);
}

/**
 * A combobox over networks: arrows choose, Enter takes, Escape closes.
 * @param {{label: string, id: string, rows: Row[], onPick: (row: Row) => void, hideLabel?: boolean}} how
 */
export function Pick({ label, id, rows, onPick }) {
  const [text, setText] = useState("");
  const [at, setAt] = useState(0);
  const [open, setOpen] = useState(false);
  const found = open ? matching(rows, text) : [];
  const none = open && text.trim() !== "" && found.length === 0;
  const take = (/** @type {Row} */ row) => {
    setText("");
    setOpen(false);
    onPick(row);
  };
  const pressed = (/** @type {KeyboardEvent} */ event) => {
    if (event.key === "ArrowDown") setAt(Math.min(at + 1, found.length - 1));
    else if (event.key === "ArrowUp") setAt(Math.max(at - 1, 0));
    else if (event.key === "Enter" && found[at]) take(found[at]);
    else if (event.key === "Escape" && (open || text)) [setOpen(false), setText("")];
    else return;
    event.preventDefault();
    event.stopPropagation();
  };
  return html`<div class="pick">
    <input id=${id} type="text" role="combobox" autocomplete="off" spellcheck=${false} aria-label=${label}
      placeholder=${label}
      aria-expanded=${found.length > 0} aria-controls=${id + "-list"} aria-autocomplete="list"
      aria-activedescendant=${found[at] ? `${id}-${at}` : undefined} value=${text}
      onInput=${(/** @type {any} */ e) => [setText(e.target.value), setAt(0), setOpen(true)]}
      onKeyDown=${pressed} onBlur=${() => setOpen(false)} onFocus=${() => setOpen(true)} />
    <ul id=${id + "-list"} role="listbox" aria-label=${label} hidden=${found.length === 0 && !none}>
      ${found.map((row, k) => html`<li key=${row.id} id=${`${id}-${k}`} role="option" aria-selected=${k === at}
        onMouseDown=${(/** @type {any} */ e) => [e.preventDefault(), take(row)]}>${row.name}</li>`)}
      ${none && html`<li class="soft" role="option" aria-selected="false"
        aria-disabled="true">No network has this in its name.</li>`}
    </ul>
  </div>`;
}

// @ts-check
// The page of one network: its measures, tags, origins, nearest others, layers and file.

import { html, useEffect, useState } from "../vendor/htm-preact.js";
import { api } from "../connection.js";
import { count, day, number, origin, size } from "./words.js";

/** @typedef {import("./networks.js").Networks} Networks */
/** @typedef {import("./address.js").Go} Go */

const NONE = "There is no such network in this atlas.";
const unknown = (/** @type {number} */ status) => [400, 404, 422].includes(status);

/** A button that opens another network. */
export function Open(/** @type {{id: string, name: string, go: Go, known: boolean}} */ { id, name, go, known }) {
  if (!known) return html`<span>${name}</span>`;
  return html`<button class="plain link-like" onClick=${() => go({ network: id, tool: "", job: "" })}>${name}</button>`;
}

function Tags(/** @type {{net: any, changed: () => void, known: string[]}} */ { net, changed, known }) {
  const [tags, setTags] = useState(/** @type {string[]} */ (net.tags));
  const [text, setText] = useState("");
  const [error, setError] = useState("");
  useEffect(() => setTags(net.tags), [net]);
  const send = async (/** @type {any} */ change) => {
    setError("");
    try {
      const answer = await api(`/api/atlas/networks/${net.id}/tags`, { method: "POST", json: change });
      setTags(answer.tags);
      changed();
      return true;
    } catch (e) {
      setError(/** @type {Error} */ (e).message);
      return false;
    }
  };
  const add = async (/** @type {any} */ event) => {
    event.preventDefault();
    const tag = text.trim();
    if (tag && (await send({ add: [tag], remove: [] }))) setText("");
  };
  return html`<div class="tags">
    ${tags.map((tag) => html`<span class="tag" key=${tag}>${tag}<button class="plain" aria-label=${`Remove tag ${tag}`}
      onClick=${() => send({ add: [], remove: [tag] })}>\u00d7</button></span>`)}
    <form onSubmit=${add}><input aria-label="New tag" placeholder="New tag" list="all-tags" maxlength="200"
      value=${text}
      onInput=${(/** @type {any} */ e) => setText(e.target.value)} /><button disabled=${!text.trim()}>Add</button>
        </form>
    <datalist id="all-tags">${known.map((tag) => html`<option value=${tag}></option>`)}</datalist>
    ${error && html`<p class="bad" role="alert">${error}</p>`}
  </div>`;
}

function Kin(/** @type {{title: string, list: any[], all: Networks, go: Go, say: (one: any) => string}} */
  { title, list, all, go, say }) {
  const [most, setMost] = useState(8);
  if (!list.length) return null;
  return html`<h3>${title}</h3><ul class="kin">
    ${list.slice(0, most).map((one, k) => html`<li key=${one.id + k}>
      <${Open} id=${one.id} name=${one.name} go=${go}
        known=${all.byId.has(one.id)} /> <span class="soft">${say(one)}</span></li>`)}
    ${list.length > most && html`<li><button class="plain link-like"
      onClick=${() => setMost(1e9)}>${list.length - most} more</button></li>`}
  </ul>`;
}

function Layers(/** @type {{net: any}} */ { net }) {
  const [most, setMost] = useState(60);
  const top = Math.max(...net.layers.map((/** @type {any} */ l) => l.norm ?? 0), 1e-30);
  return html`<h3>Layers</h3>
    <p class="soft small">${count(net.layers.length, "tensor")},${" "}
      ${(net.numbers ?? 0).toLocaleString("en")} numbers${net.norm === null ? "" : `, norm ${number(net.norm)}`}.
      The bar is the norm of a tensor, the root of the sum of its squares.</p>
    ${net.problem && html`<p class="bad">${net.problem}</p>`}
    <div class="scroll"><table class="layers"><thead><tr><th scope="col">Tensor</th><th scope="col">Shape</th>
      <th scope="col" class="number">Norm</th></tr></thead><tbody>
      ${net.layers.slice(0, most).map((/** @type {any} */ l) => html`<tr key=${l.name}>
        <td title=${l.name}>${l.name}<span class="bar-of" aria-hidden="true"
          style=${{ width: `${(100 * (l.norm ?? 0)) / top}%` }}></span></td>
        <td>${l.shape.join(" \u00d7 ") || "one number"}</td><td class="number">${number(l.norm)}</td></tr>`)}
    </tbody></table></div>
    ${net.layers.length > most && html`<button onClick=${() => setMost(1e9)}>
      ${net.layers.length - most} more tensors</button>`}`;
}

/** What two places of an edge say of it. */
function edge(/** @type {any} */ one) {
  const told = [origin(one)];
  if (one.distance !== null && one.distance !== undefined) told.push(`relative distance ${number(one.distance)}`);
  if (one.why) told.push(one.why);
  return told.join("; ");
}

/** @param {{all: Networks, id: string, go: Go, changed: () => void}} how */
export function Network({ all, id, go, changed }) {
  const [net, setNet] = useState(/** @type {any} */ (null));
  const [error, setError] = useState("");
  useEffect(() => {
    let old = false;
    const refused = (/** @type {any} */ e) => !old && [setNet(null), setError(unknown(e.status) ? NONE : e.message)];
    setError("");
    if (!/^[0-9a-f]{32}$/.test(id)) refused({ status: 404 });
    else api(`/api/atlas/networks/${id}`).then((n) => !old && setNet(n), refused);
    return () => {
      old = true;
    };
  }, [id, all]);
  const close = () => go({ network: "" });
  if (error) return html`<h2>No such network</h2><p class="bad"
    role="alert">${error}</p><button onClick=${close}>Close</button>`;
  const row = all.byId.get(id);
  if (!net || net.id !== id) return html`<h2>${row?.name ?? "\u00a0"}</h2><p class="soft">Reading its layers</p>`;
  const family = row ? all.families.get(row.kin) : null;
  const known = all.atlas.architectures.find((/** @type {any} */ a) => a.id === net.architecture)?.known ?? false;
  const left = all.left.get(id);
  const facts = Object.entries(net.facts ?? {});
  return html`
    <div class="head"><h2>${net.name}</h2><button class="plain" onClick=${close}
      aria-label="Close">\u00d7</button></div>
    <p class="soft">${net.made || "architecture unknown"}, ${net.dtype},${" "}
      ${(net.numbers ?? 0).toLocaleString("en")} numbers, ${size(net.bytes)}${
      family && family.size > 1 ? html`; <button class="plain link-like"
        onClick=${() => go({ family: row?.kin ?? "" })}>family ${family.number}</button> of ${family.size}` : ""}.</p>
    ${left && html`<p class="soft">Not on the map: ${left}.</p>`}
    <div class="actions">
      <button class="main" disabled=${!known}
        onClick=${() => go({ tool: "compare", a: id, b: "" })}>Compare with another</button>
      <button disabled=${!known} onClick=${() => go({ tool: "between", a: id, b: "" })}>Way to another</button>
    </div>
    ${!known && html`<p class="soft small">How its architecture is made is not known, so it cannot be opened: start the
      server
      with <code>--arch package:factory</code>.</p>`}
    <${Tags} net=${net} changed=${changed} known=${all.atlas.tags.map((/** @type {any} */ t) => t.tag)} />
    ${net.measures.length > 0 && html`<h3>Measures</h3><table><tbody>${net.measures.map((/** @type {any} */ m) =>
      html`<tr>
      <td>${m.name}</td><td class="number">${number(m.value)}${m.error !== null && m.error !== undefined
        ? html` <span class="soft">\u00b1 ${number(m.error)}</span>` : ""}</td></tr>`)}</tbody></table>`}
    <${Kin} title="Came from" list=${net.parents} all=${all} go=${go} say=${edge} />
    <${Kin} title="Made of it" list=${net.children} all=${all} go=${go} say=${edge} />
    <${Kin} title="The same tensors" list=${net.copies} all=${all} go=${go} say=${() => ""} />
    <${Kin} title="Nearest" list=${net.near} all=${all} go=${go}
      say=${(/** @type {any} */ o) => `absolute distance ${number(o.distance)}`} />
    <${Layers} net=${net} key=${id} />
    ${net.group && html`<h3>Symmetry</h3><p>${net.group}</p>`}
    <h3>File</h3>
    <p class="file">${net.file}${net.added ? html`<br /><span class="soft">added ${day(net.added)}</span>` : ""}
      <br /><span class="soft">content ${String(net.key).slice(0, 16)}\u2026</span></p>
    ${facts.length > 0 && html`<table><tbody>${facts.map(([name, value]) => html`<tr><td>${name}</td>
      <td class="number">${typeof value === "number" ? number(value) : String(value)}</td></tr>`)}</tbody></table>`}`;
}


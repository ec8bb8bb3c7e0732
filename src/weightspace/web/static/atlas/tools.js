// @ts-check
// What can be done with networks: forms that start a job.

import { html, useState } from "../vendor/htm-preact.js";
import { DataChoice, given, held, useUploads } from "./data.js";
import { Pick } from "./pick.js";
import { count } from "./words.js";

/** @typedef {import("./networks.js").Networks} Networks */
/** @typedef {import("./networks.js").Row} Row */
/** @typedef {import("./address.js").At} At */
/** @typedef {import("./address.js").Go} Go */
/**
 * What every form gets. `run` starts a job and shows it; it rejects where the server refuses.
 * @typedef {{all: Networks, at: At, go: Go, names: string[], run: (kind: string, given: any) => Promise<void>}} Tool
 */

/**
 * A form with its title, one button, and the sentence of what was refused.
 * @param {{title: string, why: any, label: string, ready: boolean, send: () => Promise<void>, go: Go, children?: any}} how
 */
function Form({ title, why, label, ready, send, go, children }) {
  const [error, setError] = useState("");
  const [asking, setAsking] = useState(false);
  const sent = async (/** @type {any} */ event) => {
    event.preventDefault();
    setError("");
    setAsking(true);
    await send().catch((e) => setError(e.message));
    setAsking(false);
  };
  return html`<div class="head"><h2>${title}</h2>
      <button class="plain" aria-label="Close" onClick=${() => go({ tool: "", a: "", b: "" })}>\u00d7</button></div>
    <p class="soft">${why}</p>
    <form class="tool" onSubmit=${sent}>${children}
      <div><button class="main" disabled=${!ready || asking}>${label}</button></div>
      ${error && html`<p class="bad" role="alert">${error}</p>`}
    </form>`;
}

/** @param {{label: string, slot: "a" | "b", all: Networks, rows: Row[], at: At, go: Go}} how */
function Slot({ label, slot, all, rows, at, go }) {
  const row = all.byId.get(at[slot]);
  return html`<div class="slot"><span class="which">${label}</span>${row
    ? html`<strong>${row.name}</strong><button type="button" class="plain"
      aria-label=${`Choose another ${label.toLowerCase()}`}
        onClick=${() => go({ [slot]: "" }, true)}>\u00d7</button>`
    : html`<${Pick} label=${`${label}: type a name`} id=${"slot-" + slot} rows=${rows}
      onPick=${(/** @type {Row} */ r) => go({ [slot]: r.id }, true)} />`}</div>`;
}

/** Two networks, chosen by name or by pointing. */
function Pair(/** @type {{all: Networks, at: At, go: Go}} */ { all, at, go }) {
  const first = all.byId.get(at.a) ?? all.byId.get(at.b);
  const rows = first ? all.rows.filter((row) => row.arch === first.arch && row !== first) : all.rows;
  return html`<div class="pair"><${Slot} label="First" slot="a" ...${{ all, rows, at, go }} />
    <${Slot} label="Second" slot="b" ...${{ all, rows, at, go }} />
    ${!(at.a && at.b) && html`<p class="soft small">Or click a point of the map, or a row.${first
      ? " Both must have one architecture." : ""}</p>`}</div>`;
}

function trouble(/** @type {Networks} */ all, /** @type {At} */ at) {
  const [a, b] = [all.byId.get(at.a), all.byId.get(at.b)];
  if (at.a && at.a === at.b) return "These are one and the same; choose another one.";
  return a && b && a.arch !== b.arch ? "These have different architectures; choose two of one." : "";
}

export function Compare(/** @type {Tool} */ { all, at, go, names, run }) {
  const [data, setData] = useState("");
  const wrong = trouble(all, at);
  return html`<${Form} title="Compare two networks" label="Compare" go=${go} ready=${at.a && at.b && !wrong}
    why="How far apart they are once their units are numbered alike, layer by layer; with data, also what the loss does
      on the way from one to the other."
    send=${() => run("compare", { a: at.a, b: at.b, ...given(data) })}>
    <${Pair} ...${{ all, at, go }} />${wrong && html`<p class="bad" role="alert">${wrong}</p>`}
    <${DataChoice} names=${names} value=${data} set=${setData} optional />
  <//>`;
}

export function Between(/** @type {Tool} */ { all, at, go, names, run }) {
  const [data, setData] = useState("");
  const [tag, setTag] = useState("");
  const wrong = trouble(all, at);
  const swap = () => go({ a: at.b, b: at.a }, true);
  return html`<${Form} title="A way between two networks" label="Find a way" go=${go}
    ready=${at.a && at.b && !wrong && data}
    why="A chain over networks of this atlas with the lowest rises of the loss from each to the next."
    send=${() => run("between", { a: at.a, b: at.b, tag: tag || null, ...given(data) })}>
    <${Pair} ...${{ all, at, go }} />${wrong && html`<p class="bad" role="alert">${wrong}</p>`}
    ${at.a && at.b && html`<div><button type="button" onClick=${swap}>The other way round</button></div>`}
    <${DataChoice} names=${names} value=${data} set=${setData} />
    <${TagChoice} all=${all} value=${tag} set=${setTag} label="Over networks tagged" />
  <//>`;
}

function TagChoice(/** @type {{all: Networks, value: string, set: (tag: string) => void, label: string}} */
  { all, value, set, label }) {
  if (!all.atlas.tags.length) return null;
  return html`<label>${label} <select value=${value} onChange=${(/** @type {any} */ e) => set(e.target.value)}>
    <option value="">any</option>
    ${all.atlas.tags.map((/** @type {any} */ t) => html`<option value=${t.tag}>
      ${t.tag} (${t.networks})</option>`)}</select></label>`;
}

const BY = [["loss", "loss"], ["accuracy", "accuracy"], ["perplexity", "perplexity"],
  ["logme", "features for new labels (LogME)"]];

export function Ask(/** @type {Tool} */ { all, at, go, names, run }) {
  const [data, setData] = useState("");
  const [by, setBy] = useState("loss");
  const [tag, setTag] = useState(at.tag);
  const [budget, setBudget] = useState(20);
  const [steps, setSteps] = useState(0);
  const value = (/** @type {(v: any) => void} */ set) => (/** @type {any} */ e) => set(e.target.value);
  return html`<${Form} title="Ask the networks" label="Ask" go=${go} ready=${data !== ""}
    why="Which network is best for these data? All see the same examples, and the worse half is left out each time."
    send=${() => run("query", { by, budget: Number(budget) / 100, steps: Number(steps), tag: tag ||
      null, ...given(data) })}>
    <${DataChoice} names=${names} value=${data} set=${setData} />
    <label>Ranked by <select value=${by}
      onChange=${value(setBy)}>${BY.map(([key, text]) => html`<option value=${key}>${text}</option>`)}</select></label>
    <${TagChoice} all=${all} value=${tag} set=${setTag} label="Only networks tagged" />
    <details><summary>How thoroughly</summary>
      <label>Share of all losses computed <select value=${String(budget)} onChange=${value(setBudget)}>
        ${["5", "10", "20", "50", "99.9"].map((b) => html`<option value=${b}>${b === "99.9"
          ? "all" : b + "%"}</option>`)}</select></label>
      <label>Steps of fine-tuning first <input type="number" min="0" max="20" value=${steps}
        onInput=${value(setSteps)} /></label>
    </details>
  <//>`;
}

export function Merge(/** @type {Tool} */ { all, at, go, names, run }) {
  const open = all.byId.get(at.network);
  const choices = [...all.families.values()].filter((f) => f.size > 1);
  const wanted = [at.family, open?.kin ?? ""].find((key) => choices.some((f) =>
    f.key === key)) ?? choices[0]?.key ?? "";
  const [key, setKey] = useState(wanted);
  const [data, setData] = useState("");
  const [name, setName] = useState("");
  const family = all.families.get(key);
  const space = all.spaces.find((s) => s.arch === family?.arch);
  const send = () => run("merge", { architecture: space?.architecture, family: (family?.number ?? 1) - 1,
    name: name.trim() || null, ...given(data) });
  return html`<${Form} title="Average a family" label="Average and save" go=${go} ready=${data !== "" && family}
    send=${send}
    why="Networks are added to the average one by one; one stays if the loss on examples held out falls. The result is
      saved, and added to the atlas.">
    ${choices.length === 0 ? html`<p>No family has two networks yet: make a map first.</p>` : html`
      <label>Family <select value=${key} onChange=${(/** @type {any} */ e) => setKey(e.target.value)}>
        ${choices.map((f) => html`<option value=${f.key}>
          ${f.number}: ${f.name} (${count(f.size, "network")})</option>`)}</select></label>`}
    <${DataChoice} names=${names} value=${data} set=${setData} />
    <label>Name of the new network <input value=${name} maxlength="200" placeholder="chosen for you"
      onInput=${(/** @type {any} */ e) => setName(e.target.value)} /></label>
  <//>`;
}

export function Nearest(/** @type {Tool} */ { go, run }) {
  const { uploads, send, sending, error } = useUploads("network");
  const [id, setId] = useState("");
  const take = async (/** @type {any} */ event) => {
    const file = event.target.files[0];
    const upload = file ? await send(file) : null;
    event.target.value = "";
    if (upload) setId(upload.id);
  };
  const now = uploads.find((u) => u.id === id);
  return html`<${Form} title="Where does a file belong?" label="Find the nearest" go=${go}
    ready=${now && now.networks > 0}
    why="The networks of this atlas that are nearest to a file of yours, once units are numbered alike."
    send=${() => run("nearest", { upload: id })}>
    <div class="field"><label class="button">Send a .safetensors file<input type="file" accept=".safetensors"
      onChange=${take} disabled=${sending !== ""} /></label>
    ${uploads.length > 0 && html`<label>File <select value=${id}
      onChange=${(/** @type {any} */ e) => setId(e.target.value)}>
      <option value="">choose</option>${uploads.map((u) => html`<option value=${u.id}>${u.name}</option>`)}</select>
        </label>`}
    <p class="soft small"
      role="status">${sending ? `Sending ${sending}` : now ? held(now) : "64 MiB at most; it is kept for an hour."}</p>
    ${error && html`<p class="bad" role="alert">${error}</p>`}</div>
  <//>`;
}

export function MapAgain(/** @type {Tool} */ { all, at, go, run }) {
  const [stored, setStored] = useState(false);
  const [tag, setTag] = useState(at.tag);
  return html`<${Form} title=${all.map.made === null ? "Make the map" : "Make the map again"} label="Make the map"
    go=${go} ready=${true}
    why="All networks of one architecture are compared: families, who came from whom, and the plane that shows most of
      the distances."
    send=${() => run("map", { stored, tag: tag || null })}>
    <${TagChoice} all=${all} value=${tag} set=${setTag} label="Only networks tagged" />
    <label class="check"><input type="checkbox" checked=${stored}
      onChange=${(/** @type {any} */ e) => setStored(e.target.checked)} />
      As stored: faster, but relatives whose units were renumbered are not found</label>
  <//>`;
}

export const TOOLS = /** @type {Record<string, any>} */ ({
  compare: Compare, between: Between, ask: Ask, merge: Merge, nearest: Nearest, map: MapAgain });

// @ts-check
// The page of an atlas: a map or a tree, a panel beside it, and the table of all networks.

import { html, useCallback, useEffect, useMemo, useState } from "./vendor/htm-preact.js";
import { api, token } from "./connection.js";
import { show, typing } from "./shell.js";
import { useAddress } from "./atlas/address.js";
import { openReport, Strip, useJobs } from "./atlas/jobs.js";
import { MapView } from "./atlas/map.js";
import { Network } from "./atlas/network.js";
import { filtered, load, present, sorted, spaceOf } from "./atlas/networks.js";
import { answerOf, JobPanel, useJob } from "./atlas/results.js";
import { Filters, Table } from "./atlas/table.js";
import { TOOLS } from "./atlas/tools.js";
import { Tree } from "./atlas/tree.js";
import { count, day, size } from "./atlas/words.js";

/** @typedef {import("./atlas/networks.js").Networks} Networks */
/** @typedef {import("./atlas/networks.js").Row} Row */
/** @typedef {import("./atlas/address.js").At} At */
/** @typedef {import("./atlas/address.js").Go} Go */

token(); // kept before the address is written

/** The atlas as the server tells it, loaded again by `again`. */
function useNetworks() {
  const [state, setState] = useState(/** @type {{all: Networks | null, error: string, status: number}} */ ({ all: null,
    error: "", status: 0 }));
  const again = useCallback(() => {
    load().then((all) => setState({ all, error: "", status: 200 }),
      (e) => setState((was) => (was.all && e.status !== 404 ? was : { all: null, error: e.message,
        status: e.status ?? 0 })));
  }, []);
  useEffect(again, []);
  return /** @type {const} */ ([state, again]);
}

function NoAtlas(/** @type {{error: string}} */ { error }) {
  return html`<h1>Atlas</h1><div class="empty card"><h2>No atlas is open</h2>
    <p>An atlas keeps many networks together: a sweep, fine-tunes, seeds. Make one from a folder of checkpoints, and
      start the
      server with it:</p>
    <pre>weightspace atlas add checkpoints --atlas atlas
weightspace serve atlas</pre><p class="soft">${error}</p></div>`;
}

function NoNetworks() {
  return html`<div class="empty card"><h2>No networks yet</h2>
    <p>Add files or folders; this page shows them when it is loaded again.</p>
    <pre>weightspace atlas add checkpoints --arch package:factory --tag sweep</pre>
    <p><button onClick=${() => location.reload()}>Load again</button></p></div>`;
}

/** Where a map would be. */
function NoMap(/** @type {{all: Networks, at: At, go: Go, run: (kind: string, given: any) => Promise<void>}} */
  { all, at, go, run }) {
  const [error, setError] = useState("");
  const alone = all.atlas.architectures.every((/** @type {any} */ a) => a.networks < 2);
  if (all.map.made !== null && at.arch && all.spaces.length) {
    const why = all.rows.filter((row) => row.arch === at.arch).map((row) => all.left.get(row.id)).find(Boolean);
    return html`<div class="empty"><h2>Not on the map</h2><p>${why ? `This network is ${why}.`
      : "Networks of this architecture are not on the map."}</p>
      <button onClick=${() => go({ arch: "" })}>Show the others</button></div>`;
  }
  if (alone) {
    return html`<div class="empty"><h2>A map needs two networks of one architecture</h2>
      <p>${all.rows.length === 1 ? "This atlas has one network."
        : "All networks here have different architectures."} Add more of a kind:</p>
      <pre>weightspace atlas add more.safetensors</pre></div>`;
  }
  const start = () => run("map", {}).catch((e) => setError(e.message));
  return html`<div class="empty"><h2>No map yet</h2>
    <p>A map puts near networks beside one another, and finds families and who came from whom.</p>
    <button class="main" onClick=${start}>Make the map</button>${error && html`<p class="bad"
      role="alert">${error}</p>`}</div>`;
}

/** What can be done, where nothing is open. */
function Overview(/** @type {{all: Networks, go: Go}} */ { all, go }) {
  const { atlas } = all;
  const kinds = atlas.architectures;
  const has = (/** @type {string} */ tool, /** @type {string} */ title, /** @type {string} */ text) => html`
    <button class="do" onClick=${() => go({ tool, network: "", job: "" })}><strong>${title}</strong><span>
      ${text}</span></button>`;
  return html`<h2>What is here</h2>
    <p>${count(atlas.networks, "network")} of ${count(kinds.length, "architecture")}, ${size(atlas.bytes)}.${" "}
      ${atlas.mapped === null ? "" : ` Mapped ${day(atlas.mapped)}.`}</p>
    ${kinds.length > 1 && html`<ul class="kin">${kinds.slice(0, 6).map((/** @type {any} */ a) => html`<li>
      <button class="plain link-like"
      onClick=${() => go({ arch: a.id.slice(0, 10) })}>${a.name}</button> <span class="soft">
        ${count(a.networks, "network")}${
      a.families ? ` in ${count(a.families, "family", "families")}` : ""}</span></li>`)}</ul>`}
    <p class="soft">Click a point, or a row of the table, to open a network. Or:</p>
    <div class="dos">
      ${has("ask", "Ask the networks", "Which one is best for my data?")}
      ${has("compare", "Compare two", "How do they differ, up to symmetry?")}
      ${has("merge", "Average a family", "One network from many, saved to the atlas.")}
      ${has("between", "A way between two", "Over which others does the loss rise least?")}
      ${has("nearest", "Where does a file belong?", "The nearest networks to a file of mine.")}
      ${all.map.made !== null && has("map", "Make the map again", "After networks were added or changed.")}
    </div>`;
}

/** The panel beside the map. */
function Panel(/** @type {any} */ how) {
  const { all, at, go, told, full, error, again } = how;
  const Tool = TOOLS[at.tool];
  if (Tool) return html`<${Tool} key=${at.tool} ...${how} />`;
  if (at.job) return html`<${JobPanel} ...${{ all, at, go, told, full, error }} />`;
  if (at.network) return html`<${Network} all=${all} id=${at.network} go=${go} changed=${again} />`;
  return html`<${Overview} all=${all} go=${go} />`;
}

/** Start a job and show it; its report opens when it ends while the click is still fresh, as browsers allow. */
function useRun(/** @type {Go} */ go, /** @type {() => void} */ again) {
  const [ended, setEnded] = useState(/** @type {string[]} */ ([]));
  const [mine] = useState(() => new Set());
  const { jobs, start } = useJobs((job) => {
    setEnded((was) => [job.id, ...was]);
    if (job.state !== "done") return;
    if (["map", "query", "merge", "between"].includes(job.kind)) again();
    if (job.kind === "compare" && job.report && mine.has(job.id) &&
      navigator.userActivation?.isActive) openReport(job.report).catch(() => {});
  });
  const run = async (/** @type {string} */ kind, /** @type {any} */ given) => {
    const job = await start(kind, given);
    mine.add(job.id);
    go({ job: job.id, tool: "", a: "", b: "" });
  };
  return { jobs: jobs ?? [], ended, run, hide: (/** @type {string} */ id) => setEnded(ended.filter((e) => e !== id)) };
}

function useShortcuts(/** @type {At} */ at, /** @type {Go} */ go) {
  useEffect(() => {
    const pressed = (/** @type {KeyboardEvent} */ event) => {
      if (typing(event) || document.querySelector("dialog[open]")) return;
      if (event.key === "m") go({ view: "map" });
      else if (event.key === "t") go({ view: "tree" });
      else if (event.key === "c") go({ tool: "compare", a: at.network, b: "" });
      else if (event.key === "Escape") go(at.tool ? { tool: "", a: "",
        b: "" } : at.job ? { job: "" } : { network: "" });
      else return;
      event.preventDefault();
    };
    window.addEventListener("keydown", pressed);
    return () => window.removeEventListener("keydown", pressed);
  });
}

/** The question whose answer colours the map, where the address names one. */
const colourJob = (/** @type {At} */ at) => (at.colour.startsWith("job:") ? at.colour.slice(4) : "");

function Loaded(/** @type {{all: Networks, again: () => void}} */ { all, again }) {
  const [at, go] = useAddress((asked) => present(all, asked));
  const [names, setNames] = useState(/** @type {string[]} */ ([]));
  const [pointed, point] = useState(/** @type {Row | null} */ (null));
  const { jobs, ended, run, hide } = useRun(go, again);
  useEffect(() => void api("/api/server").then((said) => setNames(said.data), () => {}), []);
  useShortcuts(at, go);
  const told = jobs.find((job) => job.id === at.job);
  const { job: full, error } = useJob(at.job, told);
  const asked = useJob(colourJob(at) !== at.job ? colourJob(at) : "", undefined).job;
  const coloured = colourJob(at) === at.job ? full : asked;
  const answer = useMemo(() => answerOf(coloured), [coloured]);
  const rows = useMemo(() => filtered(all, at), [all, at.arch, at.tag, at.family, at.q]);
  const ordered = useMemo(() => sorted(all, rows, at.sort), [all, rows, at.sort]);
  const shown = useMemo(() => (rows.length === all.rows.length ? null : new Set(rows)), [rows, all]);
  const marks = useMemo(() => [at.a, at.b].flatMap((id) => all.byId.get(id) ?? []), [all, at.a, at.b]);
  const choose = (/** @type {Row} */ row) => {
    const pairing = at.tool === "compare" || at.tool === "between";
    if (pairing && !at.a) go({ a: row.id }, true);
    else if (pairing && !at.b) go({ b: row.id }, true);
    else go({ network: row.id, tool: "", job: "", a: "", b: "" });
  };
  const space = spaceOf(all, at);
  const stale = all.map.made !== null && all.map.say;
  const known = { all, at, go, choose, pointed, point };
  const tab = (/** @type {string} */ view, /** @type {string} */ text) => html`<button role="tab"
    aria-selected=${at.view === view}
    class="plain tab" onClick=${() => go({ view: /** @type {any} */ (view) })}>${text}</button>`;
  const open = at.tool || at.job || at.network;
  if (!all.rows.length) return html`<h1>${all.atlas.atlas}</h1><${NoNetworks} />`;
  return html`<div class="title"><h1>${all.atlas.atlas}</h1><div role="tablist"
    aria-label="View">${tab("map", "Map")}${tab("tree", "Tree")}</div>
      ${stale && html`<span class="stale"
        role="status">${stale} <button onClick=${() => go({ tool: "map", job: "", network: "" })}>Map again</button>
          </span>`}</div>
    <${Strip} jobs=${jobs} ended=${ended} hide=${hide} now=${at.tool ? "" : at.job}
      show=${(/** @type {any} */ job) => go({ job: job.id, tool: "", a: "", b: "" })} />
    <div class="atlas ${open ? "open" : ""} ${at.tool === "compare" || at.tool === "between" ? "pairing" : ""}">
      <section class="card view" aria-label=${at.view === "map" ? "Map" : "Tree"}>
        ${at.view === "tree" ? html`<${Tree} ...${known} rows=${rows} />`
          : space === null ? html`<${NoMap} ...${{ all, at, go, run }} />`
          : html`<${MapView} ...${known} space=${space} shown=${shown} marks=${marks} answer=${answer} />
              ${all.spaces.length > 1 && html`<p class="soft small">Architectures have maps of their own; this one is
                of <strong>${space.name}</strong>.</p>`}`}
      </section>
      <aside class="card panel" aria-label="Details"><${Panel}
        ...${{ all, at, go, names, run, told, full, error, again }} /></aside>
      <section class="list" aria-label="Table"><${Filters} ...${{ all, at, go, rows }} /><${Table} ...${known}
        rows=${ordered} /></section>
    </div>`;
}

function Atlas() {
  const [{ all, error, status }, again] = useNetworks();
  if (all) return html`<${Loaded} all=${all} again=${again} />`;
  if (status === 404) return html`<${NoAtlas} error=${error} />`;
  if (error) return html`<h1>Atlas</h1><div class="empty card"><p class="bad"
    role="alert">${error}</p><button onClick=${again}>Try again</button></div>`;
  return html`<h1>Atlas</h1><p class="soft">Reading the catalogue</p>`;
}

show(Atlas, { wide: true, keys: [
  ["/", "find a network"], ["m", "the map"], ["t", "the tree"], ["f", "all points in sight"],
    ["+ \u2212", "nearer, further"],
  ["arrows", "move the map, or the row, where one has the focus"], ["Enter", "open the row"], ["c", "compare two"],
    ["Esc", "close what is open"],
] });

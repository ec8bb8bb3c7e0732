// @ts-check
// A job in the panel: its progress, then what it found.

import { html, useEffect, useState } from "../vendor/htm-preact.js";
import { api } from "../connection.js";
import { busy, openReport, Progress } from "./jobs.js";
import { Open } from "./network.js";
import { count, error as sure, number, percent } from "./words.js";

/** @typedef {import("./networks.js").Networks} Networks */
/** @typedef {import("./jobs.js").Job} Job */
/** @typedef {import("./address.js").At} At */
/** @typedef {import("./address.js").Go} Go */
/** @typedef {{all: Networks, at: At, go: Go, job: Job, found: any}} Shown */

/** A job with its result, asked for again when its state changes. @returns {{job: any, error: string}} */
export function useJob(/** @type {string} */ id, /** @type {Job | undefined} */ told) {
  const [job, setJob] = useState(/** @type {any} */ (null));
  const [error, setError] = useState("");
  useEffect(() => {
    let old = false;
    setError("");
    const refused = (/** @type {any} */ e) => !old && [setJob(null),
      setError([400, 404, 422].includes(e.status) ? "There is no such job on this server." : e.message)];
    if (id) api(`/api/jobs/${id}`).then((j) => !old && setJob(j), refused);
    else setJob(null);
    return () => {
      old = true;
    };
  }, [id, told?.state]);
  return { job: id && job?.id === id ? job : null, error };
}

/** Values of an answer by network, to colour the map with. */
export function answerOf(/** @type {any} */ job) {
  if (job?.kind !== "query" || !job.result) return null;
  const { by, data, ranking } = job.result;
  return { title: `${by} on ${data}`, values: new Map(ranking.map((/** @type {any} */ r) => [r.id, r.value])) };
}

function Said(/** @type {{texts: string[]}} */ { texts }) {
  return texts?.length ? html`<ul class="said">${texts.map((text) => html`<li>${text}</li>`)}</ul>` : null;
}

function Query(/** @type {Shown} */ { all, at, go, job, found }) {
  const [most, setMost] = useState(25);
  const tied = found.tied?.length ?? 0;
  const key = "job:" + job.id;
  const name = (/** @type {any} */ r) => html`<${Open} id=${r.id} name=${r.name} go=${go}
    known=${all.byId.has(r.id)} />`;
  return html`<p class="result">Best ${found.by} on ${found.data}: <strong>
    ${found.ranking[0]?.name ?? found.best}</strong></p>
    ${found.remarks?.length ? html`<${Said}
      texts=${found.remarks} />` : html`<p class="soft">${tied > 1
        ? `${tied - 1} others cannot be told from it (marked =). ` : ""}It
      cost ${percent(found.share)} of asking all networks on all examples.</p>`}
    <div class="actions"><button class=${at.colour === key ? "" : "main"} aria-pressed=${at.colour === key}
      onClick=${() => go({ colour: at.colour === key ? "family" : key, view: "map" })}>${at.colour === key
        ? "Colour by family" : "Colour the map by this"}</button></div>
    <div class="scroll"><table class="ranking"><thead><tr><th scope="col"></th><th scope="col">Network</th>
      <th scope="col" class="number">${found.by}</th><th scope="col" class="number">Examples</th></tr></thead>
      <tbody>${found.ranking.slice(0, most).map((/** @type {any} */ r, /** @type {number} */ k) => html`<tr key=${r.id}>
        <td class="number">${k + 1}${r.tied ? " =" : ""}</td><td>${name(r)}</td>
        <td class="number">${number(r.value)} <span class="soft">\u00b1 ${sure(r.error)}${k === 0 ? ""
          : html`<br />behind ${number(r.behind)} \u00b1 ${sure(r.behind_error)}`}</span></td>
        <td class="number">${r.examples}</td></tr>`)}</tbody></table></div>
    ${found.ranking.length > most && html`<button onClick=${() => setMost(1e9)}>
      ${found.ranking.length - most} more</button>`}`;
}

function Compared(/** @type {Shown} */ { found }) {
  const low = found.interval ?? [];
  const line = found.line;
  const rows = [
    ["distance", number(found.naive), number(found.aligned)],
    ["relative (unrelated: 1.41)", number(found.relative_naive), number(found.relative)],
    ...(line ? [[line.measured === "loss" ? "rise of the loss on the line"
      : "divergence on the line", number(line.barrier.before), number(line.barrier.after)]] : []),
  ];
  return html`<p class="result"><strong>${found.verdict?.words}</strong></p><p class="soft">${found.verdict?.why}</p>
    <table><thead><tr><th scope="col"></th><th scope="col" class="number">As stored</th><th scope="col"
      class="number">Numbered alike</th></tr></thead>
      <tbody>${rows.map(([what, a, b]) => html`<tr><td>${what}</td><td class="number">${a}</td><td class="number">
        ${b}</td></tr>`)}</tbody></table>
    ${low.length === 2 && html`<p class="soft">Distance up to symmetry: between ${number(low[0])} and${" "}
      ${number(low[1])}.</p>`}`;
}

function Merged(/** @type {Shown} */ { all, go, found }) {
  return html`<p class="result">Saved as <strong><${Open} id=${found.network} name=${found.name} go=${go}
    known=${all.byId.has(found.network)} /></strong></p>
    <p>Loss on examples held out: ${number(found.loss)}; the best single network has ${number(found.best)}.</p>
    <p class="soft">Averaged: ${found.kept.join(", ")}.${found.refused.length
      ? ` Left out, since the loss rose: ${found.refused.join(", ")}.` : ""}</p>
    <${Said} texts=${found.notes} />`;
}

function Way(/** @type {Shown} */ { all, go, found }) {
  const gain = found.highest < found.direct;
  return html`<p class="result">${found.names.length > 2 ? `A way over ${count(found.names.length - 2, "network")}`
    : "The straight line is the best way found"}</p>
    <p>The loss rises by ${number(found.highest)} at most; on the straight line by ${number(found.direct)}${gain ? ""
      : ", which is no worse"}.</p>
    <ol class="way">${found.names.map((/** @type {string} */ name, /** @type {number} */ k) => html`<li>
      <${Open} id=${found.ids[k]} name=${name} go=${go} known=${all.byId.has(found.ids[k])} />
      ${k < found.barriers.length ? html`<span class="soft"> \u2193 rise ${number(found.barriers[k])}</span>`
        : ""}</li>`)}</ol>
    <${Said} texts=${found.notes} />`;
}

function Neighbours(/** @type {Shown} */ { all, go, found }) {
  const left = found.left_out ?? [];
  return html`<p class="result">${found.neighbours.length ? "Nearest networks"
    : "No network of this atlas has these names and shapes"}</p>
    <table><thead><tr><th scope="col">Network</th><th scope="col" class="number">Distance</th><th scope="col"
      class="number">As stored</th></tr></thead>
      <tbody>${found.neighbours.map((/** @type {any} */ n) => html`<tr><td><${Open} id=${n.id} name=${n.name} go=${go}
        known=${all.byId.has(n.id)} /></td>
        <td class="number">${number(n.distance)}</td><td class="number">${number(n.stored)}</td></tr>`)}</tbody></table>
    ${left.length > 0 && html`<${Said}
      texts=${left.map((/** @type {any} */ l) => `${l.name} was left out: ${l.why}`)} />`}`;
}

function Mapped(/** @type {Shown} */ { found, go }) {
  return html`<p class="result">${count(found.networks, "network")} in ${count(found.families, "family", "families")},${" "}
    ${count(found.edges, "origin")} found</p>
    ${found.left > 0 && html`<p class="soft">
      ${count(found.left, "network")} left out, each the only one of its architecture or unreadable.</p>`}
    <div><button class="main" onClick=${() => go({ job: "", tool: "", view: "map" })}>See the map</button></div>`;
}

const SHOWN = /** @type {Record<string, any>} */ ({
  query: Query, compare: Compared, merge: Merged, between: Way, nearest: Neighbours, map: Mapped });
const AGAIN = /** @type {Record<string, string>} */ ({ query: "ask", compare: "compare", merge: "merge",
  between: "between", nearest: "nearest", map: "map" });
const UNDONE = /** @type {Record<string, string>} */ ({
  cancelled: "It was cancelled.", lost: "The server stopped before it was done; start it again." });

/**
 * @param {{all: Networks, at: At, go: Go, told: Job | undefined, full: any, error: string}} how `told` by the socket,
 *   `full` with its result
 */
export function JobPanel({ all, at, go, told, full, error }) {
  const [failed, setFailed] = useState("");
  const job = told ?? full;
  const close = html`<button class="plain" aria-label="Close" onClick=${() => go({ job: "" })}>\u00d7</button>`;
  if (!job) return html`<div class="head"><h2>${error ? "No such job" : "\u00a0"}</h2>${close}</div>${error &&
    html`<p class="bad" role="alert">${error}</p>`}`;
  const found = full?.state === "done" ? full.result : null;
  const Show = SHOWN[job.kind];
  const { a, b } = job.arguments ?? {};
  const again = () => go({ job: "", tool: AGAIN[job.kind] ?? "", a: all.byId.has(a) ? a : "", b: all.byId.has(b) ? b
    : "" });
  const open = () => openReport(job.report ?? "").catch((e) => setFailed(e.message));
  return html`<div class="head"><h2>${job.title}</h2>${close}</div>
    ${busy(job) && html`<${Progress} job=${job} /><p class="soft small">It goes on when this page is closed.</p>`}
    ${job.state === "failed" && html`<p class="bad" role="alert">${job.error}</p>`}
    ${UNDONE[job.state] && html`<p>${UNDONE[job.state]}</p>`}
    <div aria-live="polite">
      ${job.report && html`<div class="actions"><button class=${job.kind === "compare" ? "main" : ""}
        onClick=${open}>Open the report</button></div>`}
      ${failed && html`<p class="bad" role="alert">${failed}</p>`}
      ${found && Show && html`<${Show} all=${all} at=${at} go=${go} job=${job} found=${found} />`}
      ${job.state === "done" && full?.state === "done" && !found &&
        html`<p class="soft">Its answer is no longer kept${job.report ? "; the report is" : ""}.</p>`}
    </div>
    ${!busy(job) && AGAIN[job.kind] && html`<p class="again"><button onClick=${again}>${job.state !== "done"
      ? "Try again" : job.kind === "map" ? "Make it again" : "Another one"}</button></p>`}`;
}

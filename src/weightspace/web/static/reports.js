// @ts-check
// Reports that commands wrote, and jobs: what runs, how far it is, how it ended.

import { html, useEffect, useState } from "./vendor/htm-preact.js";
import { api, connect } from "./connection.js";
import { Jobs } from "./reports/jobs.js";
import { opened, size, when } from "./reports/words.js";
import { show } from "./shell.js";

/** @typedef {{id: string, name: string, title: string, headline: string, written: number, bytes: number}} Report */

function Row(/** @type {{report: Report, fail: (why: string) => void}} */ { report, fail }) {
  return html`<li class="report">
    <button class="link-like" onClick=${() => opened(report.id).catch((error) => fail(error.message))}
      aria-label=${`Open ${report.headline || report.title}, ${report.name}`}>
      ${report.headline || report.title || report.name}</button>
    <span class="soft">${report.title}</span>
    <span class="soft where">${report.name}</span>
    <span class="soft" title=${new Date(report.written * 1000).toLocaleString()}>${when(report.written)}</span>
    <span class="soft size">${size(report.bytes)}</span>
  </li>`;
}

function NoReports(/** @type {{folder: string, atlas: boolean}} */ { folder, atlas }) {
  return html`<div class="empty">
    <p>No report is in ${folder === "." ? "the folder in which the server was started"
      : html`the folder <code>${folder}</code>`} yet.</p>
    ${atlas && html`<p><a href="/atlas">Open the atlas</a> and make its map, or compare two of its networks.</p>`}
    <p>Every command writes one: <code>weightspace compare a.safetensors b.safetensors --report page.html</code></p>
  </div>`;
}

function Listed(/** @type {{answer: any, atlas: boolean, fail: (why: string) => void}} */ { answer, atlas, fail }) {
  const [words, setWords] = useState("");
  if (answer === null) return html`<p class="soft">Looking for reports…</p>`;
  if (answer.reports.length === 0) return html`<${NoReports} folder=${answer.folder} atlas=${atlas} />`;
  const wanted = words.trim().toLowerCase();
  const shown = answer.reports.filter((/** @type {Report} */ one) =>
    `${one.headline} ${one.title} ${one.name}`.toLowerCase().includes(wanted));
  return html`
    ${answer.reports.length > 8 && html`<label class="search">Find${" "}
      <input type="search" value=${words} onInput=${(/** @type {any} */ e) => setWords(e.target.value)} /></label>`}
    <ul class="reports">${shown.map((/** @type {Report} */ one) =>
      html`<${Row} key=${one.id} report=${one} fail=${fail} />`)}</ul>
    ${shown.length === 0 && html`<p class="soft">No report has these words.</p>`}
    ${answer.more > 0 && html`<p class="soft">${answer.more} older ones are not listed.</p>`}`;
}

/** Jobs as the server's messages leave them, newest first. */
function changed(/** @type {any[]} */ jobs, /** @type {any} */ message) {
  if (message.all) return message.jobs;
  const news = new Map(message.jobs.map((/** @type {any} */ job) => [job.id, job]));
  const kept = jobs.filter((job) => !message.gone.includes(job.id)).map((job) => news.get(job.id) ?? job);
  const known = new Set(kept.map((job) => job.id));
  return [...message.jobs.filter((/** @type {any} */ job) => !known.has(job.id)), ...kept];
}

function Reports() {
  const [answer, setAnswer] = useState(/** @type {any} */ (null));
  const [jobs, setJobs] = useState(/** @type {any[] | null} */ (null));
  const [atlas, setAtlas] = useState(false);
  const [wrong, setWrong] = useState("");
  const load = () => api("/api/reports").then(setAnswer, (error) => setWrong(error.message));
  useEffect(() => {
    load();
    api("/api/server").then((server) => setAtlas(Boolean(server.atlas)), () => {});
    const told = (/** @type {any} */ message) =>
      setJobs((/** @type {any} */ before) => changed(before ?? [], message));
    const socket = connect("/socket/jobs", { data: told });
    return () => socket.close();
  }, []);
  const written = (jobs ?? []).filter((/** @type {any} */ job) => job.state === "done" && job.report).length;
  useEffect(() => {
    if (jobs !== null) load();
  }, [written]);
  return html`
    <h1>Reports and jobs</h1>
    <p class="error-line" role="alert">${wrong}</p>
    <section aria-labelledby="jobs-title"><h2 id="jobs-title">Jobs</h2>
      <${Jobs} jobs=${jobs} atlas=${atlas} fail=${setWrong} /></section>
    <section aria-labelledby="reports-title">
      <div class="heading"><h2 id="reports-title">Reports</h2>
        <button onClick=${() => { setWrong(""); load(); }}>Look again</button></div>
      <${Listed} answer=${answer} atlas=${atlas} fail=${setWrong} />
    </section>`;
}

show(Reports);

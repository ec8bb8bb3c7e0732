// @ts-check
// The jobs of the server: those that run and wait with their progress, and those that have ended with what they found.

import { html, useEffect, useState } from "../vendor/htm-preact.js";
import { api } from "../connection.js";
import { Found } from "./found.js";
import { opened, span, when } from "./words.js";

/**
 * @typedef {{id: string, kind: string, title: string, state: string, what: string, done: number, total: number,
 *   asked: number, started: number | null, ended: number | null, error: string | null, report: string | null,
 *   place: number | null}} Job
 */

const STATES = /** @type {Record<string, string>} */ ({
  waiting: "waiting", running: "running", done: "done", failed: "failed", cancelled: "cancelled", lost: "lost",
});
const SHOWN = 8;

function remove(/** @type {Job} */ job, /** @type {(why: string) => void} */ fail) {
  return api(`/api/jobs/${job.id}`, { method: "DELETE" }).catch((error) => fail(error.message));
}

function Active(/** @type {{job: Job, fail: (why: string) => void}} */ { job, fail }) {
  const [, tick] = useState(0);
  useEffect(() => {
    const timer = setInterval(() => tick((n) => n + 1), 1000);
    return () => clearInterval(timer);
  }, []);
  const runs = job.state === "running";
  const known = runs && job.total > 0;
  const steps = known ? `, ${job.done} of ${job.total}` : "";
  return html`<li class="card job">
    <div class="first">
      <strong>${job.title}</strong>
      <span class=${"state " + job.state}>${STATES[job.state]}</span>
      <span class="space"></span>
      <button onClick=${() => remove(job, fail)} aria-label=${`Cancel: ${job.title}`}>Cancel</button>
    </div>
    <progress aria-label=${`Progress: ${job.title}`} max=${known ? job.total : 1}
      value=${known ? job.done : runs ? undefined : 0}></progress>
    <div class="soft under"><span>${runs ? (job.what || "starting") + steps
      : job.place === 1 ? "next" : `number ${job.place} in the queue`}</span>
      <span>${runs && job.started ? span(Date.now() / 1000 - job.started) : ""}</span></div>
  </li>`;
}

function Ended(/** @type {{job: Job, fail: (why: string) => void}} */ { job, fail }) {
  const [open, setOpen] = useState(false);
  const took = job.started && job.ended ? ` in ${span(job.ended - job.started)}` : "";
  const show = () => opened(job.report ?? "").catch((error) => fail(error.message));
  return html`<li class="job ended">
    <div class="first">
      <span class=${"state " + job.state}>${STATES[job.state]}</span>
      <strong>${job.title}</strong>
      <span class="soft">${when(job.ended ?? job.asked)}${job.state === "done" ? took : ""}</span>
      <span class="space"></span>
      ${job.report && html`<button onClick=${show} aria-label=${`Open the report: ${job.title}`}>Report</button>`}
      ${job.state === "done" && html`<button aria-expanded=${open} onClick=${() => setOpen(!open)}
        aria-label=${`Result: ${job.title}`}>Result</button>`}
      <button class="plain" onClick=${() => remove(job, fail)} aria-label=${`Take off the list: ${job.title}`}>×</button>
    </div>
    ${job.error && html`<p class="why">${job.error}</p>`}
    ${open && html`<${Found} id=${job.id} />`}
  </li>`;
}

/** All jobs. */
export function Jobs(/** @type {{jobs: Job[] | null, atlas: boolean, fail: (why: string) => void}} */ { jobs, atlas, fail }) {
  const [all, setAll] = useState(false);
  if (jobs === null) return html`<p class="soft">Asking the server…</p>`;
  const active = jobs.filter((job) => job.state === "running" || job.state === "waiting").reverse();
  active.sort((a, b) => (a.place ?? 0) - (b.place ?? 0));
  const ended = jobs.filter((job) => !active.includes(job));
  const latest = ended[0];
  if (jobs.length === 0) {
    return html`<div class="empty"><p>Nothing runs.</p>
      <p>${atlas ? html`Jobs are started on the page of the <a href="/atlas">atlas</a>: make a map, compare two networks,
        ask which is best for your data.` : html`Jobs work on an atlas. Open one with
        <code>weightspace serve FOLDER</code>.`}</p></div>`;
  }
  return html`
    <p class="hidden-label" role="status">${latest ? `${latest.title}: ${STATES[latest.state]}` : ""}</p>
    <ul class="jobs">${active.map((job) => html`<${Active} key=${job.id} job=${job} fail=${fail} />`)}</ul>
    <ul class="jobs card-list">${ended.slice(0, all ? undefined : SHOWN).map((job) =>
      html`<${Ended} key=${job.id} job=${job} fail=${fail} />`)}</ul>
    ${ended.length > SHOWN && html`<p><button onClick=${() => setAll(!all)}>
      ${all ? "Show fewer" : `Show all ${ended.length}`}</button></p>`}`;
}

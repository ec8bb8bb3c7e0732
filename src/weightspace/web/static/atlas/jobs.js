// @ts-check
// Jobs of the server: the list as the socket tells it, starting and cancelling, progress, reports.

import { html, useEffect, useRef, useState } from "../vendor/htm-preact.js";
import { api, connect } from "../connection.js";

/**
 * @typedef {{id: string, kind: string, title: string, arguments: any, state: string, what: string | null, done: number,
 *   total: number, asked: number, started: number | null, ended: number | null, error: string | null,
 *   report: string | null, place: number | null}} Job
 */

export const busy = (/** @type {Job} */ job) => job.state === "waiting" || job.state === "running";

/**
 * The jobs, newest first (null until the socket has told them), and those that ended while the page was open.
 * `ended` is called for each of these.
 * @param {(job: Job) => void} ended
 */
export function useJobs(ended) {
  const [jobs, setJobs] = useState(/** @type {Job[] | null} */ (null));
  const known = useRef(/** @type {Map<string, Job>} */ (new Map()));
  const told = useRef(ended);
  told.current = ended;
  const take = (/** @type {{all?: boolean, jobs: Job[], gone?: string[]}} */ said) => {
    const before = known.current;
    const next = new Map(said.all ? [] : before);
    for (const id of said.gone ?? []) next.delete(id);
    for (const job of said.jobs) next.set(job.id, job);
    known.current = next;
    setJobs([...next.values()].sort((a, b) => b.asked - a.asked));
    for (const job of said.jobs) {
      const was = before.get(job.id);
      if (was && busy(was) && !busy(job)) told.current(job);
    }
  };
  useEffect(() => {
    const socket = connect("/socket/jobs", { data: take });
    return () => socket.close();
  }, []);
  const start = async (/** @type {string} */ kind, /** @type {any} */ given) => {
    const job = await api("/api/jobs", { method: "POST", json: { kind, arguments: given } });
    if (!known.current.has(job.id)) take({ jobs: [job] });
    return /** @type {Job} */ (job);
  };
  return { jobs, start };
}

export async function cancel(/** @type {string} */ id) {
  await api(`/api/jobs/${id}`, { method: "DELETE" }).catch(() => {});
}

/** Open a report in a tab of its own; the tab is asked for at once, since a browser refuses it later. */
export async function openReport(/** @type {string} */ id) {
  const tab = window.open("about:blank", "_blank");
  try {
    const { path } = await api(`/api/reports/${id}/ticket`, { method: "POST", json: {} });
    if (tab) tab.location.replace(path);
    else location.assign(path);
  } catch (error) {
    tab?.close();
    throw error;
  }
}

/** What a job does now, in words. */
function stage(/** @type {Job} */ job) {
  if (job.state === "waiting") return job.place ? `waits, ${job.place === 1 ? "next" : `number ${job.place}`}`
    : "waits";
  const steps = job.total > 0 ? `${job.done} of ${job.total}` : "";
  return [job.what || "begins", steps].filter(Boolean).join(", ");
}

export function Progress(/** @type {{job: Job}} */ { job }) {
  const known = job.state === "running" && job.total > 0;
  return html`<div class="progress">
    <progress aria-label=${job.title} max=${known ? job.total : 1}
      value=${known ? job.done : job.state === "waiting" ? 0 : undefined}></progress>
    <span class="soft" role="status">${stage(job)}</span>
    <button onClick=${() => cancel(job.id)} aria-label=${`Cancel: ${job.title}`}>Cancel</button>
  </div>`;
}

const ENDS = /** @type {Record<string, string>} */ ({
  done: "done", failed: "failed", cancelled: "cancelled", lost: "lost when the server stopped" });

/**
 * The jobs that wait and run, and those that ended while the page was open.
 * @param {{jobs: Job[], ended: string[], hide: (id: string) => void, show: (job: Job) => void, now: string}} how
 */
export function Strip({ jobs, ended, hide, show, now }) {
  const shown = jobs.filter((job) => job.id !== now && (busy(job) || ended.includes(job.id)));
  if (!shown.length) return null;
  return html`<section class="strip" aria-label="Jobs">${shown.slice(0, 6).map((job) => html`<div class="job card"
    key=${job.id}>
    <button class="plain title" onClick=${() => show(job)}>${job.title}</button>
    ${busy(job) ? html`<${Progress} job=${job} />` : html`
      <span class=${job.state === "failed" ? "bad" : "soft"} role="status">${ENDS[job.state] ?? job.state}</span>
      <button onClick=${() => show(job)}>Show</button>
      <button class="plain" aria-label=${`Hide: ${job.title}`} onClick=${() => hide(job.id)}>\u00d7</button>`}
  </div>`)}${shown.length > 6 && html`<p class="soft">and ${shown.length - 6} more: see <a href="/reports">Reports</a>
    </p>`}</section>`;
}

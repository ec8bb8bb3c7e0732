// @ts-check
// What a job found, in short: a sentence, and a table where there is one.

import { html, useEffect, useState } from "../vendor/htm-preact.js";
import { api } from "../connection.js";
import { number } from "./words.js";

function capital(/** @type {string} */ text) {
  return text.slice(0, 1).toUpperCase() + text.slice(1);
}

function Table(/** @type {{columns: string[], rows: (string | number | null)[][]}} */ { columns, rows }) {
  return html`<div class="scroll"><table>
    <thead><tr>${columns.map((name) => html`<th>${name}</th>`)}</tr></thead>
    <tbody>${rows.map((row) => html`<tr>${row.map((cell) =>
      html`<td class=${typeof cell === "string" ? "" : "number"}>${typeof cell === "string" ? cell : number(cell)}</td>`)}
    </tr>`)}</tbody></table></div>`;
}

/** @type {Record<string, (found: any) => any>} */
const SHOWN = {
  map: (found) => html`<p>${found.networks} networks in ${found.families} families; ${found.edges} origins found.${" "}
    <a href="/atlas">Look at the map</a>.</p>`,
  compare: (found) => html`<p>${capital(found.verdict.words)}. ${capital(found.verdict.why)}.</p>
    <${Table} columns=${["", "as stored", "aligned"]} rows=${[
      ["distance", found.naive, found.aligned], ["relative distance", found.relative_naive, found.relative],
      ...(found.line ? [[`${found.line.measured} barrier`, found.line.barrier.before, found.line.barrier.after]] : []),
    ]} />`,
  query: (found) => html`
    <${Table} columns=${["network", found.by, "±", "examples", ""]} rows=${found.ranking.slice(0, 20).map(
      (/** @type {any} */ row) => [row.name, row.value, row.error, row.examples, row.tied ? "tied with the best" : ""])} />
    ${found.remarks.map((/** @type {string} */ text) => html`<p class="soft">${text}</p>`)}`,
  nearest: (found) => html`<${Table} columns=${["network", "distance up to symmetry", "as stored"]}
    rows=${found.neighbours.map((/** @type {any} */ row) => [row.name, row.distance, row.stored])} />`,
  merge: (found) => html`<p>Averaged ${found.kept.join(", ")} as ${found.name}: loss ${number(found.loss)}, of the best
    one alone ${number(found.best)}.${found.refused.length > 0 && ` Not kept: ${found.refused.join(", ")}.`}</p>`,
  between: (found) => html`<p>Highest barrier ${number(found.highest)}; on the straight line ${number(found.direct)}.</p>
    <${Table} columns=${["start", "end", "barrier"]} rows=${found.barriers.map((/** @type {number} */ height,
      /** @type {number} */ k) => [found.names[k], found.names[k + 1], height])} />`,
};

/** The result of one job. */
export function Found(/** @type {{id: string}} */ { id }) {
  const [job, setJob] = useState(/** @type {any} */ (null));
  const [wrong, setWrong] = useState("");
  useEffect(() => {
    api(`/api/jobs/${id}`).then(setJob, (error) => setWrong(error.message));
  }, [id]);
  if (wrong) return html`<p class="why">${wrong}</p>`;
  if (job === null) return html`<p class="soft">Asking the server…</p>`;
  if (job.result === null) return html`<p class="soft">The result is no longer kept; start the job again.</p>`;
  return html`<div class="found">${SHOWN[job.kind]?.(job.result) ?? "Done."}</div>`;
}

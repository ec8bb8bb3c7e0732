// @ts-check
// What the noise did, beside what was expected, modelled and proven; how stable the network is as noise grows.

import { html, useMemo, useState } from "../vendor/htm-preact.js";
import { useGame } from "./game.js";
import { Plot } from "./plot.js";
import { percent, short } from "./words.js";

function Table(/** @type {{game: any}} */ { game }) {
  useGame(game, "frame");
  const one = game.shaken?.[0];
  const proof = game.proof;
  const dash = "\u2013";
  const proven = !one ? dash : !proof ? "\u2026" : proof.with_data === null ? "none" : percent(proof.with_data);
  return html`<div class="scroll"><table class="verdict" aria-label="What the last noise did">
    <thead><tr><th scope="col">Change of the outputs</th><th scope="col" class="number">Expected</th><th scope="col"
      class="number">Modelled</th>
      <th scope="col" class="number">Proven at most</th><th scope="col" class="number">Happened</th></tr></thead>
    <tbody>
      <tr><th scope="row">Last press</th>
        <td class="number">${one ? percent(one.expected) : dash}</td><td
          class="number">${one ? percent(one.model) : dash}</td>
        <td class="number">${proven}</td><td class="number"><b>${one ? percent(one.moved) : dash}</b></td></tr>
      <tr><th scope="row">${one && one.presses > 1 ? `All ${one.presses} presses` : "All presses"}</th>
        <td class="number">${dash}</td><td class="number">${one ? percent(one.since.model) : dash}</td>
        <td class="number">${dash}</td><td class="number"><b>${one ? percent(one.since.moved) : dash}</b></td></tr>
    </tbody></table></div>
    <p class="soft">${one
      ? `Loss on training points: ${short(one.before.train.loss)} before the press, ${short(game.frame.networks[0].train.loss)} now. `
        + `Right on held-out points: ${percent(one.before.test.accuracy)} before, ${percent(game.frame.networks[0].test.accuracy)} now.`
      : "Press the red button to fill this table. Train first: an untrained network has little to lose."}</p>`;
}

function Words() {
  return html`<dl class="words">
    <dt>Expected</dt><dd>by the slope of the outputs at these weights: exact for small noise.</dd>
    <dt>Modelled</dt><dd>deep relative trust, the product over layers of (1 + noise), less 1: a rule of thumb.</dd>
    <dt>Proven at most</dt><dd>a bound that no noise of this draw can pass: safe, and often far too large.</dd>
    <dt>Happened</dt><dd>measured on the held-out points.</dd>
  </dl>`;
}

/** How much the outputs move, and how many points stay right, as noise grows. */
function Curve(/** @type {{game: any}} */ { game }) {
  const [found, setFound] = useState(/** @type {any} */ (null));
  const measure = async () => {
    const reply = await game.ask({ do: "curve", draws: 5, most: 100 }, "Measuring stability\u2026");
    if (reply) setFound(reply.header);
  };
  const plots = useMemo(() => (found ? specs(found) : null), [found]);
  return html`<div>
    <h3>How much noise can it take?</h3>
    <p>Five draws of noise at each of seven sizes.${" "}<button disabled=${!game.frame || Boolean(game.busy)}
      onClick=${measure}>
      ${found ? "Measure again" : "Measure the stability curve"}</button></p>
    ${plots && html`<div class="two">
      <${Plot} spec=${plots.moved} height=${210} label="Change of the outputs against the size of the noise" />
      <${Plot} spec=${plots.right} height=${210}
        label="Share of held-out points that are right against the size of the noise" /></div>`}
  </div>`;
}

function specs(/** @type {any} */ { steps, accuracy }) {
  const x = steps.map((/** @type {any} */ s) => s.percent);
  const of = (/** @type {string} */ name,
    /** @type {string} */ part) => steps.map((/** @type {any} */ s) => (part ? s[name][part] : s[name]));
  const hundred = (/** @type {number[]} */ v) => v.map((one) => 100 * one);
  return {
    moved: {
      lines: [
        { x, y: hundred(of("moved", "mean")), colour: "danger", name: "happened" },
        { x, y: hundred(of("expected", "")), colour: "accent", dash: [6, 4], name: "expected" },
        { x, y: hundred(of("model", "")), colour: "soft", dash: [2, 3], name: "modelled" },
      ],
      bands: [{ x, low: hundred(of("moved", "low")), high: hundred(of("moved", "high")), colour: "danger" }],
      logx: true, logy: true, xname: "noise in each layer, %", say: (/** @type {number} */ v) => `${v >= 1e5 ? short(v) : Number(v.toPrecision(2))} %`,
    },
    right: {
      lines: [
        { x, y: hundred(of("accuracy", "mean")), colour: "danger", name: "with noise" },
        { x: [x[0], x[x.length - 1]], y: [100 * accuracy, 100 * accuracy], colour: "soft", dash: [2, 3], name: "without" },
      ],
      bands: [{ x, low: hundred(of("accuracy", "low")), high: hundred(of("accuracy", "high")), colour: "danger" }],
      low: 0, high: 100, logx: true, xname: "noise in each layer, %", say: (/** @type {number} */ v) => `${v} %`,
    },
  };
}

/** The first tab. */
export function Shake(/** @type {{game: any}} */ { game }) {
  useGame(game);
  return html`<p class="lead">Noise of a fixed share of each layer: how far do the outputs move? Small shares do little; large ones, or many layers, break the boundary.</p>
    <div class="two wide-left"><div><${Table} game=${game} /></div><${Words} /></div>
    <${Curve} game=${game} />`;
}

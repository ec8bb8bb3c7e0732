// @ts-check
// Inside a network: sizes of layers and gradients, the neurons that a point turns on, the information in the weights.

import { html, useEffect, useRef, useState } from "../vendor/htm-preact.js";
import { useGame } from "./game.js";
import { percent, short } from "./words.js";

function Bar(/** @type {{value: number, most: number, colour: string}} */ { value, most, colour }) {
  const share = most > 0 && value > 0 ? Math.min(1, value / most) : 0;
  return html`<span class="bar-back" aria-hidden="true"><span class="bar-front"
    style=${`width:${100 * share}%;background:var(--${colour})`}></span></span>`;
}

function Layers(/** @type {{game: any}} */ { game }) {
  useGame(game, "frame");
  const one = game.frame?.networks[0];
  if (!one) return null;
  const most = Math.max(...one.norms);
  const slopes = one.gradients ?? one.norms.map(() => null);
  const steepest = Math.max(...slopes.map((/** @type {any} */ g) => g ?? 0));
  return html`<div class="scroll layers"><table aria-label="Norm and gradient of each layer"><thead><tr><th
    scope="col">Layer</th><th scope="col" colspan="2">Norm of the weights</th>
      <th scope="col" colspan="2">Gradient, relative</th></tr></thead><tbody>
    ${one.norms.map((/** @type {number} */ norm, /** @type {number} */ l) => html`<tr><th
      scope="row">${l + 1 === one.norms.length ? "output" : l + 1}</th>
      <td><${Bar} value=${norm} most=${most} colour="accent" /></td><td class="number">${short(norm)}</td>
      <td><${Bar} value=${slopes[l] ?? 0} most=${steepest} colour="danger" /></td><td
        class="number">${slopes[l] === null ? "\u2013" : short(slopes[l])}</td></tr>`)}
  </tbody></table></div>`;
}

/** Forget what was measured where networks or data are made anew. */
function useMade(/** @type {any} */ game, /** @type {() => void} */ forget) {
  useEffect(() => forget(), [game.made]);
}

function Breakdown(/** @type {{game: any}} */ { game }) {
  const [size, setSize] = useState(10);
  const [found, setFound] = useState(/** @type {any} */ (null));
  useMade(game, () => setFound(null));
  const measure = async () => {
    const { made } = game;
    const reply = await game.ask({ do: "breakdown", percent: size }, "Measuring the gradient\u2026");
    if (reply && made === game.made) setFound(reply.header);
  };
  return html`<p>A gradient holds near the weights it was taken at. After a step of${" "}
    <select aria-label="Size of the step in percent" value=${size}
      onChange=${(/** @type {any} */ e) => setSize(Number(e.target.value))}>
      ${[0.1, 1, 3, 10, 30, 100].map((n) => html`<option value=${n}>${n} %</option>`)}</select> in every layer,${" "}
    <button disabled=${!game.frame || Boolean(game.busy)} onClick=${measure}>how much of it is wrong?</button></p>
    <p role="status" class="told">${found ? `After ${found.percent} %, the gradient has changed by up to ${percent(found.largest)} of its size (model: ${percent(found.model)}); the outputs by ${percent(found.outputs)}.` : "\u00a0"}</p>`;
}

function Paths(/** @type {{game: any}} */ { game }) {
  useGame(game, "frame");
  const kinked = ["relu", "leaky_relu"].includes(game.state.activation);
  const lit = game.lit;
  const seen = useRef(0);
  useEffect(() => {  // follows the training
    if (!lit || game.wire.queue.length || performance.now() - seen.current < 500) return;
    seen.current = performance.now();
    game.light(lit.example);
  }, [game.version]);
  if (!kinked) {
    return html`<p>Neurons with ${game.state.activation} are never off. <button
      onClick=${() => game.set({ activation: "relu" })}>Use ReLU</button> <span
        class="soft">(draws a new network)</span></p>`;
  }
  const most = Math.max(0, (game.points.train?.length ?? 3) / 3 - 1);
  const total = game.state.depth * game.state.width;
  return html`<p>Click a training point in the output map, or give its number:${" "}
      <input type="number" class="value" min="0" max=${most} value=${lit?.example ?? ""}
        aria-label="Number of the training point"
        onChange=${(/** @type {any} */ e) => e.target.value !== "" && game.light(Math.round(Number(e.target.value)))} />
      ${lit && html`<button onClick=${() => { game.lit = null; game.tell("setup"); }}>Clear</button>`}</p>
    <p role="status" id="paths-told">${lit ? `Point ${lit.example} turns on ${lit.own} of ${total} neurons: they are lit in the drawing. ${percent(lit.since)} of all neurons are for it as they were before training.` : "\u00a0"}</p>
    ${lit && html`<p class="soft">On for no point at all, layer by layer: ${lit.dead.map((/** @type {number} */ d) => percent(d)).join(", ")}.</p>`}`;
}

function Information(/** @type {{game: any}} */ { game }) {
  const [found, setFound] = useState(/** @type {any} */ (null));
  const [live, setLive] = useState(false);
  useMade(game, () => setFound(null));
  const measure = async () => {
    const { made } = game;
    const reply = await game.ask({ do: "information" }, "Counting nats\u2026");
    if (reply && made === game.made) setFound({ ...reply.header, step: game.frame.step });
    return reply !== null;
  };
  useEffect(() => {
    if (!live) return undefined;
    let on = true;
    (async () => {
      let before = -1;
      while (on) {
        if (game.version !== before && game.wire.ready) {
          before = game.version;
          if (!(await measure())) break;
        }
        await new Promise((resolve) => setTimeout(resolve, 1500));
      }
      if (on) setLive(false);
    })();
    return () => { on = false; };
  }, [live]);
  const layers = Object.entries(found?.layers ?? {});
  const most = Math.max(0, ...layers.map(([, value]) => Number(value)));
  return html`<p>How much do the weights tell about the training points?${" "}
      <button disabled=${!game.frame || Boolean(game.busy)} onClick=${measure}>Count the nats</button>${" "}
      <label class="check"><input type="checkbox" checked=${live}
        onChange=${() => setLive(!live)} /> keep counting</label></p>
    <p role="status" class="told">${found ? html`<b>${short(found.nats)} nats</b> \u00b1 ${short(found.error)} at step ${found.step}; ${short(found.dimension)} effective weights.` : "\u00a0"}</p>
    ${layers.length > 0 && html`<div class="scroll layers"><table aria-label="Nats of each tensor">
      <tbody>${layers.map(([name, value]) => html`<tr><th scope="row">${tensor(name)}</th>
      <td><${Bar} value=${Number(value)} most=${most} colour="high" /></td><td
        class="number">${short(Number(value))}</td></tr>`)}</tbody></table></div>`}
    ${(found?.notes ?? []).map((/** @type {string} */ note) => html`<p class="soft">${plain(note)}</p>`)}`;
}

/** A note of the library, without its advice to those who call it. */
function plain(/** @type {string} */ note) {
  const text = note.split(/[;,](?=[^;]*method=)/)[0];
  return text.charAt(0).toUpperCase() + text.slice(1) + ".";
}

/** "0.weight" of a sequence of layers and activations, in words. */
function tensor(/** @type {string} */ name) {
  const [place, part] = name.split(".");
  return `${part === "bias" ? "biases" : "weights"} ${Number(place) / 2 + 1}`;
}

/** The tab of what is inside. */
export function Inside(/** @type {{game: any}} */ { game }) {
  useGame(game);
  return html`<p class="lead">What training does to each layer, which neurons a point turns on, and how much the weights have learnt.</p>
    <div class="two">
      <div><h3>Layers</h3><${Layers} game=${game} /><${Breakdown} game=${game} /></div>
      <div><h3>Which neurons are on?</h3><${Paths} game=${game} />
        <h3>Information in the weights</h3><${Information} game=${game} /></div>
    </div>`;
}

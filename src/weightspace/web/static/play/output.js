// @ts-check
// What the network says about every point of the square, the red button, and the loss curves.

import { html, useEffect, useMemo, useRef, useState } from "../vendor/htm-preact.js";
import { useGame } from "./game.js";
import { at, dots, Sheet, sized, theme, useTheme } from "./paint.js";
import { Plot } from "./plot.js";
import { percent, short } from "./words.js";

const SIDE = 288;

function caption(/** @type {any} */ game) {
  if (game.shown < 0) return "Output: blue where the network says blue, orange where it says orange.";
  const { width } = game.state;
  return `Layer ${Math.floor(game.shown / width) + 1}, neuron ${(game.shown % width) + 1}: where it responds. Click it again for the output.`;
}

/** The output of network 1 over the square, with the data points; a click on a point asks which neurons it turns on. */
export function Output(/** @type {{game: any}} */ { game }) {
  useGame(game, "frame");
  const canvas = useRef(null);
  const sheet = useMemo(() => new Sheet(), []);
  const [held, setHeld] = useState(false);
  const look = useTheme();
  const { arrays, points, shown, lit } = game;
  useEffect(() => {
    if (!arrays.maps) return;
    sheet.take(arrays.maps, 0);
    const to = sized(/** @type {any} */ (canvas.current), SIDE, SIDE);
    to.fillStyle = theme().colours.card;
    to.fillRect(0, 0, SIDE, SIDE);
    sheet.draw(to, shown < 0 ? arrays.maps.shape[1] - 1 : Math.min(shown, arrays.maps.shape[1] - 1), 0, 0, SIDE);
    const many = (points.train?.length ?? 0) > 900;
    if (points.train) dots(to, points.train, SIDE, { radius: many ? 2.6 : 3.4, mark: lit?.example ?? -1 });
    if (held && points.test) dots(to, points.test, SIDE, { radius: 2.6, hollow: true });
  }, [arrays, points, shown, held, lit, look]);
  const clicked = async (/** @type {any} */ event) => {
    let best = { far: 12, example: -1 };
    for (let k = 0; points.train && 3 * k < points.train.length; k += 1) {
      const [x, y] = at(points.train[3 * k], points.train[3 * k + 1], SIDE);
      const far = Math.hypot(x - event.offsetX, y - event.offsetY);
      if (far < best.far) best = { far, example: k };
    }
    if (best.example < 0) return;
    game.choose({ tab: "inside" });
    await game.light(best.example);
  };
  return html`<div class="heading"><h2>Output</h2>
      <label class="check"><input type="checkbox" checked=${held}
        onChange=${() => setHeld(!held)} /> show held-out points</label></div>
    <div class="map">
    <canvas ref=${canvas} style=${`width:${SIDE}px;height:${SIDE}px`} role="img" onClick=${clicked}
      aria-label=${"Output of the network over the square with the training points. " + caption(game)}></canvas>
    <p class="soft caption">${caption(game)}</p>
  </div>`;
}

/** The button, and how much noise it adds. */
export function RedButton(/** @type {{game: any}} */ { game }) {
  useGame(game);
  const noise = game.page.shake;
  const change = (/** @type {any} */ event) => {
    const value = Number(event.target.value);
    if (event.target.value !== "" && value >= 0 && value <= 500) game.choose({ shake: value });
  };
  return html`<div class="red">
    <button class="big" id="noise" aria-label=${`Add ${noise} % noise to the weights`} disabled=${!game.frame}
      onClick=${() => game.shake()}>
      <span>Shake</span></button>
    <div class="how">
      <p><b>Add noise to every weight.</b> In each layer it is${" "}
        <input type="number" class="value" min="0" max="500" step="5" value=${noise} aria-label="Noise in percent"
          onChange=${change} /> % as large as the weights.</p>
      <input type="range" min="0" max="100" step="1" value=${Math.min(noise, 100)}
        aria-label="Noise in percent, slider" onInput=${change} />
      <${Undo} game=${game} />
    </div>
  </div>`;
}

function Undo(/** @type {{game: any}} */ { game }) {
  useGame(game, "frame");
  const left = game.frame?.undo ?? 0;
  return html`<button class="undo" disabled=${!left}
    onClick=${() => game.undo()}>Undo${left > 1 ? ` (${left})` : ""}</button>`;
}

/** Losses of training and test from the first step, and what they are now. */
export function Losses(/** @type {{game: any}} */ { game }) {
  useGame(game, "frame");
  const one = game.frame?.networks[0];
  const { losses } = game;
  const spec = useMemo(() => ({
    lines: [
      { x: losses.map((/** @type {any} */ l) => l.step), y: losses.map((/** @type {any} */ l) => l.test), colour: "warn", dash: [5, 3] },
      { x: losses.map((/** @type {any} */ l) => l.step), y: losses.map((/** @type {any} */ l) => l.train), colour: "accent" },
    ],
    low: 0,
    high: Math.max(0.1, ...losses.map((/** @type {any} */ l) => Math.min(3, Math.max(l.train, l.test)))),
  }), [losses, losses.length, game.version]);
  return html`<div class="losses">
    <table><thead><tr><th scope="col"></th><th scope="col" class="number">Loss</th><th scope="col"
      class="number">Right</th></tr></thead><tbody>
      <tr><th scope="row"><i class="swatch" style="background:var(--accent)"></i>Training</th>
        <td class="number" id="train-loss">${short(one?.train.loss)}</td><td class="number"
          id="train-accuracy">${percent(one?.train.accuracy)}</td></tr>
      <tr><th scope="row"><i class="swatch" style="background:var(--warn)"></i>Held out</th>
        <td class="number" id="test-loss">${short(one?.test.loss)}</td><td class="number"
          id="test-accuracy">${percent(one?.test.accuracy)}</td></tr>
    </tbody></table>
    <${Plot} spec=${spec} height=${112}
      label="Loss of training (solid) and held-out points (dashed) over the training steps" />
  </div>`;
}

// @ts-check
// What is learnt, by which network and how: the fields of the set-up.

import { html, useEffect, useMemo, useRef } from "../vendor/htm-preact.js";
import { useGame } from "./game.js";
import { dots, sized, theme, useTheme } from "./paint.js";

const TITLES = /** @type {Record<string, string>} */ ({
  circle: "Circle", xor: "Quarters", gauss: "Two clouds", spiral: "Spiral", checkerboard: "Checkerboard",
  tanh: "tanh", relu: "ReLU", leaky_relu: "leaky ReLU", sigmoid: "sigmoid",
  sgd: "Gradient descent", momentum: "Momentum", adam: "Adam", fromage: "Fromage", lamb: "LAMB",
  spectral: "Spectral (Muon)", natural: "Natural gradient",
});
const RATES = [1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1, 3];

export function title(/** @type {string} */ name) {
  return TITLES[name] ?? name;
}

/** A few points of a data set, to tell it by. */
function sample(/** @type {string} */ kind) {
  const rows = [];
  for (let k = 0; k < 90; k += 1) {
    const [u, v, label] = [(k * 0.7548776662) % 1, (k * 0.569840291 + 0.1) % 1, k % 2];
    const turn = 2 * Math.PI * v;
    let point = [2 * u - 1, 2 * v - 1, 0];
    if (kind === "circle") {
      const r = label ? 0.45 * Math.sqrt(u) : 0.65 + 0.3 * u;
      point = [r * Math.cos(turn), r * Math.sin(turn), label];
    } else if (kind === "gauss") {
      const [c, r] = [label ? 0.42 : -0.42, 0.2 * Math.sqrt(-2 * Math.log(u + 0.02))];
      point = [c + r * Math.cos(turn), c + r * Math.sin(turn), label];
    } else if (kind === "spiral") {
      const [s, w] = [k / 90, 3 * Math.PI * (k / 90) + Math.PI * label];
      point = [(0.05 + 0.9 * s) * Math.cos(w), (0.05 + 0.9 * s) * Math.sin(w), label];
    } else if (kind === "xor") point[2] = point[0] * point[1] > 0 ? 1 : 0;
    else point[2] = (Math.floor(1.5 * point[0] + 1.5) + Math.floor(1.5 * point[1] + 1.5)) % 2;
    rows.push(...point);
  }
  return new Float32Array(rows);
}

function Thumb(/** @type {{kind: string}} */ { kind }) {
  const canvas = useRef(null);
  const look = useTheme();
  useEffect(() => {
    const to = sized(/** @type {any} */ (canvas.current), 56, 56);
    to.fillStyle = theme().colours.paper;
    to.fillRect(0, 0, 56, 56);
    dots(to, sample(kind), 56, { radius: 2.1 });
  }, [look]);
  return html`<canvas ref=${canvas} style="width:56px;height:56px" aria-hidden="true"></canvas>`;
}

/** A slider that sets a field when it is let go. */
function Slider(/** @type {any} */ { game, field, label, low, high, step, say }) {
  const value = game.state[field] ?? game.defaults[field] ?? low;
  return html`<label class="slider"><span>${label} <b>${say ? say(value) : value}</b></span>
    <input type="range" min=${low} max=${high} step=${step} value=${value} aria-label=${label}
      onChange=${(/** @type {any} */ e) => game.set({ [field]: Number(e.target.value) })} /></label>`;
}

/** One of a few words. */
function Words(/** @type {any} */ { game, field, label }) {
  const values = game.limits[field]?.values ?? [];
  return html`<label>${label} <select aria-label=${label} value=${game.state[field]}
    onChange=${(/** @type {any} */ e) => game.set({ [field]: e.target.value })}>
    ${values.map((/** @type {string} */ name) => html`<option value=${name}>${title(name)}</option>`)}</select>
      </label>`;
}

/** One of a few numbers, and the one that is set where it is none of them. */
function Numbers(/** @type {any} */ { game, field, label, values }) {
  const value = game.state[field];
  const every = value === undefined || values.includes(value) ? values : [...values, value].sort((a, b) => a - b);
  return html`<label>${label} <select aria-label=${label} value=${value}
    onChange=${(/** @type {any} */ e) => game.set({ [field]: Number(e.target.value) })}>
    ${every.map((/** @type {number} */ n) => html`<option value=${n}>${n}</option>`)}</select></label>`;
}

/** The data sets, their noise and number. */
export function Data(/** @type {{game: any}} */ { game }) {
  useGame(game);
  const kinds = game.limits.data?.values ?? [];
  const open = useMemo(() => matchMedia("(min-width: 761px)").matches, []);
  return html`<section class="card data" aria-label="Data">
    <div class="heading"><h2>Data</h2></div>
    <div class="thumbs" role="radiogroup" aria-label="Data set">
      ${kinds.map((/** @type {string} */ kind) => html`<label
        class=${"thumb" + (game.state.data === kind ? " on" : "")} title=${title(kind)}>
        <input type="radio" name="data" class="hidden-label" checked=${game.state.data === kind}
          aria-label=${title(kind)}
          onChange=${() => game.set({ data: kind })} /><${Thumb} kind=${kind} /></label>`)}
    </div>
    <p class="soft now">${title(game.state.data ?? "")}</p>
    <details open=${open}><summary>Noise, points, seed</summary>
    <${Slider} game=${game} field="noise" label="Noise" low=${0} high=${0.5} step=${0.01} />
    <${Slider} game=${game} field="points" label="Points" low=${20} high=${1000} step=${20} />
    <${Slider} game=${game} field="test" label="Held out" low=${0.1} high=${0.9} step=${0.1}
      say=${(/** @type {number} */ v) => Math.round(100 * v) + " %"} />
    <label class="slider"><span>Seed</span><input type="number" min="0" max="2147483647" step="1"
      value=${game.state.seed ?? 0} aria-label="Seed"
      onChange=${(/** @type {any} */ e) => game.set({ seed: Math.round(Number(e.target.value)) })} /></label></details>
  </section>`;
}

/** Depth, width and activation. */
export function Form(/** @type {{game: any}} */ { game }) {
  useGame(game);
  const to = (/** @type {number} */ n) => Array.from({ length: n }, (_, k) => k + 1);
  return html`<div class="fields">
    <${Numbers} game=${game} field="depth" label="Layers" values=${to(game.limits.depth?.high ?? 20)} />
    <${Numbers} game=${game} field="width" label="Neurons in each" values=${to(game.limits.width?.high ?? 16)} />
    <${Words} game=${game} field="activation" label="Activation" />
  </div>`;
}

/** Algorithm, step size and batch. */
export function Learning(/** @type {{game: any}} */ { game }) {
  useGame(game);
  return html`<div class="fields">
    <${Words} game=${game} field="algorithm" label="Algorithm" />
    <${Numbers} game=${game} field="rate" label="Step size" values=${RATES} />
    <${Numbers} game=${game} field="batch" label="Batch" values=${[1, 4, 16, 32, 64, 128, 500]} />
  </div>`;
}

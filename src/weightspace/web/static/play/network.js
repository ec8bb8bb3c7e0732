// @ts-check
// The network as columns of pictures with its weights as lines between them, each of which can be changed.

import { html, useEffect, useMemo, useRef, useState } from "../vendor/htm-preact.js";
import { useGame } from "./game.js";
import { Sheet, sized, theme, useTheme } from "./paint.js";

/** @typedef {{layer: number, neuron: number, input: number}} Place */

const TOP = 24;

/** Neurons of every column: two inputs, the hidden layers, one output. */
function columns(/** @type {any} */ state) {
  return [2, ...Array(state.depth).fill(state.width), 1];
}

/** Where in the vector of all weights one of them is. */
export function index(/** @type {any} */ state, /** @type {Place} */ { layer, neuron, input }) {
  const sizes = columns(state);
  let start = 0;
  for (let k = 1; k < layer; k += 1) start += sizes[k] * (sizes[k - 1] + 1);
  const [n, m] = [sizes[layer - 1], sizes[layer]];
  return input ? start + (neuron - 1) * n + input - 1 : start + n * m + neuron - 1;
}

/** Where every picture is drawn, for a box of this width. */
function plan(/** @type {any} */ state, /** @type {number} */ width, /** @type {number} */ height) {
  const sizes = columns(state);
  const rows = Math.max(...sizes);
  const pitch = Math.min(54, (height - TOP) / rows);
  const cell = Math.max(8, Math.min(40, pitch - (pitch > 24 ? 6 : 4)));
  const gap = Math.max(cell + 26, Math.min(cell + 110, (width - cell - 20) / (sizes.length - 1)));
  const full = Math.max(width, gap * (sizes.length - 1) + cell + 20);
  const left = (full - gap * (sizes.length - 1) - cell) / 2;
  const spots = sizes.map((count, c) => Array.from({ length: count }, (_, r) => [
    left + c * gap, TOP + (height - TOP - count * pitch) / 2 + r * pitch + (pitch - cell) / 2,
  ]));
  return { sizes, cell, spots, full, gap };
}

/** @typedef {ReturnType<typeof plan>} Plan */

function lines(/** @type {CanvasRenderingContext2D} */ to, /** @type {Plan} */ { sizes, cell, spots },
  /** @type {ArrayLike<number>} */ weights, from = 0) {
  const { colours } = theme();
  let start = from;
  for (let l = 1; l < sizes.length; l += 1) {
    const [n, m] = [sizes[l - 1], sizes[l]];
    let most = 1e-9;
    for (let k = 0; k < n * m; k += 1) most = Math.max(most, Math.abs(weights[start + k]));
    const paths = Array.from({ length: 16 }, () => /** @type {number[]} */ ([]));
    for (let k = 0; k < n * m; k += 1) {
      const share = weights[start + k] / most;
      const level = Math.min(7, Math.floor(Math.abs(share) * 8));
      if (level || n * m < 80) paths[level + (share > 0 ? 8 : 0)].push(k);
    }
    paths.forEach((some, p) => {
      if (!some.length) return;
      to.beginPath();
      for (const k of some) {
        const [a, b] = [spots[l - 1][k % n], spots[l][Math.floor(k / n)]];
        to.moveTo(a[0] + cell, a[1] + cell / 2);
        to.lineTo(b[0], b[1] + cell / 2);
      }
      to.globalAlpha = 0.18 + 0.1 * (p % 8);
      to.lineWidth = 0.6 + 0.42 * (p % 8);
      to.strokeStyle = p > 7 ? colours.high : colours.low;
      to.stroke();
    });
    start += m * (n + 1);
  }
  to.globalAlpha = 1;
}

function pictures(/** @type {CanvasRenderingContext2D} */ to, /** @type {Plan} */ { sizes, cell, spots },
  /** @type {Sheet} */ sheet, /** @type {any} */ how) {
  const { colours } = theme();
  const { weights, from, lit, shown, place } = how;
  let picture = 0;
  let start = from;
  for (let l = 1; l < sizes.length; l += 1) {
    const [n, m] = [sizes[l - 1], sizes[l]];
    spots[l].forEach(([x, y], r) => {
      to.fillStyle = colours.card;
      to.fillRect(x, y, cell, cell);
      const on = lit && l < sizes.length - 1 ? lit.on[l - 1][r] === 1 : null;
      to.globalAlpha = on === false ? 0.22 : 1;
      sheet.draw(to, picture, x, y, cell);
      to.globalAlpha = 1;
      to.strokeStyle = on || picture === shown ? colours.ink : colours.soft;
      to.lineWidth = on || picture === shown ? 2.5 : 1;
      to.strokeRect(x, y, cell, cell);
      const bias = weights[start + n * m + r];
      const chosen = place.layer === l && place.neuron === r + 1 && place.input === 0;
      to.beginPath();
      to.arc(x + 1, y + cell - 1, (chosen ? 2 : 0) + (cell > 24 ? 4 : cell > 14 ? 3 : 2), 0, 2 * Math.PI);
      to.fillStyle = bias > 0 ? colours.high : bias < 0 ? colours.low : colours.card;
      to.strokeStyle = chosen ? colours.ink : colours.soft;
      to.lineWidth = chosen ? 2.5 : 1;
      to.fill();
      to.stroke();
      picture += 1;
    });
    start += m * (n + 1);
  }
}

function inputs(/** @type {CanvasRenderingContext2D} */ to, /** @type {Plan} */ { cell, spots }) {
  const { colours } = theme();
  spots[0].forEach(([x, y], k) => {
    const fill = k ? to.createLinearGradient(x, y + cell, x, y) : to.createLinearGradient(x, y, x + cell, y);
    fill.addColorStop(0, colours.low);
    fill.addColorStop(0.5, colours.card);
    fill.addColorStop(1, colours.high);
    to.fillStyle = fill;
    to.fillRect(x, y, cell, cell);
    to.strokeStyle = colours.soft;
    to.lineWidth = 1;
    to.strokeRect(x, y, cell, cell);
  });
}

function heads(/** @type {CanvasRenderingContext2D} */ to, /** @type {Plan} */ { sizes, cell, spots, gap }) {
  to.fillStyle = theme().colours.soft;
  to.font = "13px system-ui, sans-serif";
  sizes.forEach((_, c) => {
    const long = gap > 76;
    const text = c === 0 ? (long ? "x and y" : "x, y") : c === sizes.length - 1 ? (long ? "output" : "out") : long ? `layer ${c}` : String(c);
    const x = spots[c][0][0];
    to.textAlign = c === 0 ? "left" : c === sizes.length - 1 ? "right" : "center";
    to.fillText(text, c === 0 ? x : c === sizes.length - 1 ? x + cell + 8 : x + cell / 2, 14);
  });
}

/** What is at a point of the drawing: a neuron, a bias or a weight. */
function under(/** @type {Plan} */ { sizes, cell, spots }, /** @type {number} */ x, /** @type {number} */ y) {
  for (let l = 1, picture = 0; l < sizes.length; l += 1) {
    for (let r = 0; r < sizes[l]; r += 1, picture += 1) {
      const [left, top] = spots[l][r];
      if (Math.hypot(x - left - 1, y - top - cell + 1) < 7) return { place: { layer: l, neuron: r + 1, input: 0 } };
      if (x >= left && x <= left + cell && y >= top && y <= top + cell) return { picture };
    }
    let best = { far: 6, place: /** @type {Place | null} */ (null) };
    for (let k = 0; k < sizes[l - 1] * sizes[l]; k += 1) {
      const [i, r] = [k % sizes[l - 1], Math.floor(k / sizes[l - 1])];
      const [a, b] = [spots[l - 1][i], spots[l][r]];
      const [x0, x1] = [a[0] + cell, b[0]];
      const share = (x - x0) / (x1 - x0);
      if (share < 0 || share > 1) continue;
      const slope = Math.hypot(x1 - x0, b[1] - a[1]) / (x1 - x0);
      const far = Math.abs(a[1] + cell / 2 + share * (b[1] - a[1]) - y) / slope;
      if (far < best.far) best = { far, place: { layer: l, neuron: r + 1, input: i + 1 } };
    }
    if (best.place) return { place: best.place };
  }
  return {};
}

/** The width of an element, as it changes. */
export function useWidth(/** @type {any} */ box, /** @type {number} */ first) {
  const [width, setWidth] = useState(first);
  useEffect(() => {
    const watcher = new ResizeObserver((seen) => setWidth(Math.floor(seen[0].contentRect.width)));
    if (box.current) watcher.observe(box.current);
    return () => watcher.disconnect();
  }, []);
  return width;
}

/** The drawing of network `k`, of this height. */
export function Drawing(/** @type {{game: any, k: number, height: number, place: Place, marked?: boolean, pick?: (place: Place) => void}} */ { game, k, height, place, marked = false, pick }) {
  useGame(game, "frame");
  const [canvas, box] = [useRef(null), useRef(null)];
  const sheet = useMemo(() => new Sheet(), []);
  const width = useWidth(box, 560);
  const look = useTheme();
  const { state, frame, arrays } = game;
  const there = frame && arrays.maps && k < arrays.maps.shape[0];
  const laid = plan(state, width, height);
  useEffect(() => {
    if (!there || arrays.maps.shape[1] !== state.depth * state.width + 1) return;
    sheet.take(arrays.maps, k);
    const to = sized(/** @type {any} */ (canvas.current), laid.full, height);
    const [weights, from] = [arrays.weights.data, k * arrays.weights.shape[1]];
    heads(to, laid);
    lines(to, laid, weights, from);
    if (marked && place.input) {
      const [a, b] = [laid.spots[place.layer - 1][place.input - 1], laid.spots[place.layer][place.neuron - 1]];
      to.beginPath();
      to.moveTo(a[0] + laid.cell, a[1] + laid.cell / 2);
      to.lineTo(b[0], b[1] + laid.cell / 2);
      to.strokeStyle = theme().colours.ink;
      to.lineWidth = 2.5;
      to.stroke();
    }
    inputs(to, laid);
    pictures(to, laid, sheet, { weights, from, lit: k ? null : game.lit, shown: k ? -2 : game.shown, place: marked ? place : {} });
  }, [arrays, state.depth, state.width, game.lit, game.shown, laid.full, height, look, marked, place.layer, place.neuron, place.input]);
  const found = (/** @type {any} */ event) => under(laid, event.offsetX, event.offsetY);
  const clicked = (/** @type {any} */ event) => {
    const at = found(event);
    if (at.place) pick?.(at.place);
    if (at.picture !== undefined && k === 0) {
      game.shown = at.picture === game.shown || at.picture === state.depth * state.width ? -1 : at.picture;
      game.tell("frame");
    }
  };
  const moved = (/** @type {any} */ event) => {
    const at = found(event);
    event.target.style.cursor = at.place || at.picture !== undefined ? "pointer" : "default";
  };
  return html`<div class="scroll network-box" ref=${box} tabindex="0" role="group"
    aria-label=${`Network ${k + 1}, drawn`}>
    <canvas ref=${canvas} style=${`width:${laid.full}px;height:${height}px`} role="img" onClick=${pick && clicked}
      onMouseMove=${pick && moved}
      aria-label=${`A network of ${state.depth} hidden layers of ${state.width} neurons: a picture of each, and its weights as lines`}></canvas>
  </div>`;
}

function counted(/** @type {number} */ n) {
  return Array.from({ length: n }, (_, k) => k + 1);
}

/** One weight or bias by its place, to be read and changed. */
function Editor(/** @type {{game: any, place: Place, pick: (place: Place) => void}} */ { game, place, pick }) {
  useGame(game, "frame");
  const sizes = columns(game.state);
  const value = game.arrays.weights?.data[index(game.state, place)] ?? 0;
  const choose = (/** @type {string} */ name) => (/** @type {any} */ event) => {
    const next = { ...place, [name]: Number(event.target.value) };
    next.neuron = Math.min(next.neuron, sizes[next.layer]);
    next.input = Math.min(next.input, sizes[next.layer - 1]);
    pick(next);
  };
  const source = (/** @type {number} */ n) => (n === 0 ? "bias" : place.layer === 1 ? ["x", "y"][n - 1] : `neuron ${n}`);
  const change = (/** @type {any} */ event) => {
    const wanted = Number(event.target.value);
    if (event.target.value !== "" && Number.isFinite(wanted)) game.edit(place, wanted);
  };
  return html`<div class="editor">
    <p>Click a line to change its weight, or the dot at a picture to change a bias.</p>
    <label>layer <select aria-label="Layer of the weight" value=${place.layer} onChange=${choose("layer")}>
      ${counted(sizes.length - 1).map((n) => html`<option value=${n}>
        ${n === sizes.length - 1 ? "output" : n}</option>`)}</select></label>
    <label>neuron <select aria-label="Neuron of the weight" value=${place.neuron} onChange=${choose("neuron")}>
      ${counted(sizes[place.layer]).map((n) => html`<option value=${n}>${n}</option>`)}</select></label>
    <label>from <select aria-label="Source of the weight" value=${place.input} onChange=${choose("input")}>
      ${[0, ...counted(sizes[place.layer - 1])].map((n) => html`<option value=${n}>${source(n)}</option>`)}</select>
        </label>
    <label>${place.input ? "weight" : "bias"} is <input class="value" type="number" step="0.1"
      aria-label="Value of the weight" min="-100" max="100"
      value=${Number(value.toPrecision(3))} onChange=${change} /></label>
  </div>`;
}

/** The network of the first view, with its form. */
export function Network(/** @type {{game: any, form: any}} */ { game, form }) {
  useGame(game);
  const [chosen, pick] = useState(/** @type {Place} */ ({ layer: 1, neuron: 1, input: 1 }));
  const [marked, mark] = useState(false);
  const choose = (/** @type {Place} */ place) => {
    pick(place);
    mark(true);
  };
  const sizes = columns(game.state);
  const layer = Math.min(chosen.layer, sizes.length - 1);
  const place = { layer, neuron: Math.min(chosen.neuron, sizes[layer]), input: Math.min(chosen.input, sizes[layer - 1]) };
  return html`<section class="card network" aria-label="Network">
    <div class="heading"><h2>Network</h2>${form}</div>
    <${Drawing} game=${game} k=${0} height=${372} place=${place} marked=${marked} pick=${choose} />
    <${Editor} game=${game} place=${place} pick=${choose} />
  </section>`;
}

// @ts-check
// Curves on a canvas: lines, bands between two lines, a mark, axes with a few numbers.

import { html, useEffect, useRef } from "../vendor/htm-preact.js";
import { useWidth } from "./network.js";
import { sized, theme, useTheme } from "./paint.js";
import { short } from "./words.js";

/**
 * @typedef {{x: number[], y: (number | null)[], colour: string, dash?: number[], width?: number, name?: string}} Line
 * @typedef {{lines: Line[], bands?: {x: number[], low: number[], high: number[], colour: string}[], mark?: number,
 *   logx?: boolean, logy?: boolean, low?: number, high?: number, xname?: string, yname?: string, say?: (y: number) => string}} Spec
 */

function range(/** @type {(number | null)[]} */ values, /** @type {boolean} */ log) {
  let [low, high] = [Infinity, -Infinity];
  for (const v of values) {
    if (v === null || !Number.isFinite(v) || (log && v <= 0)) continue;
    [low, high] = [Math.min(low, v), Math.max(high, v)];
  }
  if (low > high) return [log ? 0.1 : 0, 1];
  return low === high ? [log ? low / 2 : low, log ? low * 2 : low + 1] : [low, high];
}

function ticks(/** @type {number} */ low, /** @type {number} */ high, /** @type {boolean} */ log) {
  if (log) {
    const found = [];
    for (let p = Math.ceil(Math.log10(low) - 0.01); p <= Math.log10(high) + 0.01; p += 1) found.push(10 ** p);
    return found.length > 5 ? found.filter((_, k) => k % 2 === 0) : found.length > 1 ? found : [low, high];
  }
  const raw = (high - low) / 3;
  const unit = 10 ** Math.floor(Math.log10(raw));
  const step = unit * ([1, 2, 5].find((m) => unit * m >= raw) ?? 10);
  const found = [];
  for (let v = Math.ceil(low / step - 1e-6) * step; v <= high + 1e-9 * step; v += step) found.push(Number(v.toPrecision(8)));
  return found;
}

function draw(/** @type {HTMLCanvasElement} */ canvas, /** @type {Spec} */ spec, /** @type {number} */ width,
  /** @type {number} */ height) {
  const to = sized(canvas, width, height);
  const { colours } = theme();
  const [left, right, top, bottom] = [54, 10, 10, spec.xname ? 38 : 22];
  const ink = (/** @type {string} */ name) => colours[name] ?? name;
  const bands = spec.bands ?? [];
  const [x0, x1] = range(spec.lines.flatMap((l) => l.x), spec.logx ?? false);
  const seen = range([...spec.lines.flatMap((l) => l.y), ...bands.flatMap((b) => [...b.low, ...b.high])], spec.logy ?? false);
  const [y0, y1] = [spec.low ?? seen[0], spec.high ?? seen[1]];
  const scaled = (/** @type {number} */ v, /** @type {number} */ a, /** @type {number} */ b,
    /** @type {boolean | undefined} */ log) =>
    log ? Math.log(Math.max(v, 1e-12) / a) / Math.log(b / a) : (v - a) / (b - a || 1);
  const px = (/** @type {number} */ v) => left + scaled(v, x0, x1, spec.logx) * (width - left - right);
  const py = (/** @type {number} */ v) => top + (1 - Math.max(-0.05, Math.min(1.05, scaled(v, y0, y1, spec.logy)))) * (height - top - bottom);
  to.font = "12.5px system-ui, sans-serif";
  to.lineWidth = 1;
  to.strokeStyle = colours.line;
  to.fillStyle = colours.soft;
  to.textAlign = "right";
  to.textBaseline = "middle";
  for (const v of ticks(y0, y1, spec.logy ?? false)) {
    to.beginPath();
    to.moveTo(left, py(v));
    to.lineTo(width - right, py(v));
    to.stroke();
    to.fillText(spec.say ? spec.say(v) : short(v), left - 6, py(v));
  }
  to.textBaseline = "top";
  for (const v of ticks(x0, x1, spec.logx ?? false)) {
    to.textAlign = px(v) > width - 24 ? "right" : "center";
    to.fillText(Number.isInteger(v) ? v.toLocaleString("en") : short(v), Math.min(px(v), width - right), height - bottom + 6);
  }
  to.textAlign = "center";
  if (spec.xname) to.fillText(spec.xname, left + (width - left - right) / 2, height - 16);
  for (const { x, low, high, colour } of bands) {
    to.beginPath();
    x.forEach((v, k) => to.lineTo(px(v), py(high[k])));
    [...x].reverse().forEach((v, k) => to.lineTo(px(v), py(low[x.length - 1 - k])));
    to.globalAlpha = 0.22;
    to.fillStyle = ink(colour);
    to.fill();
    to.globalAlpha = 1;
  }
  for (const { x, y, colour, dash = [], width: thick = 2 } of spec.lines) {
    to.beginPath();
    x.forEach((v, k) => {
      const value = y[k];
      if (value !== null && Number.isFinite(value)) to.lineTo(px(v), py(value));
    });
    to.strokeStyle = ink(colour);
    to.lineWidth = thick;
    to.setLineDash(dash);
    to.stroke();
    to.setLineDash([]);
  }
  if (spec.mark !== undefined) {
    to.beginPath();
    to.moveTo(px(spec.mark), top);
    to.lineTo(px(spec.mark), height - bottom);
    to.strokeStyle = colours.ink;
    to.stroke();
  }
}

/** Curves with their legend. */
export function Plot(/** @type {{spec: Spec, label: string, height?: number}} */ { spec, label, height = 170 }) {
  const [canvas, box] = [useRef(null), useRef(null)];
  const width = useWidth(box, 300);
  const look = useTheme();
  useEffect(() => draw(/** @type {any} */ (canvas.current), spec, width, height), [spec, width, height, look]);
  const named = spec.lines.filter((line) => line.name);
  return html`<figure class="plot" ref=${box}>
    <canvas ref=${canvas} style=${`width:${width}px;height:${height}px`} role="img" aria-label=${label}></canvas>
    ${named.length > 0 && html`<figcaption>${named.map((line) => html`<span>
      <svg width="22" height="10" aria-hidden="true"><line x1="0" x2="22" y1="5" y2="5" stroke-width="2.5"
        style=${`stroke:var(--${line.colour})`} stroke-dasharray=${(line.dash ?? []).join(" ")} />
          </svg> ${line.name}</span>`)}</figcaption>`}
  </figure>`;
}

// @ts-check
// Pictures from bytes, points and boundaries, in the colours of the theme.

import { useEffect, useState } from "../vendor/htm-preact.js";

/** @typedef {{data: Uint8Array | Float32Array, shape: number[]}} Section */
/** @type {{key: string, table: Uint32Array, colours: Record<string, string>} | null} */
let made = null;

const NAMES = ["low", "high", "card", "paper", "ink", "soft", "line", "accent", "danger", "warn"];

/** The colours of the theme, and for every byte its colour: orange for low, blue for high. */
export function theme() {
  const style = getComputedStyle(document.documentElement);
  const key = style.getPropertyValue("--low") + style.getPropertyValue("--card");
  if (made?.key === key) return made;
  const colours = Object.fromEntries(NAMES.map((name) => [name, style.getPropertyValue("--" + name).trim()]));
  const [low, high, middle] = [colours.low, colours.high, colours.card].map(parts);
  const table = new Uint32Array(256);
  for (let byte = 0; byte < 256; byte += 1) {
    const share = Math.max(-1, (byte - 128) / 127);
    const end = share < 0 ? low : high;
    const at = 0.84 * Math.abs(share) ** 0.85; // lighter than the points
    const [r, g, b] = middle.map((from, k) => Math.round(from + at * (end[k] - from)));
    table[byte] = ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0;
  }
  made = { key, table, colours };
  return made;
}

function parts(/** @type {string} */ colour) {
  return [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
}

/** Draw again when the theme changes. */
export function useTheme() {
  const [count, again] = useState(0);
  useEffect(() => {
    const heard = () => again((/** @type {number} */ n) => n + 1);
    const media = matchMedia("(prefers-color-scheme: dark)");
    window.addEventListener("themechange", heard);
    media.addEventListener("change", heard);
    return () => {
      window.removeEventListener("themechange", heard);
      media.removeEventListener("change", heard);
    };
  }, []);
  return count;
}

/** A canvas of this size on the screen, sharp on every display, and emptied. */
export function sized(/** @type {HTMLCanvasElement} */ canvas, /** @type {number} */ width,
  /** @type {number} */ height) {
  const ratio = Math.min(window.devicePixelRatio || 1, 2);
  const [w, h] = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== w || canvas.height !== h) [canvas.width, canvas.height] = [w, h];
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return context;
}

/** Pictures of bytes, one below the other, on a canvas that is not shown: (pictures, side, side). */
export class Sheet {
  constructor() {
    this.canvas = document.createElement("canvas");
    this.side = 1;
    /** @type {ImageData | null} */
    this.image = null;
  }

  /** Take the pictures of network `k` from a section (networks, pictures, side, side). */
  take(/** @type {Section} */ section, k = 0) {
    const [, count, side] = section.shape;
    const context = /** @type {CanvasRenderingContext2D} */ (this.canvas.getContext("2d"));
    if (!this.image || this.image.width !== side || this.image.height !== side * count) {
      [this.canvas.width, this.canvas.height] = [side, side * count];
      this.image = context.createImageData(side, side * count);
    }
    const { table } = theme();
    const size = count * side * side;
    const pixels = new Uint32Array(this.image.data.buffer);
    for (let at = 0, from = k * size; at < size; at += 1, from += 1) pixels[at] = table[section.data[from]];
    context.putImageData(this.image, 0, 0);
    this.side = side;
    this.count = count;
  }

  /** Draw one of them into a square. */
  draw(/** @type {CanvasRenderingContext2D} */ to, /** @type {number} */ which, /** @type {number} */ x,
    /** @type {number} */ y, /** @type {number} */ size) {
    to.imageSmoothingEnabled = true;
    to.imageSmoothingQuality = "high";
    to.drawImage(this.canvas, 0, which * this.side, this.side, this.side, x, y, size, size);
  }
}

/** Points (x, y, label) over a square of this size. `mark` is the index of one that is ringed. */
export function dots(/** @type {CanvasRenderingContext2D} */ to, /** @type {Float32Array} */ rows,
  /** @type {number} */ size, how = {}) {
  const { radius = 3.4, hollow = false, mark = -1 } = /** @type {any} */ (how);
  const { colours } = theme();
  for (let k = 0; k < rows.length; k += 3) {
    const [x, y] = at(rows[k], rows[k + 1], size);
    const colour = rows[k + 2] > 0.5 ? colours.high : colours.low;
    to.beginPath();
    to.arc(x, y, radius, 0, 2 * Math.PI);
    to.fillStyle = hollow ? colours.card : colour;
    to.strokeStyle = hollow ? colour : colours.card;
    to.lineWidth = hollow ? 1.8 : 1.2;
    to.fill();
    to.stroke();
  }
  if (mark >= 0 && 3 * mark < rows.length) {
    const [x, y] = at(rows[3 * mark], rows[3 * mark + 1], size);
    to.beginPath();
    to.arc(x, y, 9, 0, 2 * Math.PI);
    to.strokeStyle = colours.ink;
    to.lineWidth = 2.5;
    to.stroke();
  }
}

/** Where a point of the square [-1, 1]^2 is on a picture. */
export function at(/** @type {number} */ x, /** @type {number} */ y, /** @type {number} */ size) {
  return [((x + 1) / 2) * size, ((1 - y) / 2) * size];
}

/** The line on which a picture is zero: pieces [x0, y0, x1, y1] in shares of the square, from its top left. */
export function boundary(/** @type {Uint8Array | Float32Array} */ bytes, /** @type {number} */ side) {
  const pieces = [];
  const value = (/** @type {number} */ r, /** @type {number} */ c) => bytes[r * side + c] - 127.9;
  for (let r = 0; r + 1 < side; r += 1) {
    for (let c = 0; c + 1 < side; c += 1) {
      const corner = [value(r, c), value(r, c + 1), value(r + 1, c + 1), value(r + 1, c)];
      const ends = [];
      const spots = [[r, c], [r, c + 1], [r + 1, c + 1], [r + 1, c]];
      for (let k = 0; k < 4; k += 1) {
        const [a, b] = [corner[k], corner[(k + 1) % 4]];
        if (a > 0 === b > 0) continue;
        const share = a / (a - b);
        const [p, q] = [spots[k], spots[(k + 1) % 4]];
        ends.push([(p[1] + share * (q[1] - p[1]) + 0.5) / side, (p[0] + share * (q[0] - p[0]) + 0.5) / side]);
      }
      for (let k = 0; k + 1 < ends.length; k += 2) pieces.push([...ends[k], ...ends[k + 1]]);
    }
  }
  return pieces;
}

/** Draw such a line. */
export function outline(/** @type {CanvasRenderingContext2D} */ to, /** @type {number[][]} */ pieces,
  /** @type {number} */ size, /** @type {string} */ colour, /** @type {number} */ width) {
  to.beginPath();
  for (const [x0, y0, x1, y1] of pieces) {
    to.moveTo(x0 * size, y0 * size);
    to.lineTo(x1 * size, y1 * size);
  }
  to.strokeStyle = colour;
  to.lineWidth = width;
  to.lineCap = "round";
  to.stroke();
}

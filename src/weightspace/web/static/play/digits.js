// @ts-check
// A generator of digits under the same noise: a sheet of pictures.

import { html, useEffect, useRef, useState } from "../vendor/htm-preact.js";
import { sized, theme, useTheme } from "./paint.js";
import { useGame } from "./game.js";
import { percent } from "./words.js";

const [PIXEL, GAP, ROWS] = [6, 6, 4];
const CELL = 8 * PIXEL + GAP;

function Sheet(/** @type {{section: any}} */ { section }) {
  const canvas = useRef(null);
  const look = useTheme();
  useEffect(() => {
    const to = sized(/** @type {any} */ (canvas.current), 10 * CELL, ROWS * CELL);
    if (!section) return;
    to.fillStyle = theme().colours.ink;
    for (let k = 0; k < section.data.length; k += 1) {
      const [picture, pixel] = [Math.floor(k / 64), k % 64];
      to.globalAlpha = section.data[k] / 255;
      to.fillRect((picture % 10) * CELL + (pixel % 8) * PIXEL, Math.floor(picture / 10) * CELL + Math.floor(pixel / 8) * PIXEL, PIXEL, PIXEL);
    }
    to.globalAlpha = 1;
  }, [section, look]);
  return html`<div class="scroll"><canvas ref=${canvas} style=${`width:${10 * CELL}px;height:${ROWS * CELL}px`}
    role="img"
    aria-label="Forty generated digits, one column for each"></canvas></div>`;
}

/** The tab of the generator. */
export function Digits(/** @type {{game: any}} */ { game }) {
  useGame(game);
  const [how, setHow] = useState({ percent: game.page.shake || 20, presses: 0, seed: 0, tilt: 0 });
  const [found, setFound] = useState(/** @type {any} */ (null));
  useEffect(() => {
    let on = true;
    const noise = how.presses ? { percent: how.percent, presses: how.presses } : { percent: 0 };
    if (game.frame) {
      game.ask({ do: "digits", ...noise, seed: how.seed, tilt: how.tilt, rows: ROWS })
        .then((/** @type {any} */ reply) => on && reply && setFound(reply));
    }
    return () => { on = false; };
  }, [how, Boolean(game.frame)]);
  const told = found?.header;
  return html`<p class="lead">A larger network that draws digits. Press the button again and again: how soon does this bubble burst?</p>
    <div class="line">
      <div class="grow"><${Sheet} section=${found?.arrays.pictures} /></div>
      <div class="grow">
        <div class="red"><button class="big small" id="burst"
          aria-label=${`Add ${how.percent} % noise to the generator`} disabled=${how.presses >= 20}
            onClick=${() => setHow({ ...how, presses: how.presses + 1 })}><span>Shake</span></button>
          <div class="how"><label class="slider"><span>Noise in each layer <b>${how.percent} %</b></span>
            <input type="range" min="1" max="100" value=${how.percent} aria-label="Noise of the generator in percent"
              onChange=${(/** @type {any} */ e) => setHow({ ...how, percent: Number(e.target.value), presses: 0 })} />
                </label>
            <button disabled=${!how.presses} onClick=${() => setHow({ ...how, presses: 0 })}>Take it back</button>
            <button onClick=${() => setHow({ ...how, seed: how.seed + 1, presses: 0 })}>Other digits</button></div>
              </div>
        <label class="slider"><span>Style <b>${how.tilt}</b></span><input type="range" min="-3" max="3" step="0.25"
          value=${how.tilt} aria-label="Style of the digits"
          onInput=${(/** @type {any} */ e) => setHow({ ...how, tilt: Number(e.target.value) })} /></label>
        <p role="status" id="digits-told">${how.presses ? `${how.presses} ${how.presses === 1 ? "press" : "presses"}: the pixels moved by ${percent(told?.moved)}; expected ${percent(told?.expected)}, modelled ${percent(told?.model)}.` : "No noise yet."}</p>
      </div>
    </div>`;
}

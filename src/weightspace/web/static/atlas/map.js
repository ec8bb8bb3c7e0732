// @ts-check
// The map: its drawing, what stands beside it (legend, how true it is), search, and pointing at a network.

import { html, useEffect, useMemo, useRef, useState } from "../vendor/htm-preact.js";
import { typing } from "../shell.js";
import { colouring, css } from "./colours.js";
import { Drawing, drawnBy } from "./drawing.js";
import { fit, measured } from "./networks.js";
import { Pick } from "./pick.js";
import { count, number, origin } from "./words.js";

/** @typedef {import("./networks.js").Networks} Networks */
/** @typedef {import("./networks.js").Row} Row */
/** @typedef {import("./networks.js").Space} Space */
/** @typedef {import("./address.js").At} At */
/** @typedef {import("./address.js").Go} Go */

/** Whether colours are dark, told again when that changes. */
export function useDark() {
  const media = window.matchMedia("(prefers-color-scheme: dark)");
  const now = () => (document.documentElement.dataset.theme ?? (media.matches ? "dark" : "light")) === "dark";
  const [dark, setDark] = useState(now);
  useEffect(() => {
    const changed = () => setDark(now());
    window.addEventListener("themechange", changed);
    media.addEventListener("change", changed);
    return () => {
      window.removeEventListener("themechange", changed);
      media.removeEventListener("change", changed);
    };
  }, []);
  return dark;
}

function Told(/** @type {{all: Networks, row: Row, x: number, y: number, wide: number}} */ { all, row, x, y, wide }) {
  const family = all.families.get(row.kin);
  const values = all.measures.map((name) => [name, measured(all, row, name)]).filter(([, v]) => v !== null).slice(0, 6);
  const from = row.parents.map((p) => `${all.byId.get(p.id)?.name ?? "one that is gone"} (${origin(p)})`).slice(0, 3);
  const left = x > wide - 260 ? { right: `${wide - x + 14}px` } : { left: `${x + 14}px` };
  return html`<div class="told" aria-hidden="true" style=${{ top: `${y + 12}px`, ...left }}>
    <strong>${row.name}</strong>
    ${family && html`<div>${family.size > 1 ? `family ${family.number}, ${count(family.size, "network")}`
      : "no relatives found"}</div>`}
    ${values.map(([name, value]) => html`<div>${name}: ${number(/** @type {number} */ (value))}</div>`)}
    ${from.map((text) => html`<div>from ${text}</div>`)}
  </div>`;
}

function Legend(/** @type {{look: import("./colours.js").Colouring, at: At, go: Go}} */ { look, at, go }) {
  const { scale } = look;
  return html`<div class="legend" aria-label="Legend">
    ${scale && html`<div class="scale"><span>${scale.low}</span>
      <span class="ramp" role="img" aria-label="${look.title}: dark is low, light is high"
        style=${{ background: `linear-gradient(90deg, ${scale.stops.map(css).join(", ")})` }}></span>
      <span>${scale.high}</span></div>`}
    ${look.title !== "Families" && !scale && !look.entries.length && html`<span class="soft">none</span>`}
    ${look.entries.map((e) => {
      const dot = html`<span class="dot" style=${{ background: css(e.colour) }}></span>
        <span class="text">${e.text}</span><span class="soft">${e.count}</span>`;
      return e.family === undefined ? html`<span class="entry" key=${e.text}>${dot}</span>`
        : html`<button class="entry" key=${e.text} aria-pressed=${at.family === e.family} title="Show this family alone"
            onClick=${() => go({ family: at.family === e.family ? "" : e.family ?? "" })}>${dot}</button>`;
    })}
  </div>`;
}

/** The choice of what colours the points. */
function Colour(/** @type {{all: Networks, at: At, go: Go, answer: {title: string} | null}} */
  { all, at, go, answer }) {
  const known = at.colour.startsWith("job:") && answer;
  return html`<label>Colour by <select aria-label="Colour by" value=${at.colour.startsWith("job:") && !known ? "family" : at.colour}
    onChange=${(/** @type {any} */ e) => go({ colour: e.target.value })}>
    <option value="family">family</option>
    ${known && html`<option value=${at.colour}>answer: ${answer.title}</option>`}
    ${all.measures.length > 0 && html`<optgroup label="Measures">
      ${all.measures.map((name) => html`<option value=${"measure:" + name}>${name}</option>`)}</optgroup>`}
    ${all.atlas.tags.length > 0 && html`<optgroup label="Tags">
      ${all.atlas.tags.map((/** @type {any} */ t) =>
        html`<option value=${"tag:" + t.tag}>tag ${t.tag}</option>`)}</optgroup>`}
  </select></label>`;
}

/** deck.gl, loaded when a map is first drawn. */
function useDrawing(/** @type {any} */ box, /** @type {any} */ on, /** @type {() => void} */ failed) {
  const drawing = useRef(/** @type {Drawing | null} */ (null));
  const [ready, setReady] = useState(false);
  useEffect(() => {
    let gone = false;
    const fail = () => !gone && failed();
    import("../vendor/deck.js").then((deck) => {
      if (gone) return;
      const told = { point: (/** @type {any[]} */ ...a) => on.current.point(...a),
        open: (/** @type {Row} */ row) => on.current.open(row), failed: fail };
      drawing.current = new Drawing(deck, box.current, told);
      setReady(true);
    }).catch(fail);
    return () => {
      gone = true;
      drawing.current?.end();
      drawing.current = null;
    };
  }, []);
  return /** @type {const} */ ([drawing, ready]);
}

/**
 * The map of one architecture.
 * @param {{all: Networks, space: Space, at: At, go: Go, shown: Set<Row> | null, marks: Row[], choose: (row: Row) => void,
 *   pointed: Row | null, point: (row: Row | null) => void, answer: any, failed: () => void}} how
 */
function Drawn({ all, space, at, go, shown, marks, choose, pointed, point, answer, failed }) {
  const box = useRef(/** @type {HTMLElement | null} */ (null));
  const dark = useDark();
  const [hover, setHover] = useState(/** @type {{row: Row, x: number, y: number} | null} */ (null));
  const on = useRef(/** @type {any} */ ({}));
  on.current = {
    point: (/** @type {Row | null} */ row, /** @type {number} */ x, /** @type {number} */ y) => {
      setHover(row ? { row, x, y } : null);
      point(row);
    },
    open: choose,
  };
  const [drawing, ready] = useDrawing(box, on, failed);
  const look = useMemo(() => colouring(all, space, at.colour, dark, answer), [all, space, at.colour, dark, answer]);
  const open = all.byId.get(at.network) ?? null;
  useEffect(() => {
    drawing.current?.show({ space, colouring: look, dark, shown, open, marks, pointed: hover ? null : pointed });
  }, [ready, space, look, dark, shown, open, marks, pointed, hover]);
  useEffect(() => {
    const canvas = box.current?.querySelector("canvas");
    const said = `Map of ${count(space.points.length, "network")} of ${space.name}. The table holds them too.`;
    canvas?.setAttribute("aria-label", said);
    canvas?.setAttribute("role", "img");
  }, [ready, space]);
  useKeys(drawing);
  const found = (/** @type {Row} */ row) => {
    drawing.current?.centre(row);
    choose(row);
  };
  return html`<div class="map-bar">
      <${Pick} label="Find a network" id="find" rows=${space.points} onPick=${found} />
      <${Colour} all=${all} at=${at} go=${go} answer=${answer} />
      <span class="buttons" role="group" aria-label="Zoom">
        <button onClick=${() => drawing.current?.zoom(1)} aria-label="Nearer">+</button>
        <button onClick=${() => drawing.current?.zoom(-1)} aria-label="Further">\u2212</button>
        <button onClick=${() => drawing.current?.fit()}>Fit</button>
      </span>
    </div>
    <div class="map-box" ref=${box} tabindex="0" role="group" aria-label="Map: arrows move it, + and - zoom, f fits"
      data-ready=${ready} onMouseLeave=${() => { setHover(null); point(null); }}>
      ${!ready && html`<p class="soft middle">Drawing the map</p>`}
      ${hover && html`<${Told} all=${all} ...${hover} wide=${box.current?.clientWidth ?? 600} />`}
    </div>
    <${Legend} look=${look} at=${at} go=${go} />
    <p class="soft small">${fit(space.stress)} Near points are near in weight space, once units are numbered alike; a
      line
      leads from a network to those made of it.</p>`;
}

/** Keys that move the map. */
function useKeys(/** @type {{current: Drawing | null}} */ drawing) {
  useEffect(() => {
    const pressed = (/** @type {KeyboardEvent} */ event) => {
      if (typing(event) || /** @type {HTMLElement} */ (event.target).closest("[data-own-keys], dialog")) return;
      const d = drawing.current;
      const does = /** @type {Record<string, () => void>} */ ({
        f: () => d?.fit(), "+": () => d?.zoom(1), "=": () => d?.zoom(1), "-": () => d?.zoom(-1),
        ArrowLeft: () => d?.pan(-0.15, 0), ArrowRight: () => d?.pan(0.15, 0),
        ArrowUp: () => d?.pan(0, 0.15), ArrowDown: () => d?.pan(0, -0.15),
        "/": () => document.getElementById("find")?.focus(),
      })[event.key];
      const inMap = /** @type {HTMLElement} */ (event.target).closest(".map-box") !== null;
      if (!does || (event.key.startsWith("Arrow") && !inMap)) return;
      event.preventDefault();
      does();
    };
    window.addEventListener("keydown", pressed);
    return () => window.removeEventListener("keydown", pressed);
  }, []);
}

/** The map, or why there is none. */
export function MapView(/** @type {any} */ how) {
  const [broken, setBroken] = useState(() => drawnBy() === "nothing");
  if (broken) {
    return html`<div class="empty">This browser cannot draw the map: it has no WebGL. The tree and the table hold the
      same
      networks.</div>`;
  }
  return html`<${Drawn} ...${how} failed=${() => setBroken(true)} />`;
}

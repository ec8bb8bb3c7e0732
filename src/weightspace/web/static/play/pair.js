// @ts-check
// Two networks: the second one shuffled, aligned onto the first, and the straight line between them.

import { html, useEffect, useMemo, useRef, useState } from "../vendor/htm-preact.js";
import { useGame } from "./game.js";
import { Drawing } from "./network.js";
import { dots, Sheet, sized, useTheme } from "./paint.js";
import { Plot } from "./plot.js";
import { percent, short } from "./words.js";

const SIDE = 200;
const NOWHERE = { layer: 0, neuron: 0, input: 0 };

/** One picture with the training points. */
export function Picture(/** @type {{section: any, k?: number, points: Float32Array | undefined, label: string, size?: number}} */ { section, k = 0, points, label, size = SIDE }) {
  const canvas = useRef(null);
  const sheet = useMemo(() => new Sheet(), []);
  const look = useTheme();
  useEffect(() => {
    const to = sized(/** @type {any} */ (canvas.current), size, size);
    if (!section) return;
    sheet.take(section, k);
    sheet.draw(to, section.shape[1] - 1, 0, 0, size);
    if (points) dots(to, points, size, { radius: points.length > 900 ? 1.5 : 2.2 });
  }, [section, k, points, size, look]);
  return html`<canvas class="picture" ref=${canvas} style=${`width:${size}px;height:${size}px`} role="img"
    aria-label=${label}></canvas>`;
}

/** Losses on the line, measured again when a network has changed and training pauses. */
function useLine(/** @type {any} */ game, /** @type {boolean} */ two) {
  const [line, setLine] = useState(/** @type {any} */ (null));
  const [before, setBefore] = useState(/** @type {number | null} */ (null));
  const measured = useRef(-1);
  useEffect(() => {
    if (!two || game.playing || !game.frame || measured.current === game.version) return undefined;
    const timer = setTimeout(async () => {
      measured.current = game.version;
      const reply = await game.ask({ do: "line", points: 25 }, "Measuring the line\u2026");
      if (reply) setLine(reply.header);
    }, 250);
    return () => clearTimeout(timer);
  }, [two, game.playing, game.version]);
  return { line, before, setBefore };
}

/** Networks at t on both lines; the newest t wins. */
function useBetween(/** @type {any} */ game, /** @type {number} */ t, /** @type {any} */ line) {
  const [maps, setMaps] = useState(/** @type {any} */ ({}));
  const want = useRef({ t, busy: false, again: false });
  useEffect(() => {
    want.current.t = t;
    want.current.again = true;
    const go = async () => {
      if (want.current.busy) return;
      want.current.busy = true;
      while (want.current.again) {
        want.current.again = false;
        const asked = { do: "between", t: want.current.t, maps: "output", side: 48 };
        const plain = await game.ask({ ...asked, aligned: false });
        const aligned = plain && (await game.ask({ ...asked, aligned: true }));
        if (!aligned) break;
        setMaps({ plain, aligned });
      }
      want.current.busy = false;
    };
    if (line && !game.playing) go();
  }, [t, line]);
  return maps;
}

function Side(/** @type {any} */ { game, reply, title, barrier }) {
  const train = reply?.header.networks[0].train;
  return html`<figure class="half"><${Picture} section=${reply?.arrays.maps} points=${game.points.train}
    label=${title} />
    <figcaption><b>${title}</b>
      <br />loss ${short(train?.loss)}, ${percent(train?.accuracy)} right<br />barrier ${short(barrier)}</figcaption>
        </figure>`;
}

/** The losses on a line between two networks, as curves. */
export function spec(/** @type {any} */ line, /** @type {number} */ t) {
  return {
    lines: [
      { x: line.t, y: line.plain.train, colour: "danger", dash: [6, 4], name: "straight, as they are" },
      { x: line.t, y: line.aligned.train, colour: "accent", name: "after aligning" },
    ],
    mark: t, low: 0, xname: "from network 1 (0) to network 2 (1)",
  };
}

function Two(/** @type {{game: any}} */ { game }) {
  useGame(game, "frame");
  const [t, setT] = useState(0.5);
  const [told, setTold] = useState("");
  const { line, before, setBefore } = useLine(game, true);
  useEffect(() => {
    setTold("");
    setBefore(null);
  }, [game.made]);
  const maps = useBetween(game, t, line);
  const shuffle = async () => {
    const header = await game.act({ do: "shuffle", network: 2 });
    if (!header) return;
    setBefore(null);
    setTold(`Network 2 moved ${short(header.moved)} in weight space; its outputs changed by at most ${header.changed.toExponential(1)}. Group: ${header.group}.`);
  };
  const align = async () => {
    setBefore(line?.plain.barrier ?? null);
    const header = await game.act({ do: "align" });
    if (header) setTold(`Distance to network 1: ${short(header.before)} before, ${short(header.after)} after. Outputs changed by at most ${header.changed.toExponential(1)}.`);
  };
  const test = game.frame?.networks;
  const curve = useMemo(() => (line ? spec(line, t) : null), [line, t]);
  return html`
    <div class="two">${[0, 1].map((k) => html`<div><h3>Network ${k + 1} <span
      class="soft">loss ${short(test?.[k]?.train.loss)}, ${percent(test?.[k]?.train.accuracy)} right</span></h3>
      <${Drawing} game=${game} k=${k} height=${240} place=${NOWHERE} /></div>`)}</div>
    <div class="actions">
      <button id="shuffle" onClick=${shuffle}>Shuffle and rescale network 2</button>
      <button id="align" class="main" onClick=${align}>Align 2 onto 1</button>
      <button id="alone" title="Network 1 stays as it is" onClick=${() => game.set({ other: -1 })}>Remove network 2</button></div>
    <p class="told" role="status"
      id="pair-told">${told || "Shuffling moves neurons of a layer and rescales them: the drawing changes, the output does not."}</p>
    <h3>The straight line between them</h3>
    <p>Halfway between two good networks there is often a bad one: a barrier. Aligning the neurons first lowers it.${" "}
      ${line && html` <b id="barrier">Barrier now ${short(line.plain.barrier)}${before === null ? "" : `, before aligning ${short(before)}`}; aligned ${short(line.aligned.barrier)}.</b>`}</p>
    <label class="slider long"><span>Position between network 1 and network 2 <b>${t.toFixed(2)}</b></span>
      <input type="range" min="0" max="1" step="0.01" value=${t} aria-label="Position between the networks"
        onInput=${(/** @type {any} */ e) => setT(Number(e.target.value))} /></label>
    <div class="line">
      ${curve ? html`<${Plot} spec=${curve} height=${230}
        label="Training loss on the line between the networks, as they are and aligned" />`
        : html`<p class="soft blank">${game.playing ? "Pause training to measure the line." : "Measuring\u2026"}</p>`}
      <${Side} game=${game} reply=${maps.plain} title="As they are" barrier=${line?.plain.barrier} />
      <${Side} game=${game} reply=${maps.aligned} title="Aligned" barrier=${line?.aligned.barrier} />
    </div>`;
}

/** The tab of two networks. */
export function Pair(/** @type {{game: any}} */ { game }) {
  useGame(game);
  const two = game.state.other >= 0;
  return html`<p class="lead">Neurons of a layer can change places, and ReLU neurons can be rescaled, without any change of the function: many points of weight space are one network.</p>
    ${two ? html`<${Two} game=${game} />` : html`<div class="empty">
      <p>There is one network. A second one starts from another seed and learns from the same batches; both begin anew.</p>
      <button class="main" disabled=${!game.frame}
        onClick=${() => game.set({ other: (game.state.seed + 1) % 2147483648 })}>Add a second network</button></div>`}`;
}

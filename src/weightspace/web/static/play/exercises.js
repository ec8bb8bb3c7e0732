// @ts-check
// Exercises that run by themselves, and their results side by side.

import { html, useEffect, useRef, useState } from "../vendor/htm-preact.js";
import { useGame } from "./game.js";
import { Picture, spec } from "./pair.js";
import { Plot } from "./plot.js";
import { percent, short } from "./words.js";

/** What is shown of one state: the picture before and after its last change. */
function Result(/** @type {any} */ { result, points }) {
  const { state, before, after, lines, walk, paths, title } = result;
  const [old, now] = [before.frame.networks[0], after.frame.networks[0]];
  const noise = after.frame.noise?.[0];
  if (lines.length) {
    const last = lines[lines.length - 1];
    return html`<div class="result"><h3>${title}</h3>
      <p class="told">The barrier between them was <b>${short(lines[0].plain.barrier)}</b>; aligned it is <b>${short(last.plain.barrier)}</b>.
        The tab "Two networks" has more.</p>
      <div style="width:min(520px, 78vw)"><${Plot} spec=${spec(lines[0], 0.5)} height=${210}
        label="Training loss between the two networks, before and after aligning" /></div></div>`;
  }
  return html`<div class="result"><h3>${title}</h3>
    <div class="pictures"><figure><${Picture} section=${before.maps} points=${points} size=${150}
      label=${`Before, ${state.depth} layers`} />
        <figcaption>before${walk ? "" : html`<br />${percent(old.test.accuracy)} right`}</figcaption></figure>
      <figure><${Picture} section=${after.maps} points=${points} size=${150} label=${`After, ${state.depth} layers`} />
        <figcaption>after${walk ? "" : html`<br /><b>${percent(now.test.accuracy)} right</b>`}</figcaption></figure>
          </div>
    ${walk && html`<p class="told">The new points are ${percent(walk.learnt.accuracy)} right and the old ones ${percent(walk.kept.accuracy)}; the old outputs drifted by ${short(walk.drift)} of ${short(walk.budget)}.</p>`}
    ${paths.length > 1 && html`<p
      class="told">The first point turned on ${paths[0].own} neurons before training and ${paths[paths.length - 1].own} after;${" "}
      ${percent(paths[paths.length - 1].since)} of all neurons are for it as they were.</p>`}
    ${noise && html`<p class="told">The outputs moved by <b>${percent(noise.moved)}</b> (modelled ${percent(noise.model)}); loss ${short(old.train.loss)} \u2192 ${short(now.train.loss)}.</p>`}
  </div>`;
}

/** The fields of the state that an exercise leaves alone, as they are in a new playground. */
function others(/** @type {any} */ state, /** @type {any} */ defaults) {
  return Object.fromEntries(Object.entries(defaults).filter(([name]) => !(name in state) && !["tab", "shake"].includes(name)));
}

/** The tab of exercises. */
export function Exercises(/** @type {{game: any}} */ { game }) {
  useGame(game);
  const [every, setEvery] = useState(/** @type {any[]} */ ([]));
  const [running, setRunning] = useState("");
  const [share, setShare] = useState(0);
  const [results, setResults] = useState(/** @type {any} */ (null));
  const on = useRef(false);
  useEffect(() => {
    if (game.frame && !every.length) game.ask({ do: "examples" }).then((/** @type {any} */ reply) => reply && setEvery(reply.header.examples));
  }, [Boolean(game.frame)]);
  useEffect(() => () => { on.current = false; }, []);
  const frame = () => ({ frame: game.frame, maps: game.arrays.maps });
  const one = async (/** @type {any} */ exercise, /** @type {number} */ s) => {
    if (!(await game.set({ ...exercise.states[s], ...others(exercise.states[s], game.defaults) }))) return null;
    let before = frame();
    const [lines, paths] = [/** @type {any[]} */ ([]), /** @type {any[]} */ ([])];
    for (let k = 0; k < exercise.messages.length && on.current; k += 1) {
      const message = exercise.messages[k];
      if (message.do === "noise" || message.do === "align" || message.do === "keep") before = frame();
      const well = ["line", "paths"].includes(message.do) ? await game.ask(message) : await game.act(message);
      if (!well) return null;
      if (message.do === "noise") game.shaken = well.noise;
      if (message.do === "line") lines.push(well.header);
      if (message.do === "paths") paths.push(well.header);
      const share = (s + (k + 1) / exercise.messages.length) / exercise.states.length;
      setShare(share);
      game.said = `${exercise.title}: ${Math.round(100 * share)} % done.`;
      game.tell("setup");
    }
    if (!on.current) return null;
    const title = exercise.states.length > 1 ? `${game.state.depth} ${game.state.depth === 1 ? "layer" : "layers"}` : exercise.title;
    return { state: { ...game.state }, title, before, after: frame(), lines, paths, walk: game.frame.walk };
  };
  const run = async (/** @type {any} */ exercise) => {
    game.pause();
    on.current = true;
    setRunning(exercise.name);
    setShare(0);
    const found = [];
    for (let s = 0; s < exercise.states.length && on.current; s += 1) {
      const result = await one(exercise, s);
      if (!result) break;
      found.push(result);
      setResults({ name: exercise.name, found: [...found], points: game.points.train });
    }
    on.current = false;
    setRunning("");
    if (found.length === exercise.states.length) game.said = `Done: ${exercise.title}.`;
    game.tell("setup");
  };
  return html`<p class="lead">One click sets the network up, trains it and does the rest. Watch it above.</p>
    <div class="grid">${every.map((exercise) => html`<article class="card exercise" aria-label=${exercise.title}>
      <h3>${exercise.title}</h3><p>${exercise.text}</p>
      ${running === exercise.name ? html`<progress max="1" value=${share} aria-label="How far it is">
        </progress> <button onClick=${() => { on.current = false; }}>Stop</button>`
        : html`<button class="main" disabled=${Boolean(running)}
          onClick=${() => run(exercise)}>Do it</button>`}</article>`)}</div>
    ${results && html`<div class="results" role="status">${results.found.map((/** @type {any} */ r) => html`<${Result}
      result=${r} points=${results.points} />`)}</div>`}`;
}

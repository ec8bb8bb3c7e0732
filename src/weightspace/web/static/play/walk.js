// @ts-check
// A walk in weight space that learns new points while the old boundary stands still.

import { html, useEffect, useMemo, useRef, useState } from "../vendor/htm-preact.js";
import { floats, useGame } from "./game.js";
import { boundary, dots, outline, Sheet, sized, theme, useTheme } from "./paint.js";
import { Plot } from "./plot.js";
import { title } from "./setup.js";
import { percent, short } from "./words.js";

const SIDE = 300;

/** The zero line of the output of network 1 in a frame. */
function edge(/** @type {any} */ arrays) {
  const [, count, side] = arrays.maps.shape;
  return boundary(arrays.maps.data.subarray((count - 1) * side * side, count * side * side), side);
}

function Map(/** @type {any} */ { game, walk, show }) {
  useGame(game, "frame");
  const canvas = useRef(null);
  const sheet = useMemo(() => new Sheet(), []);
  const look = useTheme();
  useEffect(() => {
    if (!game.arrays.maps) return;
    const to = sized(/** @type {any} */ (canvas.current), SIDE, SIDE);
    sheet.take(game.arrays.maps, 0);
    sheet.draw(to, game.arrays.maps.shape[1] - 1, 0, 0, SIDE);
    if (!walk) return;
    if (show.points) {
      dots(to, walk.kept, SIDE, { radius: 2.6 });
      dots(to, walk.learnt, SIDE, { radius: 3, hollow: true });
    }
    outline(to, walk.edge, SIDE, theme().colours.danger, 5);
    outline(to, edge(game.arrays), SIDE, theme().colours.ink, 2);
  }, [game.arrays, walk, show, look]);
  return html`<canvas class="picture" ref=${canvas} style=${`width:${SIDE}px;height:${SIDE}px`} role="img"
    aria-label="Output during the walk: the old boundary thick and red, the one now thin"></canvas>`;
}

function curves(/** @type {any[]} */ steps) {
  const x = steps.map((s) => s.step);
  return {
    losses: {
      lines: [
        { x, y: steps.map((s) => s.learnt.loss), colour: "accent", name: "loss on the new points" },
        { x, y: steps.map((s) => s.kept.loss), colour: "warn", dash: [6, 4], name: "loss on the old points" },
      ], low: 0, xname: "steps of the walk",
    },
    drift: {
      lines: [
        { x, y: steps.map((s) => s.drift), colour: "danger", name: "drift of the old outputs" },
        { x: [x[0], x[x.length - 1]], y: [steps[0].budget, steps[0].budget], colour: "soft", dash: [2, 3], name: "budget" },
      ], low: 0, xname: "steps of the walk",
    },
  };
}

function told(/** @type {any} */ walk, /** @type {boolean} */ over) {
  if (!walk) return "Train the network first, then begin the walk.";
  if (over) return "The walk has ended, and its old boundary is no longer drawn. Begin again to keep what the network knows now.";
  return "Thick red: the boundary before the walk. Thin: now. Full dots are kept, hollow ones are learnt.";
}

/** Why a walk goes no further. */
function ended(/** @type {any} */ last, /** @type {boolean} */ over) {
  if (last.ended) return `The walk ended: ${last.ended}.`;
  return over ? "The walk has ended: the network was trained or changed." : "";
}

/** The tab of the walk. */
export function Walk(/** @type {{game: any}} */ { game }) {
  useGame(game);
  const [how, setHow] = useState({ learn: "xor", where: "halves", budget: 0.1 });
  const [walk, setWalk] = useState(/** @type {any} */ (null));
  const [steps, setSteps] = useState(/** @type {any[]} */ ([]));
  const [going, setGoing] = useState(false);
  const [show, setShow] = useState({ points: true });
  const on = useRef(false);
  const over = game.walk === "over";
  useEffect(() => () => { on.current = false; }, []);
  const go = async () => {
    on.current = true;
    setGoing(true);
    while (on.current && game.walk === "on") {
      const header = await game.act({ do: "walk", steps: 1 });
      if (!header) break;
      setSteps((/** @type {any[]} */ before) => [...before, header.walk]);
      if (header.walk.ended || header.walk.step >= 200) break;
    }
    on.current = false;
    setGoing(false);
  };
  const begin = async () => {
    game.pause();
    const header = await game.act({ do: "keep", ...how });
    const goal = header && (await game.ask({ do: "goal" }));
    if (!goal) return;
    setWalk({ edge: edge(game.arrays), kept: floats(goal, "kept"), learnt: floats(goal, "learnt") });
    setSteps([header.walk]);
    await go();
  };
  const last = steps[steps.length - 1];
  const plots = useMemo(() => (steps.length ? curves(steps) : null), [steps]);
  const choose = (/** @type {string} */ name,
    /** @type {(text: string) => any} */ as = String) => (/** @type {any} */ e) => setHow({ ...how, [name]: as(e.target.value) });
  return html`<p class="lead">Keep what the network knows and teach it something new: each step is the one that helps the new points most and moves the old outputs least.</p>
    <div class="actions">
      <span>Keep <b>${title(game.state.data ?? "")}</b></span>
      <label>learn <select aria-label="What to learn" value=${how.learn} onChange=${choose("learn")}>
        ${(game.limits.data?.values ?? []).map((/** @type {string} */ name) => html`<option value=${name}>
          ${title(name)}</option>`)}</select></label>
      <label>where <select aria-label="Where the points are" value=${how.where} onChange=${choose("where")}>
        <option value="halves">old on the left half, new on the right</option><option
          value="all">both on the whole square</option></select></label>
      <label>drift budget <select aria-label="Drift budget" value=${how.budget} onChange=${choose("budget", Number)}>
        ${[0.01, 0.03, 0.1, 0.3, 1].map((n) => html`<option value=${n}>${n}</option>`)}</select></label>
      <button class="main" id="walk" disabled=${!game.frame || going} onClick=${begin}>
        ${walk ? "Begin again" : "Begin the walk"}</button>
      ${going ? html`<button onClick=${() => { on.current = false; }}>Stop</button>`
        : walk && !over && !last?.ended && html`<button onClick=${go}>Go on</button>`}
    </div>
    <div class="line">
      <div><${Map} game=${game} walk=${over ? null : walk} show=${show} />
        <p class="soft caption">${told(walk, over)}</p>
        <label class="check"><input type="checkbox" checked=${show.points}
          onChange=${() => setShow({ points: !show.points })} /> show the points</label></div>
      ${plots ? html`<div class="grow"><p role="status"
        id="walk-told">Step ${last.step}: new points ${percent(last.learnt.accuracy)} right, old points ${percent(last.kept.accuracy)} right,
          drift ${short(last.drift)} of ${short(last.budget)}. ${ended(last, over)}</p>
        <div class="two"><${Plot} spec=${plots.losses} height=${220}
          label="Losses on new and old points over the walk" />
        <${Plot} spec=${plots.drift} height=${220} label="Drift of the old outputs over the walk, and the budget" />
          </div></div>`
        : html`<p class="soft blank">Both losses and the drift appear here.</p>`}
    </div>`;
}

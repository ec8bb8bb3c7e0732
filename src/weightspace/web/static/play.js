// @ts-check
// The playground: data, network and output at first sight; further tools in tabs below.

import { html, useEffect, useMemo } from "./vendor/htm-preact.js";
import { Digits } from "./play/digits.js";
import { Exercises } from "./play/exercises.js";
import { Game, useGame } from "./play/game.js";
import { Inside } from "./play/inside.js";
import { Network } from "./play/network.js";
import { Losses, Output, RedButton } from "./play/output.js";
import { Pair } from "./play/pair.js";
import { Data, Form, Learning } from "./play/setup.js";
import { Shake } from "./play/shake.js";
import { Walk } from "./play/walk.js";
import { show, typing } from "./shell.js";

const TABS = /** @type {[string, string, any][]} */ ([
  ["shake", "Shake it", Shake],
  ["two", "Two networks", Pair],
  ["walk", "Walk", Walk],
  ["inside", "Inside", Inside],
  ["digits", "Digits", Digits],
  ["exercises", "Exercises", Exercises],
]);

const KEYS = /** @type {[string, string][]} */ ([
  ["space", "train, or pause"],
  ["\u2192", "one training step"],
  ["n", "add noise"],
  ["u", "undo the last noise, edit, shuffle or alignment"],
  ["r", "new weights from the same seed"],
]);

/** Keys that do something here, unless a control that has the focus wants them. */
function useKeys(/** @type {Game} */ game) {
  useEffect(() => {
    const pressed = (/** @type {KeyboardEvent} */ event) => {
      const at = /** @type {HTMLElement} */ (event.target);
      if (typing(event) || document.querySelector("dialog[open]") || !game.frame) return;
      const control = at.closest("button, a, summary") !== null;
      const acts = /** @type {Record<string, () => void>} */ ({
        n: () => game.shake(),
        u: () => game.undo(),
        r: () => game.reset(),
      });
      if (!control) acts[" "] = () => (game.playing ? game.pause() : game.play());
      if (at.getAttribute("role") !== "tab" && !at.classList.contains("scroll")) acts.ArrowRight = () => game.once();
      const act = acts[event.key];
      if (!act || (event.repeat && event.key !== "ArrowRight")) return;
      event.preventDefault();
      act();
    };
    window.addEventListener("keydown", pressed);
    return () => window.removeEventListener("keydown", pressed);
  }, [game]);
}

function Count(/** @type {{game: Game}} */ { game }) {
  useGame(game, "frame");
  const { frame } = game;
  return html`<p class="count" id="count" data-step=${frame?.step ?? -1} data-fps=${game.fps.toFixed(1)}>
    Epoch <b>${(frame?.epoch ?? 0).toFixed(1)}</b><br /><span
      class="soft">step ${(frame?.step ?? 0).toLocaleString("en")}</span></p>`;
}

function Controls(/** @type {{game: Game}} */ { game }) {
  useGame(game);
  const { playing } = game;
  return html`<section class="card controls" aria-label="Training">
    <button id="play" class="main go" disabled=${!game.frame} aria-pressed=${playing}
      onClick=${() => (playing ? game.pause() : game.play())}>
      <svg width="16" height="16" viewBox="0 0 16 16" aria-hidden="true"><path fill="currentColor"
        d=${playing ? "M3 2h4v12H3zM9 2h4v12H9z" : "M4 2l10 6-10 6z"} /></svg>
      ${playing ? "Pause" : "Train"}</button>
    <button disabled=${!game.frame} onClick=${() => game.once()}>One step</button>
    <button id="reset" disabled=${!game.frame} onClick=${() => game.reset()}>Reset</button>
    <${Count} game=${game} />
    <${Learning} game=${game} />
  </section>`;
}

function Status(/** @type {{game: Game}} */ { game }) {
  useGame(game);
  if (game.closed) {
    return html`<div class="status bad" role="alert">${game.closed} <button
      onClick=${() => game.again()}>Open it again</button></div>`;
  }
  return html`<div class=${"status" + (game.error ? " bad" : "")} id="status" role="status" aria-live="polite">
    ${game.error || game.busy || game.said || (game.frame ? "Press Train, wait until the colours fit the points, then press the red button." : "Connecting\u2026")}</div>`;
}

function Tabs(/** @type {{game: Game}} */ { game }) {
  useGame(game);
  const open = TABS.find(([name]) => name === game.page.tab) ?? TABS[0];
  const turn = (/** @type {any} */ event) => {
    const by = event.key === "ArrowRight" ? 1 : event.key === "ArrowLeft" ? -1 : 0;
    if (!by) return;
    event.preventDefault();
    const next = TABS[(TABS.indexOf(open) + by + TABS.length) % TABS.length][0];
    game.choose({ tab: next });
    document.getElementById("tab-" + next)?.focus();
  };
  return html`<div class="tabs" role="tablist" aria-label="Tools" onKeyDown=${turn}>
      ${TABS.map(([name, title]) => html`<button role="tab" id=${"tab-" + name} aria-selected=${name === open[0]}
        aria-controls="tool"
        tabindex=${name === open[0] ? 0 : -1} onClick=${() => game.choose({ tab: name })}>${title}</button>`)}
    </div>
    <section class="card tool" id="tool" role="tabpanel" aria-labelledby=${"tab-" + open[0]}><${open[2]}
      game=${game} /></section>`;
}

function Play() {
  const game = useMemo(() => new Game(), []);
  useKeys(game);
  return html`<div class="play">
    <h1>Playground</h1>
    <p class="lead">Train a small network to tell orange points from blue ones, then see how much noise its weights can bear.</p>
    <${Controls} game=${game} />
    <${Status} game=${game} />
    <div class="stage">
      <${Data} game=${game} />
      <${Network} game=${game} form=${html`<${Form} game=${game} />`} />
      <section class="card output" aria-label="Output">
        <${Output} game=${game} /><${RedButton} game=${game} /></section>
      <section class="card curves" aria-label="Losses"><${Losses} game=${game} /></section>
    </div>
    <${Tabs} game=${game} />
  </div>`;
}

show(Play, { keys: KEYS });

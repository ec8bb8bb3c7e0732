// @ts-check
// The playground that is open: its set-up, its last frame, and everything that can be done with it.

import { useEffect, useState } from "../vendor/htm-preact.js";
import { fromAddress, toAddress, word } from "./address.js";
import { percent } from "./words.js";
import { Wire } from "./wire.js";

/** @typedef {import("./wire.js").Reply} Reply */

const DATA = ["data", "noise", "points", "test", "seed"];
const DRAWN = ["depth", "width", "activation", "seed", "other"];
const SLOW = ["spectral", "natural"];
const TARGET = 38; // milliseconds of a frame
const LONGEST = 600; // points of the loss curves

/** What is drawn until the engine has told its own limits and state. */
const FIRST = {
  limits: /** @type {Record<string, any>} */ ({
    data: { values: ["circle", "xor", "gauss", "spiral", "checkerboard"] }, activation: { values: ["tanh"] }, algorithm: { values: ["adam"] },
  }),
  state: /** @type {Record<string, any>} */ ({
    data: "circle", noise: 0.05, points: 400, test: 0.5, depth: 3, width: 8, activation: "tanh", algorithm: "adam", rate: 0.01, batch: 16,
    seed: 0, other: -1,
  }),
};

export class Game {
  constructor() {
    this.defaults = /** @type {Record<string, any>} */ ({ tab: "shake", shake: 20 });
    this.limits = FIRST.limits;
    this.state = FIRST.state;
    this.page = { tab: word("tab") || "shake", shake: amount(word("shake")) };
    /** @type {any} */
    this.frame = null;
    /** @type {Reply["arrays"]} */
    this.arrays = {};
    /** @type {Record<string, Float32Array>} */
    this.points = {};
    this.losses = /** @type {{step: number, train: number, test: number}[]} */ ([]);
    this.playing = false;
    this.busy = "";
    this.error = "";
    this.said = "";
    this.closed = "";
    this.lost = false;
    this.version = 0; // of the weights
    this.made = 0; // how often networks or data were made anew
    this.walk = /** @type {"" | "on" | "over"} */ (""); // on until training or another change ends it
    this.fps = 0;
    this.steps = 4; // of a frame, found from how long they take
    /** @type {any} */
    this.shaken = null;
    /** @type {any} */
    this.proof = null;
    this.shown = -1; // the picture that is enlarged; -1: the output
    /** @type {any} */
    this.lit = null;
    this.hears = { frame: new Set(), setup: new Set() };
    this.due = 0;
    this.wire = new Wire({
      open: () => this.opened(),
      closed: () => this.away(),
      closing: (why) => {
        this.closed = why;
        this.playing = false;
        this.tell("setup");
      },
    });
  }

  tell(/** @type {"frame" | "setup"} */ what) {
    if (what === "setup") for (const heard of this.hears.setup) heard();
    if (this.due) return;
    this.due = requestAnimationFrame(() => {
      this.due = 0;
      for (const heard of this.hears.frame) heard();
    });
  }

  // ------------------------------------------------------------ the line

  async opened() {
    try {
      const told = (await this.wire.ask({ do: "state" })).header;
      this.limits = told.limits;
      this.defaults = { ...told.defaults, tab: "shake", shake: 20 };
      const wanted = this.frame ? this.state : fromAddress(told.limits);
      this.state = told.state;
      const well = await this.set(wanted, true);
      if (!well) await this.set(told.defaults, true, this.error);
      if (this.lost) this.said = "The server was away; the networks were drawn anew.";
      this.lost = false;
    } catch (error) {
      this.error = sentence(error);
    }
    this.tell("setup");
  }

  away() {
    this.playing = false;
    this.busy = "";
    this.endWalk();
    this.lost = this.frame !== null;
    if (this.lost) this.said = "The connection is lost; waiting for the server.";
    this.error = "";
    this.tell("setup");
  }

  again() {
    this.closed = "";
    this.lost = this.frame !== null;
    this.wire.dial();
    this.tell("setup");
  }

  // ------------------------------------------------------------ questions

  /** Ask for a frame and show it; the header, or null where the engine refused. */
  async act(/** @type {any} */ message) {
    try {
      const reply = await this.wire.ask({ ...message, maps: "all", weights: true, side: this.playing ? 36 : 56 });
      this.take(reply);
      return reply.header;
    } catch (error) {
      if (this.late(message)) return null;
      this.refused(error);
      this.playing = false;
      this.tell("setup");
      return null;
    }
  }

  /** Whether a question is about a walk that has ended while it was under way: then no answer is no error. */
  late(/** @type {any} */ message) {
    return ["walk", "goal"].includes(message.do) && this.walk === "over";
  }

  endWalk() {
    if (this.walk !== "on") return;
    this.walk = "over";
    this.tell("setup");
  }

  /** Ask for something else; the reply, or null. `busy`: what the page says meanwhile. */
  async ask(/** @type {any} */ message, busy = "") {
    try {
      this.busy = busy;
      if (busy) this.tell("setup");
      return await this.wire.ask(message);
    } catch (error) {
      if (!this.late(message)) this.refused(error);
      return null;
    } finally {
      this.busy = "";
      this.tell("setup");
    }
  }

  /** Say why not; that the line is broken is said elsewhere. */
  refused(/** @type {unknown} */ error) {
    if (this.wire.ready) this.error = sentence(error);
  }

  take(/** @type {Reply} */ reply) {
    const { header } = reply;
    this.frame = header;
    this.arrays = reply.arrays;
    if (header.reply !== "show") {
      this.version += 1;
      this.error = header.diverged ?? "";
      const { train, test } = header.networks[0];
      if (header.step === 0 && ["set", "reset"].includes(header.reply)) {
        this.losses = [];
        this.made += 1;
      }
      if (header.walk) this.walk = "on";
      else this.endWalk();
      this.losses.push({ step: header.step, train: train.loss, test: test.loss });
      if (this.losses.length > LONGEST) this.losses = this.losses.filter((_, k) => k % 2 === 0 || k > LONGEST - 40);
      if (!["noise", "step"].includes(header.reply)) this.shaken = this.proof = null;
    }
    this.tell("frame");
  }

  // ------------------------------------------------------------ set-up

  async set(/** @type {Record<string, any>} */ fields, first = false, before = "") {
    const header = await this.act({ do: "set", ...fields });
    if (!header) return false;
    const formed = ["depth", "width"].some((name) => name in fields && fields[name] !== this.state[name]);
    this.state = { ...this.state, ...fields };
    if (formed) this.shown = -1;
    if (!first && !this.playing) this.said = changed(fields) || this.said;
    this.error = before;
    this.lit = null;
    if (first || DATA.some((name) => name in fields)) {
      this.made += 1;
      const reply = await this.ask({ do: "data" });
      if (reply) this.points = { train: floats(reply, "train"), test: floats(reply, "test") };
    }
    this.kept();
    return true;
  }

  /** The page's own choices: its tab, the size of the noise. */
  choose(/** @type {Partial<Game["page"]>} */ what) {
    this.page = { ...this.page, ...what };
    this.kept();
  }

  kept() {
    if (this.frame) toAddress({ ...this.state, ...this.page }, this.defaults);
    this.tell("setup");
  }

  // ------------------------------------------------------------ training

  async play() {
    if (this.playing || !this.frame) return;
    this.playing = true;
    this.said = "Training.";
    this.tell("setup");
    let last = performance.now();
    while (this.playing) {
      await new Promise(requestAnimationFrame);
      if (!this.playing) break;
      const slow = SLOW.includes(this.state.algorithm);
      const begun = performance.now();
      const header = await this.act({ do: "step", steps: slow ? Math.min(this.steps, 2) : this.steps });
      const now = performance.now();
      this.steps = paced(this.steps, now - begun);
      this.fps = this.fps ? 0.9 * this.fps + 100 / (now - last) : 1000 / (now - last);
      last = now;
      if (!header || header.diverged) this.playing = false;
    }
    this.fps = 0;
    await this.act({ do: "show" });
    if (!this.error && this.said === "Training.") this.said = `Paused at step ${this.frame?.step ?? 0}.`;
    this.tell("setup");
  }

  pause() {
    this.playing = false;
    this.tell("setup");
  }

  async once() {
    this.pause();
    await this.act({ do: "step", steps: 1 });
  }

  async reset() {
    this.pause();
    this.lit = null;
    if (await this.act({ do: "reset" })) this.said = "New weights, from the same seed.";
    this.tell("setup");
  }

  async edit(/** @type {any} */ where, /** @type {number} */ value) {
    const header = await this.act({ do: "edit", ...where, value });
    if (header) this.said = `Changed to ${value}.`;
    this.tell("setup");
  }

  // ------------------------------------------------------------ the red button

  /** Noise, with training paused, so that its effect stays to be seen. */
  async shake() {
    this.pause();
    this.said = "Adding noise\u2026";
    this.tell("setup");
    const header = await this.act({ do: "noise", percent: this.page.shake });
    if (!header) return;
    this.shaken = header.noise;
    this.proof = null;
    const one = header.noise[0];
    const now = header.networks[0].test.accuracy;
    this.said = `Noise of ${this.page.shake} % moved the outputs by ${percent(one.moved)}; test accuracy went from `
      + `${percent(one.before.test.accuracy)} to ${percent(now)}.`;
    this.tell("setup");
    const proof = await this.ask({ do: "certificate" });
    if (proof && this.shaken === header.noise) this.proof = proof.header;
    this.tell("setup");
  }

  async undo() {
    if (await this.act({ do: "undo" })) this.said = "Back to the weights before the last change.";
    this.tell("setup");
  }

  // ------------------------------------------------------------ paths

  async light(/** @type {number} */ example) {
    const reply = await this.ask({ do: "paths", example });
    this.lit = reply ? { ...reply.header, example } : null;
    this.tell("frame");
    return this.lit;
  }
}

/** What a change of the set-up did, where it made something anew. */
function changed(/** @type {Record<string, any>} */ fields) {
  if (fields.other === -1 && Object.keys(fields).length === 1) return "Network 2 is gone; network 1 is as it was.";
  if (fields.other >= 0) return "Both networks begin anew, from their seeds.";
  if (DRAWN.some((name) => name in fields)) return "New weights, drawn from the seed.";
  return DATA.some((name) => name in fields) ? "New points; the weights are as they were." : "";
}

function amount(/** @type {string} */ text) {
  const value = Number(text);
  return text && value >= 0 && value <= 500 ? value : 20;
}

/** Steps for the next frame, so that it takes about the time that a frame should. */
function paced(/** @type {number} */ steps, /** @type {number} */ took) {
  if (took > 1.3 * TARGET) return Math.max(1, Math.floor(steps * 0.8));
  return took < TARGET ? Math.min(50, steps + 1) : steps;
}

export function floats(/** @type {Reply} */ reply, /** @type {string} */ name) {
  return /** @type {Float32Array} */ (reply.arrays[name].data);
}

/** What went wrong, as a sentence with a capital and a full stop. */
export function sentence(/** @type {unknown} */ error) {
  const text = error instanceof Error ? error.message : String(error);
  return text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
}

/** Draw a component anew at every frame, or when the set-up changes. */
export function useGame(/** @type {Game} */ game, /** @type {"frame" | "setup"} */ what = "setup") {
  const [, again] = useState(0);
  useEffect(() => {
    const heard = () => again((/** @type {number} */ n) => n + 1);
    game.hears[what].add(heard);
    return () => game.hears[what].delete(heard);
  }, [game, what]);
  return game;
}

// @ts-check
// What goes over the socket: one question at a time, and answers with a header and arrays.

import { connect } from "../connection.js";

/** @typedef {{header: any, arrays: Record<string, {data: Uint8Array | Float32Array, shape: number[]}>}} Reply */

/** An answer from its bytes: the length of the header, the header as JSON, the arrays. */
export function read(/** @type {ArrayBuffer} */ buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const arrays = /** @type {Reply["arrays"]} */ ({});
  for (const { name, type, shape, offset } of header.sections ?? []) {
    const count = shape.reduce((/** @type {number} */ a, /** @type {number} */ b) => a * b, 1);
    const Kind = type === "uint8" ? Uint8Array : Float32Array;
    arrays[name] = { data: new Kind(buffer, 4 + length + offset, count), shape };
  }
  return /** @type {Reply} */ ({ header, arrays });
}

/** A line to the engine. `ask` is answered in order; what waits when the line breaks is refused. */
export class Wire {
  /** @param {{open: () => void, closed: () => void, closing: (why: string) => void}} on */
  constructor(on) {
    this.on = on;
    /** @type {{message: any, resolve: (reply: Reply) => void, reject: (error: Error) => void}[]} */
    this.queue = [];
    /** @type {Wire["queue"][number] | null} */
    this.asked = null;
    this.ready = false;
    this.dial();
  }

  dial() {
    this.line = connect("/socket/play", {
      open: () => {
        this.ready = true;
        this.on.open();
      },
      frame: (buffer) => this.answered((question) => question.resolve(read(buffer))),
      data: (said) => {
        if (said.closing) this.hangUp(said.error);
        else this.answered((question) => question.reject(new Error(said.error)));
      },
      closed: () => {
        this.drop();
        this.on.closed();
      },
    });
  }

  /** The server closed the line on purpose: it is not opened again before somebody asks for it. */
  hangUp(/** @type {string} */ why) {
    this.line?.close();
    this.drop();
    this.on.closing(why);
  }

  drop() {
    const left = this.asked ? [this.asked, ...this.queue] : this.queue;
    this.ready = false;
    this.asked = null;
    this.queue = [];
    for (const question of left) question.reject(new Error("The server went away before it answered."));
  }

  answered(/** @type {(question: Wire["queue"][number]) => void} */ how) {
    const question = this.asked;
    this.asked = null;
    if (question) how(question);
    this.next();
  }

  next() {
    if (!this.ready || this.asked || !this.queue.length) return;
    this.asked = this.queue.shift() ?? null;
    this.line?.send(this.asked?.message);
  }

  /** Ask one question; the promise fails with the sentence of the engine where it refuses. */
  ask(/** @type {any} */ message) {
    return new Promise((/** @type {(reply: Reply) => void} */ resolve, reject) => {
      if (!this.ready) {
        reject(new Error("The server does not answer yet."));
        return;
      }
      this.queue.push({ message, resolve, reject });
      this.next();
    });
  }
}

// @ts-check
// Asking the server: the token, calls, and sockets that come back after the server was away.

const KEY = "weightspace-token";

/** The token from the address, which is then taken out of it; else the one kept from before. */
export function token() {
  const given = new URLSearchParams(location.hash.slice(1));
  const found = given.get("token");
  if (found !== null) {
    localStorage.setItem(KEY, found);
    given.delete("token");
    const rest = given.toString();
    history.replaceState(null, "", location.pathname + location.search + (rest ? "#" + rest : ""));
  }
  return localStorage.getItem(KEY) ?? "";
}

/** Keep the token of an address that somebody pasted; true if there is one in it. */
export function paste(/** @type {string} */ address) {
  const found = /[#&]token=([A-Za-z0-9_-]+)/.exec(address) ?? /^\s*([A-Za-z0-9_-]{16,})\s*$/.exec(address);
  if (found) localStorage.setItem(KEY, found[1]);
  return found !== null;
}

/** An answer that is not the one hoped for: one sentence, and the status (0: no answer at all). */
export class Refused extends Error {
  constructor(/** @type {string} */ why, /** @type {number} */ status) {
    super(why);
    this.status = status;
  }
}

/** @type {Set<(state: "well" | "away" | "token") => void>} */
const watchers = new Set();
/** Be told whether the server answers: "well", "away", or "token" where it wants another token. */
export function watch(/** @type {(state: "well" | "away" | "token") => void} */ told) {
  watchers.add(told);
  return () => watchers.delete(told);
}
export function tell(/** @type {"well" | "away" | "token"} */ state) {
  for (const told of watchers) told(state);
}

/**
 * Ask the server: api("/api/atlas"), api("/api/jobs", {method: "POST", json: {...}}), or with `body` a file.
 * @param {string} path
 * @param {{method?: string, json?: unknown, body?: Blob}} [how]
 * @returns {Promise<any>}
 */
export async function api(path, how = {}) {
  const headers = /** @type {Record<string, string>} */ ({ Authorization: "Bearer " + token() });
  let body;
  if (how.json !== undefined) {
    headers["Content-Type"] = "application/json";
    body = JSON.stringify(how.json);
  } else if (how.body) {
    headers["Content-Type"] = "application/octet-stream";
    body = how.body;
  }
  let answer;
  try {
    answer = await fetch(path, { method: how.method ?? "GET", headers, body, credentials: "omit" });
  } catch {
    tell("away");
    throw new Refused("The server does not answer.", 0);
  }
  tell(answer.status === 401 ? "token" : "well");
  const said = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Refused(said.error ?? `The server answered ${answer.status}.`, answer.status);
  return said;
}

/**
 * A socket that is opened again when it breaks. `on.open` runs each time it is open; `on.data` gets objects, `on.frame`
 * gets binary messages. `send` returns false while the socket is closed.
 * @param {string} path
 * @param {{open?: () => void, data?: (message: any) => void, frame?: (frame: ArrayBuffer) => void, closed?: () => void}} on
 */
export function connect(path, on) {
  /** @type {WebSocket | null} */
  let socket = null;
  let wait = 300;
  let ended = false;
  let timer = 0;
  function open() {
    const address = (location.protocol === "https:" ? "wss://" : "ws://") + location.host + path;
    socket = new WebSocket(address, ["weightspace", "token." + (token() || "none")]);
    socket.binaryType = "arraybuffer";
    socket.onopen = () => {
      wait = 300;
      tell("well");
      on.open?.();
    };
    socket.onmessage = (event) => {
      if (typeof event.data === "string") on.data?.(JSON.parse(event.data));
      else on.frame?.(event.data);
    };
    socket.onclose = () => {
      socket = null;
      if (ended) return;
      on.closed?.();
      api("/api/server").catch(() => {});
      timer = window.setTimeout(open, wait);
      wait = Math.min(wait * 2, 5000);
    };
  }
  open();
  return {
    send(/** @type {unknown} */ message) {
      if (socket?.readyState !== WebSocket.OPEN) return false;
      socket.send(JSON.stringify(message));
      return true;
    },
    close() {
      ended = true;
      clearTimeout(timer);
      socket?.close();
    },
  };
}

// @ts-check
// The frame of every page: its bar, the notice when the server is away, help, light and dark.

import { html, render, useEffect, useState } from "./vendor/htm-preact.js";
import { api, paste, watch } from "./connection.js";

const PAGES = [
  ["/", "Home"],
  ["/play", "Playground"],
  ["/atlas", "Atlas"],
  ["/reports", "Reports"],
];
const THEMES = ["auto", "light", "dark"];

function applied(/** @type {string} */ theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  window.dispatchEvent(new Event("themechange"));
}

function Theme() {
  const [theme, setTheme] = useState(localStorage.getItem("weightspace-theme") ?? "auto");
  useEffect(() => applied(theme), [theme]);
  const change = (/** @type {any} */ event) => {
    localStorage.setItem("weightspace-theme", event.target.value);
    setTheme(event.target.value);
  };
  return html`<label>Theme <select value=${theme} onChange=${change}>
    ${THEMES.map((name) => html`<option value=${name}>${name}</option>`)}
  </select></label>`;
}

function Notice() {
  const [state, setState] = useState("well");
  const [text, setText] = useState("");
  useEffect(() => watch(setState), []);
  useEffect(() => {
    if (state !== "away") return undefined;
    const timer = setInterval(() => api("/api/server").catch(() => {}), 1500);
    return () => clearInterval(timer);
  }, [state]);
  if (state === "away") {
    return html`<div class="notice error" role="alert">The server does not answer. Start it again with${" "}
      <code>weightspace serve</code>; this page goes on when it is back.</div>`;
  }
  if (state !== "token") return null;
  const use = (/** @type {any} */ event) => {
    event.preventDefault();
    if (paste(text)) location.reload();
  };
  return html`<div class="notice" role="alert">
    <span>The server wants a token. Open the address that <code>weightspace serve</code> printed, or paste it here.</span>
    <form onSubmit=${use}>
      <input aria-label="Address with token" value=${text} onInput=${(/** @type {any} */ e) => setText(e.target.value)} />
      <button>Use it</button>
    </form>
  </div>`;
}

function Help(/** @type {{keys: [string, string][], close: () => void}} */ { keys, close }) {
  useEffect(() => {
    const dialog = /** @type {HTMLDialogElement} */ (document.getElementById("help"));
    dialog.showModal();
  }, []);
  return html`<dialog id="help" onClose=${close} aria-label="Keys">
    <h2>Keys</h2>
    <table><tbody>
      ${[...keys, ["?", "this help"]].map(([key, what]) => html`<tr><td><kbd>${key}</kbd></td><td>${what}</td></tr>`)}
    </tbody></table>
    <p></p>
    <button onClick=${() => /** @type {any} */ (document.getElementById("help")).close()}>Close</button>
  </dialog>`;
}

/** Whether a key was typed into a field, where it is text and no command. */
export function typing(/** @type {KeyboardEvent} */ event) {
  const at = /** @type {HTMLElement} */ (event.target);
  return event.ctrlKey || event.metaKey || event.altKey || ["INPUT", "TEXTAREA", "SELECT"].includes(at.tagName);
}

function Shell(/** @type {{content: any, wide: boolean, keys: [string, string][]}} */ { content, wide, keys }) {
  const [help, setHelp] = useState(false);
  useEffect(() => {
    const pressed = (/** @type {KeyboardEvent} */ event) => {
      if (event.key === "?" && !typing(event)) setHelp(true);
    };
    window.addEventListener("keydown", pressed);
    return () => window.removeEventListener("keydown", pressed);
  }, []);
  return html`
    <nav class="bar" aria-label="Pages">
      <a class="mark" href="/">weightspace</a>
      ${PAGES.map(([path, name]) => html`
        <a class="page" href=${path} aria-current=${path === location.pathname ? "page" : undefined}>${name}</a>`)}
      <span class="space"></span>
      <${Theme} />
      <button class="plain" onClick=${() => setHelp(true)} aria-label="Help">?</button>
    </nav>
    <${Notice} />
    <main class=${wide ? "wide" : ""}>${html`<${content} />`}</main>
    ${help && html`<${Help} keys=${keys} close=${() => setHelp(false)} />`}`;
}

/**
 * Show a page: its content as a component, the keys that it knows, and whether it takes the whole width.
 * @param {any} content
 * @param {{wide?: boolean, keys?: [string, string][]}} [how]
 */
export function show(content, how = {}) {
  applied(localStorage.getItem("weightspace-theme") ?? "auto");
  const root = /** @type {HTMLElement} */ (document.getElementById("page"));
  render(html`<${Shell} content=${content} wide=${how.wide ?? false} keys=${how.keys ?? []} />`, root);
}

// @ts-check
// The choice of data for a job: one that was named on the command line, or a file that is sent.

import { html, useEffect, useState } from "../vendor/htm-preact.js";
import { api } from "../connection.js";
import { size } from "./words.js";

const MOST = 64 << 20; // bytes of a file that the server takes

/** What an upload holds, in words. */
export function held(/** @type {any} */ upload) {
  if (upload.kind === "network") {
    const same = upload.networks === 0 ? "no network here has its names and shapes"
      : `${upload.networks} networks here have its names and shapes`;
    return `${upload.tensors} tensors, ${upload.numbers.toLocaleString("en")} numbers; ${same}`;
  }
  const labels = upload.labels ? `labels: ${upload.labels}` : "no labels";
  return `${upload.examples.toLocaleString("en")} examples of ${(upload.inputs ?? []).join(" \u00d7 ") ||
    "one number"}, ${labels}`;
}

/** Uploads that the server keeps, and how one is sent. */
export function useUploads(/** @type {string} */ kind) {
  const [uploads, setUploads] = useState(/** @type {any[]} */ ([]));
  const [sending, setSending] = useState("");
  const [error, setError] = useState("");
  useEffect(() => {
    api("/api/uploads").then((said) => setUploads(said.uploads.filter((/** @type {any} */ u) =>
      u.kind === kind)), () => {});
  }, []);
  /** @returns {Promise<any>} the upload, or null where it was refused. */
  const send = async (/** @type {File} */ file) => {
    setError("");
    if (file.size > MOST) {
      setError(`${file.name} is ${size(file.size)}; the server takes ${size(MOST)} at most.`);
      return null;
    }
    setSending(file.name);
    try {
      const upload = await api(`/api/uploads?name=${encodeURIComponent(file.name.slice(0, 200))}`, { method: "POST",
        body: file });
      if (upload.kind !== kind) {
        setError(kind === "data" ? `${file.name} is a network; data are wanted here.`
          : `${file.name} is data; a network is wanted here.`);
        return null;
      }
      setUploads([upload, ...uploads]);
      return upload;
    } catch (e) {
      setError(/** @type {Error} */ (e).message);
      return null;
    } finally {
      setSending("");
    }
  };
  return { uploads, send, sending, error };
}

/**
 * `value` is "data:NAME", "upload:ID" or "" for none; `given` makes arguments of a job of it.
 * @param {{names: string[], value: string, set: (value: string) => void, optional?: boolean}} how
 */
export function DataChoice({ names, value, set, optional }) {
  const { uploads, send, sending, error } = useUploads("data");
  useEffect(() => {
    if (!value && !optional && names.length) set("data:" + names[0]);
  }, [names.length]);
  const take = async (/** @type {any} */ event) => {
    const file = event.target.files[0];
    const upload = file ? await send(file) : null;
    event.target.value = "";
    if (upload) set("upload:" + upload.id);
  };
  const now = uploads.find((u) => "upload:" + u.id === value);
  return html`<div class="field"><label>Data <select value=${value}
    onChange=${(/** @type {any} */ e) => set(e.target.value)}>
      ${optional ? html`<option value="">none: weights alone</option>` : !value &&
        html`<option value="">choose, or send a file</option>`}
      ${names.map((name) => html`<option value=${"data:" + name}>${name}</option>`)}
      ${uploads.map((u) => html`<option value=${"upload:" + u.id}>${u.name} (sent)</option>`)}
    </select></label>
    <label class="button">Send a .npz file<input type="file" accept=".npz" onChange=${take}
      disabled=${sending !== ""} /></label>
    <p class="soft small" role="status">${sending ? `Sending ${sending}` : now ? `${held(now)}. Kept for an hour.`
      : "An .npz file has the arrays x (examples) and y (labels), 64 MiB at most; it is kept for an hour."}</p>
    ${error && html`<p class="bad" role="alert">${error}</p>`}
    ${!names.length && !uploads.length &&
      html`<p class="soft small">To name data on the command line: <code>weightspace serve ATLAS --data digits</code>
      </p>`}
  </div>`;
}

/** Arguments of a job for a choice of data. */
export function given(/** @type {string} */ value) {
  if (value.startsWith("data:")) return { data: value.slice(5) };
  return value.startsWith("upload:") ? { upload: value.slice(7) } : {};
}

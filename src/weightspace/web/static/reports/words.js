// @ts-check
// Sizes and times in words, and how a report is opened.

import { api } from "../connection.js";

/** Bytes for a reader. */
export function size(/** @type {number} */ bytes) {
  if (bytes < 1e3) return `${bytes} B`;
  return bytes < 1e6 ? `${(bytes / 1e3).toFixed(0)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}

/** How long ago, from seconds since 1970. */
export function when(/** @type {number} */ time) {
  const past = Date.now() / 1000 - time;
  if (past < 60) return "just now";
  if (past < 3600) return `${Math.floor(past / 60)} min ago`;
  if (past < 86400) return `${Math.floor(past / 3600)} h ago`;
  return new Date(time * 1000).toLocaleDateString();
}

/** Seconds for a reader. */
export function span(/** @type {number} */ seconds) {
  if (seconds < 100) return `${Math.max(0, Math.round(seconds))} s`;
  return seconds < 6000 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

/** A number for a reader; a dash where it is not known. */
export function number(/** @type {number | null | undefined} */ value) {
  return value === null || value === undefined ? "–" : String(Number(value.toPrecision(4)));
}

/** Open a report in a new tab, at an address that works once. */
export async function opened(/** @type {string} */ id) {
  const tab = window.open("", "_blank");
  try {
    const { path } = await api(`/api/reports/${id}/ticket`, { method: "POST", json: {} });
    if (tab === null) location.assign(path);
    else {
      tab.opener = null;
      tab.location.replace(path);
    }
  } catch (error) {
    tab?.close();
    throw error;
  }
}

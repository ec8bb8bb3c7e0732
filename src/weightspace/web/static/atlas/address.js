// @ts-check
// What the page shows, kept in its address: a link, a reload and the back button show the same again.

import { useEffect, useRef, useState } from "../vendor/htm-preact.js";

/**
 * view: "map" or "tree". arch, tag, family, q: filters of networks. sort: a column, with "-" before it for the largest
 * first. columns: measures shown in the table, apart by "|". colour: "family", "tag:..", "measure:.." or "job:..".
 * network: the one that is open. tool: what the panel asks for ("compare", ..), a and b: its two networks. job: the job
 * whose progress or answer is shown.
 */
export const PLAIN = {
  view: "map", arch: "", tag: "", family: "", q: "", sort: "", columns: "", colour: "family",
  network: "", tool: "", a: "", b: "", job: "",
};
/** @typedef {typeof PLAIN} At */
/** @typedef {(changes: Partial<At>, replace?: boolean) => void} Go */

/** @returns {At} */
function read() {
  const given = new URLSearchParams(location.search);
  const at = { ...PLAIN };
  for (const key of /** @type {(keyof At)[]} */ (Object.keys(PLAIN))) at[key] = given.get(key) ?? PLAIN[key];
  if (at.view !== "tree") at.view = "map";
  return at;
}

/** The address of this page for a state; what is as usual is left out. */
export function address(/** @type {At} */ at) {
  const said = new URLSearchParams();
  for (const key of /** @type {(keyof At)[]} */
    (Object.keys(PLAIN))) if (at[key] !== PLAIN[key]) said.set(key, at[key]);
  const query = said.toString();
  return location.pathname + (query ? "?" + query : "");
}

/**
 * The state, and how it is changed: a step that "back" undoes, or with `replace` (typing, sorting) none.
 * @param {(at: At) => At} known what an address says, without what is not here
 * @returns {[At, Go]}
 */
export function useAddress(known) {
  const [at, setAt] = useState(() => known(read()));
  const check = useRef(known);
  check.current = known;
  useEffect(() => {
    const back = () => setAt(check.current(read()));
    window.addEventListener("popstate", back);
    return () => window.removeEventListener("popstate", back);
  }, []);
  /** @type {Go} */
  const go = (changes, replace = false) => {
    const next = { ...known(read()), ...changes };
    const where = address(next);
    if (where !== location.pathname + location.search) {
      if (replace) history.replaceState(null, "", where);
      else history.pushState(null, "", where);
    }
    setAt(next);
  };
  return [at, go];
}

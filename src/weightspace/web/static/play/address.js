// @ts-check
// The set-up in the address, so that a link shares it.

/** Fields of the state and of the page from the address, by the types of the limits. */
export function fromAddress(/** @type {Record<string, any>} */ limits) {
  const given = new URLSearchParams(location.search);
  const found = /** @type {Record<string, any>} */ ({});
  for (const [name, limit] of Object.entries(limits)) {
    const text = given.get(name);
    if (text !== null) found[name] = limit.type === "choice" || text.trim() === "" ? text : orText(Number(text), text);
  }
  return found;
}

function orText(/** @type {number} */ value, /** @type {string} */ text) {
  return Number.isFinite(value) ? value : text;
}

/** A word of the address that belongs to the page alone, such as its open tab. */
export function word(/** @type {string} */ name) {
  return new URLSearchParams(location.search).get(name) ?? "";
}

/** Write what differs from the defaults into the address. */
export function toAddress(/** @type {Record<string, any>} */ fields, /** @type {Record<string, any>} */ defaults) {
  const said = new URLSearchParams();
  for (const [name, value] of Object.entries(fields)) if (value !== defaults[name]) said.set(name, String(value));
  const text = said.toString();
  history.replaceState(null, "", location.pathname + (text ? "?" + text : "") + location.hash);
}

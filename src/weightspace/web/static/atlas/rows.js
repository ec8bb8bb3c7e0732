// @ts-check
// Lists of thousands of rows of one height, of which only those in sight are in the page.

import { useEffect, useRef, useState } from "../vendor/htm-preact.js";

const SPARE = 12; // rows kept above and below those in sight

/**
 * Give `box` to the element that scrolls; show rows `first` to `last`, with `above` and `below` pixels of nothing.
 * `reveal(k)` scrolls so that row k is in sight. `head` is the height of a header that stays on top.
 * @param {number} total @param {number} height of a row @param {number} head
 */
export function useRows(total, height, head = 0) {
  const box = useRef(/** @type {HTMLElement | null} */ (null));
  const [seen, setSeen] = useState({ top: 0, tall: 600 });
  useEffect(() => {
    const at = box.current;
    if (!at) return undefined;
    const look = () => setSeen((was) => {
      const top = Math.floor(at.scrollTop / height) * height;
      return was.top === top && was.tall === at.clientHeight ? was : { top, tall: at.clientHeight };
    });
    const sized = new ResizeObserver(look);
    sized.observe(at);
    at.addEventListener("scroll", look, { passive: true });
    look();
    return () => [sized.disconnect(), at.removeEventListener("scroll", look)];
  }, [total === 0]);
  const first = Math.max(0, Math.min(Math.floor(seen.top / height), total - 1) - SPARE);
  const last = Math.min(total, Math.ceil((seen.top + seen.tall) / height) + SPARE);
  const reveal = (/** @type {number} */ k) => {
    const at = box.current;
    if (!at || k < 0) return;
    const [top, bottom] = [k * height, (k + 1) * height + head];
    if (top < at.scrollTop) at.scrollTop = top;
    else if (bottom > at.scrollTop + at.clientHeight) at.scrollTop = bottom - at.clientHeight;
  };
  return { box, first, last, above: first * height, below: Math.max(0, (total - last) * height), reveal };
}

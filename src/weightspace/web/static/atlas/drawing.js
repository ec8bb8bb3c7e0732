// @ts-check
// The drawing of a map by deck.gl: points, edges, names where there is room, the open network marked.

/** @typedef {import("./networks.js").Row} Row */
/** @typedef {import("./networks.js").Space} Space */
/** @typedef {import("./colours.js").Colouring} Colouring */
/**
 * What is drawn. `shown`: the rows that filters let through, null for all. `marks`: networks with a ring.
 * @typedef {{space: Space, colouring: Colouring, dark: boolean, shown: Set<Row> | null, open: Row | null,
 *   marks: Row[], pointed: Row | null}} Scene
 */

const NAMED = 140; // points in sight below which all may carry their names
const FEW = { card: 30_000, processor: 150 }; // edges drawn while the map moves, by what draws
const REST = { card: 160, processor: 600 }; // milliseconds without a move after which all is drawn again
const REACH = 7; // pixels from a point that still mean it
const LETTERS = 28; // characters of a name on the map

/** What draws WebGL in this browser: a graphics card, the processor in its place, which is slow, or nothing. */
export function drawnBy() {
  try {
    const gl = document.createElement("canvas").getContext("webgl2");
    if (!gl) return "nothing";
    const more = gl.getExtension("WEBGL_debug_renderer_info");
    const name = String(gl.getParameter(more ? more.UNMASKED_RENDERER_WEBGL : gl.RENDERER));
    gl.getExtension("WEBGL_lose_context")?.loseContext();
    return /swiftshader|llvmpipe|softpipe|software|basic render/i.test(name) ? "processor" : "card";
  } catch {
    return "nothing";
  }
}

const INK = { light: [31, 41, 51], dark: [231, 235, 238] };
const PAPER = { light: [255, 255, 255], dark: [29, 35, 40] };

/** Where a name of some width may stand beside a point: above, below, right, left, and corners. */
function sides(/** @type {number[]} */ [x, y], /** @type {number} */ wide) {
  const box = (/** @type {number} */ left, /** @type {number} */ top) => [left, top, left + wide, top + 18];
  return [
    { anchor: "middle", offset: [0, -19], box: box(x - wide / 2, y - 28) },
    { anchor: "middle", offset: [0, 19], box: box(x - wide / 2, y + 10) },
    { anchor: "start", offset: [14, 0], box: box(x + 10, y - 9) },
    { anchor: "end", offset: [-14, 0], box: box(x - 10 - wide, y - 9) },
    { anchor: "end", offset: [6, -19], box: box(x + 10 - wide, y - 28) },
    { anchor: "start", offset: [-6, -19], box: box(x - 10, y - 28) },
    { anchor: "end", offset: [6, 19], box: box(x + 10 - wide, y + 10) },
    { anchor: "start", offset: [-6, 19], box: box(x - 10, y + 10) },
  ];
}

/** A map in a box of the page. `on.point` and `on.open` get the row under the pointer, or null. */
export class Drawing {
  /**
   * @param {any} deck the module of deck.gl
   * @param {HTMLElement} box
   * @param {{point: (row: Row | null, x: number, y: number) => void, open: (row: Row) => void, failed: () => void}} on
   */
  constructor(deck, box, on) {
    this.deck = deck;
    this.box = box;
    this.view = { target: [0, 0, 0], zoom: 0 };
    this.scene = /** @type {Scene | null} */ (null);
    this.labels = /** @type {{row: Row, text: string, anchor: string, offset: number[]}[]} */ ([]);
    this.last = /** @type {Set<Row> | null} */ (null);
    this.count = 0;
    this.view0 = this.view;
    this.slow = drawnBy() === "processor";
    this.moving = false;
    this.rest = 0;
    this.few = /** @type {Space["edges"]} */ ([]);
    this.on = on;
    this.drawn = new deck.Deck({
      parent: box,
      views: new deck.OrthographicView({ flipY: false }),
      controller: { doubleClickZoom: true, keyboard: false },
      initialViewState: this.view,
      layers: [],
      deviceProps: { webgl: { antialias: !this.slow } },
      getCursor: (/** @type {any} */ s) => (s.isDragging ? "grabbing" : this.under ? "pointer" : "grab"),
      onViewStateChange: (/** @type {any} */ change) => {
        this.view = change.viewState;
        this._moved();
      },
      onError: () => on.failed(),
    });
    this.sized = new ResizeObserver(() => this._moved());
    this.sized.observe(box);
    this.under = /** @type {Row | null} */ (null);
    this.pressed = /** @type {PointerEvent | null} */ (null);
    this.dragged = false;
    for (const kind of /** @type {const} */ (["pointermove", "pointerdown", "pointerup", "pointerleave"])) {
      box.addEventListener(kind, (event) => this._pointer(event), { capture: true });
    }
  }

  /** Pointing and clicking. Points are found here and not by drawing them once more, which takes long without a GPU. */
  _pointer(/** @type {PointerEvent} */ event) {
    const edge = this.box.getBoundingClientRect();
    const [x, y] = [event.clientX - edge.left - this.box.clientLeft, event.clientY - edge.top - this.box.clientTop];
    if (event.type === "pointerdown") [this.pressed, this.dragged] = [event, false];
    const start = this.pressed;
    if (start && Math.hypot(event.clientX - start.clientX, event.clientY - start.clientY) > 5) this.dragged = true;
    const ends = event.type === "pointerup" || event.type === "pointerleave";
    const found = event.type === "pointerleave" || (start && this.dragged) ? null : this._nearest(x, y);
    if (event.type === "pointerup" && start && !this.dragged && found) this.on.open(found);
    if (ends) this.pressed = null;
    if (ends && this.moving) this._moved();
    if (event.pointerType === "touch" || found === this.under) return;
    this.under = found;
    this.on.point(found, x, y);
  }

  _nearest(/** @type {number} */ x, /** @type {number} */ y) {
    if (!this.scene) return null;
    let [best, least] = [/** @type {Row | null} */ (null), this._radius() + REACH];
    for (const row of this.scene.space.points) {
      const [px, py] = this.place(row);
      const far = Math.hypot(px - x, py - y);
      if (far < least && (this.scene.shown === null || this.scene.shown.has(row))) [best, least] = [row, far];
    }
    return best;
  }

  _radius() {
    const points = this.scene?.space.points.length ?? 0;
    return points > 2000 ? 3.5 : points > 400 ? 4.5 : points > 60 ? 6 : 8;
  }

  /** While the map moves, names stay as they are, and without a graphics card less is drawn. */
  _moved() {
    const many = this.few.length > 0 || this.slow;
    if (!this.moving) {
      this.moving = true;
      if (many) this._layers();
    }
    clearTimeout(this.rest);
    if (this.pressed && this.dragged) return;
    this.rest = window.setTimeout(() => {
      this.moving = false;
      this._labels();
      this._layers();
    }, this.slow ? REST.processor : REST.card);
  }

  /** Draw a scene; a new space is fitted into the box. */
  show(/** @type {Scene} */ scene) {
    const fresh = this.scene?.space !== scene.space;
    this.scene = scene;
    if (fresh) {
      const step = Math.ceil(scene.space.edges.length / (this.slow ? FEW.processor : FEW.card));
      this.few = step > 1 ? scene.space.edges.filter((_, k) => k % step === 0) : [];
      this.fit(false);
    }
    this._labels();
    this._layers();
  }

  /** All points of the space in sight. */
  fit(smooth = true) {
    if (!this.scene) return;
    const points = this.scene.space.points;
    let [left, right, low, high] = [Infinity, -Infinity, Infinity, -Infinity];
    for (const { x, y } of points) {
      [left, right] = [Math.min(left, x), Math.max(right, x)];
      [low, high] = [Math.min(low, y), Math.max(high, y)];
    }
    if (!points.length) [left, right, low, high] = [0, 1, 0, 1];
    const wide = Math.max(this.box.clientWidth - 110, 60) / Math.max(right - left, 1e-9);
    const tall = Math.max(this.box.clientHeight - 80, 60) / Math.max(high - low, 1e-9);
    const scale = Math.min(wide, tall);
    const zoom = Number.isFinite(Math.log2(scale)) && scale < 1e9 ? Math.log2(scale) : 0;
    this.view0 = { target: [(left + right) / 2, (low + high) / 2, 0], zoom };
    this._go(this.view0, smooth);
  }

  /** Bring one network to the middle, nearer than now if all is in sight. */
  centre(/** @type {Row} */ row) {
    this._go({ target: [row.x, row.y, 0], zoom: Math.max(this.view.zoom, this.view0.zoom + 1.5) }, true);
  }

  zoom(/** @type {number} */ by) {
    this._go({ target: this.view.target, zoom: this.view.zoom + by }, true);
  }

  /** Move by a share of the box. */
  pan(/** @type {number} */ right, /** @type {number} */ up) {
    const unit = 2 ** this.view.zoom;
    const [x, y] = this.view.target;
    const target = [x + (right * this.box.clientWidth) / unit, y + (up * this.box.clientHeight) / unit, 0];
    this._go({ target, zoom: this.view.zoom }, true);
  }

  end() {
    clearTimeout(this.rest);
    this.sized.disconnect();
    this.drawn.finalize();
  }

  _go(/** @type {any} */ view, /** @type {boolean} */ smooth) {
    const calm = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
    const limits = { minZoom: this.view0.zoom - 3, maxZoom: this.view0.zoom + 12 };
    const moving = smooth && !calm
      ? { transitionDuration: 250, transitionInterpolator: new this.deck.LinearInterpolator(["target", "zoom"]) } : {};
    this.view = { ...view, ...limits };
    this.drawn.setProps({ initialViewState: { ...this.view, ...moving } });
    this._moved();
  }

  /** Where a network is in the box, in pixels. */
  place(/** @type {Row} */ row) {
    const unit = 2 ** this.view.zoom;
    const x = this.box.clientWidth / 2 + (row.x - this.view.target[0]) * unit;
    return [x, this.box.clientHeight / 2 - (row.y - this.view.target[1]) * unit];
  }

  /** Choose names that fit without covering one another: the open one, middles of families, then all in sight. */
  _labels() {
    this.labels = [];
    if (!this.scene) return;
    const { space, open, marks, shown } = this.scene;
    const [width, height] = [this.box.clientWidth, this.box.clientHeight];
    const inSight = (/** @type {Row} */ row) => {
      const [x, y] = this.place(row);
      return x > 0 && x < width && y > 0 && y < height && (shown === null || shown.has(row));
    };
    const near = space.points.filter(inSight);
    const wanted = [...(open ? [open] : []), ...marks].filter((row) => row.placed && row.arch === space.arch);
    const middles = space.families.filter((f) => f.size > 1 && f.middle !== null && inSight(f.middle)).slice(0, 20);
    const boxes = /** @type {number[][]} */ ([]);
    const dots = near.length > 4 * NAMED ? [] : near.map((row) => this.place(row));
    const taken = new Set();
    const free = (/** @type {number[]} */ b) => b[0] > 2 && b[2] < width - 2 && b[1] > 2 && b[3] < height - 2
      && !boxes.some((o) => b[0] < o[2] && b[2] > o[0] && b[1] < o[3] && b[3] > o[1]);
    const covers = (/** @type {number[]} */ b) => dots.some(([x, y]) => x > b[0] - 5 && x < b[2] + 5 && y > b[1] - 5 &&
      y < b[3] + 5);
    const put = (/** @type {Row} */ row, /** @type {string} */ whole, must = false) => {
      if (taken.has(row)) return;
      const text = whole.length > LETTERS ? whole.slice(0, LETTERS - 1) + "\u2026" : whole;
      const places = sides(this.place(row), text.length * 7.2 + 8);
      const open = places.filter((side) => free(side.box));
      const side = open.find((one) => !covers(one.box)) ?? (must ? open[0] ?? places[0] : undefined);
      if (!side) return;
      boxes.push(side.box);
      taken.add(row);
      this.labels.push({ row, text, anchor: side.anchor, offset: side.offset });
    };
    for (const row of wanted) put(row, row.name, true);
    const all = near.length <= NAMED;
    for (const f of middles) if (f.middle) put(f.middle, `${f.number}: ${f.middle.name}`);
    if (all) for (const row of near) put(row, row.name);
  }

  _layers() {
    if (!this.scene) return;
    const { space, colouring, dark, shown, open, marks, pointed } = this.scene;
    const theme = dark ? "dark" : "light";
    const radius = this._radius();
    const grey = dark ? [150, 162, 172] : [110, 120, 130];
    const touches = (/** @type {any} */ edge) => open !== null && (edge.from === open || edge.to === open);
    const visible = (/** @type {Row} */ row) => shown === null || shown.has(row);
    const many = Math.max(14, Math.min(130, Math.round(60_000 / Math.max(space.edges.length, 1))));
    const key = [open?.id, dark, shown === null ? "all" : this._version(shown), colouring.key].join("|");
    const here = (/** @type {Row} */ row) => [row.x, row.y];
    const rings = [...marks, ...(open ? [open] : []), ...(pointed ? [pointed] : [])]
      .filter((row) => row.placed && row.arch === space.arch);
    const heavy = this.slow && space.points.length > 1000;
    const { LineLayer, ScatterplotLayer, TextLayer } = this.deck;
    const lines = (/** @type {string} */ id, /** @type {Space["edges"]} */ data, /** @type {boolean} */ seen) =>
      new LineLayer({
      id, data, visible: seen, widthUnits: "pixels", getSourcePosition: (/** @type {any} */ e) => here(e.from),
      getTargetPosition: (/** @type {any} */ e) => here(e.to), getWidth: (/** @type {any} */ e) =>
        (touches(e) ? 2.5 : 1),
      getColor: (/** @type {any} */ e) => (touches(e) ? [...(dark ? [57, 179, 167] : [15, 118, 110]), 255]
        : [...grey, visible(e.from) && visible(e.to) ? many : 16]),
      updateTriggers: { getColor: key, getWidth: open?.id },
    });
    this.drawn.setProps({ layers: [
      lines("edges", space.edges, !(this.moving && this.few.length)),
      lines("few", this.few, this.moving),
      new ScatterplotLayer({
        id: "points", data: space.points, getPosition: here, radiusUnits: "pixels", getRadius: radius,
        antialiasing: !heavy, radiusScale: heavy && this.moving ? 0.55 : 1, stroked: !heavy,
        lineWidthUnits: "pixels", getLineWidth: 1,
        getFillColor: (/** @type {Row} */ row) => [...colouring.of(row), visible(row) ? 255 : 38],
        getLineColor: (/** @type {Row} */ row) => [...PAPER[theme], visible(row) ? 255 : 38],
        updateTriggers: { getFillColor: key, getLineColor: key },
      }),
      new ScatterplotLayer({
        id: "rings", data: rings, getPosition: here, radiusUnits: "pixels", getRadius: radius + 4, filled: false,
        stroked: true, lineWidthUnits: "pixels", getLineWidth: 2.5, getLineColor: INK[theme],
        updateTriggers: { getLineColor: theme },
      }),
      new TextLayer({
        id: "names", data: this.labels, getPosition: (/** @type {any} */ l) => here(l.row),
          getText: (/** @type {any} */ l) => l.text,
        getSize: 13, sizeUnits: "pixels", getColor: INK[theme], getPixelOffset: (/** @type {any} */ l) => l.offset,
        getTextAnchor: (/** @type {any} */ l) => l.anchor, getAlignmentBaseline: "center",
        fontFamily: 'system-ui, "Segoe UI", "Liberation Sans", sans-serif', characterSet: "auto",
        fontSettings: { fontSize: 13 * Math.max(1, window.devicePixelRatio) }, background: true,
        getBackgroundColor: [...PAPER[theme], 190], backgroundPadding: [3, 1], updateTriggers: { getColor: theme,
          getBackgroundColor: theme },
      }),
    ] });
  }

  /** A number that changes with the set of rows shown. */
  _version(/** @type {Set<Row>} */ shown) {
    if (this.last !== shown) [this.last, this.count] = [shown, this.count + 1];
    return this.count;
  }
}

// Zoom and probe point, the same in all panels: wheel, drag, pinch, keys and buttons.

const MOST = 16;
const clamp = (value, low, high) => Math.max(low, Math.min(high, value));

export class View {
  #scale = 1;
  #center = [0.5, 0.5]; // fractions of the image's sides, as the point
  #pointers = new Map();
  #panels;

  /** `panels` returns those that show the view; `onZoom` is told of the scale. */
  constructor(panels, onZoom) {
    this.#panels = panels;
    this.point = null;
    this.onZoom = onZoom;
  }

  /** Let a panel's stage change the view. */
  attach({ stage, layers }) {
    stage.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      stage.setPointerCapture(event.pointerId);
      this.#pointers.set(event.pointerId, event);
      this.#probe(layers, event);
    });
    for (const kind of ["pointerup", "pointercancel"]) stage.addEventListener(kind, (event) => this.#pointers.delete(event.pointerId));
    stage.addEventListener("pointermove", (event) => this.#move(layers, event));
    stage.addEventListener("dblclick", (event) => this.zoomTo(this.#scale < MOST / 2 ? this.#scale * 2 : 1, fractions(layers, event)));
    stage.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !event.metaKey) return; // the page scrolls
      event.preventDefault();
      this.zoomTo(this.#scale * 2 ** (-event.deltaY / 200), fractions(layers, event));
    }, { passive: false });
    stage.addEventListener("keydown", (event) => this.#press(layers, event));
  }

  #move(layers, event) {
    const before = this.#pointers.get(event.pointerId);
    if (before) this.#pointers.set(event.pointerId, event);
    if (before && this.#pointers.size === 2) {
      const [other] = [...this.#pointers.values()].filter(({ pointerId }) => pointerId !== event.pointerId);
      const spread = ({ clientX, clientY }) => Math.hypot(clientX - other.clientX, clientY - other.clientY);
      this.zoomTo(this.#scale * (spread(event) / Math.max(1, spread(before))), fractions(layers, other));
    } else if (before && this.#scale > 1) {
      const box = layers.getBoundingClientRect();
      this.#center = [
        this.#center[0] - (event.clientX - before.clientX) / box.width,
        this.#center[1] - (event.clientY - before.clientY) / box.height,
      ];
      this.show();
    } else {
      this.#probe(layers, event);
    }
  }

  #probe(layers, event) {
    this.point = fractions(layers, event).map((place) => clamp(place, 0, 1 - 1e-9));
    this.show();
  }

  #press(layers, event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const factor = { "+": 2, "=": 2, "-": 0.5, "_": 0.5, "0": 1 / this.#scale }[event.key];
    const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!factor && !move) return;
    event.preventDefault();
    if (factor) return this.zoomTo(this.#scale * factor, this.point ?? this.#center);
    const canvas = layers.firstElementChild;
    const sides = [canvas.width, canvas.height];
    const step = event.shiftKey ? 1 : Math.max(1, Math.round(sides[0] / (50 * this.#scale)));
    this.point = this.point
      ? this.point.map((place, axis) => (clamp(Math.floor(place * sides[axis]) + move[axis] * step, 0, sides[axis] - 1) + 0.5) / sides[axis])
      : sides.map((side) => ((side >> 1) + 0.5) / side);
    const half = 0.5 / this.#scale; // the view follows the point
    this.#center = this.#center.map((place, axis) => clamp(place, this.point[axis] - half, this.point[axis] + half));
    this.show({ isSpoken: true });
  }

  /** Zoom by a button: "in", "out" or "fit". */
  press(action) {
    this.zoomTo({ in: this.#scale * 2, out: this.#scale / 2, fit: 1 }[action], this.#center);
  }

  /** Set the scale; the place stays where it is on the screen. */
  zoomTo(scale, place = this.#center) {
    const before = this.#scale;
    this.#scale = clamp(scale, 1, MOST);
    this.#center = place.map((at, axis) => at + (this.#center[axis] - at) * (before / this.#scale));
    this.show();
  }

  /** Bring all panels to the view. */
  show(options) {
    const half = 0.5 / this.#scale;
    this.#center = this.#center.map((place) => clamp(place, half, 1 - half));
    const shift = this.#center.map((place) => `${100 * (0.5 - place * this.#scale)}%`);
    for (const panel of this.#panels()) {
      panel.layers.style.transform = `translate(${shift.join(", ")}) scale(${this.#scale})`;
      panel.stage.classList.toggle("zoomed", this.#scale > 1);
      panel.stage.classList.toggle("close", this.#scale >= 4);
      panel.read(this.point, options);
    }
    this.onZoom(this.#scale);
  }
}

function fractions(layers, { clientX, clientY }) {
  const box = layers.getBoundingClientRect();
  return [(clientX - box.left) / box.width, (clientY - box.top) / box.height];
}

// One model's prediction for the image: overlay, legend, reading, times, and the command.

import { infer, loadModel, Problem } from "./api.js";
import { readResponse, requestOf } from "./outputs.js";
import { copy, curlCommand } from "./shell.js";

const MOST_PIXELS = 16e6; // of a canvas: Safari on phones draws no more
const MOST_RELOADS = 3;

export class Panel {
  #model;
  #image;
  #labels = "";
  #asking = new AbortController();
  #result = null;
  #onChange;

  /** `onChange` is called after a response, and with the status of a failed request. */
  constructor(model, onChange) {
    this.#model = model;
    this.#onChange = onChange;
    this.element = document.getElementById("panel").content.firstElementChild.cloneNode(true);
    this.stage = this.#part(".stage");
    this.layers = this.#part(".layers");
    this.#part(".again").addEventListener("click", () => this.ask(this.#image, this.#labels));
    this.#part(".copy").addEventListener("click", () => this.#copyCommand());
    this.clear();
  }

  get model() { return this.#model; }
  get hasOverlay() { return Boolean(this.#result?.values); }

  #part(selector) { return this.element.querySelector(selector); }

  /** Show an image without any prediction of it. */
  clear(image = this.#image) {
    this.#asking.abort();
    this.#result = null;
    this.#part(".overlay").hidden = true;
    this.#part(".legend").replaceChildren();
    this.#part(".facts").replaceChildren();
    for (const part of [".ramp", ".again", ".probe"]) this.#part(part).hidden = true;
    this.#part(".reading").textContent = "";
    this.element.removeAttribute("aria-busy");
    this.#say("");
    this.#identify();
    if (image && image !== this.#image) {
      const canvas = this.#part(".image");
      canvas.width = image.canvas.width;
      canvas.height = image.canvas.height;
      canvas.getContext("2d").drawImage(image.canvas, 0, 0);
      this.layers.style.setProperty("--ratio", image.width / image.height);
    }
    this.#image = image;
  }

  /** Ask the model about an image, unless it is asked about another one meanwhile. */
  async ask(image, labels) {
    this.#labels = labels;
    this.clear(image);
    this.#command();
    const asking = this.#asking = new AbortController();
    this.element.setAttribute("aria-busy", "true");
    this.#say("Waiting for the response …");
    let status = 200;
    try {
      const { answer, result, milliseconds } = await this.#answer(asking.signal);
      if (asking.signal.aborted) return;
      this.#show(result);
      this.#say(`Response in ${milliseconds.toFixed(0)} ms`);
      this.#facts({ "Image sent": bytesOf(image.blob.size), "Response": bytesOf(answer.bytes.byteLength) });
    } catch (error) {
      if (asking.signal.aborted) return;
      status = error.status ?? 0;
      this.#say(error instanceof Problem ? error.message : `The response can't be shown: ${error.message}.`, true);
      this.#part(".again").hidden = status >= 400 && status < 500 && status !== 429;
    }
    this.element.removeAttribute("aria-busy");
    this.#onChange(status);
  }

  // The answer of the model that the metadata describe: it may be replaced at any time.
  async #answer(signal) {
    const onWait = (seconds) => this.#say(`The server is busy. Trying again in ${seconds} s …`);
    for (let turn = 0; turn < MOST_RELOADS; turn++) {
      const started = performance.now();
      let answer, problem;
      try {
        answer = await infer(requestOf(this.#model, this.#labels).url, this.#image, { signal, onWait });
      } catch (error) {
        if (![400, 404].includes(error.status)) throw error;
        problem = error;
      }
      const milliseconds = performance.now() - started;
      const model = await loadModel(this.#model);
      if (signal.aborted) throw signal.reason;
      if (!model) throw new Problem(`${this.#model.key} isn't served any more. Choose another model.`, 404);
      if (model.digest === this.#model.digest) {
        if (problem) throw problem;
        return { answer, result: await readResponse(model, answer), milliseconds };
      }
      this.#model = model;
      this.#identify();
      this.#command();
    }
    throw new Problem("The model is being replaced again and again. Try again in a moment.");
  }

  /** Show a reason for which the model isn't asked. */
  refuse(image, reason) {
    this.clear(image);
    this.#part("details").hidden = true;
    this.#say(reason, true);
  }

  #identify() {
    const { key, task, digest, version } = this.#model;
    this.#part("h2").textContent = key;
    this.#part(".identity").textContent = digest.startsWith(version) ? `${task}, version ${version}` : `${task}, version ${version}, digest ${digest.slice(0, 12)}`;
    this.stage.setAttribute("aria-label", `Image with the prediction of ${key}. Arrow keys move the probe point, plus and minus zoom.`);
  }

  #say(text, isFailure = false) {
    this.#part(".status").textContent = text;
    this.#part(".status").classList.toggle("failed", isFailure);
  }

  #facts(values) {
    this.#part(".facts").replaceChildren(...Object.entries(values).flatMap(([name, value]) => [make("dt", name), make("dd", value)]));
  }

  #command() {
    const { url, output } = requestOf(this.#model, this.#labels);
    this.#part("details").hidden = false;
    this.#part("pre").textContent = curlCommand(url, this.#image, output);
    this.#part(".save").hidden = this.#image?.origin !== "paste";
    if (this.#image?.origin === "paste") Object.assign(this.#part(".save a"), { href: this.#image.link, download: this.#image.name });
  }

  async #copyCommand() {
    const button = this.#part(".copy"), text = this.#part("pre");
    const isCopied = await copy(text.textContent, button);
    if (!isCopied) getSelection().selectAllChildren(text);
    flash(button, isCopied ? "Copied" : "Press Ctrl+C");
  }

  #show(result) {
    this.#result = result;
    this.#part(".legend").replaceChildren(...result.legend.map(legendItem));
    if (result.values) this.#draw(result);
    const { ramp } = result;
    this.#part(".ramp").hidden = !ramp;
    if (!ramp) return;
    const [near, far] = this.element.querySelectorAll(".ramp span");
    near.textContent = ramp.near;
    far.textContent = ramp.far;
    const context = this.#part(".ramp canvas").getContext("2d");
    for (let x = 0; x < 256; x++) {
      context.fillStyle = `rgb(${ramp.colorAt(x / 255).join(" ")})`;
      context.fillRect(x, 0, 1, 1);
    }
  }

  #draw({ width, height, values, colors, boxes = [] }) {
    const canvas = this.#part(".overlay");
    const step = Math.ceil(Math.sqrt((width * height) / MOST_PIXELS));
    canvas.width = Math.ceil(width / step);
    canvas.height = Math.ceil(height / step);
    const picture = new ImageData(canvas.width, canvas.height);
    const pixels = new Uint32Array(picture.data.buffer);
    for (let y = 0, k = 0; y < height; y += step) {
      for (let x = 0; x < width; x += step) pixels[k++] = colors[values[y * width + x]];
    }
    const context = canvas.getContext("2d");
    context.putImageData(picture, 0, 0);
    context.scale(1 / step, 1 / step);
    context.lineWidth = Math.max(2, Math.round(width / 250));
    for (const { color, corners: [left, top, right, bottom] } of boxes) {
      context.strokeStyle = `rgb(${color.join(" ")})`;
      context.strokeRect(left, top, right - left, bottom - top);
    }
    canvas.hidden = false;
  }

  /** Read the prediction at a point, as fractions of the image's sides; null for none. */
  read(point, { isSpoken = false } = {}) {
    const marker = this.#part(".probe"), reading = this.#part(".reading");
    marker.hidden = !this.hasOverlay || !point;
    for (const item of this.#part(".legend").children) item.classList.remove("current");
    reading.setAttribute("aria-live", isSpoken ? "polite" : "off");
    if (marker.hidden) return void (reading.textContent = "");
    const { width, height, values, describe } = this.#result;
    const value = values[Math.floor(point[1] * height) * width + Math.floor(point[0] * width)];
    reading.textContent = `${describe(value)} at ${Math.floor(point[0] * this.#image.width)}, ${Math.floor(point[1] * this.#image.height)}`;
    this.#part(`.legend li[data-value="${value}"]`)?.classList.add("current");
    const layers = this.layers.getBoundingClientRect(), stage = this.stage.getBoundingClientRect();
    marker.style.left = `${layers.left - stage.left - this.stage.clientLeft + point[0] * layers.width}px`;
    marker.style.top = `${layers.top - stage.top - this.stage.clientTop + point[1] * layers.height}px`;
  }
}

function legendItem({ value, color, name, share, isRanked }) {
  const item = make("li");
  if (value !== undefined) item.dataset.value = value;
  if (color) {
    const swatch = make("span", undefined, "swatch");
    swatch.style.backgroundColor = `rgb(${color.join(" ")})`;
    item.append(swatch);
  }
  item.append(make("span", name, "name"));
  if (share === undefined) return item;
  item.append(make("span", `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`, "share"));
  item.classList.toggle("ranked", Boolean(isRanked));
  item.style.setProperty("--share", share);
  return item;
}

/** Text of a button for a moment, read out too. */
export function flash(button, text) {
  const usual = button.dataset.usual ??= button.textContent;
  button.textContent = text;
  button.setAttribute("aria-live", "polite");
  clearTimeout(button.timer);
  button.timer = setTimeout(() => (button.textContent = usual), 2000);
}

export function make(tag, text, className) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (className) element.className = className;
  return element;
}

const bytesOf = (number) => number < 1e6 ? `${(number / 1000).toFixed(number < 1e4 ? 1 : 0)} kB` : `${(number / 1e6).toFixed(1)} MB`;

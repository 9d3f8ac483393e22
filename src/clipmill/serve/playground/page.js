// The page: which models are asked, about which image, and the link that says so.

import { getFile, loadModels } from "./api.js";
import { imageAmong, readImage } from "./image.js";
import { needsLabels } from "./outputs.js";
import { flash, make, Panel } from "./panel.js";
import { copy } from "./shell.js";
import { View } from "./view.js";

const SAMPLES = ["playground/sample-1.jpg", "playground/sample-2.jpg", "playground/sample-3.jpg"];

const at = (id) => document.getElementById(id);
let models = [];
let image = null;
let reading = 0; // number of the last image: those that are decoded later are dropped
let panels = new Map(); // by key of the model
const view = new View(() => panels.values(), (scale) => {
  document.querySelector("[data-zoom=fit]").textContent = `${Math.round(100 * scale)} %`;
  document.querySelector("[data-zoom=out]").disabled = scale === 1;
});

// Models

async function start() {
  say("Loading the models …");
  models = await loadModels();
  say(models.length ? "" : "No model is served. Start the server with one, or add one to its models file.", !models.length);
  at("empty").hidden = Boolean(image);
  await follow();
}

function listModels(keys) {
  const isMany = at("compare").checked;
  const names = [...new Set(models.map(({ name }) => name))];
  at("models").replaceChildren(...names.map((name) => {
    const versions = models.filter((model) => model.name === name);
    const chips = versions.map((model) => {
      const label = make("label", versions.length > 1 ? model.version : name);
      const input = Object.assign(make("input"), { type: isMany ? "checkbox" : "radio", name: "model", value: model.key, checked: keys.includes(model.key) });
      if (versions.length > 1) input.setAttribute("aria-label", `${name}, version ${model.version}`);
      input.addEventListener("change", () => { if (image) say(""); choose(); });
      label.prepend(input);
      return label;
    });
    const group = make("span", undefined, "chips");
    if (versions.length > 1) group.append(make("span", name, "chips-name"));
    group.append(...chips);
    return group;
  }));
  at("models").setAttribute("role", isMany ? "group" : "radiogroup");
  at("compare-label").hidden = models.length < 2;
}

const chosen = () => [...document.querySelectorAll("#models input:checked")].map(({ value }) => value);

function choose() {
  const keys = chosen();
  const before = panels;
  panels = new Map(keys.map((key) => [key, before.get(key) ?? newPanel(key)]));
  for (const [key, panel] of before) if (!panels.has(key)) panel.clear();
  const list = [...panels.values()];
  at("panels").replaceChildren(...list.map(({ element }) => element));
  at("panels").classList.toggle("single", list.length === 1);
  for (const { element } of list) element.querySelector("details").open = list.length === 1;
  at("zero-shot").hidden = !list.some(({ model }) => needsLabels(model));
  ask(keys.filter((key) => !before.has(key)));
  if (!keys.length && models.length) say("Choose a model.");
}

const modelOf = (key) => models.find((model) => model.key === key);

function newPanel(key) {
  const panel = new Panel(modelOf(key), (status) => {
    if (status === 404) reloadModels();
    refresh();
  });
  view.attach(panel);
  return panel;
}

// A model has gone: the list is renewed, and its panel says so until another one is chosen.
async function reloadModels() {
  const keys = chosen();
  models = await loadModels().catch(() => models);
  listModels(keys);
}

at("compare").addEventListener("change", () => {
  const keys = chosen();
  const kept = at("compare").checked ? keys : keys.slice(0, 1);
  listModels(kept.length || !models.length ? kept : [models[0].key]);
  choose();
});

// The image

async function take(blob, name, origin) {
  const mine = ++reading;
  for (const panel of panels.values()) panel.clear();
  say(`Reading ${name} …`);
  at("panels").setAttribute("aria-busy", "true");
  await new Promise((done) => requestAnimationFrame(() => setTimeout(done))); // paint this first
  try {
    const taken = await readImage(await blob(), name, origin);
    if (mine !== reading) return;
    replaceImage(taken);
    say("");
    view.point = null;
    view.zoomTo(1);
    ask([...panels.keys()]);
  } catch (error) {
    if (mine !== reading) return;
    replaceImage(null);
    say(error.message, true);
    refresh();
  } finally {
    if (mine === reading) at("panels").removeAttribute("aria-busy");
  }
}

function replaceImage(taken) {
  if (image?.link) URL.revokeObjectURL(image.link);
  image = taken;
  if (image?.origin === "paste") image.link = URL.createObjectURL(image.blob);
  at("panels").hidden = !image;
  at("empty").hidden = Boolean(image);
}

const takeFile = (file, origin = "file") => file && take(async () => file, file.name || "image", origin);
const takeSample = (path) => take(() => getFile(path), path.split("/").at(-1), path);

function ask(keys) {
  refresh();
  if (!image) return;
  const labels = at("labels").value.split(",").map((label) => label.trim()).filter(Boolean).join(",");
  for (const key of keys) {
    const panel = panels.get(key);
    if (needsLabels(panel.model) && !labels) panel.refuse(image, "Enter at least one label.");
    else panel.ask(image, labels);
  }
  at("labels").toggleAttribute("aria-invalid", !labels);
}

// Controls and the link show what is there.
function refresh() {
  const hasOverlay = [...panels.values()].some((panel) => panel.hasOverlay);
  at("view").hidden = !image || !panels.size;
  at("fade").hidden = !hasOverlay;
  at("share").hidden = !SAMPLES.includes(image?.origin) || !panels.size;
  for (const button of at("samples").children) button.setAttribute("aria-pressed", image?.origin === button.value);
  view.show();
  remember();
}

// The link

function remember() {
  const wishes = new URLSearchParams(chosen().map((key) => ["model", key]));
  const sample = SAMPLES.indexOf(image?.origin) + 1;
  if (sample) wishes.set("sample", sample);
  if (sample && !at("zero-shot").hidden) wishes.set("labels", at("labels").value);
  const fragment = `#${wishes}`.replaceAll("%2C", ",").replaceAll("%40", "@");
  if (models.length && location.hash !== fragment) history.replaceState(null, "", fragment);
}

async function follow() {
  const wishes = new URLSearchParams(location.hash.slice(1));
  const wanted = wishes.getAll("model");
  const keys = wanted.filter(modelOf);
  const missing = wanted.filter((key) => !modelOf(key));
  if (!keys.length && models.length) keys.push(models[0].key);
  at("compare").checked = keys.length > 1;
  if (wishes.has("labels")) at("labels").value = wishes.get("labels");
  listModels(keys);
  const sample = SAMPLES[Number(wishes.get("sample")) - 1];
  choose();
  if (sample && sample !== image?.origin) await takeSample(sample);
  else if (image) say("");
  if (missing.length) say(`The link names ${missing.join(" and ")}, which isn't served here.`, true);
}

// Events

function say(text, isFailure = false) {
  at("notice").textContent = text;
  at("notice").classList.toggle("failed", isFailure);
}

for (const [index, path] of SAMPLES.entries()) {
  const button = Object.assign(make("button"), { type: "button", value: path });
  button.append(Object.assign(make("img"), { src: path, alt: `Sample ${index + 1}`, width: 64, height: 48 }));
  button.addEventListener("click", () => takeSample(path));
  at("samples").append(button);
}
at("file").addEventListener("change", () => {
  takeFile(at("file").files[0]);
  at("file").value = ""; // so that the same file can be chosen again, changed
});
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    document.body.classList.toggle("over", kind === "dragover");
    if (kind !== "drop") return;
    if (event.dataTransfer.files.length) takeFile(imageAmong(event.dataTransfer.files));
    else say("That was no file. Save the image first, then drop its file here.", true);
  });
}
document.addEventListener("paste", (event) => {
  if (event.target.matches("input:not([type=file])")) return;
  const file = imageAmong(event.clipboardData.files);
  if (file) takeFile(file, "paste");
  else say("The clipboard has no image.", true);
});
at("zero-shot").addEventListener("submit", (event) => {
  event.preventDefault();
  ask([...panels.keys()].filter((key) => needsLabels(panels.get(key).model)));
});
const fade = () => at("panels").style.setProperty("--opacity", at("opacity").value / 100);
at("opacity").addEventListener("input", fade);
at("zoom").addEventListener("click", ({ target }) => target.dataset.zoom && view.press(target.dataset.zoom));
at("share").addEventListener("click", async () => {
  const isCopied = await copy(location.href, at("share"));
  flash(at("share"), isCopied ? "Copied" : "Copy the address above");
});
addEventListener("resize", () => view.show());
addEventListener("hashchange", follow);
fade();
start().catch((error) => {
  say(error.message, true);
  const again = make("button", "Try again");
  again.addEventListener("click", () => location.reload());
  at("notice").append(" ", again);
});

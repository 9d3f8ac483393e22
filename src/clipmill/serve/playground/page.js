// Sends an image to a served model and draws the prediction over it.
const LONGEST_SIDE = 1024; // larger images are resized before they are sent
const SAMPLES = ["sample-1.jpg", "sample-2.jpg", "sample-3.jpg"];
const RAMP = [[252, 232, 153], [250, 168, 92], [219, 102, 92], [161, 61, 112], [99, 43, 117], [48, 33, 92], [15, 15, 46]];

const at = (id) => document.getElementById(id);
const asked = new URLSearchParams(location.search);
let models = {}; // metadata by name
let picture = null; // {blob, name, bitmap}
let found = null; // {kind, width, height, values}
let point = null; // reading point, in pixels of the output
let turn = 0; // number of the last question: late responses are dropped

function make(tag, text, className) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (className) element.className = className;
  return element;
}

function say(text, failed = false) {
  at("status").textContent = text;
  at("status").classList.toggle("failed", failed);
}

const chosen = () => document.querySelector("#models input:checked")?.value;

async function start() {
  const names = (await (await fetch("/v2/models")).json()).models;
  for (const name of names) {
    models[name] = await (await fetch(`/v2/models/${name}`)).json();
    const label = make("label");
    const radio = Object.assign(make("input"), { type: "radio", name: "model", value: name });
    radio.checked = name === (asked.get("model") ?? names[0]);
    radio.addEventListener("change", ask);
    label.append(radio, name);
    at("models").append(label);
  }
  SAMPLES.forEach((file, index) => {
    const button = make("button");
    button.type = "button";
    button.append(Object.assign(make("img"), { src: `/playground/${file}`, alt: `Sample ${index + 1}` }));
    button.addEventListener("click", () => takeSample(file));
    at("samples").append(button);
  });
  const sample = SAMPLES[Number(asked.get("sample")) - 1];
  if (sample) await takeSample(sample);
  else identify();
}

async function takeSample(file) {
  await take(await (await fetch(`/playground/${file}`)).blob(), file);
}

async function take(blob, name) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob);
  } catch {
    return say(`${name} is not an image that this browser can read.`, true);
  }
  const factor = Math.min(1, LONGEST_SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = at("picture");
  canvas.width = Math.round(bitmap.width * factor);
  canvas.height = Math.round(bitmap.height * factor);
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  const isSendable = factor === 1 && ["image/jpeg", "image/png", "image/webp"].includes(blob.type);
  if (!isSendable) {
    blob = await new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.95));
  }
  picture = { blob, name };
  canvas.hidden = false;
  at("hint").hidden = true;
  await ask();
}

function query(model) {
  const { task, codings } = models[model].parameters;
  const wishes = new URLSearchParams();
  if (task === "clip") {
    wishes.set("labels", at("labels").value);
    wishes.set("top_k", "10");
  } else if (codings.includes("rle")) {
    wishes.set("output", "rle");
    wishes.set("threshold", "0.3");
    wishes.set("top_k", "100");
  } else if (isMap(model)) wishes.set("output", codings.includes("float16") ? "float16" : "raw");
  else wishes.set("top_k", "10");
  return wishes;
}

// Whether the output is an array of the size of the image.
const isMap = (model) => models[model].parameters.codings.includes("png");

async function ask() {
  const model = chosen();
  identify();
  if (!picture || !model) return;
  const mine = ++turn;
  const wishes = query(model);
  const binary = isMap(model);
  if (binary) wishes.set("binary_data_output", "true");
  say("Waiting …");
  const started = performance.now();
  try {
    const response = await fetch(`/v2/models/${model}/infer?${wishes}`, {
      method: "POST",
      headers: { "Content-Type": picture.blob.type },
      body: picture.blob,
    });
    const body = await response.arrayBuffer();
    if (mine !== turn) return;
    if (!response.ok) throw new Error(JSON.parse(new TextDecoder().decode(body)).error);
    const length = binary ? Number(response.headers.get("Inference-Header-Content-Length")) : body.byteLength;
    const answer = JSON.parse(new TextDecoder().decode(body.slice(0, length)));
    show(model, answer, body.slice(length));
    const milliseconds = performance.now() - started;
    say(`Response in ${milliseconds.toFixed(0)} ms`);
    facts({ "Image sent": `${(picture.blob.size / 1024).toFixed(0)} kB`, "Response": `${(body.byteLength / 1024).toFixed(0)} kB`, "Version": answer.model_version });
  } catch (error) {
    if (mine === turn) say(error.message, true);
  }
}

function identify() {
  const model = chosen();
  if (!model) return;
  const { task, digest } = models[model].parameters;
  at("identity").textContent = `${task} · digest ${digest.slice(0, 12)}`;
  at("zero-shot").hidden = task !== "clip";
  const isDrawn = isMap(model);
  const wishes = isDrawn ? new URLSearchParams({ output: "png" }) : query(model);
  const type = picture?.blob.type ?? "image/jpeg";
  const output = isDrawn ? " \\\n  --output answer.png" : "";
  at("curl").textContent =
    `curl --data-binary @${picture?.name ?? "image.jpg"} \\\n  --header 'Content-Type: ${type}'${output} \\\n  '${location.origin}/v2/models/${model}/infer?${wishes}'`;
}

function show(model, answer, bytes) {
  const { classes, palette, codings } = models[model].parameters;
  const isObjects = codings.includes("rle");
  at("legend").replaceChildren();
  at("scale").hidden = true;
  at("answer").hidden = !isMap(model) && !isObjects;
  found = null;
  if (at("answer").hidden) return showLabels(answer);
  if (isObjects) return showObjects(answer, classes, palette);
  const [tensor] = answer.outputs;
  const [, height, width] = tensor.shape;
  const values = tensor.datatype === "UINT8" ? new Uint8Array(bytes) : halves(new Uint16Array(bytes));
  found = { isClasses: tensor.datatype === "UINT8", width, height, values, classes };
  const colors = found.isClasses ? (value) => palette[value] ?? [128, 128, 128] : depthColors(values);
  draw(colors);
  if (found.isClasses) showClasses(palette);
  read();
}

function draw(colorOf) {
  const canvas = at("answer");
  canvas.width = found.width;
  canvas.height = found.height;
  const image = new ImageData(found.width, found.height);
  found.values.forEach((value, index) => {
    const [red, green, blue, opacity = 255] = colorOf(value);
    image.data.set([red, green, blue, opacity], index * 4);
  });
  canvas.getContext("2d").putImageData(image, 0, 0);
}

function showClasses(palette) {
  const counts = new Map();
  for (const value of found.values) counts.set(value, (counts.get(value) ?? 0) + 1);
  for (const [value, count] of [...counts].sort((a, b) => b[1] - a[1])) {
    const item = make("li");
    item.dataset.value = value;
    const swatch = make("span", undefined, "swatch");
    swatch.style.backgroundColor = `rgb(${(palette[value] ?? [128, 128, 128]).join(" ")})`;
    const share = (100 * count) / found.values.length;
    item.append(swatch, make("span", found.classes[value] ?? `class ${value}`), make("span", `${share.toFixed(1)} %`, "share"));
    at("legend").append(item);
  }
}

function showObjects(answer, classes, palette) {
  const { boxes, scores, labels, masks } = Object.fromEntries(answer.outputs.map((output) => [output.name, output.data]));
  const { width, height } = at("picture");
  const owners = new Uint8Array(width * height); // number of the object at a pixel, from 1
  for (let n = scores.length - 1; n >= 0; n--) { // the likeliest on top
    let place = 0, isInside = false;
    for (const run of runLengths(JSON.parse(masks[n]).counts)) {
      if (isInside) for (let k = place; k < place + run; k++) owners[(k % height) * width + Math.floor(k / height)] = n + 1;
      place += run;
      isInside = !isInside;
    }
  }
  const named = labels.map((label, n) => `${classes[label]}, ${(100 * scores[n]).toFixed(0)} %`);
  found = { isClasses: true, width, height, values: owners, classes: ["no object", ...named] };
  draw((owner) => (owner ? palette[labels[owner - 1]] : [0, 0, 0, 0]));
  const context = at("answer").getContext("2d");
  context.lineWidth = Math.max(2, Math.round(width / 250));
  labels.forEach((label, n) => {
    const [left, top, right, bottom] = boxes.slice(4 * n, 4 * n + 4);
    context.strokeStyle = `rgb(${palette[label].join(" ")})`;
    context.strokeRect(left, top, right - left, bottom - top);
    const item = make("li"), swatch = make("span", undefined, "swatch");
    item.dataset.value = n + 1;
    swatch.style.backgroundColor = context.strokeStyle;
    item.append(swatch, make("span", classes[label]), make("span", `${(100 * scores[n]).toFixed(0)} %`, "share"));
    at("legend").append(item);
  });
  if (!labels.length) at("legend").append(make("li", "Nothing likelier than 30 % was found."));
  read();
}

function runLengths(text) { // of a mask, by columns, as COCO compresses them
  const runs = [];
  let value = 0, shift = 0;
  for (let index = 0; index < text.length; index++) {
    const group = text.charCodeAt(index) - 48;
    value |= (group & 31) << shift;
    shift += 5;
    if (group & 32) continue;
    if (group & 16) value -= 2 ** shift;
    runs.push(runs.length > 2 ? value + runs.at(-2) : value);
    value = shift = 0;
  }
  return runs;
}

function showLabels(answer) {
  const [names, scores] = answer.outputs;
  names.data.forEach((name, index) => {
    const item = make("li");
    item.append(make("span", `${index + 1}`, "share"), make("span", name), make("span", `${(100 * scores.data[index]).toFixed(1)} %`, "share"));
    at("legend").append(item);
  });
}

function depthColors(values) {
  let near = Infinity, far = 0;
  for (const value of values) if (value > 0) { near = Math.min(near, value); far = Math.max(far, value); }
  const colorOf = (value) => {
    if (!(value > 0)) return [128, 128, 128];
    const place = ((value - near) / Math.max(far - near, 1e-6)) * (RAMP.length - 1);
    const step = Math.min(Math.floor(place), RAMP.length - 2);
    return RAMP[step].map((low, channel) => Math.round(low + (RAMP[step + 1][channel] - low) * (place - step)));
  };
  at("scale").hidden = false;
  at("near").textContent = `${near.toFixed(2)} m`;
  at("far").textContent = `${far.toFixed(2)} m`;
  const context = at("ramp").getContext("2d");
  for (let x = 0; x < 256; x++) {
    context.fillStyle = `rgb(${colorOf(near + ((far - near) * x) / 255).join(" ")})`;
    context.fillRect(x, 0, 1, 1);
  }
  return colorOf;
}

function halves(words) { // IEEE 754 binary16
  return Float32Array.from(words, (word) => {
    const sign = word & 0x8000 ? -1 : 1, exponent = (word >> 10) & 31, fraction = word & 1023;
    if (exponent === 0) return sign * fraction * 2 ** -24;
    return exponent === 31 ? (fraction ? NaN : sign * Infinity) : sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
  });
}

function facts(values) {
  at("timing").replaceChildren(...Object.entries(values).flatMap(([name, value]) => [make("dt", name), make("dd", value)]));
}

// The place of the answer within its canvas element: object-fit leaves margins.
function placeOf() {
  const box = at("answer").getBoundingClientRect();
  const scale = Math.min(box.width / found.width, box.height / found.height);
  return { scale, left: box.left + (box.width - found.width * scale) / 2, top: box.top + (box.height - found.height * scale) / 2 };
}

function read() {
  const marker = at("point");
  marker.hidden = !found || !point;
  for (const item of at("legend").children) item.classList.remove("here");
  if (marker.hidden) return void (at("reading").textContent = "");
  const [x, y] = point = [Math.max(0, Math.min(found.width - 1, point[0])), Math.max(0, Math.min(found.height - 1, point[1]))];
  const value = found.values[y * found.width + x];
  at("reading").textContent = `${found.isClasses ? (found.classes[value] ?? `class ${value}`) : value > 0 ? `${value.toFixed(2)} meters` : "unknown"} at ${x}, ${y}`;
  if (found.isClasses) document.querySelector(`#legend li[data-value="${value}"]`)?.classList.add("here");
  const place = placeOf(), stage = at("stage").getBoundingClientRect();
  marker.style.left = `${place.left - stage.left + (x + 0.5) * place.scale}px`;
  marker.style.top = `${place.top - stage.top + (y + 0.5) * place.scale}px`;
}

at("stage").addEventListener("pointermove", (event) => {
  if (!found) return;
  const place = placeOf();
  point = [Math.floor((event.clientX - place.left) / place.scale), Math.floor((event.clientY - place.top) / place.scale)];
  read();
});
at("stage").addEventListener("keydown", (event) => {
  const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (!move || !found) return;
  event.preventDefault();
  const step = event.shiftKey ? 1 : Math.max(1, Math.round(found.width / 50));
  point = point ? [point[0] + move[0] * step, point[1] + move[1] * step] : [found.width >> 1, found.height >> 1];
  read();
});
at("opacity").addEventListener("input", fade);
function fade() {
  at("answer").style.opacity = at("opacity").value / 100;
}
at("file").addEventListener("change", () => at("file").files[0] && take(at("file").files[0], at("file").files[0].name));
at("zero-shot").addEventListener("submit", (event) => { event.preventDefault(); ask(); });
at("copy").addEventListener("click", async () => {
  await navigator.clipboard.writeText(at("curl").textContent);
  at("copy").textContent = "Copied";
});
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    at("stage").classList.toggle("over", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files[0]) take(event.dataTransfer.files[0], event.dataTransfer.files[0].name);
  });
}
addEventListener("resize", read);
fade();
start().catch((error) => say(error.message, true));

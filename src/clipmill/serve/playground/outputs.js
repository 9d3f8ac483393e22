// What to ask a model for, and what its response shows: a map, objects, or labels with scores.

import { Problem, urlOf } from "./api.js";
import { decodePng } from "./png.js";

const THRESHOLD = 0.3;
const RAMP = [[252, 232, 153], [250, 168, 92], [219, 102, 92], [161, 61, 112], [99, 43, 117], [48, 33, 92], [15, 15, 46]];
const GRAY = [128, 128, 128];
const IS_LITTLE_ENDIAN = new Uint8Array(Uint32Array.of(1).buffer)[0] === 1;

const isMap = (model) => model.codings.includes("png");
const isObjects = (model) => model.codings.includes("rle");
export const needsLabels = (model) => model.task === "clip";

/** URL of the request, which curl sends too, and the file that curl writes. */
export function requestOf(model, labels) {
  const wishes = isMap(model) ? { output: "png" }
    : isObjects(model) ? { output: "rle", threshold: THRESHOLD, top_k: 100 }
    : needsLabels(model) ? { labels, top_k: 10 } : { top_k: 10 };
  return {
    url: urlOf(`${model.path}/infer?${new URLSearchParams(wishes)}`),
    output: isMap(model) ? `${model.name}-prediction.png` : undefined,
  };
}

/**
 * Read a response: {legend, width, height, values, colors, boxes, ramp, describe}. `values` has a
 * number for each pixel, `colors` the RGBA word of each number, `describe` its words. A response
 * without a picture has `legend` alone.
 */
export async function readResponse(model, { bytes }) {
  if (isMap(model)) {
    const map = await decodePng(bytes);
    return model.classes.length ? classMap(model, map) : depthMap(map);
  }
  const outputs = tensorsOf(bytes);
  return isObjects(model) ? objects(model, outputs) : rankedLabels(outputs);
}

function tensorsOf(bytes) {
  try {
    const { outputs } = JSON.parse(new TextDecoder().decode(bytes));
    return Object.fromEntries(outputs.map(({ name, data }) => [name, data]));
  } catch {
    throw new Problem("The response is not one of the Open Inference Protocol.");
  }
}

function classMap({ classes, palette }, { width, height, values }) {
  const counts = new Uint32Array(256);
  for (const value of values) counts[value]++;
  const nameOf = (value) => classes[value] ?? `class ${value}`;
  const legend = [...counts.entries()].filter(([, count]) => count).sort((a, b) => b[1] - a[1])
    .map(([value, count]) => ({ value, color: palette[value] ?? GRAY, name: nameOf(value), share: count / values.length }));
  const colors = new Uint32Array(256).map((_, value) => word(palette[value] ?? GRAY));
  return { legend, width, height, values, colors, describe: nameOf };
}

function depthMap({ width, height, values }) { // millimeters; 0 where unknown
  let near = 65536, far = 0;
  for (const value of values) if (value) { near = Math.min(near, value); far = Math.max(far, value); }
  const colorOf = (value) => value ? rampColor((value - near) / Math.max(far - near, 1)) : GRAY;
  const colors = new Uint32Array(65536);
  colors[0] = word(GRAY);
  for (let value = near; value <= far; value++) colors[value] = word(colorOf(value));
  return {
    legend: far ? [] : [{ name: "No depth is known." }],
    width, height, values, colors,
    ramp: far ? { near: `${(near / 1000).toFixed(2)} m`, far: `${(far / 1000).toFixed(2)} m`, colorAt: rampColor } : undefined,
    describe: (value) => value ? `${(value / 1000).toFixed(2)} meters` : "unknown",
  };
}

function rampColor(fraction) {
  const place = fraction * (RAMP.length - 1), step = Math.min(Math.floor(place), RAMP.length - 2);
  return RAMP[step].map((low, channel) => Math.round(low + (RAMP[step + 1][channel] - low) * (place - step)));
}

function objects({ classes, palette }, { boxes, scores, labels, masks }) {
  if (!labels.length) {
    return { legend: [{ name: `No object has a score of ${100 * THRESHOLD} % or more.` }] };
  }
  const runs = masks.map((mask) => JSON.parse(mask));
  const [height, width] = runs[0].size;
  const values = new Uint8Array(width * height); // number of the object at a pixel, from 1
  for (let n = runs.length - 1; n >= 0; n--) { // the likeliest on top
    let place = 0, isInside = false;
    for (const run of runLengths(runs[n].counts)) {
      if (isInside) for (let k = place; k < place + run; k++) values[(k % height) * width + Math.floor(k / height)] = n + 1;
      place += run;
      isInside = !isInside;
    }
  }
  const legend = labels.map((label, n) => (
    { value: n + 1, color: palette[label] ?? GRAY, name: classes[label] ?? `class ${label}`, share: scores[n] }));
  const colors = Uint32Array.of(0, ...legend.map(({ color }) => word(color)));
  return {
    legend, width, height, values, colors,
    boxes: legend.map(({ color }, n) => ({ color, corners: boxes.slice(4 * n, 4 * n + 4) })),
    describe: (value) => value ? `${legend[value - 1].name}, ${(100 * legend[value - 1].share).toFixed(0)} %` : "no object",
  };
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

function rankedLabels({ top_labels: names, top_probabilities: scores }) {
  return { legend: names.map((name, n) => ({ name, share: scores[n], isRanked: true })) };
}

function word([red, green, blue]) {
  return (IS_LITTLE_ENDIAN ? (255 << 24) | (blue << 16) | (green << 8) | red : (red << 24) | (green << 16) | (blue << 8) | 255) >>> 0;
}

// Numbers of a PNG with one channel of 8 or 16 bits, which a canvas would turn into colors.

import { Problem } from "./api.js";

/** {width, height, values}: class ids, or depth in millimeters. */
export async function decodePng(buffer) {
  const view = new DataView(buffer);
  if (buffer.byteLength < 33 || view.getUint32(0) !== 0x89504e47) throw new Problem("The response is not a PNG.");
  const width = view.getUint32(16), height = view.getUint32(20), bits = view.getUint8(24);
  if (![8, 16].includes(bits) || ![0, 3].includes(view.getUint8(25)) || view.getUint8(28)) {
    throw new Problem("The response is a PNG of another kind than this page reads.");
  }
  const parts = [];
  for (let place = 8; place + 8 <= buffer.byteLength; place += view.getUint32(place) + 12) {
    if (view.getUint32(place + 4) === 0x49444154) parts.push(new Uint8Array(buffer, place + 8, view.getUint32(place)));
  }
  const inflated = new Blob(parts).stream().pipeThrough(new DecompressionStream("deflate"));
  const rows = new Uint8Array(await new Response(inflated).arrayBuffer());
  const bytes = unfilter(rows, width * (bits / 8), height, bits / 8);
  if (bits === 8) return { width, height, values: bytes };
  const values = new Uint16Array(width * height);
  for (let k = 0; k < values.length; k++) values[k] = (bytes[2 * k] << 8) | bytes[2 * k + 1];
  return { width, height, values };
}

// PNG specification, section 9: each row starts with the number of its filter.
function unfilter(rows, stride, height, step) {
  const bytes = new Uint8Array(stride * height);
  for (let y = 0; y < height; y++) {
    const filter = rows[y * (stride + 1)], source = y * (stride + 1) + 1, target = y * stride;
    for (let x = 0; x < stride; x++) {
      const left = x >= step ? bytes[target + x - step] : 0;
      const up = y ? bytes[target + x - stride] : 0;
      const corner = y && x >= step ? bytes[target + x - stride - step] : 0;
      bytes[target + x] = rows[source + x] + predict(filter, left, up, corner);
    }
  }
  return bytes;
}

function predict(filter, left, up, corner) {
  if (filter === 1) return left;
  if (filter === 2) return up;
  if (filter === 3) return (left + up) >> 1;
  if (filter !== 4) return 0;
  const byLeft = Math.abs(up - corner), byUp = Math.abs(left - corner), byCorner = Math.abs(left + up - 2 * corner);
  if (byLeft <= byUp && byLeft <= byCorner) return left;
  return byUp <= byCorner ? up : corner;
}

// The image that is shown and sent: the file as it is, drawn as the server sees it.

import { Problem } from "./api.js";

const MOST_PIXELS = 16e6; // of a canvas: Safari on phones draws no more

/**
 * Decode a file: {blob, name, origin, type, width, height, canvas}. `origin` is where it comes from:
 * "file", "paste" or the path of a sample.
 */
export async function readImage(blob, name, origin) {
  if (!blob.size) throw new Problem(`${name} is empty.`);
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob);
  } catch {
    throw new Problem(`${name} is not an image that this browser can show. Choose a JPEG, PNG or WebP file.`);
  }
  const { width, height } = bitmap;
  const factor = Math.min(1, Math.sqrt(MOST_PIXELS / (width * height)));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(width * factor));
  canvas.height = Math.max(1, Math.round(height * factor));
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff"; // the server lays transparent images over white
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  const type = blob.type.startsWith("image/") ? blob.type : "application/octet-stream";
  return { blob, name, origin, type, width, height, canvas };
}

/** The image among the files of a drop or of the clipboard. */
export const imageAmong = (files) => [...files].find((file) => file.type.startsWith("image/")) ?? files[0];

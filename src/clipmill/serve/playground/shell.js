// The command that sends the same request as the page.

import { urlOf } from "./api.js";

/** A word of a POSIX shell. */
const quote = (text) => /^[\w./@-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;

/** The command with curl: the same bytes to the same URL. */
export function curlCommand(url, image, output) {
  const name = image?.name ?? "image.jpg";
  const lines = [`--header ${quote(`Content-Type: ${image?.type ?? "image/jpeg"}`)}`];
  if (output) lines.push(`--output ${quote(output)}`);
  lines.push(quote(url));
  const send = (file) => `curl --fail --data-binary ${[file, ...lines].join(" \\\n  ")}`;
  if (image?.origin.startsWith("playground/")) {
    return `curl --fail --silent ${quote(urlOf(image.origin))} |\n${send("@-")}`;
  }
  if (/\p{Cc}/u.test(name)) {
    // A terminal obeys control characters even within quotes, so they are pasted as octal numbers.
    return `name=$(printf ${quote(printfFormat(name))})\n${send('"@${name%.}"')}`;
  }
  return send(quote(name === "-" ? "@./-" : `@${name}`)); // "@-" is standard input
}

// The dot at the end, which the command takes away again, keeps line feeds before it.
const printfFormat = (name) => `./${name}.`
  .replaceAll("\\", "\\\\")
  .replaceAll("%", "%%")
  .replace(/\p{Cc}/gu, (control) => [...new TextEncoder().encode(control)].map((byte) => `\\${byte.toString(8).padStart(3, "0")}`).join(""));

/** Copy the text of an element; true if it worked. */
export async function copy(text, element) {
  try {
    await navigator.clipboard.writeText(text); // absent without TLS, unless on localhost
    return true;
  } catch {
    return copySelection(text, element);
  }
}

function copySelection(text, element) {
  const area = document.createElement("textarea");
  area.value = text;
  area.className = "offscreen";
  document.body.append(area);
  area.select();
  const isCopied = document.execCommand("copy");
  area.remove();
  element.focus();
  return isCopied;
}

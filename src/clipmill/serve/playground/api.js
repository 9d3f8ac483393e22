// Requests to the server that serves this page; errors in words.

const MEANINGS = {
  401: "Sign in first: the gateway in front of the server wants to know who you are.",
  403: "The gateway in front of the server doesn't let you use it.",
  404: "There is no such address behind this gateway. Is the path to the server right?",
  413: "The image is too large for the gateway in front of the server. Choose a smaller one.",
  429: "Too many requests at once for the gateway in front of the server. Try again in a moment.",
  502: "The gateway can't reach the model server, which may be starting. Try again in a moment.",
  503: "The gateway has no model server that is ready. Try again in a moment.",
  504: "The model server took longer than the gateway waits. Try again, or choose a smaller image.",
};
const MOST_RETRY_SECONDS = 30;

/** An error whose message is for the person at the page. */
export class Problem extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

/** URL of a path of the server, which may lie behind a prefix. */
export const urlOf = (path) => new URL(path, document.baseURI).href;

/** The models that are served: one entry per version. */
export async function loadModels() {
  const { models } = await getJson("v2/models");
  const entries = await Promise.all(models.map(loadVersions));
  return entries.flat();
}

async function loadVersions(name) {
  const standard = await loadModel({ name, path: `v2/models/${encodeURIComponent(name)}` });
  if (!standard) return [];
  if (standard.versions.length < 2) return [{ ...standard, key: name }];
  const versions = standard.versions.map((version) => loadModel(
    { name, version, key: `${name}@${version}`, path: `${standard.path}/versions/${encodeURIComponent(version)}` }));
  return (await Promise.all(versions)).filter(Boolean);
}

/** The model with its metadata as it is now; null if it isn't served any more. */
export async function loadModel(model) {
  try {
    const { parameters, versions } = await getJson(model.path);
    return { ...model, ...parameters, versions, version: parameters.version };
  } catch (problem) {
    if (problem.status === 404) return null;
    throw problem;
  }
}

async function getJson(path) {
  const response = await send(urlOf(path), {});
  const text = await response.text();
  if (!response.ok) throw problemOf(response.status, text);
  try {
    return JSON.parse(text);
  } catch {
    throw new Problem(`${urlOf(path)} answers, but not as a clipmill server does. Is the path to the server right?`);
  }
}

/** Fetch a file of the page's own. */
export async function getFile(path) {
  const response = await send(urlOf(path), {});
  if (!response.ok) throw problemOf(response.status, "");
  return response.blob();
}

/**
 * Send an image to a model: {bytes, type}. A 503 is retried once, after as many seconds as the
 * server says, of which `onWait` is told.
 */
export async function infer(url, image, { signal, onWait }) {
  const request = { method: "POST", headers: { "Content-Type": image.type }, body: image.blob, signal };
  let response = await send(url, request);
  if (response.status === 503) {
    const seconds = Number(response.headers.get("Retry-After") ?? 1);
    if (seconds >= 0 && seconds <= MOST_RETRY_SECONDS) {
      await response.arrayBuffer();
      onWait(seconds);
      await pause(seconds, signal);
      response = await send(url, request);
    }
  }
  const bytes = await response.arrayBuffer();
  if (!response.ok) throw problemOf(response.status, new TextDecoder().decode(bytes));
  return { bytes, type: response.headers.get("Content-Type") ?? "" };
}

async function send(url, request) {
  try {
    return await fetch(url, request);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The server can't be reached. Check that it is running and that you are connected, then try again.");
  }
}

const pause = (seconds, signal) => new Promise((done, failed) => {
  const timer = setTimeout(done, seconds * 1000);
  signal.addEventListener("abort", () => { clearTimeout(timer); failed(signal.reason); }, { once: true });
});

function problemOf(status, text) {
  let said;
  try {
    said = JSON.parse(text).error;
  } catch {
    // a gateway's page, not the server's words
  }
  const words = said ? sentence(said) : MEANINGS[status] ?? `The server answered with status ${status} and no reason. Its log may have one.`;
  return new Problem(words, status);
}

const sentence = (text) => text[0].toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");

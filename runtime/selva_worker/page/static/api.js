// Talks to the worker that served this page. The token came behind the # of the address and stays in this tab.

const TOKEN = "selva.token";
const RETRY_MS = [500, 2000, 4000, 8000, 15000];
const SILENCE_MS = 40000; // the worker says something every 15 s

/** An answer that refuses. `status` is that of HTTP, or 0 if the worker is gone. */
export class Refusal extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** Take the token out of the address, and return whether there is one. */
export function takeToken() {
  const given = /^#token=([\w-]+)$/.exec(location.hash);
  if (given) {
    sessionStorage.setItem(TOKEN, given[1]);
    history.replaceState(null, "", location.pathname);
  }
  return sessionStorage.getItem(TOKEN) !== null;
}

const headers = (more = {}) => ({ Authorization: `Bearer ${sessionStorage.getItem(TOKEN)}`, ...more });

async function answered(path, options = {}) {
  let reply;
  try {
    reply = await fetch(path, { ...options, headers: headers(options.headers), redirect: "error" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal("the worker does not answer", 0);
  }
  if (!reply.ok) {
    const said = await reply.json().catch(() => ({}));
    throw new Refusal(said.error ?? `the worker answered ${reply.status}`, reply.status);
  }
  return reply;
}

/** Call a method of the worker. */
export async function call(method, params = {}) {
  const body = JSON.stringify({ jsonrpc: "2.0", id: 1, method, params });
  const reply = await answered("/v1/rpc", { method: "POST", body, headers: { "Content-Type": "application/json" } });
  const said = await reply.json();
  if (said.error) throw new Refusal(said.error.message, 400);
  return said.result;
}

/** What the page needs to know at its start. */
export const about = async () => (await answered("/v1/page")).json();

/** Note what the user thinks of a stem: "kept", "thrown" or null. */
export async function mark(stem, mark) {
  const body = JSON.stringify({ stem, mark });
  await answered("/v1/page/marks", { method: "POST", body, headers: { "Content-Type": "application/json" } });
}

export const videoPath = (path) => `/v1/page/video?path=${encodeURIComponent(path)}`;
export const stemPath = (stem) => `/v1/jobs/${stem.job}/stems/${stem.number}`;

/** Fetch a file as a Blob. One that is longer than `mostBytes` is refused before it comes. */
export async function file(path, mostBytes = Infinity) {
  const stop = new AbortController();
  const reply = await answered(path, { signal: stop.signal });
  if (Number(reply.headers.get("content-length")) > mostBytes) {
    stop.abort();
    throw new Refusal("it is too large to show here", 413);
  }
  return reply.blob();
}

/** Save a file of the worker under a name. */
export async function download(path, name) {
  const url = URL.createObjectURL(await file(path));
  const link = Object.assign(document.createElement("a"), { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 60000);
}

/** Copy a video to the worker. Returns {done: Promise of its path, stop()}; only XMLHttpRequest tells how far it is. */
export function upload(video, progress) {
  const request = new XMLHttpRequest();
  const done = new Promise((resolve, reject) => {
    request.open("PUT", `/v1/page/videos/${encodeURIComponent(video.name)}`);
    for (const [name, value] of Object.entries(headers())) request.setRequestHeader(name, value);
    request.responseType = "json";
    request.upload.onprogress = (event) => progress(event.loaded / event.total);
    request.onload = () =>
      request.status === 200
        ? resolve(request.response.path)
        : reject(new Refusal(request.response?.error ?? `the worker answered ${request.status}`, request.status));
    request.onerror = () => reject(new Refusal("the worker did not take the video", 0));
    request.onabort = () => reject(new Refusal("stopped", 0));
    request.send(video);
  });
  return { done, stop: () => request.abort() };
}

/** Hear of every change of a job, for ever. `state` is called with "here", "gone" or "stranger" (a wrong token). */
export async function listen(changed, state) {
  let seen = 0;
  for (let failures = 0; ; ) {
    try {
      await events(seen, (job) => {
        seen = Math.max(seen, job.revision);
        changed(job);
      }, () => {
        failures = 0;
        state("here");
      });
    } catch (error) {
      if (error.status === 401) return state("stranger");
    }
    if (failures > 0) state("gone");
    await new Promise((wake) => setTimeout(wake, RETRY_MS[Math.min(failures++, RETRY_MS.length - 1)]));
  }
}

async function events(seen, heard, connected) {
  const stop = new AbortController();
  let timer = 0;
  const alive = () => {
    clearTimeout(timer);
    timer = setTimeout(() => stop.abort(), SILENCE_MS);
  };
  alive();
  try {
    const reply = await answered("/v1/events", { headers: { "Last-Event-ID": String(seen) }, signal: stop.signal });
    const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
    connected();
    for (let text = ""; ; ) {
      const { value, done } = await reader.read();
      if (done) return;
      alive();
      text += value;
      const parts = text.split("\n\n");
      text = parts.pop();
      for (const part of parts) {
        const data = part.split("\n").find((line) => line.startsWith("data: "));
        if (data) heard(JSON.parse(data.slice(6)));
      }
    }
  } finally {
    clearTimeout(timer);
  }
}

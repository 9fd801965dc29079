// Puts the page together: what is open (a part of a video), its jobs, its stems.

import * as api from "./api.js";
import { Composer } from "./composer.js";
import { announce, find, make, seconds } from "./dom.js";
import { Film } from "./film.js";
import { showHistory, showJobs } from "./joblist.js";
import { listenToKeys } from "./keys.js";
import { Mixer } from "./mixer.js";
import { Strip } from "./strip.js";
import { Transport } from "./transport.js";
import { isActive, status, takesOf, videoName, viewKey, viewOf } from "./work.js";

const MOST_JOBS = 200;
const VIEW = "selva.view";
const NOTHING_YET =
  "No stems yet. Choose a video, type a sound a line, and press Generate: each sound gets a stem of its own, to solo, mute and mix here.";

class Page {
  #about;
  #marks;
  #jobs = new Map();
  #mine = new Set(); // jobs that this tab submitted: if one fails, its card stays
  #shown = null; // key of the view whose stems are in the mixer
  #strip = new Strip(find("strip"), find);
  #transport = new Transport(find("picture"));

  constructor(about, started) {
    this.#about = about;
    this.#marks = about.marks;
    this.composer = new Composer(started.bundle, about.otioz);
    this.film = new Film(about, started.folders, this.#strip);
    this.mixer = new Mixer(find("stems"), this.#transport, this.#marks);
    if (started.bundle.min_duration_s) this.#strip.least = started.bundle.min_duration_s;
    this.#wire();
    listenToKeys(this.#transport, this.mixer);
    this.refresh();
  }

  /** The video and the part that are open, or null. */
  get view() {
    const { start, end } = this.#strip;
    if (this.film.path === null) return null;
    return { video: this.film.path, start, duration: end === null ? null : end - start };
  }

  hear(job) {
    if (job.kind !== "generate") return;
    const before = this.#jobs.get(job.id);
    if (before && before.revision > job.revision) return this.refresh(); // the events were faster than the answer
    this.#jobs.set(job.id, job);
    if (this.#mine.has(job.id) && before && before.state !== job.state) {
      const { text } = status(job);
      announce(`${job.request.prompts.join(", ")}: ${job.state === "done" ? "done" : text}`);
    }
    this.refresh();
  }

  async open(view) {
    this.#transport.pause();
    try {
      const hasStems = this.#jobsOf(viewKey(view)).some((job) => job.state === "done");
      if (this.film.path !== view.video) await this.film.show(view.video, hasStems);
    } catch {
      return this.refresh(); // the film says why
    }
    this.#strip.set(view.start, view.duration === null ? null : view.start + view.duration);
    this.#partChanged();
  }

  async submit(request, view = this.view) {
    complain("");
    const out = `${this.#about.stems_folder}/${crypto.randomUUID()}`;
    const asked = { ...request, video: view.video, start_s: view.start, duration_s: view.duration, out };
    if (this.composer.wantsTimeline) asked.timelines = [`${out}/${videoName(view.video).replace(/\.\w+$/, "")}.otioz`];
    try {
      const job = await api.call("job.submit", { request: asked, key: out, urgent: true });
      this.#mine.add(job.id);
      this.hear(job);
      find("jobs").scrollIntoView({ block: "nearest" });
      announce("The job is waiting");
    } catch (error) {
      complain(`Not started: ${error.message}`);
    }
  }

  #wire() {
    this.film.addEventListener("open", (event) => this.open({ video: event.detail.path, start: 0, duration: null }));
    this.#strip.addEventListener("part", () => this.#partChanged());
    this.#strip.addEventListener("point", (event) => this.#transport.seek(event.detail.time - this.#strip.start));
    this.composer.addEventListener("submit", () => this.#canGenerate() && this.submit(this.composer.request));
    this.composer.addEventListener("change", () => this.#canGenerate());
    this.mixer.addEventListener("again", ({ detail }) => this.#another(detail));
    this.mixer.addEventListener("mark", ({ detail }) => this.#mark(detail));
    this.mixer.addEventListener("changed", () => this.#showDownloads());
    this.mixer.addEventListener("loaded", () => this.#showTransport());
    this.#transport.addEventListener("state", () => this.#showTransport());
    this.#transport.addEventListener("tick", () => this.#showTransport());
    find("play").addEventListener("click", () => this.#transport.toggle());
    find("seek").addEventListener("input", (event) => this.#transport.seek(event.target.valueAsNumber));
    find("loop").addEventListener("change", (event) => (this.#transport.loop = event.target.checked));
    find("master").addEventListener("input", (event) => this.#transport.setMaster(event.target.valueAsNumber ** 2));
    find("original").addEventListener("input", (event) => setOriginal(event.target.valueAsNumber));
    find("set-in").addEventListener("click", () => this.pointHere("in"));
    find("set-out").addEventListener("click", () => this.pointHere("out"));
    find("whole").addEventListener("click", () => this.open({ ...this.view, start: 0, duration: null }));
    find("zip").addEventListener("click", () => this.#download(
      `/v1/page/zip?${this.mixer.wanted.ids.map((id) => `stem=${id}`).join("&")}`, `${videoName(this.view.video)}-stems.zip`));
  }

  #mark({ id, mark }) {
    this.refresh();
    api.mark(id, mark).catch((error) => complain(`Not noted: ${error.message}`));
  }

  /** Set the in or out point where the playhead is. */
  pointHere(which) {
    const here = this.#strip.start + this.#transport.time;
    this.#strip.set(which === "in" ? here : this.#strip.start, which === "out" ? here : this.#strip.end);
    this.#partChanged();
  }

  #partChanged() {
    this.#transport.setPart(this.#strip.start, this.#strip.duration ?? 0);
    sessionStorage.setItem(VIEW, JSON.stringify(this.view));
    this.refresh();
    this.#showTransport();
  }

  /** Another take: the same job for one prompt, with a seed that it has not had. */
  #another({ prompt, request }) {
    const key = viewKey(viewOf({ request }));
    const seeds = this.#jobsOf(key).filter((job) => job.request.prompts.includes(prompt)).map((job) => job.request.seed + (job.request.takes ?? 1));
    const { prompts, out, timelines, video, start_s, duration_s, ...same } = request;
    this.submit({ ...same, prompts: [prompt], seed: Math.max(0, ...seeds), takes: 1 });
  }

  #jobsOf(key) {
    return [...this.#jobs.values()].filter((job) => viewKey(viewOf(job)) === key);
  }

  /** Show everything anew. What has not changed stays in place. */
  refresh() {
    const jobs = [...this.#jobs.values()].sort((a, b) => a.submitted_s - b.submitted_s);
    const key = this.view && viewKey(this.view);
    if (key !== this.#shown) this.mixer.clear();
    this.#shown = key;
    const takes = key ? takesOf(jobs.filter((job) => viewKey(viewOf(job)) === key)) : [];
    this.mixer.show(takes);
    const making = jobs.some((job) => isActive(job) && viewKey(viewOf(job)) === key);
    find("mix-empty").hidden = takes.length > 0;
    find("mix-empty").textContent = making ? "The stems come here as soon as they are made." : NOTHING_YET;
    const failed = (job) => this.#mine.has(job.id) && (job.state !== "done" || job.result.error);
    showJobs(jobs.filter((job) => isActive(job) || failed(job)), {
      cancel: (id) => api.call("job.cancel", { job: id }).catch((error) => complain(`Not cancelled: ${error.message}`)),
      again: (id) => this.#runAgain(id),
      dismiss: (id) => this.#dismiss(id),
    });
    showHistory(jobs, this.#marks, key, { open: (view) => this.#openPast(view) });
    this.#canGenerate();
    this.#showDownloads();
  }

  #openPast(view) {
    const last = this.#jobsOf(viewKey(view)).at(-1);
    if (last) this.composer.fill(last.request);
    this.open(view).then(() => find("film").scrollIntoView({ block: "nearest" }));
  }

  #runAgain(id) {
    const { request } = this.#jobs.get(id);
    const { out, timelines, video, start_s, duration_s, ...same } = request;
    this.#dismiss(id);
    this.submit(same, viewOf({ request }));
  }

  #dismiss(id) {
    this.#mine.delete(id);
    this.refresh();
  }

  #canGenerate() {
    const why = document.body.dataset.worker === "gone" ? "The worker is gone." : this.view === null ? "Choose a video first." : this.composer.prompts.length === 0 ? "Type at least one sound." : "";
    find("why-not").textContent = why;
    find("generate").disabled = why !== "";
    return why === "";
  }

  #showTransport() {
    const { time, duration, playing, level } = this.#transport;
    find("play").setAttribute("aria-label", playing ? "Pause" : "Play");
    find("play").firstElementChild.textContent = playing ? "❚❚" : "▶";
    find("play").disabled = duration <= 0;
    find("seek").max = duration || 1;
    find("seek").value = time;
    find("seek").setAttribute("aria-valuetext", seconds(time));
    find("clock").value = `${time.toFixed(2)} / ${seconds(duration)}`;
    find("level").value = Math.min(1, level);
    this.#strip.showPosition(this.#strip.start + time);
  }

  #showDownloads() {
    const { ids, kept } = this.mixer.wanted;
    find("zip").hidden = ids.length === 0;
    find("zip").textContent = `ZIP of ${ids.length} ${kept ? "kept " : ""}take${ids.length === 1 ? "" : "s"}`;
    const made = this.#shown ? this.#jobsOf(this.#shown).filter((job) => job.result?.timelines.length) : [];
    const text = made.map((job) => job.id).join();
    if (find("timelines").dataset.shown === text) return;
    find("timelines").dataset.shown = text;
    find("timelines").replaceChildren(...made.slice(-1).map((job) =>
      make("button", { type: "button", title: job.request.prompts.join(", "), onclick: () => this.#download(`/v1/jobs/${job.id}/timelines/0`, videoName(job.result.timelines[0])) },
        "Timeline (.otioz)")));
  }

  #download(path, name) {
    complain("");
    api.download(path, name).catch((error) => complain(`Not downloaded: ${error.message}`));
  }
}

function setOriginal(volume) {
  find("picture").muted = volume === 0;
  find("picture").volume = volume;
}

/** Show what went wrong, or nothing. That the worker is gone is more important. */
function complain(text) {
  if (document.body.dataset.worker !== "here") return;
  find("banner").textContent = text;
  find("banner").hidden = !text;
}

function showModel({ bundle }) {
  const badge = find("model");
  badge.hidden = false;
  badge.classList.toggle("toy", bundle.toy || bundle.error !== null || bundle.weights === "random");
  badge.textContent = bundle.error ?? (bundle.toy ? "Toy model" : bundle.preset) + (bundle.weights === "random" ? ", random weights" : "");
  if (bundle.toy) {
    badge.title = "The small demo model that comes with the software: it knows few sounds and does not have SelVA's quality. --bundle names another.";
    find("about").textContent = `${badge.title} `;
  }
  find("about").textContent += bundle.notice ?? "";
}

const STATES = {
  here: ["Worker ready", ""],
  gone: ["Worker gone", "The worker is gone. What is loaded can still be heard. Start it again with: selva-worker --open"],
  stranger: ["No access", "This page has no valid key of the worker. Open it with: selva-worker --open"],
};

function showState(state) {
  const [short, long] = STATES[state];
  find("connection").textContent = short;
  find("connection").dataset.state = state;
  find("banner").textContent = long;
  find("banner").hidden = !long;
  document.body.dataset.worker = state;
}

/** The jobs until now, also those of an earlier worker, of which no event tells. */
async function earlierJobs(page) {
  const jobs = (await api.call("job.list")).filter((job) => job.kind === "generate").slice(-MOST_JOBS);
  for (const { id } of jobs) page.hear(await api.call("job.get", { job: id }));
}

async function start() {
  if (!api.takeToken()) return showState("stranger");
  try {
    const [about, started] = await Promise.all([api.about(), api.call("initialize")]);
    showModel(started);
    const page = new Page(about, started);
    api.listen((job) => page.hear(job), (state) => {
      showState(state);
      page.refresh();
    });
    await earlierJobs(page);
    const view = JSON.parse(sessionStorage.getItem(VIEW) ?? "null");
    if (view) await page.open(view);
    document.body.dataset.ready = "true";
  } catch (error) {
    showState(error.status === 401 ? "stranger" : "gone");
  }
}

addEventListener("hashchange", () => api.takeToken() && location.reload());
start();

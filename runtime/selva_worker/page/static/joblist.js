// What is being made now, what failed, and the history of it all.

import { find, make } from "./dom.js";
import { isActive, part, status, videoName, viewKey, viewOf } from "./work.js";

/** Cards of jobs. `act` has cancel(job), again(job) and dismiss(job). */
export function showJobs(jobs, act) {
  const list = find("jobs");
  const shown = new Map([...list.children].map((card) => [card.dataset.job, card]));
  for (const job of jobs) {
    const card = shown.get(job.id) ?? list.appendChild(newCard(job));
    shown.delete(job.id);
    const { text, fraction } = status(job);
    card.dataset.state = job.state;
    card.querySelector(".job-status").textContent = fraction === null ? text : `${text} ${Math.round(100 * fraction)} %`;
    const bar = card.querySelector("progress");
    bar.hidden = !isActive(job);
    if (fraction === null) bar.removeAttribute("value");
    else bar.value = fraction;
    const again = job.state === "done" ? [] : [["Try again", act.again]];
    const buttons = isActive(job) ? [["Cancel", act.cancel]] : [...again, ["Dismiss", act.dismiss]];
    setButtons(card.querySelector(".job-buttons"), buttons, job);
  }
  shown.forEach((card) => card.remove());
}

function newCard(job) {
  const prompts = job.request.prompts.join(", ");
  return make("li", { className: "job", data: { job: job.id } },
    make("b", { className: "job-title" }, prompts),
    make("span", { className: "job-status" }),
    make("progress", { max: 1, "aria-label": `Progress of ${prompts}` }),
    make("span", { className: "job-buttons" }));
}

/** Buttons are made only when they change, so that the one in focus stays. */
function setButtons(place, buttons, job) {
  const names = buttons.map(([name]) => name).join();
  if (place.dataset.names === names) return;
  place.dataset.names = names;
  place.replaceChildren(...buttons.map(([name, act]) =>
    make("button", { type: "button", onclick: () => act(job.id), "aria-label": `${name}: ${job.request.prompts.join(", ")}` }, name)));
}

/** The history: an entry for each part of a video, newest first. */
export function showHistory(jobs, marks, openKey, act) {
  const views = new Map();
  for (const job of jobs) {
    const view = viewOf(job);
    const key = viewKey(view);
    if (!views.has(key)) views.set(key, { view, key, jobs: [] });
    views.get(key).jobs.push(job);
  }
  const entries = [...views.values()].sort((a, b) => b.jobs.at(-1).submitted_s - a.jobs.at(-1).submitted_s);
  find("past-empty").hidden = entries.length > 0;
  const text = JSON.stringify([openKey, marks, jobs.map((job) => [job.id, job.state])]);
  if (find("history").dataset.shown === text) return;
  find("history").dataset.shown = text;
  find("history").replaceChildren(...entries.map((entry) => historyEntry(entry, marks, entry.key === openKey, act)));
}

function historyEntry({ view, key, jobs }, marks, isOpen, act) {
  const done = jobs.filter((job) => job.state === "done");
  const stems = done.flatMap((job) => job.result.stems.map((_, number) => `${job.id}.${number}`));
  const kept = stems.filter((id) => marks[id] === "kept").length;
  const prompts = [...new Set(jobs.flatMap((job) => job.request.prompts))].join(", ");
  const counts = [stems.length ? count(stems.length, "take") : "", kept ? `${kept} kept` : "", ...otherStates(jobs)].filter(Boolean).join(" · ");
  const last = jobs.at(-1);
  const when = new Date(1000 * jobs.at(-1).submitted_s);
  return make("li", { data: { view: key }, "aria-current": isOpen ? "true" : "false" },
    make("div", { className: "past-main" },
      make("b", {}, videoName(view.video)), ` ${part(view)}`,
      make("div", { className: "past-prompts" }, prompts),
      make("div", { className: "help" }, `${counts} · `, make("time", { dateTime: when.toISOString() }, when.toLocaleString([], { dateStyle: "medium", timeStyle: "short" }))),
      last.state === "failed" ? make("p", { className: "error" }, status(last).text) : ""),
    make("button", { type: "button", disabled: isOpen, onclick: () => act.open(view), "aria-label": `Open ${videoName(view.video)}, ${part(view)}` }, isOpen ? "Open now" : "Open"));
}

const count = (number, word) => `${number} ${word}${number === 1 ? "" : "s"}`;

function otherStates(jobs) {
  return ["queued", "running", "writing", "failed", "cancelled", "interrupted"].flatMap((state) => {
    const number = jobs.filter((job) => job.state === state).length;
    return number ? [`${number} ${state}`] : [];
  });
}

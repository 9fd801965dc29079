// The stems of what is open: a row a prompt, its takes side by side, one of them in the mix.

import * as api from "./api.js";
import { announce, find, make } from "./dom.js";
import { decode } from "./transport.js";
import { drawWave } from "./waves.js";

const SILENT_DB = -40; // the lowest setting of a slider is silence

/** Event "again" with detail {prompt, request}: another take is wanted. Event "mark" with detail {id, mark}. */
export class Mixer extends EventTarget {
  #root;
  #transport;
  #marks;
  #rows = new Map(); // prompt → {element, takes, mute, solo, gain, chosen}
  #takes = new Map(); // id → {take, element, erase}

  constructor(root, transport, marks) {
    super();
    this.#root = root;
    this.#transport = transport;
    this.#marks = marks;
    transport.addEventListener("tick", () => this.#movePlayheads());
    find("show-spectrogram").addEventListener("change", () => this.#takes.forEach((shown) => this.#draw(shown)));
  }

  /** Ids of the takes that are worth downloading: the kept ones, or all that were not thrown away. */
  get wanted() {
    const ids = [...this.#takes.keys()].filter((id) => this.#marks[id] !== "thrown");
    const kept = ids.filter((id) => this.#marks[id] === "kept");
    return { ids: kept.length ? kept : ids, kept: kept.length > 0 };
  }

  clear() {
    this.#transport.clear();
    this.#takes.forEach(({ erase }) => erase?.());
    this.#takes.clear();
    this.#rows.clear();
    this.#root.replaceChildren();
  }

  /** Show takes. Those that are there already stay as they are. */
  show(takes) {
    for (const take of takes) if (!this.#takes.has(take.id)) this.#addTake(take);
  }

  /** Solo the stem with this number from 1, or none with 0. */
  solo(number) {
    [...this.#rows.values()].forEach((row, index) => press(row.solo, index === number - 1 && !pressed(row.solo)));
    this.#setLevels();
  }

  #addTake(take) {
    const row = this.#rows.get(take.prompt) ?? this.#addRow(take);
    const shown = { take, element: null, erase: null };
    this.#takes.set(take.id, shown);
    row.count++;
    shown.element = this.#takeElement(shown, row);
    row.takes.append(shown.element);
    if (this.#marks[take.id] !== "thrown" || row.chosen === null) row.chosen = take.id;
    this.#showMarks();
    this.#load(shown);
  }

  #addRow({ prompt, request }) {
    const row = { count: 0, chosen: null, name: `take-of-${this.#rows.size}` };
    row.solo = toggle("S", `Solo ${prompt}`, () => this.#setLevels());
    row.mute = toggle("M", `Mute ${prompt}`, () => this.#setLevels());
    row.gain = make("input", { type: "range", min: SILENT_DB, max: 6, step: 0.5, value: 0, "aria-label": `Gain of ${prompt}, in dB` });
    const shown = make("output", {}, "0 dB");
    row.gain.addEventListener("input", () => {
      shown.value = row.gain.valueAsNumber <= SILENT_DB ? "off" : `${row.gain.value} dB`;
      this.#setLevels();
    });
    row.gain.addEventListener("dblclick", () => {
      row.gain.value = 0;
      row.gain.dispatchEvent(new Event("input"));
    });
    const again = () => this.dispatchEvent(new CustomEvent("again", { detail: { prompt, request } }));
    row.takes = make("ul", { className: "takes", "aria-label": `Takes of ${prompt}` });
    row.element = make("article", { className: "stem", data: { prompt } },
      make("header", {}, make("h3", {}, prompt), row.solo, row.mute, make("label", { className: "slider gain" }, row.gain, shown),
        make("button", { type: "button", className: "again", onclick: again }, "Another take")),
      row.takes);
    this.#rows.set(prompt, row);
    this.#root.append(row.element);
    return row;
  }

  #takeElement(shown, row) {
    const { take } = shown;
    const title = `Take ${row.count}`;
    const named = `${title} of ${take.prompt}`;
    const choose = () => {
      row.chosen = take.id;
      this.#showMarks();
    };
    shown.radio = make("input", { type: "radio", name: row.name, "aria-label": `${named}: use in the mix`, onchange: choose });
    shown.keep = make("button", { type: "button", onclick: () => this.#mark(take.id, "kept", `${named} is kept`) }, "Keep");
    shown.toss = make("button", { type: "button", onclick: () => this.#mark(take.id, "thrown", `${named} is thrown away`) }, "Throw away");
    const save = () => api.download(api.stemPath(take), fileNameOf(take)).catch((error) => this.#say(shown, error));
    shown.wave = make("div", { className: "wave", onclick: (event) => this.#point(event, shown) }, make("p", { className: "help" }, "Loading…"));
    shown.head = make("i", { className: "playhead" });
    return make("li", { className: "take", data: { stem: take.id } },
      make("div", { className: "take-head" },
        make("label", { className: "check" }, shown.radio, make("b", {}, title), make("span", { className: "help" }, `seed ${take.seed}${take.take > 1 ? ` / ${take.take}` : ""}`)),
        make("span", { className: "grow" }), shown.keep, shown.toss,
        make("button", { type: "button", onclick: save, "aria-label": `Download ${named} as WAV` }, "WAV")),
      make("div", { className: "waves" }, shown.wave, shown.head),
      ...take.warnings.map((text) => make("p", { className: "warning" }, text)));
  }

  async #load(shown) {
    const { take } = shown;
    try {
      const buffer = await decode(await api.file(api.stemPath(take)));
      if (this.#takes.get(take.id) !== shown) return;
      this.#transport.add(take.id, buffer);
      this.#setLevels();
      this.#draw(shown);
      shown.element.dataset.loaded = "true";
      this.dispatchEvent(new Event("loaded"));
    } catch (error) {
      this.#say(shown, error);
    }
  }

  #draw(shown) {
    const buffer = this.#transport.buffer(shown.take.id);
    if (!buffer) return;
    shown.erase?.();
    shown.wave.replaceChildren();
    shown.erase = drawWave(shown.wave, buffer, shown.take.sample_rate_hz, find("show-spectrogram").checked);
  }

  #say(shown, error) {
    shown.wave.replaceChildren(make("p", { className: "error" }, `This take cannot be played: ${error.message}`));
  }

  #point(event, shown) {
    const buffer = this.#transport.buffer(shown.take.id);
    const box = shown.wave.getBoundingClientRect();
    if (buffer) this.#transport.seek(((event.clientX - box.left) / box.width) * buffer.duration);
  }

  /** Mark a take, or take its mark away if it has this one. */
  #mark(id, mark, said) {
    const now = this.#marks[id] === mark ? null : mark;
    if (now === null) delete this.#marks[id];
    else this.#marks[id] = now;
    if (now === "thrown") this.#chooseAnother(id);
    announce(now === null ? "Mark removed" : said);
    this.#showMarks();
    this.dispatchEvent(new CustomEvent("mark", { detail: { id, mark: now } }));
  }

  /** A take that was thrown away leaves the mix, if another one can take its place. */
  #chooseAnother(id) {
    const row = this.#rows.get(this.#takes.get(id).take.prompt);
    const others = [...this.#takes.values()].filter(({ take }) => take.prompt === this.#takes.get(id).take.prompt && this.#marks[take.id] !== "thrown");
    if (row.chosen === id && others.length) row.chosen = others.at(-1).take.id;
  }

  #showMarks() {
    for (const [id, { element, radio, keep, toss, take }] of this.#takes) {
      const mark = this.#marks[id] ?? "";
      element.dataset.mark = mark;
      press(keep, mark === "kept");
      press(toss, mark === "thrown");
      keep.textContent = mark === "kept" ? "Kept" : "Keep";
      toss.textContent = mark === "thrown" ? "Bring back" : "Throw away";
      radio.checked = this.#rows.get(take.prompt).chosen === id;
      element.toggleAttribute("data-chosen", radio.checked);
    }
    this.#setLevels();
    this.dispatchEvent(new Event("changed"));
  }

  #setLevels() {
    const alone = [...this.#rows.values()].some((row) => pressed(row.solo));
    for (const [id, { take }] of this.#takes) {
      const row = this.#rows.get(take.prompt);
      const heard = row.chosen === id && !pressed(row.mute) && (!alone || pressed(row.solo));
      row.element.toggleAttribute("data-silent", pressed(row.mute) || (alone && !pressed(row.solo)));
      const db = row.gain.valueAsNumber;
      this.#transport.setLevel(id, heard && db > SILENT_DB ? 10 ** (db / 20) : 0);
    }
  }

  #movePlayheads() {
    for (const { take, head } of this.#takes.values()) {
      head.style.left = `${(100 * this.#transport.time) / (this.#transport.buffer(take.id)?.duration || 1)}%`;
    }
  }
}

const fileNameOf = (take) => take.file.split(/[\\/]/).pop();
const pressed = (button) => button.getAttribute("aria-pressed") === "true";
const press = (button, on) => button.setAttribute("aria-pressed", String(on));

function toggle(text, label, changed) {
  const button = make("button", { type: "button", className: "toggle", "aria-label": label, title: label, "aria-pressed": "false" }, text);
  button.addEventListener("click", () => {
    press(button, !pressed(button));
    changed();
  });
  return button;
}

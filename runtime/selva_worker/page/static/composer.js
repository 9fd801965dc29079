// The form: what is to be heard, and how. It keeps what was typed over a reload.

import { find, make } from "./dom.js";

const DRAFT = "selva.draft";
const FIELDS = ["prompts", "negative", "seed", "takes", "steps", "guidance", "otioz"];

/** Event "submit" when the user wants stems; `request` holds what they ask for. */
export class Composer extends EventTarget {
  #otioz;

  constructor(bundle, otioz) {
    super();
    this.#otioz = otioz;
    find("otioz").checked = otioz;
    find("otioz").disabled = !otioz;
    find("otioz-help").hidden = otioz;
    find("steps").placeholder = bundle.defaults?.steps ?? "";
    find("guidance").placeholder = bundle.defaults?.guidance ?? "";
    this.#restore();
    this.#offer(bundle.hears ?? []);
    find("sounds").addEventListener("input", () => this.#changed());
    find("sounds").addEventListener("submit", (event) => {
      event.preventDefault();
      this.dispatchEvent(new Event("submit"));
    });
    find("prompts").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) find("sounds").requestSubmit();
    });
    this.#changed();
  }

  get prompts() {
    return find("prompts").value.split("\n").map((line) => line.trim()).filter(Boolean);
  }

  /** The options of a job, but for its video and its folder. */
  get request() {
    const number = (id) => (find(id).value === "" ? null : find(id).valueAsNumber);
    return {
      prompts: this.prompts,
      negative: find("negative").value.trim() || null,
      seed: number("seed") ?? 0,
      takes: number("takes") ?? 1,
      steps: number("steps"),
      guidance: number("guidance"),
    };
  }

  get wantsTimeline() {
    return this.#otioz && find("otioz").checked;
  }

  /** Fill in what a job asked for. */
  fill(request) {
    find("prompts").value = request.prompts.join("\n");
    for (const id of ["negative", "seed", "takes", "steps", "guidance"]) find(id).value = request[id] ?? (id === "takes" ? 1 : "");
    this.#changed();
  }

  #offer(sounds) {
    find("hears").hidden = !sounds.length;
    if (sounds.length) find("prompts").placeholder = sounds.slice(0, 2).join("\n");
    const add = (sound) => {
      if (!this.prompts.includes(sound)) find("prompts").value = [...this.prompts, sound].join("\n");
      this.#changed();
    };
    find("hears").append(...sounds.map((sound) => make("button", { type: "button", onclick: () => add(sound) }, sound)));
  }

  #changed() {
    const { negative, seed, takes, steps, guidance } = this.request;
    const told = [`seed ${seed}`, takes > 1 && `${takes} takes`, steps && `${steps} steps`, guidance !== null && `guidance ${guidance}`, negative && `not ${negative}`];
    find("options-summary").textContent = told.filter(Boolean).join(" · ");
    const kept = Object.fromEntries(FIELDS.map((id) => [id, find(id).type === "checkbox" ? find(id).checked : find(id).value]));
    sessionStorage.setItem(DRAFT, JSON.stringify(kept));
    this.dispatchEvent(new Event("change"));
  }

  #restore() {
    const kept = JSON.parse(sessionStorage.getItem(DRAFT) ?? "{}");
    for (const [id, value] of Object.entries(kept)) {
      if (!FIELDS.includes(id) || find(id).disabled) continue;
      if (find(id).type === "checkbox") find(id).checked = value;
      else find(id).value = value;
    }
  }
}

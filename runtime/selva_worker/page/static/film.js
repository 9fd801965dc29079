// The video: dropped, chosen or named by its path, copied to the worker if need be, and shown.

import * as api from "./api.js";
import { announce, find } from "./dom.js";
import { videoName } from "./work.js";

const MOST_SHOWN_BYTES = 2 ** 31;
const UNREADABLE = "This browser cannot show this video. Stems are made and heard all the same.";

/** Event "open" with detail {path} when there is a new video. */
export class Film extends EventTarget {
  #about;
  #strip;
  #picture = find("picture");
  #upload = null;
  #url = null;
  #dropped = new Map(); // path → File: it need not come back from the worker
  path = null;

  constructor(about, folders, strip) {
    super();
    this.#about = about;
    this.#strip = strip;
    const others = folders.filter((folder) => !about.stems_folder.startsWith(folder));
    find("path-help").textContent = others.length
      ? `Paths in ${others.join(", ")} can be used.`
      : "No folder is allowed for typed paths: start the worker with --allow FOLDER to use one.";
    find("file").addEventListener("change", (event) => event.target.files[0] && this.take(event.target.files[0]));
    find("path-form").addEventListener("submit", (event) => {
      event.preventDefault();
      const path = find("path").value.trim();
      if (path) this.#opened(path);
    });
    find("upload-cancel").addEventListener("click", () => this.#upload?.stop());
    find("change-film").addEventListener("click", () => this.#showDrop());
    find("back").addEventListener("click", () => this.#showStage(this.path));
    this.#picture.addEventListener("error", () => this.#url && this.#hidePicture(UNREADABLE));
    this.#listenToDrops();
  }

  /** Copy a file to the worker and open it. */
  async take(file) {
    this.#upload?.stop();
    this.#say("");
    if (file.size > this.#about.max_video_bytes) return this.#say(`${file.name} is larger than a page can take; type its path instead.`);
    this.#showDrop();
    find("uploading").hidden = false;
    announce(`Copying ${file.name}`);
    const upload = api.upload(file, (fraction) => (find("upload-progress").value = fraction));
    this.#upload = upload;
    try {
      const path = await upload.done;
      this.#dropped.set(path, file);
      this.#opened(path);
    } catch (error) {
      if (error.message !== "stopped") this.#say(error.message);
    } finally {
      if (this.#upload === upload) {
        this.#upload = null;
        find("uploading").hidden = true;
        find("upload-progress").value = 0;
        find("file").value = "";
      }
    }
  }

  /** Show a video that the worker can read. If it has stems, they can be heard without it. */
  async show(path, hasStems) {
    this.path = path;
    this.#say("");
    this.#strip.reset();
    this.#forget();
    try {
      const blob = this.#dropped.get(path) ?? (await api.file(api.videoPath(path), MOST_SHOWN_BYTES));
      if (this.path !== path) return;
      this.#showStage(path);
      this.#url = URL.createObjectURL(blob);
      await this.#load(blob);
    } catch (error) {
      if (this.path !== path) return;
      if (error.status === 413 || hasStems) {
        this.#showStage(path);
        this.#hidePicture(`No picture: ${error.message}. Stems can be heard all the same.`);
      } else {
        this.path = null;
        this.#showDrop();
        this.#say(`${videoName(path)}: ${error.message}`);
        throw error;
      }
    }
  }

  #load(blob) {
    return new Promise((resolve) => {
      const end = () => resolve();
      this.#picture.addEventListener("error", end, { once: true });
      this.#picture.addEventListener("loadedmetadata", () => {
        if (!this.#picture.videoWidth) this.#hidePicture(UNREADABLE);
        if (Number.isFinite(this.#picture.duration)) this.#strip.setLength(this.#picture.duration);
        this.#strip.draw(blob).catch(() => {}); // without thumbnails the points still work
        end();
      }, { once: true });
      this.#picture.src = this.#url;
    });
  }

  #forget() {
    find("no-picture").hidden = true;
    this.#picture.hidden = false;
    const old = this.#url;
    this.#url = null;
    this.#picture.removeAttribute("src");
    this.#picture.load();
    if (old) URL.revokeObjectURL(old);
  }

  #opened(path) {
    this.dispatchEvent(new CustomEvent("open", { detail: { path } }));
  }

  #hidePicture(why) {
    find("no-picture").hidden = false;
    find("no-picture").textContent = why;
    this.#picture.hidden = true;
  }

  #showDrop() {
    find("drop").hidden = false;
    find("stage").hidden = true;
    find("keep-film").hidden = this.path === null;
    find("back").textContent = `Back to ${videoName(this.path ?? "")}`;
  }

  #showStage(path) {
    find("drop").hidden = true;
    find("stage").hidden = false;
    find("film-name").textContent = videoName(path);
    find("film-name").title = path;
  }

  #say(text) {
    find("film-error").textContent = text;
    find("film-error").hidden = !text;
  }

  #listenToDrops() {
    const film = find("film");
    let inside = 0;
    const over = (change) => (event) => {
      event.preventDefault();
      inside = Math.max(0, inside + change);
      film.classList.toggle("over", inside > 0);
    };
    addEventListener("dragenter", over(1));
    addEventListener("dragleave", over(-1));
    addEventListener("dragover", (event) => event.preventDefault());
    addEventListener("drop", (event) => {
      over(-Infinity)(event);
      const [file] = event.dataTransfer.files;
      if (file) this.take(file);
    });
  }
}

// The strip of thumbnails with the in and out points. The browser draws them; the worker is not asked.

const FRAME_S = 0.04; // the least that in and out points are apart, beside the model's own least
const MOST_THUMBS = 24;

/** Event "part" when the user has moved a point, "point" with detail {time} when they point at a moment. */
export class Strip extends EventTarget {
  #root;
  #canvas;
  #fields;
  #length = null; // of the video in seconds; null while it is not known
  #drawing = 0;
  least = FRAME_S;
  start = 0;
  end = null; // null means the end of the video

  constructor(root, find) {
    super();
    this.#root = root;
    this.#canvas = root.querySelector("canvas");
    this.#fields = Object.fromEntries(["in-range", "out-range", "in-point", "out-point"].map((id) => [id, find(id)]));
    for (const kind of ["range", "point"]) {
      const event = kind === "range" ? "input" : "change";
      this.#fields[`in-${kind}`].addEventListener(event, (e) => this.#moved(e.target.valueAsNumber || 0, this.end));
      this.#fields[`out-${kind}`].addEventListener(event, (e) =>
        this.#moved(this.start, Number.isNaN(e.target.valueAsNumber) ? null : e.target.valueAsNumber));
    }
    this.#canvas.addEventListener("click", (event) => {
      const time = (event.offsetX / this.#canvas.clientWidth) * (this.#length ?? 0);
      this.dispatchEvent(new CustomEvent("point", { detail: { time } }));
    });
  }

  get length() {
    return this.#length;
  }

  /** Length of the part in seconds. Null if it goes to an end that is not known. */
  get duration() {
    const end = this.end ?? this.#length;
    return end === null ? null : end - this.start;
  }

  /** Use another video, whose length is not known until `setLength`. */
  reset() {
    this.#drawing++;
    this.#length = null;
    this.start = 0;
    this.end = null;
    this.#canvas.width = this.#canvas.width; // clears it
    this.#show();
  }

  setLength(length) {
    this.#length = length;
    this.set(this.start, this.end);
  }

  /** Set the part, within the video. */
  set(start, end) {
    const round = (time) => Math.round(time * 100) / 100;
    if (this.#length !== null) {
      if (end !== null && end >= this.#length - 0.005) end = null;
      start = Math.min(start, (end ?? this.#length) - this.least);
    }
    this.start = round(Math.max(0, start));
    this.end = end === null ? null : round(Math.max(end, this.start + this.least));
    this.#show();
  }

  showPosition(time) {
    const head = this.#root.querySelector(".playhead");
    head.hidden = this.#length === null;
    if (this.#length) head.style.left = `${(100 * time) / this.#length}%`;
  }

  /** Draw the thumbnails of a video, given as a Blob. */
  async draw(blob) {
    const mine = ++this.#drawing;
    const url = URL.createObjectURL(blob);
    const video = Object.assign(document.createElement("video"), { muted: true, preload: "auto", src: url });
    try {
      await event(video, "loadeddata");
      await this.#drawThumbs(video, () => mine === this.#drawing);
    } finally {
      video.removeAttribute("src");
      video.load();
      URL.revokeObjectURL(url);
    }
  }

  async #drawThumbs(video, wanted) {
    const ratio = devicePixelRatio || 1;
    const [width, height] = [this.#canvas.clientWidth, this.#canvas.clientHeight];
    if (!width || !wanted()) return;
    Object.assign(this.#canvas, { width: width * ratio, height: height * ratio });
    const thumb = Math.max((height * video.videoWidth) / video.videoHeight, width / MOST_THUMBS);
    const pen = this.#canvas.getContext("2d");
    for (let index = 0; index < Math.ceil(width / thumb); index++) {
      video.currentTime = Math.min(((index + 0.5) * thumb * video.duration) / width, video.duration - 0.02);
      await event(video, "seeked");
      if (!wanted()) return;
      pen.drawImage(video, index * thumb * ratio, 0, thumb * ratio, height * ratio);
    }
  }

  #moved(start, end) {
    this.set(start, end);
    this.dispatchEvent(new Event("part"));
  }

  #show() {
    const { "in-range": inRange, "out-range": outRange, "in-point": inPoint, "out-point": outPoint } = this.#fields;
    const known = this.#length !== null;
    const end = this.end ?? this.#length;
    for (const range of [inRange, outRange]) {
      range.disabled = !known;
      range.max = known ? this.#length : 1;
    }
    inRange.value = this.start;
    outRange.value = known ? end : 1;
    inPoint.value = this.start.toFixed(2);
    outPoint.value = end === null ? "" : end.toFixed(2);
    outPoint.placeholder = "end";
    const part = (time) => `${known ? (100 * time) / this.#length : 0}%`;
    this.#root.querySelector(".before").style.width = part(this.start);
    this.#root.querySelector(".after").style.width = known ? part(this.#length - end) : "0%";
  }
}

function event(target, name) {
  return new Promise((resolve, reject) => {
    target.addEventListener(name, resolve, { once: true });
    target.addEventListener("error", () => reject(new Error("this browser cannot read the video")), { once: true });
  });
}

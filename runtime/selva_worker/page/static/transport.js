// One clock for picture and stems. The audio clock leads, because the ear hears gaps that the eye does not see: every
// stem plays from memory, started at one instant, and the picture's speed is trimmed until it agrees.

const START_S = 0.06; // between the decision to play and the first sample
const SYNC_MS = 25;
const SMALL_S = 0.012; // the picture may be off by this
const LARGE_S = 0.2; // and is set, not trimmed, beyond this
const TRIM = 0.12;
const SMOOTH = 0.3; // weight of the last frame: one may be late by itself
const FADE_S = 0.01;
export const RATE_HZ = 48000;

/** Decode a file to an AudioBuffer at RATE_HZ. Needs no gesture of the user, unlike an AudioContext. */
export async function decode(blob) {
  return new OfflineAudioContext(1, 1, RATE_HZ).decodeAudioData(await blob.arrayBuffer());
}

/** Plays stems with the picture. Events: "tick" at each change of the position, "state" when it starts or stops. */
export class Transport extends EventTarget {
  #picture;
  #context = null;
  #stems = new Map(); // id → {buffer, level, gain, source}
  #start = 0; // of the part, in seconds of the video
  #range = 0; // length of the part
  #offset = 0; // the position while it is paused
  #began = 0; // when the audio clock was, or will be, at the offset
  #timer = 0;
  #master = 1;
  #off = null; // seconds that the picture is ahead of the sound; null until a frame was seen
  playing = false;
  loop = false;

  constructor(picture) {
    super();
    this.#picture = picture;
    this.#watch();
  }

  /** Length in seconds of what is played: the stems, or the part of the video while there are none. */
  get duration() {
    const stems = [...this.#stems.values()].map((stem) => stem.buffer.duration);
    return stems.length ? Math.max(...stems) : this.#range;
  }

  get time() {
    if (!this.playing) return this.#offset;
    const late = Math.min(this.#context.outputLatency || 0, 0.3);
    return Math.min(Math.max(this.#context.currentTime - late - this.#began, 0) + this.#offset, this.duration);
  }

  /** The loudest sample that was just heard, 0 to 1. */
  get level() {
    if (!this.playing) return 0;
    const samples = new Float32Array(this.#meter.fftSize);
    this.#meter.getFloatTimeDomainData(samples);
    return samples.reduce((most, sample) => Math.max(most, Math.abs(sample)), 0);
  }

  /** Use a part of the video. */
  setPart(start, duration) {
    this.pause();
    this.#start = start;
    this.#range = duration;
    this.seek(0);
  }

  add(id, buffer) {
    this.#stems.set(id, { buffer, level: 0, gain: null, source: null });
    this.#restart();
  }

  clear() {
    this.pause();
    this.#stems.clear();
  }

  has(id) {
    return this.#stems.has(id);
  }

  buffer(id) {
    return this.#stems.get(id)?.buffer;
  }

  /** Set how loud a stem is: a factor, 0 for silence. */
  setLevel(id, level) {
    const stem = this.#stems.get(id);
    if (!stem) return;
    stem.level = level;
    stem.gain?.gain.setTargetAtTime(level, this.#context.currentTime, FADE_S);
  }

  setMaster(level) {
    this.#master = level;
    this.#mix?.gain.setTargetAtTime(level, this.#context.currentTime, FADE_S);
  }

  #mix = null;
  #meter = null;

  #open() {
    this.#context = new AudioContext({ sampleRate: RATE_HZ });
    this.#mix = this.#context.createGain();
    this.#mix.gain.value = this.#master;
    this.#meter = this.#context.createAnalyser();
    this.#meter.fftSize = 2048;
    this.#mix.connect(this.#meter).connect(this.#context.destination);
  }

  async play() {
    if (this.playing || this.duration <= 0) return;
    if (!this.#context) this.#open();
    if (this.#offset >= this.duration - 0.02) this.#offset = 0;
    await this.#context.resume();
    if (this.playing) return;
    this.playing = true;
    this.#startStems();
    this.#picture.currentTime = this.#start + this.#offset;
    this.#picture.play().catch(() => {}); // a video that this browser cannot show
    this.#timer = setInterval(() => this.#follow(), SYNC_MS);
    this.dispatchEvent(new Event("state"));
  }

  pause() {
    if (!this.playing) return;
    this.#offset = this.time;
    this.#stop();
    this.#picture.currentTime = this.#start + this.#offset;
    this.dispatchEvent(new Event("state"));
    this.dispatchEvent(new Event("tick"));
  }

  toggle() {
    return this.playing ? this.pause() : this.play();
  }

  seek(time) {
    const whole = Math.max(0, Math.min(time, this.duration));
    this.#offset = whole;
    this.#picture.currentTime = this.#start + whole;
    if (this.playing) {
      this.#stopStems();
      this.#startStems();
    }
    this.dispatchEvent(new Event("tick"));
  }

  #startStems() {
    this.#off = null;
    this.#began = this.#context.currentTime + START_S;
    for (const stem of this.#stems.values()) {
      if (this.#offset >= stem.buffer.duration) continue;
      stem.gain = new GainNode(this.#context, { gain: stem.level });
      stem.source = new AudioBufferSourceNode(this.#context, { buffer: stem.buffer });
      stem.source.connect(stem.gain).connect(this.#mix);
      stem.source.start(this.#began, this.#offset);
    }
  }

  #stopStems() {
    for (const stem of this.#stems.values()) {
      stem.source?.stop();
      stem.source?.disconnect();
      stem.gain?.disconnect();
      stem.source = stem.gain = null;
    }
  }

  #restart() {
    if (this.playing) this.seek(this.time);
  }

  #stop() {
    this.playing = false;
    clearInterval(this.#timer);
    this.#stopStems();
    this.#picture.pause();
    this.#picture.playbackRate = 1;
  }

  #follow() {
    const time = this.time;
    if (time >= this.duration) {
      if (this.loop) return this.seek(0);
      this.#offset = this.duration;
      this.#stop();
      this.dispatchEvent(new Event("state"));
      return this.dispatchEvent(new Event("tick"));
    }
    this.#trim(time);
    this.dispatchEvent(new Event("tick"));
  }

  /** At each new frame: how far the picture is ahead of the sound, when the frame reaches the eye. */
  #saw({ mediaTime, expectedDisplayTime }) {
    this.#watch();
    if (!this.playing || this.#picture.seeking) return;
    const heard = this.time + (expectedDisplayTime - performance.now()) / 1000;
    const off = mediaTime - this.#start - heard;
    this.#off = this.#off === null ? off : this.#off + SMOOTH * (off - this.#off);
    this.#picture.dataset.offMs = (1000 * this.#off).toFixed(1);
  }

  #watch() {
    this.#picture.requestVideoFrameCallback?.((now, frame) => this.#saw(frame));
  }

  /** Bring the picture to where the sound is. */
  #trim(time) {
    const picture = this.#picture;
    if (picture.readyState < 2 || picture.seeking || picture.ended) return;
    if (picture.paused) picture.play().catch(() => {}); // the browser had paused it, as in a hidden tab
    if (this.#off === null) return;
    if (Math.abs(this.#off) > LARGE_S) {
      picture.currentTime = this.#start + time + 0.05;
      this.#off = null;
    } else picture.playbackRate = Math.abs(this.#off) < SMALL_S ? 1 : 1 - Math.max(-TRIM, Math.min(TRIM, 2 * this.#off));
  }
}

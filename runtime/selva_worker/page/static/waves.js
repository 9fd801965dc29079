// Waveform and spectrogram of one take, by wavesurfer.js. It only draws: the transport plays.

import Spectrogram from "./wavesurfer/spectrogram.esm.js";
import WaveSurfer from "./wavesurfer/wavesurfer.esm.js";

const LONGEST_SPECTROGRAM_S = 120;
const MOST_POINTS = 20000;
const NONCE = document.querySelector("script[nonce]").nonce;
const dark = matchMedia("(prefers-color-scheme: dark)");

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** Draw into an element. Returns what removes it all. */
export function drawWave(container, buffer, rateHz, withSpectrogram) {
  const samples = buffer.getChannelData(0);
  const spectrogram = withSpectrogram && buffer.duration <= LONGEST_SPECTROGRAM_S;
  const wave = WaveSurfer.create({
    container,
    height: 44,
    peaks: [spectrogram ? samples : peaks(samples)],
    duration: buffer.duration,
    interact: false,
    cursorWidth: 0,
    hideScrollbar: true,
    cspNonce: NONCE,
    waveColor: colour("--wave"),
    progressColor: colour("--wave"),
    plugins: spectrogram
      ? [Spectrogram.create({ height: 72, fftSamples: 512, frequencyMax: rateHz / 2, scale: "mel", colorMap: "roseus", labels: false, useWebWorker: false })]
      : [],
  });
  const recolour = () => wave.setOptions({ waveColor: colour("--wave"), progressColor: colour("--wave") });
  dark.addEventListener("change", recolour);
  return () => {
    dark.removeEventListener("change", recolour);
    wave.destroy();
  };
}

/** The loudest sample of each part, with its sign: enough for a waveform. */
function peaks(samples) {
  const step = Math.max(1, Math.floor(samples.length / MOST_POINTS));
  const found = new Float32Array(Math.ceil(samples.length / step));
  for (let index = 0; index < samples.length; index++) {
    const place = Math.floor(index / step);
    if (Math.abs(samples[index]) > Math.abs(found[place])) found[place] = samples[index];
  }
  return found;
}

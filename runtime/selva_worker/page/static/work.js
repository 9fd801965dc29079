// Jobs as the page sees them: which belong to what is open, and what is told of each.

export const ENDED = ["done", "failed", "cancelled", "interrupted"];
const PHASES = {
  load: "Loading the model",
  verify: "Checking the model's files",
  decode: "Reading the video",
  encode: "Encoding the picture",
  text: "Reading the prompts",
  select: "Looking for the sounds in the picture",
  conditions: "Preparing",
  step: "Generating",
  vocode: "Making sound",
  write: "Writing the files",
};

export const isActive = (job) => !ENDED.includes(job.state);
export const videoName = (path) => path.split(/[\\/]/).pop();

/** What identifies the view that a job belongs to: its video, and which part of it. */
export const viewOf = ({ request }) => ({
  video: request.video,
  start: request.start_s ?? 0,
  duration: request.duration_s ?? null,
});
export const viewKey = (view) => JSON.stringify([view.video, view.start.toFixed(2), view.duration?.toFixed(2) ?? null]);

/** The part of a video in words. */
export function part(view) {
  if (view.duration === null) return view.start ? `from ${view.start.toFixed(2)} s` : "whole video";
  return `${view.start.toFixed(2)}–${(view.start + view.duration).toFixed(2)} s`;
}

/** What a job does now, and how far it is: null if nobody can know. */
export function status(job) {
  if (job.state === "queued") return { text: "Waiting for its turn", fraction: null };
  if (job.state === "failed") return { text: job.error?.message ?? "failed", fraction: null };
  if (job.state === "cancelled") return { text: "Cancelled", fraction: null };
  if (job.state === "interrupted") return { text: "Interrupted: the worker ended", fraction: null };
  if (job.state === "done") return { text: job.result.error ?? "Done", fraction: null };
  const { phase, fraction = null } = job.progress ?? {};
  return { text: PHASES[phase] ?? (phase ? phase : "Starting"), fraction };
}

/** All stems of the done jobs of a view, oldest first. */
export function takesOf(jobs) {
  return jobs
    .filter((job) => job.state === "done")
    .flatMap((job) =>
      job.result.stems.map((stem, number) => ({ ...stem, id: `${job.id}.${number}`, job: job.id, number, request: job.request })));
}

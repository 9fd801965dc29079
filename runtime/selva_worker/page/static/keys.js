// What the keyboard does where no field has the focus.

import { find } from "./dom.js";

const STEP_S = 0.5;
const FIELDS = "input:not([type=range]):not([type=checkbox]):not([type=radio]), textarea, select";

export function listenToKeys(transport, mixer) {
  const act = {
    " ": () => transport.toggle(),
    ArrowLeft: () => transport.seek(transport.time - STEP_S),
    ArrowRight: () => transport.seek(transport.time + STEP_S),
    i: () => find("set-in").click(),
    o: () => find("set-out").click(),
  };
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest(FIELDS)) return;
    const ownKeys = event.target.closest("button, a, summary, label, input");
    if (ownKeys && (event.key === " " || event.key.startsWith("Arrow"))) return; // they mean something there
    if (/^[0-9]$/.test(event.key)) mixer.solo(Number(event.key));
    else if (act[event.key]) act[event.key]();
    else return;
    event.preventDefault();
  });
}

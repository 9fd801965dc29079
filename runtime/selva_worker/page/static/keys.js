// What the keyboard does where no field has the focus.

import { find } from "./dom.js";

const STEP_S = 0.5;
const FIELDS = "input:not([type=range]):not([type=checkbox]):not([type=radio]), textarea, select";

export function listenToKeys(transport, mixer) {
  // After a click, Space is for playing again. Who came with the keyboard keeps the focus: such a click has detail 0.
  addEventListener("click", (event) => event.detail > 0 && event.target.closest("button")?.blur());
  const act = {
    " ": () => transport.toggle(),
    ArrowLeft: () => transport.seek(transport.time - STEP_S),
    ArrowRight: () => transport.seek(transport.time + STEP_S),
    i: () => find("set-in").click(),
    o: () => find("set-out").click(),
  };
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest(FIELDS)) return;
    if (event.key === " " && event.target.closest("button, a, summary, [type=checkbox], [type=radio]")) return;
    if (event.key.startsWith("Arrow") && event.target.closest("input")) return; // they mean something there
    if (/^[0-9]$/.test(event.key)) mixer.solo(Number(event.key));
    else if (act[event.key]) act[event.key]();
    else return;
    event.preventDefault();
  });
}

// Elements without HTML strings: text from the worker is only ever text.

export const find = (id) => document.getElementById(id);

/** Make an element. Names with "on" are listeners, "data" is an object, other names are properties or attributes. */
export function make(tag, given = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "data") Object.assign(element.dataset, value);
    else if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** A name of a file from a name of a sound. */
export const fileName = (text) => text.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-+|-+$/g, "") || "stem";

/** Seconds as people write them. */
export const seconds = (time) => `${time.toFixed(2)} s`;

/** Say something to who listens to the page instead of looking at it. */
export function announce(text) {
  find("announce").textContent = text;
}

"use strict";
// Elements of texts, JSON and choices, for all pages. Texts become text nodes and are never parsed as HTML.

const MAX_DEPTH = 8; // JSON below this depth is shown as text

function find(id) {
  return document.getElementById(id);
}

function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children.filter((child) => child !== null));
  return element;
}

function parseJson(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

function choiceList(side) {
  const chosen = side.text.join("");
  const item = ([choice, probability]) =>
    make(
      "div",
      choice === chosen ? { class: "chosen" } : {},
      make("dt", { dir: "auto" }, choice),
      make("dd", {}, make("meter", { value: probability, "aria-hidden": "true" }), `${(100 * probability).toFixed(1)}%`),
    );
  const score = side.score === null ? null : make("p", {}, `score ${side.score.toFixed(3)}`);
  return make("div", { class: "choices" }, make("dl", {}, ...side.choices.map(item)), score);
}

// A JSON value as nested lists of fields and items.
function jsonNode(value, depth) {
  if (typeof value === "string") return value;
  if (value === null || typeof value !== "object" || depth === MAX_DEPTH) return JSON.stringify(value);
  if (Array.isArray(value)) return make("ul", {}, ...value.map((item) => make("li", { dir: "auto" }, jsonNode(item, depth + 1))));
  const field = ([name, item]) =>
    make("div", {}, make("dt", {}, name), make("dd", { dir: "auto" }, jsonNode(item, depth + 1)));
  return make("dl", {}, ...Object.entries(value).map(field));
}

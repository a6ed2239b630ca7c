"use strict";
// Shows the page's rows. What they say becomes text nodes: nothing of it is ever read as HTML.

const BATCH = 30; // cards that are made at a time
const SHORT = 700; // characters of a caption on its card; the details hold all of it

const page = JSON.parse(find("page").textContent);
const [list, more, none, count, filters] = ["rows", "more", "none", "count", "filters"].map(find);
const [details, previous, next, close] = ["details", "previous", "next", "close"].map(find);
const { search, changed } = filters.elements;
const facets = [...filters.querySelectorAll("select")];
const calm = matchMedia("(prefers-reduced-motion: reduce)");

const rows = []; // all that have arrived
const posters = new Map(); // by window, as data: addresses
let found = []; // rows that pass the filters
let opened = null; // the row whose details are open
let moving = true; // whether animations can be had: they lie beside the page, which a presigned address does not reach

function find(id) {
  return document.getElementById(id);
}

function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children.filter((child) => child !== null));
  return element;
}

// Takes up a block that has arrived.
function take(block) {
  const content = JSON.parse(block.textContent);
  block.remove();
  if (block.dataset.kind === "rows") {
    for (const row of content) {
      row.number = rows.push(row) - 1;
      if (passes(row)) found.push(row);
    }
    if (list.children.length < BATCH) draw();
    more.hidden = list.children.length >= found.length;
    tell();
  } else {
    for (const [id, data] of Object.entries(content)) posters.set(id, `data:image/jpeg;base64,${data}`);
    document.body.classList.toggle("pictured", posters.size > 0); // without any, no room is kept for them
    for (const picture of document.querySelectorAll("img:not([src])")) still(picture);
  }
}

function passes(row) {
  if (changed.checked && !row.changed) return false;
  if (!facets.every((facet) => !facet.value || row.facets[facet.dataset.facet].includes(facet.value))) return false;
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  if (!words.length) return true;
  row.searched ??= [row.name, ...row.sides.map((side) => `${side.text.join("")} ${side.missing ?? ""}`)]
    .join(" ")
    .toLowerCase();
  return words.every((word) => row.searched.includes(word));
}

function filter() {
  found = rows.filter(passes);
  list.replaceChildren();
  draw();
  tell();
}

function draw() {
  const drawn = list.children.length;
  list.append(...found.slice(drawn, drawn + BATCH).map(card));
  more.hidden = list.children.length >= found.length;
  nearing.unobserve(more); // watched anew, it reports again even if it has not moved out of sight
  nearing.observe(more);
}

function tell() {
  const [some, all] = [found.length, page.total].map((number) => number.toLocaleString("en"));
  const loading = rows.length < page.total;
  count.value = `${found.length < rows.length ? `${some} of ${all}` : all} rows${loading ? ", loading" : ""}`;
  none.hidden = loading || found.length > 0 || page.total === 0;
}

function card(row) {
  const id = `row-${row.number}`;
  const open = make("button", { type: "button", class: "open", "aria-describedby": id }, "Details");
  open.addEventListener("click", () => show(row));
  const head = make("header", {}, make("h2", { id, dir: "auto" }, row.name), make("p", {}, row.place), open);
  const columns = row.sides.map((side, place) =>
    make("section", {}, make("h3", {}, page.sides[place]), ...told(side, place, SHORT)),
  );
  const sides = make("div", { class: "sides" }, ...columns);
  return make("li", {}, make("article", { "aria-labelledby": id }, picture(row), head, sides));
}

// A side's caption, or why there is none, and what is to be noted about it.
function told(side, place, longest) {
  const said = side.missing
    ? make("p", { class: "missing", dir: "auto" }, side.missing)
    : make("p", { class: "caption", dir: "auto" }, ...pieces(side.text, place, longest));
  const flags = side.flags.map((flag) => make("li", {}, flag.replaceAll("_", " ")));
  return flags.length ? [said, make("ul", { class: "flags" }, ...flags)] : [said];
}

function pieces(turns, place, longest) {
  const tag = place === 1 ? "ins" : page.removed ? "del" : null;
  const nodes = [];
  let left = longest;
  for (const [number, turn] of turns.entries()) {
    const text = turn.length > left ? turn.slice(0, left).replace(/[\uD800-\uDBFF]$/, "") : turn; // no half characters
    if (text) nodes.push(tag && number % 2 ? make(tag, {}, text) : text);
    left -= text.length;
    if (text.length < turn.length) return [...nodes, "\u2026"];
  }
  return nodes;
}

function picture(row) {
  const image = make("img", { alt: "", "data-window": row.window_id, decoding: "async" });
  still(image);
  const frame = make("div", { class: "picture" }, image);
  if (row.moves) {
    frame.addEventListener("pointerenter", () => calm.matches || animate(image));
    frame.addEventListener("pointerleave", () => still(image));
  }
  frame.addEventListener("click", () => opened || show(row));
  return frame;
}

function still(image) {
  const poster = posters.get(image.dataset.window);
  if (poster) image.src = poster;
}

function animate(image) {
  if (!moving) return;
  image.addEventListener("error", () => { moving = false; still(image); }, { once: true });
  image.src = `previews/${encodeURIComponent(image.dataset.window)}.webp`;
}

function show(row) {
  opened = row;
  find("details-name").replaceChildren(make("bdi", {}, row.name));
  find("details-place").textContent = row.place;
  const body = find("details-body");
  const columns = row.sides.map((side, place) =>
    make(
      "section",
      {},
      make("h3", {}, page.sides[place]),
      ...told(side, place, Infinity),
      table([...side.facts, ...(side.making === null ? [] : page.makings[side.making])]),
    ),
  );
  const about = make("div", { class: "about" }, player(row), table(row.facts));
  body.replaceChildren(about, make("div", { class: "sides" }, ...columns));
  body.scrollTop = 0;
  previous.disabled = row === found[0];
  next.disabled = row === found.at(-1);
  if (document.activeElement.disabled) close.focus(); // else the arrow keys would be heard no more
  if (!details.open) details.showModal();
}

// The preview, which moves unless the reader's system asks for calm, with a button to stop it.
function player(row) {
  const image = make("img", { alt: "", "data-window": row.window_id });
  still(image);
  const frame = make("div", { class: "picture" }, image);
  if (!row.moves || !moving) return frame;
  const button = make("button", { type: "button" });
  const play = (playing) => {
    button.textContent = playing ? "Stop the preview" : "Play the preview";
    button.onclick = () => play(!playing);
    if (playing) animate(image);
    else still(image);
  };
  image.addEventListener("error", () => button.remove(), { once: true });
  play(!calm.matches);
  frame.append(button);
  return frame;
}

function table(facts) {
  const told = ([label, value]) => make("div", {}, make("dt", {}, label), make("dd", { dir: "auto" }, value));
  return make("dl", {}, ...facts.map(told));
}

function step(by) {
  const row = found[found.indexOf(opened) + by];
  if (row) show(row);
}

const nearing = new IntersectionObserver((entries) => entries.some((entry) => entry.isIntersecting) && draw(), {
  rootMargin: "1500px",
});
let typing;
filters.addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(filter, 150);
});
filters.addEventListener("submit", (event) => event.preventDefault());
more.addEventListener("click", draw);
find("reset").addEventListener("click", () => { filters.reset(); filter(); search.focus(); });
close.addEventListener("click", () => details.close());
previous.addEventListener("click", () => step(-1));
next.addEventListener("click", () => step(1));
details.addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") step(-1);
  if (event.key === "ArrowRight") step(1);
});
details.addEventListener("click", (event) => event.target === details && details.close());
details.addEventListener("close", () => { opened = null; });
tell();

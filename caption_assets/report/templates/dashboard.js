"use strict";
// The dashboard's tables and search. Texts become text nodes and are never parsed as HTML.

const BATCH = 100; // number of rows added at a time
const SERVER = "caption-assets gallery --serve";

const data = JSON.parse(find("data").textContent);
const [table, more, count, filter] = ["shards", "more", "count", "filter"].map(find);
const [searchForm, searchState, hits] = ["search", "search-state", "hits"].map(find);
const columns = data.columns.map(([label, kind]) => ({ label, kind }));
const integers = new Intl.NumberFormat("en");
const numbers = new Intl.NumberFormat("en", { maximumSignificantDigits: 4 });
const shares = new Intl.NumberFormat("en", { style: "percent", maximumFractionDigits: 1 });

let found = data.rows; // rows that match the filter, in order
let sorted = { column: 0, descending: false };

function find(id) {
  return document.getElementById(id);
}

function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// A link to a shard's gallery, which shows the rows of a clip alone if there is one.
function galleryLink(shard, text, clip) {
  const filter = clip ? `#${new URLSearchParams({ search: clip })}` : "";
  return make("a", { href: `${encodeURIComponent(shard)}/index.html${filter}`, dir: "auto" }, text);
}

function shown(value, kind) {
  if (value === null) return "\u2013";
  switch (kind) {
    case "count":
      return integers.format(value);
    case "number":
      return numbers.format(value);
    case "share":
      return shares.format(value);
    case "seconds":
      return value < 3600 ? `${numbers.format(value / 60)} min` : `${numbers.format(value / 3600)} h`;
    default:
      return value.slice(0, 16).replace("T", " ");
  }
}

function shardRow(row) {
  const cells = columns.slice(1).map(({ kind }, number) => make("td", { class: "number" }, shown(row[number + 1], kind)));
  return make("tr", {}, make("th", { scope: "row" }, galleryLink(row[0], row[0])), ...cells);
}

function heading(column, number) {
  const button = make("button", { type: "button" }, column.label);
  button.addEventListener("click", () => sortBy(number));
  return make("th", { scope: "col", ...(number ? { class: "number" } : {}) }, button);
}

// Sorts by a column; the same column again reverses the order. Numbers begin with the largest. Rows without a value are last.
function sortBy(number) {
  const descending = sorted.column === number ? !sorted.descending : number > 0;
  sorted = { column: number, descending };
  showRows();
}

function showRows() {
  const { column, descending } = sorted;
  const part = filter.elements.find.value.trim().toLowerCase();
  const isBefore = (one, other) => (typeof one === "string" ? (one < other ? -1 : one > other ? 1 : 0) : one - other);
  found = data.rows.filter((row) => row[0].toLowerCase().includes(part));
  found.sort((one, other) => {
    const [left, right] = [one[column], other[column]];
    if (left === null || right === null) return (left === null) - (right === null);
    return descending ? isBefore(right, left) : isBefore(left, right);
  });
  for (const [number, cell] of [...table.tHead.rows[0].cells].entries()) {
    if (number === column) cell.setAttribute("aria-sort", descending ? "descending" : "ascending");
    else cell.removeAttribute("aria-sort");
  }
  table.tBodies[0].replaceChildren();
  addRows();
  const [some, all] = [found.length, data.rows.length].map((number) => integers.format(number));
  count.value = some === all ? `${all} ${data.rows.length === 1 ? "shard" : "shards"}` : `${some} of ${all} shards`;
}

function addRows() {
  const body = table.tBodies[0];
  const begin = body.rows.length;
  body.append(...found.slice(begin, begin + BATCH).map(shardRow));
  more.hidden = body.rows.length >= found.length;
  endObserver.unobserve(more); // observing it again reports it even if it stayed in view
  endObserver.observe(more);
}

function worstRow([reason, detail, stage, shard, clip, place, text]) {
  return make(
    "tr",
    {},
    make("td", {}, `${reason}: ${detail.replaceAll("_", " ")}`),
    make("td", { class: "stage" }, stage),
    make("th", { scope: "row" }, galleryLink(shard, `${shard}: ${place}`, clip)),
    make("td", { class: "text", dir: "auto" }, text),
  );
}

function repeatedRow([captions, shards, stage, shard, clip, text]) {
  return make(
    "tr",
    {},
    make("td", { class: "number" }, integers.format(captions)),
    make("td", { class: "number" }, integers.format(shards)),
    make("td", { class: "stage" }, stage),
    make("th", { scope: "row" }, galleryLink(shard, `${shard}: ${clip}`, clip)),
    make("td", { class: "text", dir: "auto" }, text),
  );
}

function headings(...labels) {
  return make("thead", {}, make("tr", {}, ...labels.map((label) => make("th", { scope: "col" }, label))));
}

function showWorst(reason) {
  const rows = data.worst.filter((row) => !reason || row[0] === reason);
  find("worst").tBodies[0].replaceChildren(...rows.map(worstRow));
}

// The words and quoted phrases of a search, in lower case.
function searchTerms(text) {
  return [...text.toLowerCase().matchAll(/"([^"]+)"|([^\s"]+)/g)].map(([, phrase, word]) => phrase ?? word);
}

// Nodes of a text with its search terms marked.
function marked(text, terms) {
  const lower = text.toLowerCase();
  const nodes = [];
  let begin = 0;
  while (lower.length === text.length) {
    const places = terms.map((term) => [lower.indexOf(term, begin), term]).filter(([place]) => place >= 0);
    if (!places.length) break;
    const [place, term] = places.reduce((one, other) => (other[0] < one[0] ? other : one));
    nodes.push(text.slice(begin, place), make("mark", {}, text.slice(place, place + term.length)));
    begin = place + term.length;
  }
  return [...nodes, text.slice(begin)];
}

function hit({ shard, stage, clip, position, caption }, terms) {
  const place = make("p", {}, galleryLink(shard, `${shard}: ${clip}`, clip), `, ${position}, ${stage}`);
  return make("li", {}, place, make("p", { class: "caption", dir: "auto" }, ...marked(caption, terms)));
}

let searching = new AbortController();
async function search() {
  const words = searchForm.elements.words.value.trim();
  searching.abort();
  searching = new AbortController();
  hits.replaceChildren();
  searchState.value = "";
  if (!words) return;
  if (!location.pathname.endsWith("/gallery/")) {
    searchState.value = `Search needs the server: run ${SERVER}`;
    return;
  }
  searchState.value = "searching\u2026";
  try {
    const response = await fetch(`search?${new URLSearchParams({ q: words })}`, { signal: searching.signal });
    if (!response.ok) throw new Error(await response.text());
    const answer = await response.json();
    const terms = searchTerms(words);
    hits.replaceChildren(...answer.hits.map((one) => hit(one, terms)));
    const first = answer.has_more ? "the first " : "";
    const number = answer.hits.length === 1 ? "1 caption" : `${first}${integers.format(answer.hits.length)} captions`;
    const skipped = answer.unsearched ? `; ${answer.unsearched} damaged tables were not searched` : "";
    searchState.value = `${number}${skipped}`;
  } catch (error) {
    if (error.name !== "AbortError") searchState.value = `Search failed: ${error.message}`;
  }
}

const endObserver = new IntersectionObserver((entries) => entries.some((entry) => entry.isIntersecting) && addRows(), {
  rootMargin: "800px",
});
if (table) {
  table.append(make("thead", {}, make("tr", {}, ...columns.map(heading))), make("tbody", {}));
  filter.addEventListener("input", showRows);
  filter.addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", addRows);
  showRows();
  searchForm.addEventListener("submit", (event) => {
    event.preventDefault();
    search();
  });
}
if (find("worst")) {
  find("worst").append(headings("Reason", "Stage", "Window", "Caption or error"), make("tbody", {}));
  const { reason } = find("reasons").elements;
  for (const name of new Set(data.worst.map((row) => row[0]))) reason.append(make("option", { value: name }, name));
  reason.addEventListener("change", () => showWorst(reason.value));
  showWorst("");
}
if (find("repeated")) {
  const body = make("tbody", {}, ...data.repeated.map(repeatedRow));
  find("repeated").append(headings("Captions", "Shards", "Stage", "First", "Caption"), body);
}

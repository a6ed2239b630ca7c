// The page's rows, search, filters and details. Texts become text nodes and are never parsed as HTML.

const BATCH = 30; // number of cards added at a time
const FRAME_MILLISECONDS = 400; // duration of a frame of a preview
const CARD_CHARACTERS = 700; // maximum length of a caption on a card; the details show all of it

const page = JSON.parse(find("page").textContent);
const [list, more, none, count, filters] = ["rows", "more", "none", "count", "filters"].map(find);
const [details, previous, next, close] = ["details", "previous", "next", "close"].map(find);
const { search, changed } = filters.elements;
const facets = [...filters.querySelectorAll("select")];
const reducedMotion = matchMedia("(prefers-reduced-motion: reduce)");

const rows = []; // rows of the blocks that have arrived
const previews = new Map(); // number of frames and data URL by window id
let found = []; // rows that match the filters
let opened = null; // row with open details
let playing = null; // timer of the preview that plays

// Reads a block of rows or previews when it has arrived.
function readBlock(block) {
  const content = JSON.parse(block.textContent);
  block.remove();
  if (block.dataset.kind === "rows") {
    for (const row of content) {
      row.number = rows.push(row) - 1;
      if (matches(row)) found.push(row);
    }
    if (list.children.length < BATCH) addCards();
    more.hidden = list.children.length >= found.length;
    updateCount();
  } else {
    for (const [id, [frames, data]] of Object.entries(content)) {
      previews.set(id, { frames, url: `data:image/jpeg;base64,${data}` });
    }
    document.body.classList.toggle("pictured", previews.size > 0); // without previews the cards have no picture column
    for (const image of document.querySelectorAll("img[data-window]:not([src])")) showPreview(image);
  }
}

function matches(row) {
  if (changed.checked && !row.changed) return false;
  if (!facets.every((facet) => !facet.value || row.facets[facet.dataset.facet].includes(facet.value))) return false;
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  if (!words.length) return true;
  row.searched ??= [row.name, ...row.sides.map((side) => `${side.text.join("")} ${side.missing ?? ""} ${side.correction?.reason ?? ""}`)]
    .join(" ")
    .toLowerCase();
  return words.every((word) => row.searched.includes(word));
}

function filter() {
  found = rows.filter(matches);
  list.replaceChildren();
  addCards();
  updateCount();
}

function addCards() {
  const shown = list.children.length;
  list.append(...found.slice(shown, shown + BATCH).map(card));
  more.hidden = list.children.length >= found.length;
  endObserver.unobserve(more); // observing it again reports it even if it stayed in view
  endObserver.observe(more);
}

function updateCount() {
  const [some, all] = [found.length, page.total].map((number) => number.toLocaleString("en"));
  const loading = rows.length < page.total;
  count.value = `${found.length < rows.length ? `${some} of ${all}` : all} rows${loading ? ", loading" : ""}`;
  none.hidden = loading || found.length > 0 || page.total === 0;
}

function card(row) {
  const id = `row-${row.number}`;
  const open = make("button", { type: "button", class: "open", "aria-describedby": id }, "Details");
  open.addEventListener("click", () => show(row));
  const head = make("header", {}, make("h2", { id, dir: "auto" }, row.name), make("p", {}, row.position), open);
  const columns = row.sides.map((side, column) =>
    make("section", {}, make("h3", {}, page.sides[column]), ...captionOf(side, column, CARD_CHARACTERS)),
  );
  const sides = make("div", { class: "sides" }, ...columns);
  return make("li", {}, make("article", { "aria-labelledby": id }, picture(row), head, sides));
}

// A side's caption, or the reason why there is none, with its flags, notes and correction.
function captionOf(side, column, maxCharacters) {
  const caption = side.missing ? make("p", { class: "missing", dir: "auto" }, side.missing) : answer(side, column, maxCharacters);
  const flags = [...side.flags, ...side.notes].map((flag) => make("li", {}, flag.replaceAll("_", " ")));
  return [
    caption,
    ...(flags.length ? [make("ul", { class: "flags" }, ...flags)] : []),
    ...(side.correction ? [correctionOf(side.correction, maxCharacters)] : []),
  ];
}

// A person's correction with the texts of the model that it replaces or was made on.
function correctionOf(correction, maxCharacters) {
  const { decision, reviewer, decided_at, reason, model_text, reviewed_text, is_outdated } = correction;
  const by = make("span", {}, " by ", make("bdi", {}, reviewer), `, ${decided_at}`);
  const outdated = is_outdated ? make("span", { class: "outdated" }, "outdated") : null;
  const texts = [["The model's text", model_text], ["Decided on the text", reviewed_text]];
  const text = ([label, segments]) =>
    make("div", {}, make("dt", {}, label), make("dd", { dir: "auto" }, ...segmentNodes(segments, "del", maxCharacters)));
  return make(
    "div",
    { class: `correction ${decision}` },
    make("p", {}, make("strong", {}, decision), by, outdated),
    reason ? make("p", { dir: "auto" }, reason) : null,
    make("dl", {}, ...texts.filter(([, segments]) => segments).map(text)),
  );
}

// An answer: choices with their probabilities, the fields of JSON, or a text. JSON with marks is shown as text.
function answer(side, column, maxCharacters) {
  if (side.choices.length) return choiceList(side);
  if (side.is_json && side.text.length === 1) return make("div", { class: "fields" }, jsonNode(parseJson(side.text[0]), 0));
  const kind = side.is_json ? "caption json" : "caption";
  return make("p", { class: kind, dir: "auto" }, ...segmentNodes(side.text, markOf(side, column), maxCharacters));
}

// The element that marks the differing segments of a side; null if they are not marked.
function markOf(side, column) {
  return column || side.correction ? "ins" : page.marks_removed ? "del" : null;
}

// Nodes of a text in segments, cut to a length. Every second segment differs from another text and gets the tag.
function segmentNodes(segments, tag, maxCharacters) {
  const nodes = [];
  let left = maxCharacters;
  for (const [number, segment] of segments.entries()) {
    const isCut = segment.length > left;
    const text = isCut ? segment.slice(0, left).replace(/[\uD800-\uDBFF]$/, "") : segment; // not half of a surrogate pair
    if (text) nodes.push(tag && number % 2 ? make(tag, {}, text) : text);
    left -= text.length;
    if (isCut) return [...nodes, "\u2026"];
  }
  return nodes;
}

function picture(row) {
  const image = make("img", { alt: "", "data-window": row.window_id, decoding: "async" });
  showPreview(image);
  const frame = make("div", { class: "picture" }, image);
  frame.addEventListener("pointerenter", () => reducedMotion.matches || play(image));
  frame.addEventListener("pointerleave", () => stop(image));
  frame.addEventListener("click", () => opened || show(row));
  return frame;
}

// Shows the middle frame of a window's preview, if there is one.
function showPreview(image) {
  const preview = previews.get(image.dataset.window);
  if (!preview) return;
  image.addEventListener("load", () => {
    image.style.setProperty("--ratio", (preview.frames * image.naturalWidth) / image.naturalHeight);
  });
  image.src = preview.url;
  showFrame(image, Math.floor(preview.frames / 2));
}

// The frames are below each other: the image is as wide as one of them, and its position selects the frame.
function showFrame(image, number) {
  image.style.objectPosition = `0 ${(100 * number) / Math.max(previews.get(image.dataset.window).frames - 1, 1)}%`;
}

function isAnimated(image) {
  return previews.get(image.dataset.window)?.frames > 1;
}

function play(image) {
  clearInterval(playing);
  if (!isAnimated(image)) return;
  const { frames } = previews.get(image.dataset.window);
  let number = 0;
  showFrame(image, number);
  playing = setInterval(() => showFrame(image, (number = (number + 1) % frames)), FRAME_MILLISECONDS);
}

function stop(image) {
  clearInterval(playing);
  if (isAnimated(image)) showFrame(image, Math.floor(previews.get(image.dataset.window).frames / 2));
}

function show(row) {
  opened = row;
  find("details-name").replaceChildren(make("bdi", {}, row.name));
  find("details-position").textContent = row.position;
  const body = find("details-body");
  const columns = row.sides.map((side, column) =>
    make(
      "section",
      {},
      make("h3", {}, page.sides[column]),
      ...captionOf(side, column, Infinity),
      propertyList([...side.properties, ...(side.provenance === null ? [] : page.provenance[side.provenance])]),
    ),
  );
  const about = make("div", { class: "about" }, player(row), propertyList(row.properties));
  body.replaceChildren(about, make("div", { class: "sides" }, ...columns));
  body.scrollTop = 0;
  previous.disabled = row === found[0];
  next.disabled = row === found.at(-1);
  if (document.activeElement.disabled) close.focus(); // a disabled button receives no arrow keys
  if (!details.open) details.showModal();
}

// The preview with a button that plays and stops it. It plays at once unless the system asks for reduced motion.
function player(row) {
  const image = make("img", { alt: "", "data-window": row.window_id });
  showPreview(image);
  const frame = make("div", { class: "picture" }, image);
  if (!isAnimated(image)) return frame;
  const button = make("button", { type: "button" });
  const setPlaying = (isPlaying) => {
    button.textContent = isPlaying ? "Stop the preview" : "Play the preview";
    button.onclick = () => setPlaying(!isPlaying);
    if (isPlaying) play(image);
    else stop(image);
  };
  setPlaying(!reducedMotion.matches);
  frame.append(button);
  return frame;
}

function propertyList(properties) {
  const item = ([label, value]) => make("div", {}, make("dt", {}, label), make("dd", { dir: "auto" }, value));
  return make("dl", {}, ...properties.map(item));
}

function step(by) {
  const row = found[found.indexOf(opened) + by];
  if (row) show(row);
}

const endObserver = new IntersectionObserver((entries) => entries.some((entry) => entry.isIntersecting) && addCards(), {
  rootMargin: "1500px",
});
let typing;
filters.addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(filter, 150);
});
filters.addEventListener("submit", (event) => event.preventDefault());
more.addEventListener("click", addCards);
find("reset").addEventListener("click", () => { filters.reset(); filter(); search.focus(); });
search.value = new URLSearchParams(location.hash.slice(1)).get("search") ?? ""; // links to a clip's rows have it
close.addEventListener("click", () => details.close());
previous.addEventListener("click", () => step(-1));
next.addEventListener("click", () => step(1));
details.addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") step(-1);
  if (event.key === "ArrowRight") step(1);
});
details.addEventListener("click", (event) => event.target === details && details.close());
details.addEventListener("close", () => { opened = null; clearInterval(playing); });
updateCount();

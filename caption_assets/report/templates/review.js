// The review: a list of captions, the caption in review beside its video, and a key for each decision. The URL has the
// state: filters, order, sample and row. Texts become text nodes and are never parsed as HTML.

const REASONS = [
  "wrong object or attribute",
  "wrong action or motion",
  "wrong camera or viewpoint",
  "something important is missing",
  "something is invented",
  "wrong style or format",
  "unusable clip",
];
const MARKS = { undecided: "", accepted: "✓", rejected: "✕", rewritten: "✎", outdated: "!" };
const DECISIONS = { accept: "accepted", reject: "rejected", rewrite: "rewritten", undo: "withdrawn" };
const ORDERS = {
  manifest: "as in the shard", worst: "worst first", random: "random", score: "lowest score", flags: "most flags",
  shortest: "shortest", longest: "longest", status: "failed first", stage: "by stage", correction: "by decision",
};
const POLL_MILLISECONDS = 10_000; // how often other reviewers' decisions are fetched
const TYPING_MILLISECONDS = 250;

const filters = find("filters");
const rowElement = find("row");
const reducedMotion = matchMedia("(prefers-reduced-motion: reduce)");
const errors = new Map(); // messages by their source

let session = null;
let rows = []; // the rows of the list: a page of those that the filters find
let first = 0; // position of the first of them
let found = 0; // number of rows that the filters find
let serial = 0; // number of the server's changes that the page has seen
let current = null; // the row in review
let isEditing = false;
let loads = 0;
const done = []; // this page's decisions, for undo: row and correction
const drafts = new Map(); // unsaved texts by row

function showError(message, source) {
  if (message) errors.set(source, message);
  else errors.delete(source);
  const text = [...errors.values()].join(" ");
  if (find("error").textContent !== text) find("error").textContent = text;
  find("error").hidden = !text;
}

function announce(message) {
  find("live").textContent = message;
}

function wantsMotion() {
  return find("autoplay").checked;
}

async function api(path, body) {
  const options = body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("The review's server does not respond. Is the command still running?");
  }
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

// --- the state in the URL ---

function query() {
  const given = [...new FormData(filters)].filter(([, value]) => value.trim());
  return new URLSearchParams(given);
}

function addressOf(id) {
  const parameters = query();
  if (id) parameters.set("row", id);
  return `?${parameters}`.replaceAll("%2F", "/");
}

function readAddress() {
  const parameters = new URLSearchParams(location.search);
  for (const element of filters.elements) if (element.name) element.value = parameters.get(element.name) ?? "";
  countMoreFilters();
  return parameters.get("row");
}

function countMoreFilters() {
  const count = [...find("more-filters").querySelectorAll("[name]")].filter((element) => element.value).length;
  find("more-count").textContent = count ? ` (${count})` : "";
}

function fillOptions(name, options) {
  const all = name === "order" ? [] : [["", "all"]];
  filters.elements[name].replaceChildren(...[...all, ...options].map(([value, label]) => make("option", { value }, label)));
}

// --- the list ---

// Loads a page of rows: around, after or before a row, or the first one. Selects the row, or the first or last one.
async function load(place = {}, choose = "first") {
  const number = ++loads;
  const parameters = query();
  for (const [name, id] of Object.entries(place)) if (id) parameters.set(name, id);
  try {
    const answer = await api(`api/rows?${parameters}`);
    if (number !== loads) return;
    showError("", "load");
    ({ rows, first, found, serial } = answer);
    showProgress(answer.progress);
    showList();
    const chosen = rows.find((row) => row.id === place.at) ?? (choose === "last" ? rows.at(-1) : rows[0]);
    select(chosen ?? null);
  } catch (error) {
    showError(error.message, "load");
  }
}

function showProgress(progress) {
  const decided = progress.accepted + progress.rejected + progress.rewritten;
  find("progress").max = progress.total || 1;
  find("progress").value = decided;
  find("progress-text").textContent = `${decided.toLocaleString("en")} of ${progress.total.toLocaleString("en")} decided`;
  const shown = ["accepted", "rejected", "rewritten", "outdated"].filter((state) => progress[state]);
  find("states").replaceChildren(...shown.map((state) => make("li", {}, `${progress[state].toLocaleString("en")} ${state}`)));
}

function showList() {
  find("list").replaceChildren(...rows.map(listItem));
  find("list").scrollTop = 0;
  const last = first + rows.length;
  const range = found > rows.length ? `${(first + 1).toLocaleString("en")} to ${last.toLocaleString("en")} of ` : "";
  find("count").textContent = `${range}${found.toLocaleString("en")} ${found === 1 ? "caption" : "captions"}`;
  find("page-before").disabled = first === 0;
  find("page-after").disabled = last >= found;
  document.querySelector(".pages").hidden = found <= rows.length;
  find("none").hidden = rows.length > 0;
  find("side").hidden = rows.length === 0;
  rowElement.hidden = rows.length === 0;
}

function listItem(row) {
  const mark = make("span", { class: `mark ${row.state}`, "aria-hidden": "true" }, MARKS[row.state]);
  const name = make("span", { class: "name", dir: "auto" }, row.name);
  const text = row.text ?? row.missing;
  const details = make("span", { class: "snippet", dir: "auto" }, `${text.slice(0, 120)}`);
  const state = make("span", { class: "unseen" }, row.state);
  const when = make("span", { class: "when" }, `${Math.floor(row.start / 60)}:${String(Math.floor(row.start % 60)).padStart(2, "0")}`);
  const link = make("a", { href: addressOf(row.id), "data-id": row.id }, mark, name, when, state, details);
  link.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey || event.button) return; // a new tab
    event.preventDefault();
    select(row.id === current?.id ? current : rows.find((one) => one.id === row.id), { isFocused: true });
  });
  const item = make("li", {}, link);
  if (row.id === current?.id) link.setAttribute("aria-current", "true");
  return item;
}

function linkOf(id) {
  return [...find("list").querySelectorAll("a")].find((link) => link.dataset.id === id);
}

function select(row, { isFocused = false } = {}) {
  closeEditor();
  linkOf(current?.id)?.removeAttribute("aria-current");
  current = row;
  if (!row) {
    player.stop();
    return;
  }
  const link = linkOf(row.id);
  link?.setAttribute("aria-current", "true");
  link?.scrollIntoView({ block: "nearest" });
  history.replaceState(null, "", addressOf(row.id));
  document.title = `${row.name}: review`;
  showRow();
  player.show(row, wantsMotion());
  if (isFocused) rowElement.focus({ preventScroll: true });
  const place = `${first + rows.indexOf(row) + 1} of ${found}`;
  announce(`${place}, ${row.name}, ${row.position}, ${row.state}: ${row.text ?? row.missing}`);
}

async function step(by) {
  if (!current) return;
  const next = rows[rows.findIndex((row) => row.id === current.id) + by];
  if (next) select(next, { isFocused: true });
  else if (by > 0 && first + rows.length < found) await load({ after: current.id });
  else if (by < 0 && first > 0) await load({ before: current.id }, "last");
  else announce(by > 0 ? "This is the last caption." : "This is the first caption.");
}

// --- the row ---

function showRow() {
  const row = current;
  find("row-name").textContent = row.name;
  find("row-name").href = addressOf(row.id);
  find("row-position").textContent = `${row.position} · ${row.shard} · ${row.stage_label}`;
  find("row-state").replaceChildren(make("span", { class: `badge ${row.state}` }, MARKS[row.state] ? `${MARKS[row.state]} ` : "", row.isSaving ? `${row.state}, saving` : row.state));
  find("accept").disabled = row.text === null;
  find("undo").disabled = done.length === 0;
  find("decision").replaceChildren(...decisionNodes(row));
  const correction = row.correction;
  find("caption").classList.toggle("superseded", row.state === "rewritten");
  find("caption").replaceChildren(
    make("h3", {}, correction ? "The model's text" : row.stage_label),
    ...modelText(row),
    make("p", { class: "facts" }, facts(row)),
    ...flagList(row),
  );
  const others = row.others.map((other) =>
    make("div", { class: "other" }, make("h3", {}, other.stage_label), ...textNodes(other), make("a", { href: otherAddress(other) }, `Review ${other.stage_label}`)),
  );
  keepOpen("others", others.length ? [make("summary", {}, `Other stages of this window (${others.length})`), ...others] : []);
  const history = row.history.map((one) => make("li", {}, sentence(one)));
  keepOpen("about", [
    make("summary", {}, "How it was made"),
    make("dl", {}, ...row.properties.map(([label, value]) => make("div", {}, make("dt", {}, label), make("dd", { dir: "auto" }, value)))),
    history.length ? make("ul", { "aria-label": "History of decisions" }, ...history) : null,
  ]);
}

// Shows details in a section, open if those before were.
function keepOpen(id, children) {
  const section = find(id);
  const isOpen = section.querySelector("details")?.open ?? section.dataset.open === "true";
  section.dataset.open = isOpen;
  section.replaceChildren(...(children.length ? [make("details", isOpen ? { open: "" } : {}, ...children)] : []));
}

function facts(row) {
  const length = row.kind === "choice" || row.text === null ? null : `${row.words} ${row.words === 1 ? "word" : "words"}`;
  const score = row.score === null ? null : `score ${row.score.toFixed(3)}`;
  return [length, score].filter(Boolean).join(" · ");
}

function flagList(row) {
  const flags = [...row.flags, ...row.notes].map((flag) => make("li", {}, flag.replaceAll("_", " ")));
  return flags.length ? [make("ul", { class: "flags", "aria-label": "Flags" }, ...flags)] : [];
}

function otherAddress(other) {
  const parameters = query();
  parameters.set("stage", other.stage);
  parameters.set("row", other.id);
  return `?${parameters}`.replaceAll("%2F", "/");
}

// The model's text, with what a rewrite removed, or what changed since a decision.
function modelText(row) {
  const correction = row.correction;
  if (row.text !== null && correction?.before) return [segments(correction.before.new, "ins")];
  if (row.text !== null && correction?.diff) return [segments(correction.diff.old, "del")];
  return textNodes(row);
}

function textNodes(row) {
  if (row.text === null) return [make("p", { class: "missing", dir: "auto" }, row.missing)];
  if (row.choices.length) return [choiceList({ text: [row.text], choices: row.choices, score: null })];
  if (row.kind === "json") return [make("div", { class: "fields" }, jsonNode(parseJson(row.text), 0))];
  return [make("p", { class: "caption", dir: "auto" }, row.text)];
}

// A text in segments, every second of which differs.
function segments(parts, tag) {
  const nodes = parts.map((part, number) => (part && number % 2 ? make(tag, {}, part) : part));
  return make("p", { class: "caption", dir: "auto" }, ...nodes);
}

function sentence(correction) {
  const decision = DECISIONS[correction.decision];
  const reason = correction.reason ? `: ${correction.reason}` : "";
  return `${decision} by ${correction.reviewer}, ${new Date(correction.decided_at).toLocaleString()}${reason}`;
}

function decisionNodes(row) {
  const correction = row.correction;
  if (!correction) return [];
  const text = sentence(correction);
  const button = make("button", { type: "button", "aria-keyshortcuts": "x" }, "Withdraw ", make("kbd", {}, "X"));
  button.addEventListener("click", withdraw);
  const nodes = [make("header", {}, make("p", {}, text.charAt(0).toUpperCase() + text.slice(1)), button)];
  if (correction.before) {
    const holds = correction.decision === "accept" ? "It does not hold for the new text." : "It still holds in the dataset.";
    nodes.push(make("p", { class: "warning" }, `The model's text has changed since. ${holds} It was made on this text:`));
    nodes.push(segments(correction.before.old, "del"));
  }
  if (correction.diff) nodes.push(make("h3", {}, "New text"), segments(correction.diff.new, "ins"));
  return nodes;
}

// Replaces a row by its present version.
function apply(row) {
  const place = rows.findIndex((one) => one.id === row.id);
  if (place >= 0) {
    rows[place] = row;
    linkOf(row.id)?.parentElement.replaceWith(listItem(row));
  }
  if (row.id !== current?.id) return;
  current = row;
  linkOf(row.id)?.setAttribute("aria-current", "true");
  if (!isEditing) showRow();
}

// --- decisions ---

function decide(decision, details = {}) {
  const row = current;
  const seen = row.correction?.id ?? null;
  const id = saves.add({ row: row.id, decision, seen, ...details });
  done.push({ row: row.id, id });
  drafts.delete(row.id);
  apply({ ...row, state: DECISIONS[decision], isSaving: true });
  announce(`${DECISIONS[decision]}: ${row.name}`);
  closeEditor();
  const isLast = row.id === rows.at(-1)?.id && first + rows.length >= found;
  if (isLast) showRow();
  else step(1);
}

function undo() {
  const last = done.pop();
  if (!last) {
    announce("There is nothing to undo.");
    return;
  }
  saves.add({ row: last.row, decision: "undo", undoes: last.id });
  const row = rows.find((one) => one.id === last.row);
  if (row) {
    apply({ ...row, isSaving: true });
    select(rows.find((one) => one.id === last.row), { isFocused: true });
  }
  find("undo").disabled = done.length === 0;
}

function withdraw() {
  if (!current?.correction || current.isSaving) return;
  saves.add({ row: current.id, decision: "undo", undoes: current.correction.id, seen: current.correction.id });
  apply({ ...current, isSaving: true });
}

saves.onSaved = (body, answer) => {
  apply(answer.row);
  if (body.decision === "undo") {
    announce(`Undone: ${answer.row.name} is ${answer.row.state}`);
    if (!rows.some((row) => row.id === body.row)) load({ at: body.row });
  }
  if (answer.meanwhile) {
    const message = `${answer.row.name} was ${sentence(answer.meanwhile)}, before your decision, which holds now.`;
    showError(message, "meanwhile");
    setTimeout(() => showError("", "meanwhile"), 12_000);
  }
  clearTimeout(saves.poll);
  saves.poll = setTimeout(poll, 300);
};

saves.onRefused = (body, message) => {
  showError(`A decision was not accepted: ${message}`, "refused");
  setTimeout(() => showError("", "refused"), 12_000);
  const place = done.findIndex((one) => one.id === body.id);
  if (place >= 0) done.splice(place, 1);
  load({ at: current?.id });
};

// Fetches the decisions of other reviewers, and the progress.
async function poll() {
  if (document.hidden || !session) return;
  const parameters = query();
  parameters.set("since", serial);
  try {
    const answer = await api(`api/changes?${parameters}`);
    showError("", "poll");
    serial = answer.serial;
    const waiting = new Set(saves.waiting.map((save) => save.body.row));
    for (const row of answer.rows) if (!waiting.has(row.id)) apply(row);
    if (answer.progress) showProgress(answer.progress);
  } catch (error) {
    showError(error.message, "poll");
  }
}

// --- rejection ---

function openRejection() {
  find("reason").value = "";
  find("reject-dialog").showModal();
  find("reasons").querySelector("button").focus();
}

function reject(reason) {
  find("reject-dialog").close();
  decide("reject", { reason: reason.trim() || null });
}

find("reasons").append(
  ...REASONS.map((reason, number) => {
    const button = make("button", { type: "button", "aria-keyshortcuts": number + 1 }, make("kbd", {}, number + 1), reason);
    button.addEventListener("click", () => reject(reason));
    return make("li", {}, button);
  }),
);
find("reject-form").addEventListener("submit", (event) => {
  event.preventDefault();
  reject(find("reason").value);
});
find("reject-dialog").addEventListener("keydown", (event) => {
  if (event.target === find("reason") || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "0") {
    event.preventDefault();
    find("reason").focus();
  }
  if (REASONS[Number(event.key) - 1]) {
    event.preventDefault();
    reject(REASONS[Number(event.key) - 1]);
  }
});

// --- the editor ---

function openEditor() {
  if (!current || isEditing) return;
  isEditing = true;
  const isChoice = current.kind === "choice";
  const text = drafts.get(current.id) ?? current.correction?.caption ?? current.text ?? "";
  const [area, choice] = [find("edit-text"), find("edit-choice")];
  area.hidden = isChoice;
  document.querySelector("label[for=edit-text]").hidden = isChoice;
  choice.hidden = !isChoice;
  area.value = text;
  choice.replaceChildren(...current.options.map((name) => make("option", { value: name }, name)));
  if (current.options.includes(text)) choice.value = text;
  find("edit-error").textContent = "";
  find("editor").hidden = false;
  showDifference();
  (isChoice ? choice : area).focus();
}

function editedText() {
  return find("edit-text").hidden ? find("edit-choice").value : find("edit-text").value;
}

function closeEditor() {
  isEditing = false;
  find("editor").hidden = true;
}

function cancelEdit() {
  closeEditor();
  showRow();
  rowElement.focus({ preventScroll: true });
}

function saveEdit() {
  const text = editedText().trim();
  if (!text) {
    find("edit-error").textContent = "The text is empty: write one, or reject the caption.";
    return;
  }
  if (current.kind === "json" && parseJson(text) === text) {
    find("edit-error").textContent = "The text is not valid JSON, as the captions of this stage are.";
    return;
  }
  if (text === current.text) decide("accept");
  else decide("rewrite", { caption: text });
}

async function showDifference() {
  const row = current;
  const text = editedText();
  const diff = await api("api/diff", { old: row.text ?? "", new: text }).catch(() => null);
  if (!diff || row !== current || text !== editedText()) return;
  find("edit-diff").replaceChildren(...(diff.old.length > 1 ? [segments(diff.old, "del")] : []), segments(diff.new, "ins"));
}

let typing;
find("edit-text").addEventListener("input", () => {
  drafts.set(current.id, find("edit-text").value);
  clearTimeout(typing);
  typing = setTimeout(showDifference, TYPING_MILLISECONDS);
});
find("edit-choice").addEventListener("change", showDifference);
find("editor").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    saveEdit();
  }
  if (event.key === "Escape") {
    event.preventDefault();
    cancelEdit();
  }
});

// --- keys ---

const KEYS = {
  j: () => step(1),
  k: () => step(-1),
  a: () => find("accept").click(),
  r: () => openRejection(),
  e: () => openEditor(),
  u: () => undo(),
  x: () => withdraw(),
  " ": () => player.toggle(),
  ",": () => player.step(-1),
  ".": () => player.step(1),
  "/": () => filters.elements.search.focus(),
  "?": () => find("help").showModal(),
};
const NEEDS_ROW = new Set(["a", "r", "e", "x", " ", ",", "."]);

// Goes back from a filter to the row.
function leave(element) {
  element.blur(); // also where no row is shown
  rowElement.focus();
}

function isTyping(element) {
  return element.matches("textarea, select, input:not([type=range], [type=checkbox])");
}

addEventListener("keydown", (event) => {
  if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  if (document.querySelector("dialog[open]")) return;
  if (event.key === "Escape" && filters.contains(event.target)) leave(event.target);
  if (event.key === "Enter" && event.target === filters.elements.search) leave(event.target);
  if (!find("keys-on").checked || isTyping(event.target)) return;
  if (event.key === " " && event.target.matches("button, a, summary, [type=checkbox]")) return; // its own meaning
  const key = event.key.toLowerCase();
  const run = (!event.shiftKey || key === "?" || key === "/") && KEYS[key];
  if (!run || (NEEDS_ROW.has(key) && !current)) return;
  event.preventDefault();
  run();
});

// --- the start ---

let filtering;
function onFilter() {
  clearTimeout(filtering);
  filtering = setTimeout(() => {
    history.pushState(null, "", addressOf(null));
    countMoreFilters();
    load();
  }, TYPING_MILLISECONDS);
}

function setting(id, isOn) {
  const stored = localStorage.getItem(`review-${id}`);
  find(id).checked = stored === null ? isOn : stored === "true";
  find(id).addEventListener("change", () => localStorage.setItem(`review-${id}`, find(id).checked));
}

async function start() {
  setting("keys-on", true);
  setting("autoplay", !reducedMotion.matches);
  try {
    session = await api("api/session");
  } catch (error) {
    find("progress-text").textContent = "not open";
    showError(error.message, "session");
    return;
  }
  find("root").textContent = session.shards.length === 1 ? session.shards[0][0] : session.root;
  find("reviewer").textContent = ` by ${session.reviewer}`;
  for (const name of ["stage", "shard", "flag"]) fillOptions(name, session[`${name}s`]);
  fillOptions("status", session.statuses.map((status) => [status, status]));
  fillOptions("correction", [["open", "to do"], ...session.states.map((state) => [state, state])]);
  fillOptions("order", session.orders.map((order) => [order === "manifest" ? "" : order, ORDERS[order]]));
  filters.elements.flag.parentElement.hidden = session.flags.length === 0;
  filters.elements.shard.parentElement.hidden = session.shards.length === 1;
  find("score-filter").hidden = !session.has_scores;
  saves.open(session.root_id);
  await load({ at: readAddress() });
  rowElement.focus({ preventScroll: true });
  setInterval(poll, POLL_MILLISECONDS);
}

filters.addEventListener("input", onFilter);
filters.addEventListener("submit", (event) => event.preventDefault());
find("reset").addEventListener("click", () => {
  filters.reset();
  onFilter();
});
for (const [id, run] of Object.entries({
  accept: () => decide("accept"),
  reject: openRejection,
  edit: openEditor,
  undo,
  "edit-save": saveEdit,
  "edit-cancel": cancelEdit,
  "page-before": () => load({ before: rows[0].id }),
  "page-after": () => load({ after: rows.at(-1).id }),
  "help-open": () => find("help").showModal(),
  "help-close": () => find("help").close(),
  "reject-close": () => find("reject-dialog").close(),
})) {
  find(id).addEventListener("click", run);
}
addEventListener("popstate", () => load({ at: readAddress() }));
document.addEventListener("visibilitychange", poll);
start();

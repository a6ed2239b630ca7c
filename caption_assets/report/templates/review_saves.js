// Saves: each decision is sent at once. One that cannot be stored is kept in the browser's storage and sent again, also
// after the page was closed. Its id is made here, so that sending it twice has no effect.

const KEEPALIVE_BYTES = 60_000; // browsers refuse larger requests that outlive their page
const RETRY_MILLISECONDS = [1000, 2000, 5000, 15_000];

class Refused extends Error {} // the server's answer is final: sending the decision again would not help

const saves = {
  waiting: [], // decisions that are not stored yet, in order
  prefix: "", // of the keys in the browser's storage
  isSending: false,
  failures: 0,
  timer: null,
  onSaved: () => {},
  onRefused: () => {},

  // Takes over the decisions that an earlier page of this root could not store.
  open(rootId) {
    this.prefix = `review:${rootId}:`;
    const keys = Object.keys(localStorage).filter((key) => key.startsWith(this.prefix));
    const kept = keys.map((key) => JSON.parse(localStorage.getItem(key)));
    this.waiting.push(...kept.sort((one, other) => one.made - other.made));
    this.send();
  },

  add(decision) {
    const id = crypto.randomUUID().replaceAll("-", "");
    const save = { made: Date.now() + performance.now() / 1e6, body: { id, ...decision } };
    try {
      localStorage.setItem(this.prefix + id, JSON.stringify(save));
    } catch {
      // the browser has no storage: the page itself keeps the decision
    }
    this.waiting.push(save);
    this.send();
    return id;
  },

  // Sends what waits, one after the other: an undo must not overtake its decision.
  async send() {
    if (this.isSending) return;
    clearTimeout(this.timer);
    this.isSending = true;
    while (this.waiting.length) {
      const [save] = this.waiting;
      this.report("saving");
      try {
        const answer = await this.post(save.body);
        this.remove(save);
        this.failures = 0;
        this.onSaved(save.body, answer);
      } catch (error) {
        if (error instanceof Refused) {
          this.remove(save, error.isForeign);
          this.onRefused(save.body, error.message);
        } else {
          this.retryLater(error.message);
          break;
        }
      }
    }
    this.isSending = false;
    if (!this.waiting.length) this.report("saved");
  },

  async post(body) {
    const text = JSON.stringify(body);
    const response = await fetch("api/corrections", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: text,
      keepalive: text.length < KEEPALIVE_BYTES / 3, // UTF-8 takes up to three bytes for a UTF-16 unit
    });
    const answer = await response.json();
    if (response.ok) return answer;
    if (response.status >= 500 || response.status === 401) throw new Error(answer.error);
    throw Object.assign(new Refused(answer.error), { isForeign: response.status === 404 });
  },

  // A decision on a shard that is not under review stays in the browser's storage, for the next review of its shard.
  remove(save, isKept = false) {
    this.waiting = this.waiting.filter((one) => one !== save);
    if (!isKept) localStorage.removeItem(this.prefix + save.body.id);
  },

  retryLater(message) {
    const delay = RETRY_MILLISECONDS[Math.min(this.failures++, RETRY_MILLISECONDS.length - 1)];
    this.timer = setTimeout(() => this.send(), delay);
    this.report("failed", message);
  },

  report(state, message = "") {
    const count = this.waiting.length;
    const text = { saving: "saving", saved: "all saved", failed: `${count} not saved, retrying` }[state];
    if (saves.shown !== text) find("saving").textContent = saves.shown = text;
    find("saving").classList.toggle("failed", state === "failed");
    showError(state === "failed" ? `Cannot save: ${message}. Decisions are kept in this browser and sent again.` : "", "save");
  },
};

addEventListener("online", () => saves.send());
addEventListener("beforeunload", (event) => saves.failures && saves.waiting.length && event.preventDefault());

// The video of a row, cut to its window: it plays from the window's start to its end, and from the start again. A row
// whose video this browser cannot play shows the frames of its preview.

const PREVIEW_MILLISECONDS = 500; // duration of a frame of a preview
const SPEEDS = [1, 2, 0.5];
const DEFAULT_FPS = 25; // length of a step where the clip's frame rate is unknown

const player = {
  video: find("video"),
  still: find("still"),
  image: find("still-image"),
  seek: find("seek"),
  play: find("play"),
  note: find("video-note"),
  row: null,
  isStill: false, // whether the preview stands in for the video
  frame: 0,
  timer: null,

  show(row, isPlaying) {
    if (this.row?.video === row.video && this.row?.start === row.start) return;
    this.row = row;
    this.isStill = false;
    this.note.textContent = "";
    clearInterval(this.timer);
    this.timer = null;
    this.still.hidden = true;
    this.video.hidden = false;
    this.video.src = `${row.video}#t=${row.start}`;
    this.video.muted = find("sound").getAttribute("aria-pressed") === "false";
    find("sound").hidden = !row.has_audio;
    this.seek.max = this.length.toFixed(3);
    this.seek.step = (1 / this.fps).toFixed(4);
    this.update();
    if (isPlaying) this.start();
    else this.label();
  },

  get fps() {
    return this.row.fps || DEFAULT_FPS;
  },

  get length() {
    return this.row.end - this.row.start;
  },

  get isPlaying() {
    return this.isStill ? this.timer !== null : !this.video.paused;
  },

  start() {
    if (this.isStill) {
      this.timer ??= setInterval(() => this.showFrame(this.frame + 1), PREVIEW_MILLISECONDS);
    } else {
      if (this.isAtEnd(this.video.currentTime)) this.video.currentTime = this.row.start;
      this.video.playbackRate = Number.parseFloat(find("speed").textContent);
      this.video.play().catch(() => {}); // the browser may refuse to play sound at once, or another row may follow
    }
    this.label();
  },

  stop() {
    clearInterval(this.timer);
    this.timer = null;
    this.video.pause();
    this.label();
  },

  toggle() {
    if (this.isPlaying) this.stop();
    else this.start();
  },

  // Moves by frames, within the window.
  step(frames) {
    this.stop();
    if (this.isStill) this.showFrame(this.frame + frames);
    else this.moveTo(this.video.currentTime - this.row.start + frames / this.fps);
  },

  // Moves to a position in the window, in seconds.
  moveTo(seconds) {
    const last = Math.max(this.length - 1 / this.fps, 0);
    this.video.currentTime = this.row.start + Math.min(Math.max(seconds, 0), last);
  },

  isAtEnd(time) {
    return time >= this.row.end - 1 / this.fps;
  },

  // Keeps the video in its window: after the last frame comes the first.
  keepInWindow() {
    if (!this.row || this.isStill) return;
    const time = this.video.currentTime;
    const isPast = this.video.paused ? time > this.row.end : this.isAtEnd(time);
    if (isPast || time < this.row.start - 0.5 / this.fps) this.video.currentTime = this.row.start;
    this.update();
  },

  update() {
    const seconds = this.isStill ? 0 : Math.min(Math.max(this.video.currentTime - this.row.start, 0), this.length);
    this.seek.value = seconds;
    this.seek.setAttribute("aria-valuetext", `${seconds.toFixed(1)} of ${this.length.toFixed(1)} seconds`);
    find("time").textContent = `${seconds.toFixed(1)} / ${this.length.toFixed(1)} s`;
  },

  label() {
    this.play.textContent = this.isPlaying ? "Pause" : "Play";
  },

  // Shows the preview, and says why there is no video.
  async fail() {
    const row = this.row;
    if (!row || this.isStill) return;
    this.isStill = true;
    this.video.hidden = true;
    this.still.hidden = !row.preview;
    const shown = row.preview ? "Its preview is shown." : "It has no preview.";
    this.note.textContent = `This browser cannot play the clip (${row.codec ?? "unknown codec"}). ${shown}`;
    this.image.src = row.preview ?? "data:,";
    this.update();
    this.showFrame(Math.floor((row.preview_frames ?? 0) / 2));
    if (wantsMotion()) this.start();
    else this.label();
    const response = await fetch(row.video, { headers: { Range: "bytes=0-0" } }).catch(() => null);
    if (row !== this.row || response?.ok) return;
    const reason = response ? (await response.json()).error : "the review's server does not respond";
    this.note.textContent = `The clip cannot be read: ${reason}. ${shown}`;
  },

  // The frames of a preview are below each other.
  showFrame(number) {
    const frames = this.row.preview_frames ?? 1;
    this.frame = ((number % frames) + frames) % frames;
    this.image.style.objectPosition = `0 ${(100 * this.frame) / Math.max(frames - 1, 1)}%`;
  },
};

player.video.addEventListener("timeupdate", () => player.keepInWindow());
player.video.addEventListener("seeked", () => player.update());
player.video.addEventListener("play", () => player.label());
player.video.addEventListener("pause", () => player.label());
player.video.addEventListener("error", () => player.fail());
player.video.addEventListener("ended", () => {
  player.video.currentTime = player.row.start;
  player.start();
});
player.video.addEventListener("loadedmetadata", () => {
  if (!player.video.videoWidth) player.fail(); // only the sound can be played
});
player.image.addEventListener("load", () => {
  const ratio = (player.row.preview_frames * player.image.naturalWidth) / player.image.naturalHeight;
  player.image.style.setProperty("--ratio", ratio);
});
if (player.video.requestVideoFrameCallback) {
  const onFrame = () => {
    if (!player.video.paused) player.keepInWindow(); // timeupdate alone is up to 0.25 s late
    player.video.requestVideoFrameCallback(onFrame);
  };
  player.video.requestVideoFrameCallback(onFrame);
}
player.seek.addEventListener("input", () => {
  player.stop();
  player.moveTo(Number(player.seek.value));
});
player.play.addEventListener("click", () => player.toggle());
find("speed").addEventListener("click", () => {
  const speed = SPEEDS[(SPEEDS.indexOf(Number.parseFloat(find("speed").textContent)) + 1) % SPEEDS.length];
  find("speed").textContent = `${speed}×`;
  find("speed").setAttribute("aria-label", `Speed: ${speed} times`);
  player.video.playbackRate = speed;
});
find("sound").addEventListener("click", () => {
  const isOn = find("sound").getAttribute("aria-pressed") === "false";
  find("sound").setAttribute("aria-pressed", isOn);
  player.video.muted = !isOn;
});

// The labelling page. Text that comes from the data goes into the page by textContent only.

const ROW_PX = 54;
const FPS_UNKNOWN = 10;
const POLL_MS = 700;
const LOOK_MS = 40;
const PATIENCE_MS = 5000;
const FILMS_KEPT = 3;
const SIGNS = { success: "✓", failure: "✕", unclear: "?" };
const LOST = "the server does not answer; start robot-qsft label again.";

const $ = (id) => document.getElementById(id);
const help = $("help");
const list = $("list");
const scrubber = $("scrubber");

let about; // what all episodes have in common
let counts = { total: 0, labelled: 0, unread: 0, undoable: 0 };
let revision = 0; // how far in the server's log of changes this page has got
const rows = []; // by episode; a hole where the server has not told yet
let shown = []; // episodes in the list, ascending
let onlyUnlabelled = false;
let current = -1;
let step = 0;
let drawn = -1; // the step that the cameras show; -1 for none
let playing = false;
let carryOn = false; // the episode was played to its end: the next one plays too
let clock = { step: 0, time_ms: 0 }; // where playing began or last stood still
const canvases = new Map(); // by camera
const films = new Map(); // by episode, the last used at the end

function element(tag, className, text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

function say(state, text) {
  $("status").dataset.state = state;
  $("status").textContent = text;
}

const sleep = (time_ms) => new Promise((resolve) => setTimeout(resolve, time_ms));
const titleOf = (index) => rows[index]?.name || `episode ${index}`;
const lengthOf = (index) => rows[index]?.length ?? 0;
const fps = () => about.fps ?? FPS_UNKNOWN;

function wordsOf(label) {
  const frame = label.success_frame;
  return label.outcome + (frame === null ? "" : ` at frame ${frame}`);
}

// --- the server

class Refused extends Error {}

async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    revision = 0; // a server that was started anew counts from the beginning
    throw new Refused(LOST);
  }
  if (response.ok) return response;
  const { error } = await response.json().catch(() => ({ error: `status ${response.status}` }));
  throw Object.assign(new Refused(error), { status: response.status });
}

async function change(body) {
  const response = await ask("/api/label", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
  return response.json();
}

function take({ episode, ...told }) {
  counts = { ...counts, ...told };
  rows[episode.index] = episode;
}

async function refresh() {
  let latest;
  do {
    const answer = await (await ask(`/api/episodes?since=${revision}`)).json();
    latest = answer.latest;
    revision = latest < revision ? 0 : answer.revision;
    for (const row of answer.episodes) rows[row.index] = row;
    const { total, labelled, unread, undoable } = answer;
    counts = { total, labelled, unread, undoable };
  } while (revision < latest);
}

let polling;

async function poll() {
  clearTimeout(polling);
  try {
    await refresh();
    if ($("status").textContent.endsWith(LOST)) say("idle", "The server is back.");
  } catch (error) {
    if ($("status").dataset.state !== "error") say("error", error.message);
  }
  renderAll();
  if (counts.unread > 0 || revision === 0) polling = setTimeout(poll, POLL_MS);
}

// --- frames

class Film {
  constructor(episode) {
    this.episode = episode;
    this.pictures = new Map(about.cameras.map(({ name }) => [name, []]));
    this.problem = "";
    this.loading = null;
    this.length = null; // not known yet
  }

  // Frames of which every camera has its own.
  get loaded() {
    return Math.min(...[...this.pictures.values()].map((pictures) => pictures.length));
  }

  get complete() {
    return this.problem !== "" || (this.length !== null && this.loaded >= this.length);
  }

  stop() {
    this.loading?.abort();
    this.loading = null;
  }

  async load() {
    if (this.loading || this.complete) return;
    const loading = (this.loading = new AbortController());
    while (this.loading === loading && !this.complete) {
      try {
        await this.loadStrips(loading.signal);
      } catch (error) {
        if (error.name === "AbortError") return;
        if (error.status === 409) this.problem = error.message;
        else await sleep(POLL_MS);
      }
      if (this.episode === current) filmGrew();
    }
    if (this.loading === loading) this.loading = null;
  }

  async loadStrips(signal) {
    if (!rows[this.episode]?.length) {
      take(await (await ask(`/api/episode?episode=${this.episode}`, { signal })).json());
      if (this.episode === current) renderAll();
    }
    this.problem = rows[this.episode].length ? "" : rows[this.episode].problem;
    this.length = lengthOf(this.episode);
    for (const [camera, pictures] of this.pictures) {
      if (pictures.length >= this.length || this.problem) continue;
      const query = new URLSearchParams({
        episode: this.episode,
        camera,
        first: pictures.length,
        ahead: this.episode === current ? 0 : 1,
      });
      const strip = await (await ask(`/api/frames?${query}`, { signal })).arrayBuffer();
      const view = new DataView(strip);
      for (let at = 0; at < strip.byteLength; ) {
        const size = view.getUint32(at);
        pictures.push(new Blob([new Uint8Array(strip, at + 4, size)], { type: "image/jpeg" }));
        at += 4 + size;
      }
    }
  }
}

function filmOf(episode) {
  const film = films.get(episode) ?? new Film(episode);
  films.delete(episode);
  films.set(episode, film);
  for (const [other, old] of films) {
    if (films.size <= FILMS_KEPT) break;
    old.stop();
    films.delete(other);
  }
  return film;
}

function filmGrew() {
  renderBuffer();
  if (drawn !== step) paint();
  const following = next();
  if (films.get(current).complete && following !== undefined) {
    filmOf(following).load();
    filmOf(current);
  }
}

let painting = null;
let paintAgain = false;

// Draws the frame of now; a call while another is at work makes that one go on with the newest.
function paint() {
  paintAgain = true;
  painting ??= (async () => {
    while (paintAgain) {
      paintAgain = false;
      await paintOnce();
    }
    painting = null;
  })();
  return painting;
}

async function paintOnce() {
  const [episode, wanted] = [current, step];
  const film = films.get(episode);
  const pictures = [...film.pictures].map(([camera, all]) => [camera, all[wanted]]);
  const bitmaps = await Promise.all(
    pictures.map(async ([camera, blob]) => [camera, blob && (await createImageBitmap(blob))]),
  );
  if (episode !== current) return;
  for (const [camera, bitmap] of bitmaps) {
    const canvas = canvases.get(camera);
    canvas.classList.toggle("late", !bitmap);
    if (!bitmap) continue;
    if (canvas.width !== bitmap.width) canvas.width = bitmap.width;
    if (canvas.height !== bitmap.height) canvas.height = bitmap.height;
    canvas.getContext("2d").drawImage(bitmap, 0, 0);
    bitmap.close();
  }
  if (bitmaps.every(([, bitmap]) => bitmap)) drawn = wanted;
}

// --- time

function seek(wanted) {
  step = Math.max(0, Math.min(wanted, lengthOf(current) - 1));
  paint();
  renderTime();
}

function stepBy(frames) {
  pause();
  seek(step + frames);
}

function play() {
  if (step >= lengthOf(current) - 1) seek(0);
  if (!playing) requestAnimationFrame(tick);
  playing = true;
  clock = { step, time_ms: performance.now() };
  renderPlay();
}

function pause() {
  playing = carryOn = false;
  renderPlay();
}

function tick(now_ms) {
  if (!playing) return;
  const last = lengthOf(current) - 1;
  const due = clock.step + Math.max(0, Math.floor(((now_ms - clock.time_ms) * fps()) / 1000));
  const reached = Math.max(0, Math.min(due, last, films.get(current).loaded - 1));
  if (reached < Math.min(due, last)) clock = { step: reached, time_ms: now_ms };
  if (reached !== step) seek(reached);
  if (last >= 0 && step >= last) {
    pause();
    carryOn = true;
  } else requestAnimationFrame(tick);
}

// --- episodes

const isOpen = (index) => !rows[index]?.label;

function next() {
  if (!onlyUnlabelled) return current + 1 < counts.total ? current + 1 : undefined;
  return shown.find((index) => index > current && isOpen(index)) ?? shown.find(isOpen);
}

function open(index) {
  const keepPlaying = playing || carryOn;
  films.get(current)?.stop();
  current = index;
  [step, drawn, playing, carryOn] = [0, -1, false, false];
  for (const canvas of canvases.values()) canvas.width = canvas.width; // empties it
  filmOf(index).load();
  history.replaceState(null, "", `#${index}`);
  renderAll();
  scrollTo(index);
  paint();
  if (keepPlaying) play();
}

function move(by) {
  const target = shown[shown.indexOf(current) + by];
  if (target !== undefined) open(target);
}

function toggleFilter() {
  onlyUnlabelled = !onlyUnlabelled;
  if (onlyUnlabelled && !isOpen(current) && next() !== undefined) open(next());
  renderAll();
  scrollTo(current);
}

// --- labels

async function label(outcome, success_frame) {
  const episode = current;
  say("saving", `Saving ${titleOf(episode)} …`);
  take(await change({ action: "set", episode, outcome, success_frame }));
  say("saved", `Saved: ${titleOf(episode)} is ${wordsOf(rows[episode].label)}.`);
}

async function judge(outcome) {
  const before = rows[current]?.label;
  const marked = outcome === "success" && before ? before.success_frame : null;
  await label(outcome, marked);
  renderShown();
  const following = next();
  if (following !== undefined && following !== current) open(following);
  else {
    renderAll();
    const end = counts.labelled === counts.total ? "Every episode has a label." : "That was the last one.";
    say("saved", `${$("status").textContent} ${end}`);
  }
}

// Marks what is seen, so it waits for the frame to be there.
async function mark() {
  pause();
  const isSeen = () => canvases.size === 0 || drawn === step;
  for (let tries = 0; !isSeen() && tries < PATIENCE_MS / LOOK_MS; tries++) {
    await paint();
    if (!isSeen()) await sleep(LOOK_MS);
  }
  if (!isSeen()) throw new Refused(`frame ${step} is still loading; mark it once you see it`);
  await label("success", step);
  renderAll();
}

async function undo() {
  const answer = await change({ action: "undo" });
  take(answer);
  const { index, label: restored } = answer.episode;
  renderShown();
  if (index !== current) open(index);
  renderAll();
  const now = restored ? `is ${wordsOf(restored)} again` : "has no label again";
  say("saved", `Saved: ${titleOf(index)} ${now}.`);
}

// --- what is seen

function renderAll() {
  renderShown();
  renderProgress();
  renderEpisode();
  renderTime();
  renderBuffer();
  renderPlay();
}

function renderShown() {
  const all = Array.from({ length: counts.total }, (_, index) => index);
  shown = onlyUnlabelled ? all.filter((index) => isOpen(index) || index === current) : all;
  $("rows").style.height = `${shown.length * ROW_PX}px`;
  $("none").hidden = !(onlyUnlabelled && counts.labelled === counts.total);
  $("filter").setAttribute("aria-pressed", onlyUnlabelled);
  renderRows();
}

// Only rows that can be seen are in the page, so that it is as quick with 10,000 as with ten.
function renderRows() {
  const first = Math.max(0, Math.floor(list.scrollTop / ROW_PX) - 4);
  const last = Math.min(shown.length, first + Math.ceil(list.clientHeight / ROW_PX) + 9);
  $("rows").replaceChildren(...shown.slice(first, last).map((index, n) => rowOf(index, first + n)));
  list.setAttribute("aria-activedescendant", `row-${current}`);
}

function rowOf(index, place) {
  const row = rows[index];
  const made = element("div", `row ${row?.problem ? "problem" : row?.label?.outcome ?? ""}`);
  made.id = `row-${index}`;
  made.style.setProperty("--place", place);
  made.setAttribute("role", "option");
  made.setAttribute("aria-selected", index === current);
  made.setAttribute("aria-posinset", place + 1);
  made.setAttribute("aria-setsize", shown.length);
  const sign = element("span", "sign", row?.problem ? "!" : SIGNS[row?.label?.outcome] ?? "");
  sign.setAttribute("aria-hidden", "true");
  let state = row?.label ? wordsOf(row.label) : "no label";
  if (row?.problem) state = "cannot be labelled";
  const name = element("div", "name");
  const isNumbered = titleOf(index) === `episode ${index}`;
  name.append(element("span", "number", isNumbered ? "" : `${index} `), titleOf(index));
  name.title = titleOf(index);
  const texts = element("div", "texts");
  texts.append(name, element("div", "state", state));
  texts.append(element("div", "length", row?.length ? `${row.length} frames` : ""));
  made.append(sign, texts);
  made.addEventListener("click", () => enqueue(() => open(index)));
  return made;
}

function scrollTo(index) {
  const top = shown.indexOf(index) * ROW_PX;
  const margin = ROW_PX;
  if (top < list.scrollTop + margin) list.scrollTop = top - margin;
  const bottom = top + ROW_PX + margin;
  if (bottom > list.scrollTop + list.clientHeight) list.scrollTop = bottom - list.clientHeight;
  renderRows();
}

function renderProgress() {
  const { total, labelled, unread, undoable } = counts;
  $("progress-text").replaceChildren(element("strong", "", labelled), ` of ${total} labelled`);
  $("progress").setAttribute("aria-valuemax", total);
  $("progress").setAttribute("aria-valuenow", labelled);
  $("progress").setAttribute("aria-valuetext", `${labelled} of ${total} labelled`);
  $("progress").style.setProperty("--share", total ? labelled / total : 0);
  $("reading").hidden = unread === 0;
  $("reading").textContent = `Reading the data: ${total - unread} of ${total} episodes …`;
  $("undo").disabled = undoable === 0;
}

function chip(id, outcome, text, note) {
  $(id).className = `chip ${outcome}`;
  $(id).textContent = `${SIGNS[outcome] ?? ""} ${text}`.trim();
  $(`${id}-note`).textContent = note;
}

function renderEpisode() {
  const row = rows[current];
  $("name").textContent = titleOf(current);
  document.title = `${titleOf(current)} – label ${about.source}`;
  $("name").title = titleOf(current);
  $("instruction").title = row?.instruction ?? "";
  $("instruction").textContent = row?.instruction ? `“${row.instruction}”` : "";
  const given = row?.label;
  if (given) chip("label", given.outcome, wordsOf(given), given.by + (given.source === "person" ? "" : `, from ${given.source}`));
  else chip("label", "", "no label", "");
  const recorded = row?.recorded;
  if (!recorded) chip("recorded", "", "reading …", "");
  else {
    const { outcome, source, frame } = recorded;
    const where = frame === null || outcome !== "success" ? "" : `, frame ${frame}`;
    const note = source === "none" ? "nothing tells" : `${source}${where}`;
    chip("recorded", outcome, outcome, note);
  }
  for (const button of document.querySelectorAll(".actions [data-key]")) {
    const outcome = { s: "success", f: "failure", u: "unclear" }[button.dataset.key];
    if (outcome) button.setAttribute("aria-pressed", given?.outcome === outcome);
  }
  const last = Math.max(0, lengthOf(current) - 1);
  scrubber.max = last;
  const marks = [];
  const told = recorded?.outcome === "success" ? recorded.frame : null;
  const marked = given?.success_frame ?? null;
  for (const [className, at] of [["told", told], ["marked", marked]]) {
    if (at === null) continue;
    const made = element("span", className);
    made.style.setProperty("--at", last ? at / last : 0);
    marks.push(made);
  }
  $("marks").replaceChildren(...marks);
}

function renderTime() {
  const length = lengthOf(current);
  const last = Math.max(0, length - 1);
  scrubber.value = step;
  scrubber.setAttribute("aria-valuetext", `frame ${step} of ${last}`);
  $("frame").textContent = step;
  $("frames").textContent = length ? `/ ${last}` : "";
  $("time").textContent = about.fps
    ? `${(step / about.fps).toFixed(2)} s / ${(last / about.fps).toFixed(2)} s`
    : `frame rate unknown, played at ${FPS_UNKNOWN} per second`;
}

function renderBuffer() {
  const film = films.get(current);
  const length = lengthOf(current);
  const loaded = canvases.size ? Math.min(film.loaded, length) : length;
  $("loaded").style.setProperty("--share", length ? loaded / length : 0);
  $("buffer").textContent = loaded < length && !film.problem ? `loading ${loaded} of ${length}` : "";
  const problem = rows[current]?.problem || film.problem;
  $("notice").hidden = !problem && canvases.size > 0;
  $("notice").className = problem ? "problem" : "";
  $("notice").textContent = problem || "These demonstrations have no camera.";
}

function renderPlay() {
  $("play").classList.toggle("playing", playing);
  $("play").querySelector(".word").textContent = playing ? "Pause" : "Play";
}

// Side by side, or in several rows where that shows them larger.
function arrangeCameras() {
  const { clientWidth, clientHeight } = $("cameras");
  let [best, largest] = [1, 0];
  for (let columns = about.cameras.length; columns > 0; columns--) {
    const lines = Math.ceil(about.cameras.length / columns);
    const [cellWidth, cellHeight] = [clientWidth / columns - 12, clientHeight / lines - 38];
    const areas = about.cameras.map(({ width, height }) => {
      const scale = Math.max(0, Math.min(cellWidth / width, cellHeight / height));
      return width * height * scale ** 2;
    });
    const area = areas.reduce((sum, one) => sum + one, 0);
    if (area > largest) [best, largest] = [columns, area];
  }
  $("cameras").style.setProperty("--columns", best);
}

function buildCameras() {
  for (const { name, width, height } of about.cameras) {
    const figure = element("figure", "");
    const picture = element("div", "picture");
    const canvas = element("canvas", "late");
    [canvas.width, canvas.height] = [width, height];
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `camera ${name}`);
    picture.append(canvas);
    figure.append(picture, element("figcaption", "", name));
    $("cameras").append(figure);
    canvases.set(name, canvas);
  }
}

// --- keys

const KEYS = {
  s: () => judge("success"),
  f: () => judge("failure"),
  u: () => judge("unclear"),
  m: mark,
  z: undo,
  " ": () => (playing ? pause() : play()),
  g: toggleFilter,
  "/": toggleFilter,
  "?": () => help.showModal(),
};
// These alone go on while a key is held.
const HELD_KEYS = {
  arrowleft: (fast) => stepBy(fast ? -10 : -1),
  arrowright: (fast) => stepBy(fast ? 10 : 1),
  home: () => stepBy(-Infinity),
  end: () => stepBy(Infinity),
  arrowdown: () => move(1),
  arrowup: () => move(-1),
  n: () => move(1),
  p: () => move(-1),
};

let queue = Promise.resolve();

// One after another: a key that is pressed while a label is being saved means what comes after it.
function enqueue(action) {
  queue = queue.then(action).catch((error) => {
    say("error", `Not saved: ${error.message.replace(/\.?$/, ".")}`);
    if (error.message === LOST) poll();
  });
}

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const key = event.key.toLowerCase();
  if (help.open) {
    if (key !== "?") return;
    event.preventDefault();
    help.close();
    return;
  }
  if ([" ", "enter"].includes(key) && event.target instanceof HTMLButtonElement) return;
  const action = HELD_KEYS[key] ?? (Object.hasOwn(KEYS, key) ? KEYS[key] : undefined);
  if (!action) return;
  event.preventDefault();
  if (event.repeat && !(key in HELD_KEYS)) return;
  const fast = event.shiftKey;
  enqueue(() => action(fast));
});

function onClick(button, action) {
  button.addEventListener("click", (event) => {
    // After a click of the mouse the space bar should play, not press the button again.
    if (event.detail > 0) button.blur();
    enqueue(action);
  });
}

async function start() {
  about = await (await ask("/api/source")).json();
  await refresh();
  $("source").textContent = about.source;
  $("about").textContent = about.format;
  $("place").textContent = `${about.by} · ${about.labels_file}`;
  $("place").title = about.labels_file;
  buildCameras();
  const asked = Number.parseInt(location.hash.slice(1), 10);
  const first = Array.from({ length: counts.total }, (_, index) => index).find(isOpen) ?? 0;
  open(asked >= 0 && asked < counts.total ? asked : first);
  for (const button of document.querySelectorAll("[data-key]")) {
    onClick(button, KEYS[button.dataset.key]);
  }
  onClick($("play"), KEYS[" "]);
  onClick($("filter"), toggleFilter);
  $("close").addEventListener("click", () => help.close());
  list.addEventListener("scroll", renderRows, { passive: true });
  new ResizeObserver(renderRows).observe(list);
  new ResizeObserver(arrangeCameras).observe($("cameras"));
  scrubber.addEventListener("input", () => {
    pause();
    seek(Number(scrubber.value));
  });
  addEventListener("focus", poll);
  document.documentElement.dataset.ready = "true";
  poll();
}

start().catch((error) => say("error", error.message));

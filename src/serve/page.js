// The page's script: asks the server and shows what it says. Texts of others are put in as text, never as markup; the only markup taken
// from the server is that of its own charts.
"use strict";

const $ = (id) => document.getElementById(id);
const said = JSON.parse(document.body.dataset.said);
const views = ["caption", "search", "training", "look"];
const PAGE = 12;
const MOST = 240;

// An element with a class, children and attributes.
function make(tag, options = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(options)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

function fault(message) {
  $("fault").textContent = message;
  $("fault").hidden = !message;
}

// Asks; an answer that is no good is an error with the server's message.
async function ask(path, options = {}) {
  for (;;) {
    const token = sessionStorage.getItem("token");
    const headers = { ...(options.headers || {}), ...(token ? { Authorization: `Bearer ${token}` } : {}) };
    let response;
    try {
      response = await fetch(path, { ...options, headers });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Error(said.silent);
    }
    if (response.ok) return response;
    if (response.status === 401) {
      await askForToken();
      continue;
    }
    if (response.status === 503 && options.patient) {
      await new Promise((done) => setTimeout(done, 1000 * Number(response.headers.get("Retry-After") || 1)));
      continue;
    }
    const text = await response.text();
    let message = text;
    try {
      message = JSON.parse(text).error.message;
    } catch {
      // Not of this server.
    }
    throw new Error(message);
  }
}

let asking = null;
function askForToken() {
  asking ??= new Promise((done) => {
    $("secret").showModal();
    $("token").addEventListener(
      "submit",
      () => {
        sessionStorage.setItem("token", $("token").elements.token.value.trim());
        asking = null;
        done();
      },
      { once: true },
    );
  });
  return asking;
}

const json = async (path, options) => (await ask(path, options)).json();
const post = (path, body, signal) =>
  json(path, body instanceof FormData
    ? { method: "POST", body, signal, patient: true }
    : { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" }, signal, patient: true });

async function guarded(work) {
  fault("");
  try {
    return await work();
  } catch (error) {
    if (error.name !== "AbortError") fault(error.message);
  }
}

// --- Views

function show() {
  const hash = location.hash.slice(1);
  const view = views.includes(hash) ? hash : "caption";
  for (const name of views) $(name).hidden = name !== view;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${view}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  for (const link of document.querySelectorAll(".languages a")) link.hash = view;
  if (view === "training") drawTraining();
}

function theme() {
  const choice = localStorage.getItem("theme") || "";
  $("theme").value = choice;
  if (choice) document.documentElement.dataset.theme = choice;
  else delete document.documentElement.dataset.theme;
}

const number = (value) => (typeof value === "number" ? value.toFixed(4) : "-");

function scores(rows) {
  const body = rows.map(([name, value]) => make("tr", {}, make("th", { scope: "row" }, name), make("td", {}, number(value))));
  return make("table", {}, ...body);
}

// The values of a form that are not empty.
function options(form) {
  const values = {};
  for (const input of form.elements) {
    if (!input.name || input.value === "") continue;
    if (input.type === "checkbox") {
      if (input.checked) values[input.name] = input.value === "on" ? true : input.value;
    } else if (input.type === "number") values[input.name] = Number(input.value);
    else values[input.name] = input.value;
  }
  return values;
}

function form(file, fields) {
  const data = new FormData();
  for (const [name, value] of Object.entries(fields)) data.append(name, String(value));
  data.append("image", file, file.name || "image");
  return data;
}

// --- Caption

function captionOptions() {
  const asked = options($("caption-options"));
  if (asked.sample) delete asked.num_beams;
  return asked;
}

// What is asked of pictures, where the model has a language model; otherwise nothing.
function question() {
  const asked = options($("ask-form"));
  return asked.text?.trim() ? asked : null;
}

// The defaults of answers are others than those of captions: what is as it was is left out.
function answerOptions() {
  const { elements } = $("caption-options");
  const { num_captions, spaces, prompt, ...asked } = captionOptions();
  const changed = ([name]) => elements[name].type === "checkbox" || elements[name].value !== elements[name].defaultValue;
  return Object.fromEntries(Object.entries(asked).filter(changed));
}

function answered(answer) {
  return [make("small", {}, answer.question), make("p", { className: "text" }, answer.answer ?? "")];
}

function captionLines(answer) {
  return answer.caption.flatMap((text, i) => [
    make("p", { className: "text", lang: "ja" }, text),
    // A language model gives the text alone.
    ...(answer.itc ? [scores([[said.logProb, answer.log_prob[i]], ["itc", answer.itc[i]], ["itm", answer.itm[i]]])] : []),
  ]);
}

async function captionFile(file) {
  const url = URL.createObjectURL(file);
  const abort = new AbortController();
  const state = make("p", { role: "status" }, said.working);
  const remove = make("button", { type: "button" }, said.remove);
  const item = make("li", { className: "busy" }, make("img", { src: url, alt: file.name }), make("small", {}, file.name), state, remove);
  remove.addEventListener("click", () => {
    abort.abort();
    URL.revokeObjectURL(url);
    item.remove();
  });
  $("captioned").prepend(item);
  try {
    const asks = question();
    const asked = asks ? { ...answerOptions(), ...asks } : captionOptions();
    const answer = await post(asks ? "/v1/ask" : "/v1/caption", form(file, asked), abort.signal);
    const copy = make("button", { type: "button" }, said.copy);
    copy.addEventListener("click", async () => {
      await navigator.clipboard.writeText(asks ? answer.answer : answer.caption.join("\n"));
      copy.textContent = said.copied;
    });
    const raw = make("details", {}, make("summary", {}, "JSON"), make("pre", { tabIndex: 0 }, JSON.stringify(answer, null, 1)));
    state.replaceWith(...(asks ? answered(answer) : captionLines(answer)), copy, " ");
    item.append(raw);
  } catch (error) {
    state.textContent = error.message;
  }
  item.classList.remove("busy");
}

// --- Search

let found = { results: [], pictures: 0 };
let at = 0;

async function thumbnail(place) {
  return URL.createObjectURL(await (await ask(`/v1/thumbnail?place=${place}`)).blob());
}

function hit(result) {
  const open = make("button", { type: "button", className: "open" }, "");
  open.setAttribute("aria-label", result.image);
  open.addEventListener("click", () => openPicture(result));
  thumbnail(result.place).then(
    (url) => {
      const image = make("img", { src: url, alt: "" });
      image.addEventListener("load", () => URL.revokeObjectURL(url), { once: true });
      open.replaceChildren(image);
    },
    () => open.replaceChildren(make("div", { className: "gone" }, said.gone)),
  );
  const rows = [["itc", result.itc], ["itm", result.itm], ["mean_cosine", result.mean_cosine]];
  return make("li", {}, open, make("b", {}, `${result.rank}. ${result.image}`), scores(rows));
}

function showPage() {
  const pages = Math.max(1, Math.ceil(found.results.length / PAGE));
  at = Math.min(Math.max(at, 0), pages - 1);
  $("found").replaceChildren(...found.results.slice(at * PAGE, (at + 1) * PAGE).map(hit));
  document.querySelector(".pages").hidden = pages < 2;
  $("at").textContent = `${said.page} ${at + 1} / ${pages}`;
  $("previous").disabled = at === 0;
  $("next").disabled = at === pages - 1;
}

let searching = null;
async function search(file) {
  searching?.abort();
  searching = new AbortController();
  const { signal } = searching;
  const asked = { ...options($("search-form")), top_k: MOST };
  $("searched").textContent = said.working;
  $("words").replaceChildren();
  try {
    if (file) {
      delete asked.text;
      delete asked.rerank;
      found = await post("/v1/search", form(file, asked), signal);
    } else {
      const { words } = await json(`/v1/words?text=${encodeURIComponent(asked.text || "")}`, { signal });
      const shown = words.map((w) => make("span", { className: w.known ? "word" : "word unknown", title: w.known ? "" : said.unknown }, w.known ? w.word : `${w.word} [UNK]`));
      $("words").replaceChildren(`${said.words}: `, ...shown);
      found = await post("/v1/search", asked, signal);
    }
    $("searched").textContent = found.results.length ? `${found.pictures} ${said.searched}` : said.nothing;
  } catch (error) {
    $("searched").textContent = "";
    if (error.name === "AbortError") return;
    found = { results: [], pictures: 0 };
    fault(error.message);
  }
  at = 0;
  showPage();
}

async function openPicture(result) {
  $("h-picture").textContent = result.image;
  $("own").replaceChildren(said.working);
  $("similar").replaceChildren();
  $("shown").removeAttribute("src");
  if (!$("picture").open) $("picture").showModal();
  await guarded(async () => {
    $("shown").src = await thumbnail(result.place);
    const answer = await post("/v1/caption", { ...captionOptions(), place: result.place });
    $("own").replaceChildren(...answer.caption.map((text) => make("li", {}, text)));
    const near = await post("/v1/search", { place: result.place, top_k: 7 });
    $("similar").replaceChildren(...near.results.filter((r) => r.place !== result.place).slice(0, 6).map(hit));
  });
}

// --- Training

let known = "";
async function listRuns() {
  const { runs } = await json("/v1/runs");
  const text = runs.join("\n");
  if (text === known && known) return runs.length;
  known = text;
  const box = (name, i) => make("label", {}, make("input", { type: "checkbox", name: "run", value: String(i), checked: true }), ` ${name}`);
  $("runs").replaceChildren(...(runs.length ? runs.map(box) : [said.noRun]));
  return runs.length;
}

let drawing = false;
async function drawTraining() {
  if (drawing || $("training").hidden) return;
  drawing = true;
  try {
    if (!(await listRuns())) return;
    const elements = $("training-form").elements;
    const which = [...document.querySelectorAll("#runs input:checked")].map((box) => box.value).join(",");
    const asked = `runs=${which}&smoothing=${elements.smoothing.value}&lang=${document.documentElement.lang}`;
    const markup = await (await ask(`/v1/training?${asked}`)).text();
    // The server's own charts; names in them are escaped there.
    const drawn = new DOMParser().parseFromString(markup, "text/html");
    $("curves").replaceChildren(...drawn.body.children);
    fault("");
  } catch (error) {
    fault(error.message);
  } finally {
    drawing = false;
  }
}

// --- Look

let looked = null;
async function drawMap() {
  if (!looked) return;
  const { of, word, ...asked } = options($("look-form"));
  asked.of = of === "word" ? `word:${word ?? 1}` : of;
  $("map").replaceChildren(said.working);
  try {
    const answer = await post("/v1/look", form(looked, asked));
    const one = (map) => make("figure", {}, make("img", { src: `data:image/png;base64,${map.png}`, alt: map.about }), make("figcaption", {}, map.about));
    $("map").replaceChildren(...answer.maps.map(one));
  } catch (error) {
    $("map").replaceChildren();
    fault(error.message);
  }
}

// --- Files: chosen, dropped, pasted

function take(files) {
  const pictures = [...files].filter((file) => file.type.startsWith("image/") || !file.type);
  if (!pictures.length) return;
  fault("");
  if (!$("search").hidden) search(pictures[0]);
  else if (!$("look").hidden) {
    looked = pictures[0];
    drawMap();
  } else pictures.forEach(captionFile);
}

for (const area of document.querySelectorAll(".drop")) {
  const input = area.querySelector("input");
  input.addEventListener("change", () => {
    take(input.files);
    input.value = "";
  });
  for (const name of ["dragenter", "dragover"]) {
    area.addEventListener(name, (event) => {
      event.preventDefault();
      area.classList.add("over");
    });
  }
  for (const name of ["dragleave", "drop"]) area.addEventListener(name, () => area.classList.remove("over"));
}
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  take(event.dataTransfer.files);
});
document.addEventListener("paste", (event) => take(event.clipboardData.files));

// --- Beginning

// What only a model with a language model has, and what it lacks.
function second(about) {
  for (const part of document.querySelectorAll(".second")) part.hidden = false;
  for (const part of document.querySelectorAll(".first")) part.remove();
  const { prompt, num_beams: beams, min_length: fewest } = $("caption-options").elements;
  [prompt.defaultValue, beams.defaultValue, fewest.defaultValue] = [about.prompt, 5, 1];
  $("about").textContent += ` · ${about.language_model}`;
}

$("ask-form").addEventListener("submit", (event) => event.preventDefault());
$("caption-options").addEventListener("submit", (event) => event.preventDefault());
$("search-form").addEventListener("submit", (event) => {
  event.preventDefault();
  fault("");
  search(null);
});
$("look-form").addEventListener("submit", (event) => {
  event.preventDefault();
  fault("");
  drawMap();
});
$("training-form").addEventListener("submit", (event) => event.preventDefault());
$("training-form").addEventListener("input", drawTraining);
$("previous").addEventListener("click", () => {
  at -= 1;
  showPage();
});
$("next").addEventListener("click", () => {
  at += 1;
  showPage();
});
$("theme").addEventListener("change", () => {
  localStorage.setItem("theme", $("theme").value);
  theme();
});
window.addEventListener("hashchange", () => {
  fault("");
  show();
});
theme();
show();
setInterval(() => {
  if (!document.hidden && $("training-form").elements.live.checked) drawTraining();
}, 3000);
guarded(async () => {
  const about = await json("/v1/about");
  $("about").textContent = `${said.model} ${about.model} · ${about.device}`;
  if (about.pictures === null) $("searched").textContent = said.noIndex;
  if (about.language_model !== null) second(about);
});

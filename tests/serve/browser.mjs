// The page of `qformer serve` in a real browser: node browser.mjs CHROMIUM URL PICTURE [AXE [SHOTS]]
//
// Drives Chromium by its DevTools protocol over a pipe. Captions a picture, searches, opens what was found, watches a training that runs, sees
// a map, in both languages and both themes, at 360 and 1,280 pixels, by keyboard. It fails on an error of the console, a request to another
// host, a script that a name or a caption smuggled in, a page wider than the window, or a serious fault that axe-core finds. Every step has a
// time limit: one that takes longer is a fault that names the step, what it waited for and what the page said. Prints a line for each fault,
// and the seconds of each visit, and exits by 1 if there was a fault.
import { spawn } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const [chromium, url, picture, axe, shots] = process.argv.slice(2);
const STEP = 20;
const CALL = 15;
const VISITS = [["ja", "light", 1280], ["en", "dark", 360], ["en", "light", 1280], ["ja", "dark", 360]];
const home = mkdtempSync(join(tmpdir(), "browser-"));
const flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--no-default-browser-check",
  "--disable-background-networking", "--disable-component-update", "--disable-default-apps", "--disable-extensions", "--disable-sync",
  "--mute-audio", "--password-store=basic", "--use-mock-keychain", "--remote-debugging-pipe", `--user-data-dir=${home}`, "about:blank"];
const browser = spawn(chromium, flags, { stdio: ["ignore", "ignore", "pipe", "pipe", "pipe"] });
const faults = [];
const waiting = new Map();
let listeners = [];
let next = 0;
let buffer = "";
let complaints = "";
browser.stderr.setEncoding("utf8");
browser.stderr.on("data", (data) => (complaints = (complaints + data).slice(-2000)));
browser.stdio[3].on("error", () => {});
browser.stdio[4].setEncoding("utf8");
browser.stdio[4].on("data", (data) => {
  buffer += data;
  for (let end; (end = buffer.indexOf("\0")) >= 0; buffer = buffer.slice(end + 1)) {
    const message = JSON.parse(buffer.slice(0, end));
    const wait = waiting.get(message.id);
    waiting.delete(message.id);
    if (wait && message.error) wait.fail(new Error(`${wait.method}: ${message.error.message}`));
    else if (wait) wait.done(message.result);
    else listeners.forEach((listen) => listen(message));
  }
});
const ended = new Promise((done) => browser.on("exit", done).on("error", done));
ended.then((why) => {
  for (const { fail } of waiting.values()) fail(new Error(`the browser ended (${why}): ${complaints}`));
  waiting.clear();
});

// What a promise gives, or an error after some seconds.
function within(seconds, what, promise) {
  let timer;
  const late = new Promise((_, fail) => (timer = setTimeout(() => fail(new Error(`not within ${seconds} s: ${what}`)), seconds * 1000)));
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

function send(method, params = {}, sessionId = undefined) {
  const id = ++next;
  const answer = new Promise((done, fail) => waiting.set(id, { done, fail, method }));
  browser.stdio[3].write(`${JSON.stringify({ id, method, params, sessionId })}\0`);
  return within(CALL, method, answer);
}

const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

// What a page does that it should not.
function watch(what, sessionId, { method, params }) {
  if (method === "Runtime.exceptionThrown") faults.push(`${what}: ${params.exceptionDetails.exception?.description ?? params.exceptionDetails.text}`);
  if (method === "Runtime.consoleAPICalled" && ["error", "warning"].includes(params.type)) faults.push(`${what}: console: ${JSON.stringify(params.args)}`);
  if (method === "Log.entryAdded" && params.entry.level === "error") faults.push(`${what}: ${params.entry.text} ${params.entry.url ?? ""}`);
  if (method === "Page.javascriptDialogOpening") {
    faults.push(`${what}: a script ran: ${params.message}`);
    // An open dialog would hold up every step behind it.
    send("Page.handleJavaScriptDialog", { accept: true }, sessionId).catch(() => {});
  }
  if (method === "Network.requestWillBeSent" && !/^(data|blob|about):/.test(params.request.url) && new URL(params.request.url).origin !== new URL(url).origin) {
    faults.push(`${what}: a request to ${params.request.url}`);
  }
}

// One page in a browser of this language, theme and width.
async function open(language, theme, width) {
  const what = `${language} ${theme} ${width}`;
  const { targetId } = await send("Target.createTarget", { url: "about:blank" });
  const { sessionId } = await send("Target.attachToTarget", { targetId, flatten: true });
  const call = (method, params) => send(method, params, sessionId);
  listeners = [(message) => message.sessionId === sessionId && watch(what, sessionId, message)];
  for (const domain of ["Page", "Runtime", "Log", "Network", "DOM"]) await call(`${domain}.enable`);
  await call("Emulation.setDeviceMetricsOverride", { width, height: 900, deviceScaleFactor: 1, mobile: false });
  await call("Emulation.setEmulatedMedia", { features: [{ name: "prefers-color-scheme", value: theme }] });
  await call("Network.setExtraHTTPHeaders", { headers: { "Accept-Language": language } });
  await call("Page.navigate", { url });
  const run = async (expression) => {
    const { result, exceptionDetails } = await call("Runtime.evaluate", { expression, awaitPromise: true, returnByValue: true });
    if (exceptionDetails) throw new Error(exceptionDetails.exception?.description ?? exceptionDetails.text);
    return result.value;
  };
  const until = async (expression) => {
    for (const last = Date.now() + STEP * 1000; Date.now() < last; await sleep(50)) {
      if (await run(expression).catch(() => false)) return;
    }
    const said = await run("`${document.getElementById('fault')?.textContent} | ${document.querySelector('section:not([hidden])')?.innerText}`").catch(String);
    throw new Error(`not within ${STEP} s: ${expression}; the page says: ${said.replaceAll("\n", " ").slice(0, 400)}`);
  };
  const choose = async (selector) => {
    const { root } = await call("DOM.getDocument");
    const { nodeId } = await call("DOM.querySelector", { nodeId: root.nodeId, selector });
    await call("DOM.setFileInputFiles", { files: [picture], nodeId });
  };
  const key = async (key, code, text) => {
    await call("Input.dispatchKeyEvent", { type: "keyDown", key, code: key, windowsVirtualKeyCode: code, text });
    await call("Input.dispatchKeyEvent", { type: "keyUp", key, code: key, windowsVirtualKeyCode: code });
  };
  const close = () => send("Target.closeTarget", { targetId });
  return { what, call, run, until, choose, key, close };
}

async function checkView(page, name) {
  const wide = await page.run("document.documentElement.scrollWidth > innerWidth ? `${document.documentElement.scrollWidth} of ${innerWidth}` : ''");
  if (wide) faults.push(`${page.what}: ${name} is wider than the window: ${wide}`);
  if (axe) {
    await page.run(`window.axe || (() => { ${readFileSync(axe, "utf8")} })(); undefined`);
    const found = await page.run("axe.run(document, { resultTypes: ['violations'] }).then((r) => r.violations.filter((v) => ['serious', 'critical'].includes(v.impact)).map((v) => `${v.id}: ${v.nodes[0].html}`))");
    found.forEach((f) => faults.push(`${page.what}: ${name}: axe: ${f}`));
  }
  if (shots) {
    const { data } = await page.call("Page.captureScreenshot", { format: "png" });
    writeFileSync(join(shots, `${name}-${page.what.replaceAll(" ", "-")}.png`), Buffer.from(data, "base64"));
  }
}

const is = (condition, message) => {
  if (!condition) throw new Error(message);
};

const STEPS = {
  async "the page comes in the browser's language"(page, language) {
    await page.until("document.getElementById('about')?.textContent.length > 8");
    is((await page.run("document.documentElement.lang")) === language, "another lang");
  },
  async "the first Tab is the link past the header"(page) {
    await page.key("Tab", 9);
    is(await page.run("document.activeElement.className === 'skip'"), "Tab goes elsewhere");
  },
  async "a picture is captioned"(page) {
    await page.choose("#caption-files");
    await page.until("document.querySelector('#captioned .text')?.textContent.length > 2");
    await checkView(page, "caption");
  },
  async "a text is searched for by keyboard"(page) {
    await page.run("location.hash = 'search'");
    await page.until("!document.getElementById('search').hidden");
    await page.run("document.querySelector('#search-form [name=text]').focus()");
    await page.call("Input.insertText", { text: "二つの赤い丸" });
    await page.key("Enter", 13, "\r");
    await page.until("document.querySelectorAll('#found img').length > 2 && document.querySelectorAll('#words .word').length > 1");
    await page.until("[...document.querySelectorAll('#found img')].every((i) => i.complete && i.naturalWidth)");
    await checkView(page, "search");
  },
  async "a picture that was found opens, and Escape closes it"(page) {
    await page.run("document.querySelector('#found .open').focus()");
    await page.key("Enter", 13, "\r");
    await page.until("document.querySelectorAll('#own li').length > 0 && document.querySelectorAll('#similar img').length > 0");
    await checkView(page, "picture");
    await page.key("Escape", 27);
    await page.until("!document.getElementById('picture').open");
  },
  async "a training is watched while it runs"(page) {
    await page.run("location.hash = 'training'");
    await page.until("document.querySelectorAll('#curves svg').length > 2");
    await page.run("{ const s = document.querySelector('[name=smoothing]'); s.value = 0.9; s.dispatchEvent(new Event('input', { bubbles: true })); }");
    // It is read again by itself, and has grown.
    const drawn = await page.run("document.querySelector('#curves').innerHTML");
    await page.until(`document.querySelector('#curves').innerHTML !== ${JSON.stringify(drawn)}`);
    await checkView(page, "training");
  },
  async "a map is seen"(page) {
    await page.run("location.hash = 'look'");
    await page.until("!document.getElementById('look').hidden");
    await page.choose("#look-file");
    await page.until("{ const map = document.querySelector('#map img'); map?.complete && map.naturalWidth > 100 && map.alt.length > 3 }");
    await checkView(page, "look");
  },
  async "the theme is chosen"(page, _, theme) {
    const other = theme === "light" ? "dark" : "light";
    const ground = () => page.run("getComputedStyle(document.documentElement).backgroundColor");
    const before = await ground();
    await page.run(`{ const t = document.getElementById('theme'); t.value = '${other}'; t.dispatchEvent(new Event('change', { bubbles: true })); }`);
    is((await ground()) !== before, `the page looks the same, ${before}`);
    await page.run("localStorage.clear()");
  },
};

try {
  for (const [language, theme, width] of VISITS) {
    const begun = Date.now();
    const page = await open(language, theme, width);
    for (const [name, step] of Object.entries(STEPS)) {
      try {
        await within(2 * STEP, name, step(page, language, theme));
      } catch (error) {
        throw new Error(`${page.what}: ${name}: ${error.message}`);
      }
    }
    await page.close();
    console.log(`${page.what}: ${((Date.now() - begun) / 1000).toFixed(1)} s`);
  }
} catch (error) {
  // What follows would fail by it, too.
  faults.push(error.message);
}
for (const fault of faults) console.log(`FAULT ${fault.slice(0, 900)}`);
browser.kill();
const late = setTimeout(() => browser.kill("SIGKILL"), 3000);
await ended;
clearTimeout(late);
// The browser's own processes may write a little longer.
try {
  rmSync(home, { recursive: true, force: true, maxRetries: 10, retryDelay: 100 });
} catch (error) {
  console.log(`${home} is left behind: ${error.message}`);
}
process.exit(faults.length ? 1 : 0);

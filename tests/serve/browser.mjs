// The page of `qformer serve` in a real browser: node browser.mjs CHROMIUM URL PICTURE [AXE [SHOTS]]
//
// Drives Chromium by its DevTools protocol over a pipe. Captions a picture, searches, opens what was found, watches a training, in both
// languages and both themes, at 360 and 1,280 pixels, by keyboard; fails on an error of the console, a request to another host, a script that
// a name smuggled in, a page wider than the window, or a serious fault that axe-core finds. Prints one line for each fault, and exits by 1.
import { spawn } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const [chromium, url, picture, axe, shots] = process.argv.slice(2);
const home = mkdtempSync(join(tmpdir(), "browser-"));
const flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync", "--remote-debugging-pipe", `--user-data-dir=${home}`, "about:blank"];
const browser = spawn(chromium, flags, { stdio: ["ignore", "ignore", "ignore", "pipe", "pipe"] });
const faults = [];
const waiting = new Map();
const listeners = [];
let next = 0;
let buffer = "";
browser.stdio[4].setEncoding("utf8");
browser.stdio[4].on("data", (data) => {
  buffer += data;
  for (let end; (end = buffer.indexOf("\0")) >= 0; buffer = buffer.slice(end + 1)) {
    const message = JSON.parse(buffer.slice(0, end));
    const wait = waiting.get(message.id);
    waiting.delete(message.id);
    if (wait && message.error) wait.fail(new Error(JSON.stringify(message.error)));
    else if (wait) wait.done(message.result);
    else listeners.forEach((listen) => listen(message));
  }
});

function send(method, params = {}, sessionId = undefined) {
  const id = ++next;
  browser.stdio[3].write(`${JSON.stringify({ id, method, params, sessionId })}\0`);
  return new Promise((done, fail) => waiting.set(id, { done, fail }));
}

const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

// One page in a browser of this language, theme and width.
async function open(language, theme, width) {
  const what = `${language} ${theme} ${width}`;
  const { targetId } = await send("Target.createTarget", { url: "about:blank" });
  const { sessionId } = await send("Target.attachToTarget", { targetId, flatten: true });
  const call = (method, params) => send(method, params, sessionId);
  listeners.push((message) => {
    if (message.sessionId !== sessionId) return;
    const { method, params } = message;
    if (method === "Runtime.exceptionThrown") faults.push(`${what}: ${params.exceptionDetails.exception?.description ?? params.exceptionDetails.text}`);
    if (method === "Runtime.consoleAPICalled" && params.type === "error") faults.push(`${what}: console: ${JSON.stringify(params.args)}`);
    if (method === "Log.entryAdded" && params.entry.level === "error") faults.push(`${what}: ${params.entry.text} ${params.entry.url ?? ""}`);
    if (method === "Page.javascriptDialogOpening") faults.push(`${what}: a script ran: ${params.message}`);
    if (method === "Network.requestWillBeSent" && !/^(data|blob|about):/.test(params.request.url) && new URL(params.request.url).origin !== new URL(url).origin) {
      faults.push(`${what}: a request to ${params.request.url}`);
    }
  });
  for (const domain of ["Page", "Runtime", "Log", "Network", "DOM"]) await call(`${domain}.enable`);
  await call("Emulation.setDeviceMetricsOverride", { width, height: 900, deviceScaleFactor: 1, mobile: false });
  await call("Emulation.setEmulatedMedia", { features: [{ name: "prefers-color-scheme", value: theme }] });
  await call("Network.setExtraHTTPHeaders", { headers: { "Accept-Language": language } });
  await call("Page.navigate", { url });
  const run = async (expression) => {
    const { result, exceptionDetails } = await call("Runtime.evaluate", { expression, awaitPromise: true, returnByValue: true });
    if (exceptionDetails) throw new Error(`${what}: ${exceptionDetails.exception?.description ?? exceptionDetails.text}`);
    return result.value;
  };
  const until = async (expression, seconds = 60) => {
    for (let i = 0; i < seconds * 10; i += 1) {
      if (await run(expression).catch(() => false)) return;
      await sleep(100);
    }
    faults.push(`${what}: not within ${seconds} s: ${expression}; ${await run("document.getElementById('fault').textContent")}`);
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
  return { what, call, run, until, choose, key };
}

async function checkView(page, name) {
  const wide = await page.run("document.documentElement.scrollWidth > innerWidth ? `${document.documentElement.scrollWidth} of ${innerWidth}` : ''");
  if (wide) faults.push(`${page.what}: ${name} is wider than the window: ${wide}`);
  if (axe) {
    await page.run(`${readFileSync(axe, "utf8")}; undefined`);
    const found = await page.run("axe.run().then((r) => r.violations.filter((v) => ['serious', 'critical'].includes(v.impact)).map((v) => `${v.id}: ${v.nodes[0].html}`))");
    found.forEach((f) => faults.push(`${page.what}: ${name}: axe: ${f}`));
  }
  if (shots) {
    const { data } = await page.call("Page.captureScreenshot", { format: "png" });
    writeFileSync(join(shots, `${name}-${page.what.replaceAll(" ", "-")}.png`), Buffer.from(data, "base64"));
  }
}

async function visit(language, theme, width) {
  const page = await open(language, theme, width);
  await page.until("document.getElementById('about')?.textContent.length > 8");
  if ((await page.run("document.documentElement.lang")) !== language) faults.push(`${page.what}: lang`);
  // The first Tab is the link past the header; Enter follows it.
  await page.key("Tab", 9);
  if (!(await page.run("document.activeElement.className === 'skip'"))) faults.push(`${page.what}: the first Tab goes elsewhere`);
  await page.choose("#caption-files");
  await page.until("document.querySelector('#captioned .text')?.textContent.length > 2");
  await checkView(page, "caption");
  await page.run("location.hash = 'search'");
  await page.until("!document.getElementById('search').hidden");
  await page.run("document.querySelector('#search-form [name=text]').focus()");
  await page.call("Input.insertText", { text: "二つの赤い丸" });
  await page.key("Enter", 13, "\r");
  await page.until("document.querySelectorAll('#found img').length > 2 && document.querySelectorAll('#words .word').length > 1");
  await page.until("[...document.querySelectorAll('#found img')].every((i) => i.complete)");
  await checkView(page, "search");
  await page.run("document.querySelector('#found .open').focus()");
  await page.key("Enter", 13, "\r");
  await page.until("document.querySelectorAll('#own li').length > 0 && document.querySelectorAll('#similar img').length > 0");
  await checkView(page, "picture");
  await page.key("Escape", 27);
  await page.until("!document.getElementById('picture').open");
  await page.run("location.hash = 'training'");
  await page.until("document.querySelectorAll('#curves svg').length > 2");
  await page.run("{ const s = document.querySelector('[name=smoothing]'); s.value = 0.9; s.dispatchEvent(new Event('input', { bubbles: true })); }");
  await checkView(page, "training");
  await page.run("location.hash = 'look'");
  await page.until("!document.getElementById('look').hidden");
  await checkView(page, "look");
}

// Whatever hangs, what was found is said.
setTimeout(() => {
  for (const fault of faults) console.log(fault.slice(0, 600));
  console.log("not done within 300 s");
  browser.kill("SIGKILL");
  process.exit(1);
}, 300_000).unref();
let failed = false;
try {
  for (const [language, theme, width] of [["ja", "light", 1280], ["en", "dark", 360], ["en", "light", 1280], ["ja", "dark", 360]]) await visit(language, theme, width);
} catch (error) {
  faults.push(String(error.stack));
}
for (const fault of faults) {
  console.log(fault.slice(0, 600));
  failed = true;
}
browser.kill();
await new Promise((done) => browser.on("exit", done));
rmSync(home, { recursive: true, force: true, maxRetries: 5 });
process.exit(failed ? 1 : 0);

// What scripts/check-pages.sh runs: a relay and a simulated LiveChat, and Chromium at the pages of the one and the login of the other. It
// speaks the DevTools protocol over a pipe, and needs nothing but Node.js.
import { spawn } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";

const [relayPath, shots] = process.argv.slice(2);
const simulatorPath = process.env.SIMULATOR ?? relayPath;
const DEADLINE = 60_000;
const work = mkdtempSync(join(tmpdir(), "check-pages-"));
const children = [];
mkdirSync(shots, { recursive: true });

const inTime = (what, promise, time = DEADLINE) => {
  let timer;
  const late = new Promise((_, reject) => { timer = setTimeout(() => reject(new Error(`waited in vain: ${what}`)), time) });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
};
const pause = (time) => new Promise((resolve) => setTimeout(resolve, time));
const until = async (what, condition) => {
  const end = Date.now() + DEADLINE;
  for (;;) {
    const found = await condition();
    if (found) return found;
    if (Date.now() > end) throw new Error(`waited in vain: ${what}`);
    await pause(50);
  }
};
let checks = 0;
const check = (what, found, expected) => {
  checks += 1;
  const [is, wanted] = [found, expected].map((value) => JSON.stringify(value));
  if (is !== wanted) throw new Error(`${what}: ${is}, and not ${wanted}`);
};

// Processes.
const start = (path, args, options = {}) => {
  const child = spawn(path, args, { stdio: ["ignore", "pipe", "pipe"], ...options });
  children.push(child);
  return child;
};
const line = (stream, wanted) => inTime("a line", new Promise((resolve, reject) => {
  const read = [];
  createInterface({ input: stream }).on("line", (text) => {
    read.push(text);
    const found = wanted(text);
    if (found) resolve(found);
  }).on("close", () => reject(new Error(`it has ended:\n${read.join("\n")}`)));
}));
const startSimulator = async (publicUrl) => {
  const simulator = start(simulatorPath, ["simulate", "--listen", "127.0.0.1:0", "--public-url", publicUrl, "--json"]);
  simulator.stderr.resume();
  return line(simulator.stdout, (text) => JSON.parse(text));
};
const startRelay = async (port, { url, setup }) => {
  const [client] = setup.clients;
  writeFileSync(join(work, "relay.toml"), `
server.listen = "127.0.0.1:${port}"
admin.listen = "127.0.0.1:0"
kafka.brokers = "127.0.0.1:9"     # there is none: events are spooled, which is durable
spool.directory = "${work}/spool"
log.format = "json"
livechat.api = "${url}"
livechat.accounts = "${url}"
[[apps]]
name = "default"
secret_keys = [{ name = "k", value = "key-of-the-pages" }]
[apps.livechat]
client_id = "${client.id}"
client_secret = { value = "${client.secret}" }
public_url = "http://127.0.0.1:${port}"
organizations = ["${setup.organizations[0].id}"]
page = true
install = { scopes = ["webhooks.state:rw"], enable_webhooks = true }
`);
  const relay = start(relayPath, ["serve", "--config", join(work, "relay.toml")], { stdio: ["ignore", "ignore", "pipe"] });
  await line(relay.stderr, (text) => text.includes("accepting webhooks"));
  return `http://127.0.0.1:${port}`;
};

// Chromium.
class Browser {
  constructor() {
    const args = [
      "--headless=new", "--no-sandbox", "--remote-debugging-pipe", `--user-data-dir=${work}/profile`, "--no-first-run", "--hide-scrollbars",
      "--disable-gpu", "--disable-dev-shm-usage", "--disable-extensions", "--disable-background-networking", "--no-proxy-server",
      "--disable-popup-blocking", "--disable-features=LocalNetworkAccessChecks,BlockInsecurePrivateNetworkRequests", "about:blank",
    ];
    const chromium = start("chromium", args, { stdio: ["ignore", "ignore", "ignore", "pipe", "pipe"] });
    [this.input, this.next, this.waiting, this.listeners] = [chromium.stdio[3], 1, new Map(), []];
    let rest = "";
    chromium.stdio[4].setEncoding("utf8").on("data", (text) => {
      const messages = (rest + text).split("\0");
      rest = messages.pop();
      messages.map((message) => JSON.parse(message)).forEach((message) => this.take(message));
    });
  }
  take({ id, method, params, result, error, sessionId }) {
    if (id === undefined) return this.listeners.forEach((listener) => listener(method, params, sessionId));
    const { resolve, reject, what } = this.waiting.get(id);
    this.waiting.delete(id);
    error ? reject(new Error(`${what}: ${error.message}`)) : resolve(result);
  }
  send(method, params = {}, sessionId = undefined) {
    const id = this.next++;
    const answered = new Promise((resolve, reject) => this.waiting.set(id, { resolve, reject, what: method }));
    this.input.write(`${JSON.stringify({ id, method, params, sessionId })}\0`);
    return inTime(method, answered);
  }
  async targets() {
    return (await this.send("Target.getTargets")).targetInfos;
  }
  async attach(targetId) {
    const { sessionId } = await this.send("Target.attachToTarget", { targetId, flatten: true });
    return new Tab(this, targetId, sessionId);
  }
  async open(url, { width = 1000, height = 640, dark = false, handle = undefined } = {}) {
    const { targetId } = await this.send("Target.createTarget", { url: "about:blank" });
    const tab = await this.attach(targetId);
    await tab.send("Page.enable");
    await tab.send("Emulation.setDeviceMetricsOverride", { width, height, deviceScaleFactor: 1, mobile: false });
    await tab.scheme(dark);
    if (handle) await tab.intercept(handle);
    await tab.send("Page.navigate", { url });
    return tab;
  }
}
class Tab {
  constructor(browser, targetId, sessionId) { Object.assign(this, { browser, targetId, sessionId }) }
  send(method, params) { return this.browser.send(method, params, this.sessionId) }
  scheme(dark) {
    return this.send("Emulation.setEmulatedMedia", { features: [{ name: "prefers-color-scheme", value: dark ? "dark" : "light" }] });
  }
  size(width, height = 640) {
    return this.send("Emulation.setDeviceMetricsOverride", { width, height, deviceScaleFactor: 1, mobile: false });
  }
  // Answers requests for these addresses with these pages.
  async intercept(pages) {
    this.browser.listeners.push((method, { requestId, request }, sessionId) => {
      if (method !== "Fetch.requestPaused" || sessionId !== this.sessionId) return;
      const page = pages[request.url];
      const answer = { responseCode: page ? 200 : 404, responseHeaders: [{ name: "content-type", value: "text/html" }], body: btoa(page ?? "") };
      this.send("Fetch.fulfillRequest", { requestId, ...answer });
    });
    await this.send("Fetch.enable", { patterns: Object.keys(pages).map((page) => ({ urlPattern: `${new URL(page).origin}/*` })) });
  }
  async run(expression) {
    const { result, exceptionDetails } = await this.send("Runtime.evaluate", {
      expression, awaitPromise: true, returnByValue: true, userGesture: true,
    });
    if (exceptionDetails) throw new Error(`${expression}: ${exceptionDetails.exception?.description ?? exceptionDetails.text}`);
    return result.value;
  }
  // While a page is being left nothing can be evaluated.
  when(expression) { return until(expression, () => this.run(expression).catch(() => false)) }
  async shot(name) {
    const fits = await this.run("document.documentElement.scrollWidth <= window.innerWidth");
    check(`${name} is not wider than its window`, fits, true);
    const { data } = await this.send("Page.captureScreenshot", { format: "png" });
    writeFileSync(join(shots, `${name}.png`), Buffer.from(data, "base64"));
  }
  close() { return this.browser.send("Target.closeTarget", { targetId: this.targetId }) }
}
const CONSENT = "document.querySelector('button[value=accept]') !== null";
const ALLOW = "document.querySelector('button[value=accept]').click()";
const VIEW = "document.documentElement.dataset.view";

const authorize = (livechat, redirect) => {
  const query = new URLSearchParams({ response_type: "code", client_id: livechat.setup.clients[0].id, redirect_uri: redirect });
  return `${livechat.url}/?${query}`;
};

// What is checked.
const installs = async (browser, relay, livechat) => {
  const tab = await browser.open(authorize(livechat, `${relay}/install/default`), { width: 500, height: 560 });
  await tab.when(CONSENT);
  await tab.run(ALLOW);
  await tab.when("document.querySelector('#end') !== null");
  check("the title", await tab.run("document.querySelector('h1').textContent"), "The app “default” is installed");
  check("the style is applied", await tab.run("getComputedStyle(document.querySelector('main')).borderRadius"), "12px");
  await tab.shot("install-light");
  await tab.scheme(true);
  await tab.shot("install-dark");
  await tab.size(280);
  await tab.shot("install-280");
  await tab.run("window.left = true");
  await tab.send("Page.reload");
  await tab.when("window.left === undefined && document.querySelector('#end') !== null");
  check("the title of a page that is reloaded", await tab.run("document.querySelector('h1').textContent"), "The app “default” is installed");
  await tab.size(500, 560);
  await tab.scheme(false);
  const shows = async (name, query, end) => {
    await tab.send("Page.navigate", { url: `${relay}/install/default${query}` });
    await tab.when(`location.search === ${JSON.stringify(query)} && document.documentElement.dataset.end === '${end}' && document.querySelector('#end') !== null`);
    await tab.shot(`install-${name}`);
  };
  for (const [name, query] of [
    ["declined", "?error=access_denied"], ["scope", "?oauth_exception=invalid_scope"],
    ["client", "?oauth_exception=invalid_request&exception_details=invalid_redirect_uri"], ["redirects", "?exception_details=too_many_redirects"],
    ["sign-in", "?identity_exception=identity_lost"], ["server", "?error=server_error"], ["unknown", "?error=x"], ["nothing", ""],
    ["refused", "?code=made-up"],
  ]) await shows(name, query, "no");
  const drive = async (path, body) => {
    const answer = await fetch(`${livechat.url}/_simulate/${path}`, { method: "POST", body: JSON.stringify(body) });
    return answer.json();
  };
  const pressed = async (who) => new URL((await drive("install", who)).url).search;
  await shows("missing-scopes", await pressed({ scopes: ["webhooks.configuration:rw"] }), "no");
  for (const [name, error, end] of [["unreachable", "server_error", "wait"], ["misconfigured", "invalid_request", "no"]]) {
    await drive("faults", { method: "token", times: 0, error });
    await shows(name, await pressed({}), end);
    await fetch(`${livechat.url}/_simulate/faults`, { method: "DELETE" });
    if (end === "wait") {
      await tab.run("document.querySelector('#again').click()");
      await tab.when("document.documentElement.dataset.end === 'yes'");
    }
  }
  const guess = async (n) => (await fetch(`${relay}/install/default?code=guess-${n}`)).status === 429;
  for (let n = 0; !(await guess(n)); n++) if (n > 50) throw new Error("guesses are not limited");
  await shows("too-many", "?code=one-more", "wait");
  await tab.close();
};
const closesItself = async (browser, relay, livechat) => {
  const opener = await browser.open("about:blank");
  await opener.run(`void window.open(${JSON.stringify(authorize(livechat, `${relay}/install/default`))})`);
  const popup = async () => (await browser.targets()).find(({ url, type }) => type === "page" && url.startsWith(livechat.url));
  const tab = await browser.attach((await until("the popup", popup)).targetId);
  await tab.when(CONSENT);
  await tab.run(ALLOW);
  await until("the popup closes itself", async () => !(await browser.targets()).some(({ targetId }) => targetId === tab.targetId));
  await opener.close();
};
const signsIn = async (browser, relay) => {
  const tab = await browser.open(`${relay}/app/default`, { width: 280 });
  await tab.when(`${VIEW} === 'start'`);
  await tab.shot("app-start-light-280");
  await tab.size(1000);
  await tab.shot("app-start-light-1000");
  await tab.scheme(true);
  await tab.when("document.documentElement.dataset.theme === 'dark'");
  await tab.shot("app-start-dark-1000");
  await tab.size(280);
  await tab.shot("app-start-dark-280");
  // A code that another login has begun is refused.
  await tab.send("Page.navigate", { url: `${relay}/app/default?code=foreign&state=foreign` });
  await tab.when("!document.querySelector('#toast').hidden");
  check("a foreign code", await tab.run("document.querySelector('#toast').textContent"), "This sign-in was not begun here. Sign in again.");
  await tab.shot("app-toast-dark-280");
  await tab.run("document.querySelector('#sign-in').click()");
  await tab.when(CONSENT);
  await tab.run(ALLOW);
  await tab.when(`${VIEW} === 'facts'`);
  check("the address has no code any more", await tab.run("location.href"), `${relay}/app/default`);
  check("installed", await tab.run("document.querySelector('#installed').textContent"), "Installed");
  check("webhooks", await tab.run("document.querySelector('#webhooks').textContent"), "On");
  await tab.shot("app-facts-dark-280");
  // Deliveries as a busy relay has them.
  const rows = [["incoming_chat", 4], ["incoming_event", 1], ["chat_deactivated", 300], ["customer_session_fields_updated", 90000]];
  const times = rows.map(([action, age]) => ({ action, last: new Date(Date.now() - age * 1000).toISOString() }));
  await tab.run(`fetch = async () => new Response(JSON.stringify({ installed: true, license_webhooks_enabled: false, deliveries: ${JSON.stringify(times)} })); facts()`);
  await tab.when("document.querySelectorAll('#deliveries tr').length === 4");
  await tab.shot("app-deliveries-dark-280");
  await tab.size(1000);
  await tab.shot("app-deliveries-dark-1000");
  await tab.scheme(false);
  await tab.when("document.documentElement.dataset.theme === 'light'");
  await tab.shot("app-deliveries-light-1000");
  await tab.size(280);
  await tab.shot("app-deliveries-light-280");
  await tab.run("document.querySelector('#sign-out').click()");
  await tab.when(`${VIEW} === 'start' && sessionStorage.getItem(location.pathname + ' token') === null`);
  await tab.close();
};
const framed = async (browser, relay) => {
  const address = `${relay}/app/default?plugin_id=plugin-1&theme=dark&connection=plain`;
  // As LiveChat's program does: the frame is under a veil until the widget says that it is there.
  const parent = `<!doctype html><script>
let heard = [];
addEventListener("message", ({ origin, source, data }) => {
  heard.push([origin, data]);
  if (source === frames[0] && data.message === "plugin_inited" && data.plugin_id === "plugin-1") document.getElementById("veil").remove();
});
</script>
<body style="margin:0"><div id="veil" style="position:fixed;inset:0;background:#fff">Loading</div>
<iframe src="${address}" style="width:100vw;height:100vh;border:0"></iframe>`;
  const pages = { "https://my.livechatinc.com/": parent, "https://www.text.com/": parent, "https://evil.example/": parent };
  const frame = async () => (await browser.targets()).find(({ type, url }) => type === "iframe" && url.startsWith(relay));
  const tab = await browser.open("https://my.livechatinc.com/", { width: 280, handle: pages });
  const inner = await browser.attach((await until("the frame", frame)).targetId);
  await inner.when(`${VIEW} === 'start'`);
  check("the handshake", await tab.run("heard"), [[relay, { plugin_id: "plugin-1", message: "plugin_inited", data: null }]]);
  check("the veil is lifted", await tab.run("document.elementFromPoint(100, 100).tagName"), "IFRAME");
  check("the theme of the query", await inner.run("document.documentElement.dataset.theme"), "dark");
  await tab.run(`frames[0].postMessage({ event_name: "livechat:change_theme", event_data: { theme: "light" } }, "*")`);
  await inner.when("document.documentElement.dataset.theme === 'light'");
  // The login is in a window of its own, which gives the frame the token and is done.
  await inner.run("document.querySelector('#sign-in').click()");
  const popup = async () => (await browser.targets()).find(({ type, targetId, url }) => type === "page" && targetId !== tab.targetId && url !== "about:blank");
  const login = await browser.attach((await until("the window of the login", popup)).targetId);
  await login.when(CONSENT);
  await login.run(ALLOW);
  await inner.when(`${VIEW} === 'facts'`);
  await until("the window of the login is closed", async () => !(await browser.targets()).some(({ targetId }) => targetId === login.targetId));
  const { data } = await tab.send("Page.captureScreenshot", { format: "png" });
  writeFileSync(join(shots, "app-framed-280.png"), Buffer.from(data, "base64"));
  await tab.close();
  const other = await browser.open("https://www.text.com/", { handle: pages });
  await other.when("document.getElementById('veil') === null");
  await other.close();
  const evil = await browser.open("https://evil.example/", { handle: pages });
  const refused = await browser.attach((await until("the frame of another site", frame)).targetId);
  await refused.when("location.href.startsWith('chrome-error://')");
  check("a page that another site frames is not shown", await refused.run("document.querySelector('#sign-in')"), null);
  check("and nothing is heard of it", await evil.run("[heard, document.getElementById('veil') !== null]"), [[], true]);
  await evil.close();
};

const freePort = async () => {
  const { createServer } = await import("node:net");
  const server = createServer().listen(0, "127.0.0.1");
  await new Promise((resolve) => server.once("listening", resolve));
  const { port } = server.address();
  await new Promise((resolve) => server.close(resolve));
  return port;
};
let failed = false;
try {
  const port = await freePort();
  const livechat = await startSimulator(`http://127.0.0.1:${port}`);
  const relay = await startRelay(port, livechat);
  const browser = new Browser();
  for (const [name, step] of Object.entries({ closesItself, installs, signsIn, framed })) {
    await step(browser, relay, livechat);
    console.log(`ok ${name}`);
  }
  console.log(`${checks} checks passed; screenshots are in ${shots}`);
} catch (error) {
  failed = true;
  console.error(error);
} finally {
  children.reverse().forEach((child) => child.kill("SIGKILL"));
  await Promise.all(children.map((child) => child.exitCode ?? child.signalCode ?? new Promise((resolve) => child.once("exit", resolve))));
  rmSync(work, { recursive: true, force: true });
}
process.exitCode = failed ? 1 : 0;

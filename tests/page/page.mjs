// A person at the debugger page, in a real browser. Driven by tests/it/page.rs, which says in the environment
// where the page is and where events go. Whatever is wrong is printed; the exit code counts it.

import { createHmac } from "node:crypto";
import { mkdirSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";

const require = createRequire(process.env.MODULES + "/");
const { chromium } = require("playwright-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");

const { LINK, INTAKE, SECRET, SHOTS } = process.env;
const origin = new URL(LINK).origin;
const wrong = [];
const check = (holds, what) => {
  if (!holds) wrong.push(what);
};

async function send(event) {
  const body = JSON.stringify(event);
  const signature = createHmac("sha256", SECRET).update(body).digest("hex");
  const headers = { "content-type": "application/json", "x-bluereplies-signature": signature };
  const answer = await fetch(INTAKE, { method: "POST", headers, body });
  if (answer.status !== 200) throw new Error(`intake answers ${answer.status}`);
}

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM,
  args: ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync"],
});

function watched(page) {
  page.on("pageerror", (e) => wrong.push(`the page throws: ${e.stack}`));
  page.on("dialog", (d) => { wrong.push(`a dialog opens: ${d.message()}`); d.dismiss(); });
  page.on("console", (m) => {
    if (/Content.Security.Policy/i.test(m.text())) wrong.push(`against the policy: ${m.text()}`);
  });
  page.on("request", (r) => {
    if (!r.url().startsWith(origin) && !r.url().startsWith("data:")) wrong.push(`it loads ${r.url()}`);
  });
  // A busy machine is slow, not wrong.
  page.setDefaultTimeout(60_000);
  return page;
}

const context = await browser.newContext({ viewport: { width: 1280, height: 900 } });
const page = watched(await context.newPage());
const by = (id) => page.locator(`[data-testid=${id}]`);

// The link signs in, once.
await page.goto(LINK);
check(new URL(page.url()).pathname === "/", `signed in, it is at ${page.url()}`);
await by("event-row").first().waitFor();
const again = await (await browser.newContext()).newPage();
check((await again.goto(LINK)).status() === 401, "the link works twice");

// An event arrives while somebody watches.
await send({ eventId: "evt_live", type: "message.read", data: { to: "+15550001", body: "seen live" } });
const row = page.locator("[data-testid=event-row]", { hasText: "evt_live" });
await row.waitFor();
await row.getByRole("link").first().click();
await by("event-detail").waitFor();
await by("attempt").first().waitFor();
check((await by("payload").textContent()).includes("seen live"), "the payload is shown");
await page.keyboard.press("Escape");

// Filters.
await by("filter-type").fill("message.sen*");
await page.waitForFunction(() => {
  const rows = [...document.querySelectorAll("[data-testid=event-row]")];
  return rows.length > 0 && rows.every((r) => r.textContent.includes("message.sent"));
});
await by("filter-type").fill("");
// Behind more events than one answer looks at.
await by("filter-search").fill("the oldest one");
await page.waitForFunction(() => document.querySelectorAll("[data-testid=event-row]").length === 1);
await by("filter-search").fill("seen live");
await page.locator("[data-testid=event-row]", { hasText: "evt_live" }).waitFor();
await page.waitForFunction(() => document.querySelectorAll("[data-testid=event-row]").length === 1);
await by("filter-search").fill("");

// What became of the message: its view, and from its timeline to the event.
await send({ eventId: "evt_view", type: "message.delivered", data: { messageId: "msg_view", to: "+15550001", body: "viewed" } });
await by("nav-messages").click();
await by("message-search").fill("viewed");
await page.waitForFunction(() => document.querySelectorAll("[data-testid=message-row]").length === 1);
await by("message-row").locator("summary").click();
await by("timeline").getByRole("link", { name: "message.delivered" }).click();
await by("event-detail").waitFor();
check((await by("payload").textContent()).includes("msg_view"), "the timeline leads to the event");

// A dead letter is replayed, once what failed has been mended.
await by("nav-dead").click();
await by("dead-row").first().waitFor();
await by("dead-select-all").check();
await by("dead-replay").click();
await page.waitForFunction(() => document.querySelectorAll("[data-testid=dead-row]").length === 0);

// A handler is paused and goes on.
await by("nav-handlers").click();
await page.locator("[data-testid=handler-pause][data-handler=crm]").click();
await page.locator("[data-testid=handler-resume][data-handler=crm]").click();
await page.locator("[data-testid=handler-pause][data-handler=crm]").waitFor();

// A test event.
await by("nav-trigger").click();
await by("trigger-type").fill("message.received");
await by("trigger-send").click();
await page.waitForFunction(() => document.querySelector("[data-testid=trigger-result]")?.textContent.includes("200"));

// Hostile events: opened, one after the other, down to the oldest.
const listed = async (query) => page.evaluate(async (q) => (await fetch(`/api/v1/events?${q}`)).json(), query);
const hostile = (await listed("brief=true&limit=1000&type=*&search=naughty")).items;
check(hostile.length > 400, `only ${hostile.length} hostile events`);
for (const event of hostile.filter((_, i) => i % 20 === 0)) {
  await page.goto(`${origin}/#/events/${event.seq}`);
  await by("event-detail").waitFor();
  await by("payload").waitFor();
}
await page.goto(`${origin}/#/events?search=naughty`);
await by("event-row").first().waitFor();
check(!(await page.evaluate(() => "pwned" in window)), "a payload ran");

// Every view, in both widths and colour schemes.
const some = (await listed("brief=true&limit=1&search=evt_live")).items[0].seq;
const views = { events: "events", detail: `events/${some}`, messages: "messages", hostile: `events/${hostile[0].seq}`, dead: "dead",
  refused: "refused", handlers: "handlers", trigger: "trigger" };
const cookies = await context.cookies();
if (SHOTS) mkdirSync(SHOTS, { recursive: true });
for (const colorScheme of ["light", "dark"]) {
  for (const width of [1280, 390]) {
    const context = await browser.newContext({ viewport: { width, height: 844 }, colorScheme });
    await context.addCookies(cookies);
    // axe itself is no part of the page: it comes in past the policy.
    const page = watched(await context.newPage());
    for (const [name, hash] of Object.entries(views)) {
      const what = `${name} at ${width} px, ${colorScheme}`;
      await page.goto("about:blank");
      await page.goto(`${origin}/#/${hash}`);
      await page.waitForLoadState("load");
      await page.locator("main h2").first().waitFor();
      await page.waitForTimeout(400);
      if (SHOTS) await page.screenshot({ path: `${SHOTS}/${name}-${width}-${colorScheme}.png`, fullPage: true });
      const [needs, has] = await page.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
      check(needs <= has, `${what}: ${needs} px wide`);
      await page.evaluate(axe);
      const { violations } = await page.evaluate(() => axe.run(document, { resultTypes: ["violations"] }));
      for (const v of violations.filter((v) => ["serious", "critical"].includes(v.impact))) {
        wrong.push(`${what}: ${v.id}: ${v.nodes.map((n) => n.html.slice(0, 120)).join(" | ")}`);
      }
    }
    await context.close();
  }
}
await browser.close();
for (const line of wrong) console.log(line);
console.log(wrong.length ? `${wrong.length} wrong` : "all right");
process.exit(Math.min(wrong.length, 100));

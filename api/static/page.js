// The search page: a form whose state is the address bar, so that every search can be linked to.

import { drawChart, hideChart } from "./chart.js";
import { ask, byId, element, moment, number } from "./dom.js";
import { closeExport, estimate, makeExport, openExport } from "./export.js";

const form = byId("form");
const list = byId("results");
const LISTS = ["author", "mention", "hashtag", "domain", "lang"];
const FIELDS = ["text", "exact", "start", "end", ...LISTS, "media", "reply", "min_likes", "sort"];
const COLUMNS = "uri,did,handle,time,text,langs,links,media_kind,operation,reply_parent_uri,reply_root_uri,quote_uri,likes,reposts,replies";
let query = new URLSearchParams();
let cursor = null;
let shown = 0;
let snapshot = null;
let running = null;

// --- the form and the address ---------------------------------------------------------------------------------------

function readForm() {
  const found = new URLSearchParams();
  for (const name of FIELDS) {
    const input = form.elements[name];
    const value = input.type === "checkbox" ? (input.checked ? "true" : "") : input.value.trim();
    if (!value || (name === "sort" && value === "newest")) continue;
    for (const one of LISTS.includes(name) ? value.split(/[\s,]+/) : [value]) found.append(name, one);
  }
  return found;
}

function writeForm(parameters) {
  for (const name of FIELDS) {
    const input = form.elements[name];
    if (input.type === "checkbox") input.checked = parameters.get(name) === "true";
    else if (name === "sort") input.value = parameters.get(name) || "newest";
    else input.value = parameters.getAll(name).join(" ");
  }
  // On a phone the chips say enough; the results come first.
  if (matchMedia("(min-width: 40rem)").matches && [...parameters.keys()].some((name) => name !== "text")) byId("filters").open = true;
}

function drawChips() {
  byId("chips").replaceChildren(...[...query].map(([name, value]) => {
    const label = name === "as_of" ? `snapshot ${value}` : `${name.replace("_", " ")}: ${value}`;
    const chip = element("button", { type: "button", "aria-label": `Remove the filter ${label}` }, `${label} ✕`);
    chip.addEventListener("click", () => start(new URLSearchParams([...query].filter(([n, v]) => n !== name || v !== value)), true));
    return element("li", {}, chip);
  }));
}

// --- posts ----------------------------------------------------------------------------------------------------------

// The words that were searched for, for marking them: without operators, negated parts and wildcards.
function words(text) {
  const found = [];
  for (const [, minus, phrase, word] of text.matchAll(/(-|NOT\s+)?(?:"((?:[^"\\]|\\.)*)"|([^\s()"]+))/g)) {
    const term = (phrase ?? word).replaceAll("\\", "");
    if (!minus && !["OR", "AND", "NOT"].includes(term)) found.push(...term.split("*").filter((part) => part.length > 1));
  }
  return found;
}

function marked(text, terms) {
  if (!terms.length) return [text];
  const pattern = new RegExp(`(${terms.map((term) => term.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join("|")})`, "gi");
  return text.split(pattern).map((part, index) => (index % 2 ? element("mark", {}, part) : part));
}

function drawPost(post, terms) {
  const [, , did, , rkey] = post.uri.split("/");
  const address = `https://bsky.app/profile/${encodeURIComponent(did)}/post/${encodeURIComponent(rkey)}`;
  const tags = [...(post.langs || []), post.media_kind, post.operation === "update" ? "edited" : null, post.reply_parent_uri ? "reply" : null,
    post.quote_uri ? "quote" : null].filter(Boolean).map((tag) => element("span", { class: "tag" }, tag));
  const thread = encodeURIComponent(post.reply_root_uri || post.uri);
  const reactions = [["likes", "♥"], ["reposts", "⟲"], ["replies", "↩"]].filter(([name]) => post[name])
    .map(([name, sign]) => element("span", { title: `${name} that this archive saw` }, `${sign} ${number(post[name])}`));
  const who = element("div", { class: "who" },
    element("a", { class: "author", href: `/?author=${encodeURIComponent(did)}`, title: did }, post.handle ? `@${post.handle}` : did),
    element("time", { datetime: post.time }, post.time.slice(0, 19).replace("T", " ")), ...tags, ...reactions,
    element("a", { href: address, rel: "noreferrer noopener" }, "on Bluesky"), element("a", { href: `/v1/threads/${thread}` }, "thread"),
    element("a", { href: `/v1/posts/${encodeURIComponent(post.uri)}?series=hour` }, "details"));
  const links = (post.links || []).filter((link) => /^https?:\/\//.test(link)).map((link) => element("a", { href: link, rel: "noreferrer noopener nofollow" }, link.slice(0, 80)));
  return element("li", {}, who, element("div", { class: "text", dir: "auto" }, ...marked(post.text || "", terms)),
    links.length ? element("div", { class: "who" }, ...links) : null);
}

function problem(error) {
  byId("problem").textContent = error ? error.message : "";
  byId("problem").hidden = !error;
}

// What the answer is about: numbers that stand beside every result, so that nobody has to look for them.
function describe(body) {
  const { coverage } = body;
  const parts = [`${number(shown)} posts shown`, `${body.meta.seconds.toFixed(2)} s`, `snapshot ${body.snapshot.version}`];
  if (coverage.oldest_event) parts.push(`archive from ${moment(coverage.oldest_event)} to ${moment(coverage.newest_event)} UTC`);
  const open = coverage.gaps.filter((gap) => !gap.filled);
  parts.push(open.length ? `${open.length} known gap${open.length > 1 ? "s" : ""} in this range: ` +
    open.slice(0, 3).map((gap) => `${gap.start ? moment(gap.start) : "?"} – ${gap.end ? moment(gap.end) : "?"}`).join(", ") : "no known gaps");
  if (body.since) parts.push(`since then ${number(body.since.removed_since)} posts of the range were removed and ${number(body.since.edited_since)} edited`);
  let end = "";
  if (!body.meta.complete) end = " The time for a page is over: “Show more” goes on.";
  else if (!cursor) end = shown ? " That is all." : coverage.oldest_event ? " Nothing matches: try fewer words, or a wider range." : " The archive is empty so far: posts appear here as they arrive.";
  byId("status").textContent = `${parts.join(" · ")}.${end}`;
}

async function loadPage() {
  const own = running;
  const parameters = new URLSearchParams(query);
  parameters.set("fields", COLUMNS);
  if (cursor) parameters.set("cursor", cursor);
  byId("status").textContent = "Searching …";
  list.setAttribute("aria-busy", "true");
  byId("more").disabled = true;
  try {
    const body = await ask(`/v1/search?${parameters}`, { signal: own.signal });
    const terms = words(query.get("text") || "");
    shown += body.results.length;
    snapshot = body.snapshot.version;
    list.append(...body.results.map((post) => drawPost(post, terms)));
    cursor = body.meta.next_cursor;
    problem(null);
    describe(body);
  } catch (error) {
    if (error.name === "AbortError") return;
    byId("status").textContent = "";
    problem(error);
  }
  list.removeAttribute("aria-busy");
  byId("more").disabled = false;
  byId("more").hidden = !cursor;
  byId("tools").hidden = !shown;
}

async function loadChart() {
  const parameters = new URLSearchParams(query);
  parameters.delete("sort");
  try {
    drawChart(await ask(`/v1/counts?${parameters}`, { signal: running.signal }), narrow);
  } catch (error) {
    // The search says what is wrong.
    if (error.name !== "AbortError") hideChart();
  }
}

function narrow(from, to) {
  const narrowed = new URLSearchParams(query);
  narrowed.set("start", from);
  if (to) narrowed.set("end", to);
  start(narrowed, true);
}

function drawSnippet() {
  const address = `${location.origin}/v1/search?${query}`;
  byId("link").href = address;
  byId("snippet").hidden = false;
  const quoted = address.replaceAll("'", "%27");
  byId("snippet").querySelector("pre").textContent =
    `curl '${quoted}'\n\n# Python: pip install httpx\nimport httpx\nposts = httpx.get('${quoted}').json()["results"]\n\n# R\nposts <- jsonlite::fromJSON('${quoted}')$results`;
}

function start(parameters, push) {
  if (running) running.abort();
  running = new AbortController();
  query = parameters;
  cursor = null;
  shown = 0;
  list.replaceChildren();
  closeExport();
  writeForm(query);
  drawChips();
  drawSnippet();
  document.title = query.get("text") ? `${query.get("text")} · Bluesky Post Explorer` : "Bluesky Post Explorer";
  if (push) history.pushState(null, "", query.size ? `/?${query}` : "/");
  loadPage();
  loadChart();
}

// --- the archive ----------------------------------------------------------------------------------------------------

const LATE_SECONDS = 120;

function ago(seconds) {
  if (seconds < 90) return `${Math.max(0, Math.round(seconds))} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} minutes`;
  return seconds < 172_800 ? `${Math.round(seconds / 3600)} hours` : `${Math.round(seconds / 86_400)} days`;
}

async function loadLake() {
  const line = byId("freshness");
  try {
    const body = await ask("/v1/stats");
    const late = body.lag_seconds !== null && body.lag_seconds > LATE_SECONDS;
    line.textContent = body.lag_seconds === null ? "the archive is empty" : `${late ? "no new event for" : "newest event"} ${ago(body.lag_seconds)}${late ? "" : " ago"}`;
    line.dataset.state = body.lag_seconds === null || late ? "late" : "live";
    byId("lake").textContent = `${number(body.rows)} events in ${number(body.files)} files, ${(body.bytes / 1e6).toFixed(1)} MB.`;
    const table = byId("tables");
    table.hidden = !body.tables.length;
    table.tBodies[0].replaceChildren(...body.tables.map((one) => element("tr", {}, element("td", {}, one.table), element("td", { class: "number" }, number(one.rows)),
      element("td", { class: "number" }, one.bytes_per_row === null ? "" : one.bytes_per_row.toFixed(1)), element("td", {}, (one.newest_event || "").slice(0, 19).replace("T", " ")))));
  } catch (error) {
    line.textContent = error.message;
    line.dataset.state = "away";
  }
}

// --- what people do -------------------------------------------------------------------------------------------------

async function copy(button, text) {
  const before = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = text;
  }
  setTimeout(() => { button.textContent = before; }, 4000);
}

byId("access").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", event.target.elements.key.value.trim());
  event.target.elements.key.value = "";
  event.target.hidden = true;
  start(query, false);
  loadLake();
});
form.addEventListener("submit", (event) => { event.preventDefault(); start(readForm(), true); });
for (const button of document.querySelectorAll("[data-start]")) {
  button.addEventListener("click", () => {
    form.elements.start.value = button.dataset.start;
    form.elements.end.value = "";
    start(readForm(), true);
  });
}
byId("more").addEventListener("click", loadPage);
byId("export-open").addEventListener("click", () => openExport(query));
byId("export").elements.format.addEventListener("change", () => estimate(query));
byId("export").addEventListener("submit", (event) => { event.preventDefault(); makeExport(query); });
byId("cite").addEventListener("click", (event) => {
  const cited = new URLSearchParams(query);
  cited.set("as_of", snapshot);
  copy(event.target, `${location.origin}/?${cited}`);
});
byId("copy").addEventListener("click", (event) => copy(event.target, byId("snippet").querySelector("pre").textContent));
window.addEventListener("popstate", () => start(new URLSearchParams(location.search), false));
start(new URLSearchParams([...new URLSearchParams(location.search)].filter(([name]) => name === "as_of" || FIELDS.includes(name))), false);
loadLake();
setInterval(loadLake, 10_000);

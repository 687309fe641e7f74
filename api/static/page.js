"use strict";
// The search page: a form whose state is the address bar, so that every search can be linked to.

const form = document.getElementById("form");
const list = document.getElementById("results");
const status_ = document.getElementById("status");
const FIELDS = ["text", "exact", "author", "start", "end", "lang", "hashtag", "domain", "media", "reply", "sort"];
let query = new URLSearchParams();
let cursor = null;
let shown = [];
let running = null;

function element(tag, attributes, ...children) {
  const found = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) found.setAttribute(name, value);
  found.append(...children.filter((child) => child !== null && child !== undefined));
  return found;
}

// Where the service asks for a key, it is kept for this tab only and sent as a header, never in an address.
function headers() {
  const key = sessionStorage.getItem("key");
  return key ? { Accept: "application/json", Authorization: `Bearer ${key}` } : { Accept: "application/json" };
}

async function get(path, signal) {
  const answer = await fetch(path, { signal, headers: headers() });
  const body = await answer.json();
  if (answer.status === 401) document.getElementById("access").hidden = false;
  if (!answer.ok) throw new Error(body.detail || answer.statusText);
  return body;
}

function readForm() {
  const found = new URLSearchParams();
  for (const name of FIELDS) {
    const input = form.elements[name];
    const value = input.type === "checkbox" ? (input.checked ? "true" : "") : input.value.trim();
    if (!value || (name === "sort" && value === "newest")) continue;
    const many = ["author", "lang", "hashtag", "domain"].includes(name) ? value.split(/[\s,]+/) : [value];
    for (const one of many) found.append(name, one);
  }
  return found;
}

function writeForm(parameters) {
  for (const name of FIELDS) {
    const input = form.elements[name];
    if (input.type === "checkbox") input.checked = parameters.get(name) === "true";
    else if (name === "sort") input.value = parameters.get(name) || "newest";
    else input.value = parameters.getAll(name).join(" ").replace(/Z$/, "");
  }
}

function drawChips() {
  const chips = document.getElementById("chips");
  chips.replaceChildren();
  for (const [name, value] of query) {
    const chip = element("button", { type: "button", title: "Remove this filter" }, `${name}: ${value} ✕`);
    chip.addEventListener("click", () => {
      const rest = [...query].filter(([n, v]) => n !== name || v !== value);
      start(new URLSearchParams(rest), true);
    });
    chips.append(element("li", {}, chip));
  }
}

function say(text, isError) {
  status_.textContent = text;
  status_.classList.toggle("error", Boolean(isError));
}

function drawPost(post) {
  const [, , did, , rkey] = post.uri.split("/");
  const address = `https://bsky.app/profile/${encodeURIComponent(did)}/post/${encodeURIComponent(rkey)}`;
  const tags = [...(post.langs || []), post.media_kind, post.operation === "update" ? "edited" : null, post.reply_parent_uri ? "reply" : null,
    post.quote_uri ? "quote" : null].filter(Boolean).map((tag) => element("span", { class: "tag" }, tag));
  const author = element("a", { href: `/?author=${encodeURIComponent(did)}` }, did);
  const who = element("div", { class: "who" }, author, element("a", { href: address, rel: "noreferrer noopener" }, post.time.slice(0, 19).replace("T", " ")), ...tags);
  const links = (post.links || []).filter((link) => /^https?:\/\//.test(link)).map((link) => element("a", { href: link, rel: "noreferrer noopener nofollow" }, link.slice(0, 80)));
  return element("li", {}, who, element("div", { class: "text" }, post.text || ""), links.length ? element("div", { class: "who" }, ...links) : null);
}

async function loadPage() {
  running = new AbortController();
  const parameters = new URLSearchParams(query);
  if (cursor) parameters.set("cursor", cursor);
  say("Searching …");
  try {
    const body = await get(`/v1/search?${parameters}`, running.signal);
    shown.push(...body.results);
    list.append(...body.results.map(drawPost));
    cursor = body.meta.next_cursor;
    const end = body.meta.complete ? (cursor ? "" : " That is all.") : " The time for a page is over: “More” goes on.";
    const gaps = body.coverage.gaps.length ? ` The archive has ${body.coverage.gaps.length} known gap(s) in this range.` : "";
    say(`${shown.length} posts, ${body.meta.seconds.toFixed(2)} s, snapshot ${body.snapshot.version}.${end}${gaps}`);
  } catch (error) {
    if (error.name !== "AbortError") say(error.message, true);
  }
  document.getElementById("more").hidden = !cursor;
  document.getElementById("csv").hidden = !shown.length;
}

function drawChart(body) {
  const figure = document.getElementById("chart");
  const svg = figure.querySelector("svg");
  const buckets = body.counts;
  figure.hidden = buckets.length < 2;
  if (figure.hidden) return;
  const width = 960, height = 140, base = 120;
  const highest = Math.max(1, ...buckets.map((bucket) => bucket.count));
  const step = width / buckets.length;
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("preserveAspectRatio", "none");
  const shape = (tag, attributes, text) => {
    const found = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) found.setAttribute(name, value);
    if (text) found.textContent = text;
    return found;
  };
  const bars = buckets.map((bucket, index) => {
    const size = (bucket.count / highest) * (base - 8);
    const bar = shape("rect", { x: index * step, y: base - size, width: Math.max(0.5, step - 1), height: size });
    bar.append(shape("title", {}, `${bucket.start.slice(0, 16).replace("T", " ")}: ${bucket.count}`));
    return bar;
  });
  svg.replaceChildren(shape("line", { x1: 0, x2: width, y1: base, y2: base }), ...bars,
    shape("text", { x: 0, y: height - 4 }, buckets[0].start.slice(0, 16).replace("T", " ")),
    shape("text", { x: width, y: height - 4, "text-anchor": "end" }, buckets[buckets.length - 1].start.slice(0, 16).replace("T", " ")));
  figure.querySelector("figcaption").textContent = `Posts by ${body.interval}: ${body.total} in all`;
}

async function loadChart() {
  const parameters = new URLSearchParams(query);
  parameters.delete("sort");
  try {
    drawChart(await get(`/v1/counts?${parameters}`, running.signal));
  } catch (error) {
    document.getElementById("chart").hidden = true;
  }
}

function drawSnippet() {
  const address = `${location.origin}/v1/search?${query}`;
  const link = document.getElementById("link");
  link.href = address;
  link.hidden = false;
  const box = document.getElementById("snippet");
  box.hidden = false;
  const quoted = address.replaceAll("'", "%27");
  box.querySelector("pre").textContent =
    `curl '${quoted}'\n\n# Python\nimport httpx\nposts = httpx.get('${quoted}').json()["results"]\n\n# R\nposts <- jsonlite::fromJSON('${quoted}')$results`;
}

function start(parameters, push) {
  if (running) running.abort();
  query = parameters;
  cursor = null;
  shown = [];
  list.replaceChildren();
  writeForm(query);
  drawChips();
  drawSnippet();
  if (push) history.pushState(null, "", query.size ? `/?${query}` : "/");
  loadPage();
  loadChart();
}

function saveCsv() {
  const columns = ["uri", "time", "did", "text", "langs", "links", "hashtags"];
  const cell = (value) => `"${String(Array.isArray(value) ? value.join(" ") : value ?? "").replaceAll('"', '""')}"`;
  const lines = [columns.join(","), ...shown.map((post) => columns.map((name) => cell(post[name])).join(","))];
  const link = element("a", { href: URL.createObjectURL(new Blob([lines.join("\r\n")], { type: "text/csv" })), download: `results_${new Date().toISOString().slice(0, 19)}.csv` });
  link.click();
  URL.revokeObjectURL(link.href);
}

async function loadLake() {
  const line = document.getElementById("lake");
  try {
    const body = await get("/v1/stats");
    const age = body.lag_seconds === null ? "" : `, newest event ${Math.max(0, Math.round(body.lag_seconds))} s ago`;
    line.textContent = `${body.rows.toLocaleString()} rows in ${body.files.toLocaleString()} files, ${(body.bytes / 1e6).toFixed(1)} MB${age}.`;
    const table = document.getElementById("tables");
    table.hidden = !body.tables.length;
    table.tBodies[0].replaceChildren(...body.tables.map((one) => element("tr", {}, element("td", {}, one.table), element("td", { class: "number" }, one.rows.toLocaleString()),
      element("td", { class: "number" }, one.bytes_per_row === null ? "" : one.bytes_per_row.toFixed(1)), element("td", {}, (one.newest_event || "").slice(0, 19).replace("T", " ")))));
  } catch (error) {
    line.textContent = error.message;
  }
}

document.getElementById("access").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", event.target.elements.key.value.trim());
  event.target.elements.key.value = "";
  event.target.hidden = true;
  start(query, false);
  loadLake();
});
form.addEventListener("submit", (event) => { event.preventDefault(); start(readForm(), true); });
document.getElementById("more").addEventListener("click", loadPage);
document.getElementById("csv").addEventListener("click", saveCsv);
window.addEventListener("popstate", () => start(new URLSearchParams(location.search), false));
start(new URLSearchParams([...new URLSearchParams(location.search)].filter(([name]) => FIELDS.includes(name))), false);
loadLake();
setInterval(loadLake, 10000);

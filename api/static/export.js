// The export panel: what the file would hold, making it, and loading it.

import { ask, byId, element, headers, number } from "./dom.js";

const LISTS = new Set(["author", "mention", "hashtag", "domain", "lang", "media"]);
let job = null;

function bytes(size) {
  return size >= 1e6 ? `${(size / 1e6).toFixed(1)} MB` : `${Math.max(1, Math.round(size / 1e3))} kB`;
}

function asBody(query) {
  const found = {};
  for (const [name, value] of query) {
    if (name === "sort") continue;
    if (LISTS.has(name)) (found[name] ||= []).push(value);
    else found[name] = value;
  }
  return found;
}

export function closeExport() {
  job = null;
  byId("export").hidden = true;
  byId("export-open").setAttribute("aria-expanded", "false");
  byId("made").replaceChildren();
  byId("progress").hidden = true;
}

export async function openExport(query) {
  const form = byId("export");
  if (!form.hidden) return closeExport();
  form.hidden = false;
  byId("export-open").setAttribute("aria-expanded", "true");
  form.elements.format.focus();
  await estimate(query);
}

export async function estimate(query) {
  const parameters = new URLSearchParams(query);
  parameters.delete("sort");
  parameters.set("target", "export");
  parameters.set("format", byId("export").elements.format.value);
  const line = byId("estimate");
  line.textContent = "Estimating …";
  try {
    const body = await ask(`/v1/explain?${parameters}`);
    const about = body.matches_relation === "exact" ? "" : "about ";
    line.textContent = `${about}${number(body.matches)} posts, about ${bytes(body.expected_bytes)}; reads ${number(body.files)} files, ` +
      `about ${Math.max(1, Math.round(body.expected_seconds))} s. The oldest come first. Posts that are deleted later are taken out before each download.`;
  } catch (error) {
    line.textContent = error.message;
  }
}

export async function makeExport(query) {
  const form = byId("export");
  const progress = byId("progress");
  const made = byId("made");
  const csv = form.elements.format.value === "csv";
  const body = { ...asBody(query), format: form.elements.format.value, fields: form.elements.fields.value,
    spreadsheet_safe: csv && form.elements.spreadsheet_safe.checked };
  made.textContent = "Starting …";
  try {
    let state = await ask("/v1/exports", { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" } });
    const own = job = state.id;
    progress.hidden = false;
    while (["queued", "running"].includes(state.state)) {
      progress.value = state.progress || 0;
      made.textContent = state.state === "queued" ? "Waiting for its turn …" : "Writing …";
      await new Promise((resolve) => setTimeout(resolve, 300));
      if (job !== own) return;
      state = await ask(`/v1/exports/${own}`);
    }
    progress.hidden = true;
    if (state.state !== "done") throw new Error(state.error ? state.error.detail : `The export is ${state.state}.`);
    const about = await ask(state.provenance);
    const load = element("a", { href: state.download, download: state.file_name }, `${state.file_name} (${number(state.rows)} posts, ${bytes(state.bytes)})`);
    if (sessionStorage.getItem("key")) load.addEventListener("click", (event) => { event.preventDefault(); loadWithKey(state); });
    made.replaceChildren(load, element("span", { class: "cite" }, about.citation));
    load.focus();
  } catch (error) {
    progress.hidden = true;
    made.textContent = error.message;
  }
}

// A link cannot send the key's header, so that the file is fetched and handed to the browser from memory.
async function loadWithKey(state) {
  const answer = await fetch(state.download, { headers: headers({ Accept: "*/*" }) });
  const link = element("a", { href: URL.createObjectURL(await answer.blob()), download: state.file_name });
  link.click();
  URL.revokeObjectURL(link.href);
}

// Elements, and questions to the service. Texts of posts become text nodes only, never markup.

export function element(tag, attributes, ...children) {
  const found = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) found.setAttribute(name, value);
  found.append(...children.filter((child) => child !== null && child !== undefined));
  return found;
}

export const byId = (id) => document.getElementById(id);
export const number = (value) => value.toLocaleString("en");
export const moment = (text) => text.slice(0, 16).replace("T", " ");

// Where the service asks for a key, it is kept for this tab only and sent as a header, never in an address.
export function headers(more) {
  const key = sessionStorage.getItem("key");
  return { Accept: "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}), ...more };
}

export async function ask(path, options) {
  let answer;
  try {
    answer = await fetch(path, { ...options, headers: headers(options && options.headers) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The service does not answer. Is it running? This page tries again by itself.");
  }
  const body = await answer.json();
  if (answer.status === 401) byId("access").hidden = false;
  if (!answer.ok) {
    const wait = answer.headers.get("Retry-After");
    const id = answer.status >= 500 && body.request_id ? ` [request ${body.request_id}]` : "";
    throw new Error((body.detail || answer.statusText) + (wait ? ` (try again in ${wait} s)` : "") + id);
  }
  return body;
}

"use strict";
// The API reference, drawn from the service's own OpenAPI description.

function element(tag, attributes, ...children) {
  const found = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) found.setAttribute(name, value);
  found.append(...children.filter((child) => child !== null && child !== undefined));
  return found;
}

function resolve(document_, schema) {
  while (schema && schema.$ref) schema = schema.$ref.slice(2).split("/").reduce((node, key) => node[key], document_);
  return schema || {};
}

function typeOf(document_, given) {
  const schema = resolve(document_, given);
  if (schema.enum) return schema.enum.map(String).join(" | ");
  if (schema.const !== undefined) return String(schema.const);
  const parts = schema.anyOf || schema.oneOf;
  if (parts) return parts.map((part) => typeOf(document_, part)).filter((name) => name !== "null").join(" or ");
  if (schema.type === "array") return `list of ${typeOf(document_, schema.items || {})}`;
  return schema.format || schema.type || "any";
}

function table(heads, rows) {
  return element("table", {}, element("thead", {}, element("tr", {}, ...heads.map((head) => element("th", {}, head)))),
    element("tbody", {}, ...rows.map((row) => element("tr", {}, ...row.map((cell) => element("td", {}, cell))))));
}

function shape(document_, given) {
  const schema = resolve(document_, given);
  const properties = Object.entries(schema.properties || {});
  if (!properties.length) return null;
  return table(["Member", "Type", "Meaning"], properties.map(([name, part]) => [
    element("code", {}, name), typeOf(document_, part), part.description || resolve(document_, part).description || ""]));
}

function draw(document_, method, path, operation) {
  const box = element("section", { class: "operation", id: operation.operationId });
  box.append(element("h3", {}, element("span", { class: "method" }, method.toUpperCase()), element("code", {}, path)), element("p", {}, (operation.description || operation.summary || "").replaceAll("`", "")));
  const parameters = operation.parameters || [];
  if (parameters.length) {
    const rows = parameters.map((parameter) => [element("code", {}, parameter.name + (parameter.required ? " *" : "")), typeOf(document_, parameter.schema || {}),
      parameter.description || (parameter.schema || {}).description || ""]);
    box.append(element("details", {}, element("summary", {}, `${parameters.length} parameters`), table(["Parameter", "Type", "Meaning"], rows)));
  }
  const body = ((operation.requestBody || {}).content || {})["application/json"];
  if (body) box.append(element("details", {}, element("summary", {}, "Body"), shape(document_, body.schema)));
  const problems = [];
  for (const [status, answer] of Object.entries(operation.responses || {})) {
    if (status >= "400") {
      problems.push([status, (answer.description || "").replaceAll("`", "")]);
      continue;
    }
    const content = (answer.content || {})["application/json"];
    const inner = content && content.schema ? shape(document_, content.schema) : null;
    box.append(inner ? element("details", {}, element("summary", {}, `Answer ${status}`), inner) : element("p", { class: "hint" }, `Answer ${status}: ${answer.description || ""}`));
  }
  if (problems.length) box.append(element("details", {}, element("summary", {}, "Errors"), table(["Status", "Meaning"], problems)));
  if (method === "get" && !path.includes("{")) box.append(element("a", { href: path }, "Try it"));
  return box;
}

async function main() {
  const box = document.getElementById("operations");
  try {
    const document_ = await (await fetch("/openapi.json")).json();
    document.getElementById("title").textContent = `${document_.info.title} ${document_.info.version}`;
    document.getElementById("about").textContent = document_.info.description || "";
    box.replaceChildren();
    for (const [path, methods] of Object.entries(document_.paths)) {
      for (const [method, operation] of Object.entries(methods)) box.append(draw(document_, method, path, operation));
    }
  } catch (error) {
    box.textContent = `The description cannot be read: ${error.message}`;
  }
}

main();

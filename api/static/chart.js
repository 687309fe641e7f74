// Posts over time: bars that narrow the range when they are chosen, and the same numbers as a table.

import { byId, element, moment, number } from "./dom.js";

const WIDTH = 960, HEIGHT = 120;

function shape(tag, attributes, text) {
  const found = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) found.setAttribute(name, value);
  if (text) found.textContent = text;
  return found;
}

export function hideChart() {
  byId("chart").hidden = true;
}

export function drawChart(body, choose) {
  const figure = byId("chart");
  const buckets = body.counts;
  figure.hidden = buckets.length < 2;
  if (figure.hidden) return;
  const highest = Math.max(1, ...buckets.map((bucket) => bucket.count));
  const step = WIDTH / buckets.length;
  const svg = figure.querySelector("svg");
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.replaceChildren(...buckets.map((bucket, index) => {
    const size = (bucket.count / highest) * (HEIGHT - 2);
    const column = shape("g", {});
    // The whole height can be hit, also where there are few posts.
    column.append(shape("rect", { class: "hit", x: index * step, y: 0, width: step, height: HEIGHT }),
      shape("rect", { x: index * step, y: HEIGHT - size, width: Math.max(0.5, step - Math.min(2, step / 8)), height: size }),
      shape("title", {}, `${moment(bucket.start)}: ${number(bucket.count)}`));
    column.addEventListener("click", () => choose(bucket.start, (buckets[index + 1] || {}).start));
    return column;
  }));
  const relation = { exact: "", at_least: "at least ", estimate: "about " }[body.total_relation];
  figure.querySelector("figcaption").textContent =
    `${relation}${number(body.total)} posts, by ${body.interval}; at most ${number(highest)} each. A bar narrows the search to its time.`;
  const [first, last] = figure.querySelectorAll(".axis span");
  first.textContent = moment(buckets[0].start);
  last.textContent = moment(buckets[buckets.length - 1].start);
  figure.querySelector("tbody").replaceChildren(...buckets.map((bucket) =>
    element("tr", {}, element("td", {}, moment(bucket.start)), element("td", { class: "number" }, number(bucket.count)))));
}

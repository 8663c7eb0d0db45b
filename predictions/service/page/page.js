"use strict";

const MEANING = {
  fresh: ["good", "The record has not changed since it was scored."],
  changed: ["warn", "The record has changed since it was scored; the prediction is for its earlier values."],
  expired: ["warn", "The prediction is older than this service allows."],
  unscored: ["warn", "The release has no prediction for this record."],
  failed: ["bad", "The record could not be scored."],
  missing: ["bad", "The database has no record with exactly this ID."],
  unavailable: ["bad", "HBase or the database did not answer."],
};
const ONLINE = "The prediction was made just now, for the record as it is.";
const REFRESH_SECONDS = 15;

const $ = (id) => document.getElementById(id);
let servedLabel = ""; // of the served release, if it has only one
let lastLookup = 0; // number of the last lookup; answers to earlier ones are not shown

function element(name, text, className) {
  const created = document.createElement(name);
  if (text !== undefined) created.textContent = text;
  if (className) created.className = className;
  return created;
}

// Keep a number as it was written if JavaScript would round it or write it differently.
function exact(_key, value, context) {
  return typeof value === "number" && context?.source && String(value) !== context.source ? context.source : value;
}

async function call(path, options = {}, reviver = undefined) {
  const token = sessionStorage.getItem("token");
  const headers = { ...options.headers, ...(token && { Authorization: `Bearer ${token}` }) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch {
    throw new Error("The service does not answer.");
  }
  const body = JSON.parse(await response.text(), reviver);
  if (response.status === 401) {
    $("login").hidden = false;
    $("token").focus();
  }
  if (!response.ok) throw new Error(body.error);
  return body;
}

function describe(list, values) {
  list.replaceChildren();
  for (const [name, value] of Object.entries(values)) {
    if (value === undefined) continue;
    list.append(element("dt", name), element("dd", value === null ? "–" : String(value)));
  }
}

function ago(seconds) {
  for (const [unit, length] of [["day", 86400], ["hour", 3600], ["minute", 60]]) {
    const count = Math.floor(seconds / length);
    if (count) return `${count} ${unit}${count > 1 ? "s" : ""} ago`;
  }
  return `${seconds} s ago`;
}

function show(answer) {
  const [className, meaning] = MEANING[answer.status];
  $("answer-id").textContent = answer.id;
  $("status").textContent = answer.status;
  $("status").className = `badge ${className}`;
  $("meaning").textContent = answer.source === "online" ? ONLINE : meaning;
  $("predicted").textContent = predicted(answer);
  $("prediction").replaceChildren();
  for (const [label, said] of Object.entries(answer.labels ?? { "": answer })) showPrediction(label, said);
  describe($("facts"), {
    error: answer.error,
    release: answer.release,
    scored: answer.scored && `${answer.scored}, ${ago(answer.age)}`,
    model: answer.model?.slice(0, 16),
  });
  describe($("record"), answer.record ?? {});
  $("answer").hidden = false;
}

function predicted(answer) {
  const labels = Object.keys(answer.labels ?? {});
  return labels.length ? "Predictions" : servedLabel ? `Prediction of ${servedLabel}` : "Prediction";
}

// Show what is said of one label: the prediction, its probability, a bar for each class, the most probable first, and
// what moved the prediction.
function showPrediction(label, said) {
  const hasPrediction = said.prediction !== undefined && said.prediction !== null;
  const line = element("p", hasPrediction ? String(said.prediction) : "–");
  const details = [];
  if (label) details.push(label);
  if (hasPrediction && said.probability !== undefined) {
    details.push(`with probability ${Number(said.probability).toFixed(3)}`);
  }
  if (label && said.error) details.push(said.error);
  if (details.length) line.append(" ", element("small", details.join(", ")));
  const bars = Object.entries(said.probabilities ?? {}).map(([name, share]) => [name, Number(share)]);
  bars.sort((one, other) => other[1] - one[1]);
  const list = element("dl", undefined, "bars");
  for (const [name, share] of bars) {
    const meter = element("meter");
    meter.value = share;
    meter.setAttribute("aria-label", `probability of ${name}`);
    const value = element("dd", share.toFixed(3));
    value.prepend(meter);
    list.append(element("dt", name), value);
  }
  for (const [name, value] of Object.entries(said.predictions ?? {})) {
    list.append(element("dt", name), element("dd", String(value)));
  }
  const why = contributionBars(said.contributions ?? {});
  $("prediction").append(
    line,
    ...(list.hasChildNodes() ? [list] : []),
    ...(why.hasChildNodes() ? [element("h3", "What moved it most"), why] : []),
  );
}

function svgElement(name, attributes) {
  const created = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) created.setAttribute(key, value);
  return created;
}

// Return a list with how much features moved a prediction, the largest first; what raised it goes to the right.
function contributionBars(contributions) {
  const list = element("dl", undefined, "bars");
  const bars = Object.entries(contributions).map(([name, value]) => [name, Number(value)]);
  bars.sort((one, other) => Math.abs(other[1]) - Math.abs(one[1]));
  for (const [name, value] of bars) {
    const width = (49 * value) / Math.abs(bars[0][1]);
    const svg = svgElement("svg", { viewBox: "-50 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" });
    svg.append(
      svgElement("rect", { x: Math.min(0, width).toFixed(3), y: 1, width: Math.abs(width).toFixed(3), height: 8 }),
      svgElement("line", { x1: 0, y1: 0, x2: 0, y2: 10 }),
    );
    const text = element("dd", `${value > 0 ? "+" : ""}${value}`);
    text.prepend(svg);
    list.append(element("dt", name), text);
  }
  return list;
}

async function lookUp(id) {
  const number = ++lastLookup;
  $("problem").textContent = "";
  const request = {
    method: "POST", // with the ID in the body: a path cannot hold every ID
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ids: [id] }),
  };
  try {
    const { answers } = await call("records", request, exact);
    if (number === lastLookup) show(answers[0]);
  } catch (error) {
    if (number !== lastLookup) return;
    $("answer").hidden = true;
    $("problem").textContent = error.message;
  }
}

// Draw the histogram of the scores: the height of a bar is its share of the predictions, divided by its width.
function drawDistribution(label, distribution) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const { edges, counts } = distribution.histogram;
  const classes = Object.entries(distribution.classes);
  const total = counts.reduce((sum, count) => sum + count, 0);
  const mean = distribution.mean === null ? "–" : Number(distribution.mean).toPrecision(4);
  const bounds = classes.length ? [0, ...edges, 1] : [edges[0], ...edges, edges[edges.length - 1]];
  const range = bounds[bounds.length - 1] - bounds[0] || 1;
  const step = classes.length ? 5 : 1;
  const bars = [];
  for (let start = 0; start < counts.length; start += step) {
    const end = Math.min(start + step, counts.length);
    const share = counts.slice(start, end).reduce((sum, count) => sum + count, 0) / (total || 1);
    const width = (bounds[end] - bounds[start]) / range;
    if (width > 0) bars.push([(bounds[start] - bounds[0]) / range, width, share / width]);
  }
  const highest = Math.max(...bars.map((bar) => bar[2])) || 1;
  svg.setAttribute("viewBox", "0 0 100 20");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", `scores from ${bounds[0]} to ${bounds[bounds.length - 1]}, mean ${mean}`);
  for (const [left, width, density] of bars) {
    const bar = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    const height = (20 * density) / highest;
    for (const [name, value] of Object.entries({ x: 100 * left, y: 20 - height, width: 98 * width, height })) {
      bar.setAttribute(name, value.toFixed(3));
    }
    svg.append(bar);
  }
  const shares = classes.length && classes.length <= 3
    ? classes.map(([label, count]) => `${label}: ${((100 * count) / (total || 1)).toFixed(1)} %`).join(", ")
    : `mean ${mean}`;
  const part = element("div");
  part.append(svg, element("span", label ? `${label}: ${shares}` : shares, "soft"));
  return part;
}

function row(release) {
  const tr = element("tr", undefined, release.role);
  const count = (value) => element("td", value === null ? "" : value.toLocaleString("en"), "right");
  const verdict = release.refused_by?.length ? `refused: ${release.refused_by.join(", ")}` : "passed";
  const gates = release.refused_by === null ? "" : release.forced ? `${verdict}; forced: ${release.forced}` : verdict;
  const models = release.labels ?? [{ ...release, label: "" }];
  const distributions = element("td");
  for (const each of models) {
    if (each.distribution) distributions.append(drawDistribution(each.label, each.distribution));
  }
  tr.append(
    element("td", release.release),
    element("td", [release.role, release.state].filter(Boolean).join(", ")),
    count(release.rows),
    count(release.failed),
    element("td", gates, "wide"),
    element("td", models.map((each) => each.model?.slice(0, 8) ?? "").join(", ")),
    distributions,
  );
  return tr;
}

async function listReleases() {
  try {
    const { name, releases } = await call("releases");
    const served = releases.find((release) => release.role === "current");
    servedLabel = served?.label ?? "";
    $("predicted").textContent = predicted({ labels: Object.fromEntries((served?.labels ?? []).map((each) => [each.label, {}])) });
    $("name").textContent = `Predictions: ${name}`;
    document.title = `Predictions: ${name}`;
    $("releases").replaceChildren(...releases.map(row));
    $("releases-problem").textContent = "";
  } catch (error) {
    $("releases-problem").textContent = error.message;
  }
}

// Look up the ID in the address: `#ID` is a link to an answer.
function follow() {
  let id = location.hash.slice(1);
  try {
    id = decodeURIComponent(id);
  } catch {
    // it was typed by hand, not percent-encoded
  }
  $("id").value = id;
  $("id").select();
  if (location.hash) lookUp(id);
  else $("answer").hidden = true;
}

$("lookup").addEventListener("submit", (event) => {
  event.preventDefault();
  const id = $("id").value;
  const hash = `#${encodeURIComponent(id)}`;
  if (location.hash !== hash) history.pushState(null, "", hash);
  lookUp(id);
  $("id").select();
});
$("login").addEventListener("submit", (event) => {
  event.preventDefault();
  const token = $("token").value;
  $("token").value = "";
  if (!/^[!-~]+$/.test(token)) {
    $("problem").textContent = "A token has ASCII characters only, without spaces.";
    return;
  }
  sessionStorage.setItem("token", token);
  $("login").hidden = true;
  $("problem").textContent = "";
  $("id").focus();
  listReleases();
  follow();
});
addEventListener("popstate", follow);
setInterval(() => document.hidden || $("login").hidden && listReleases(), 1000 * REFRESH_SECONDS);
listReleases();
follow();

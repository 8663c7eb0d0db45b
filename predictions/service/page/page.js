"use strict";

const MEANING = {
  fresh: ["good", "The record is as it was when it was scored."],
  changed: ["warn", "The record has changed since it was scored: the prediction is of what it was."],
  expired: ["warn", "The prediction is older than this service allows."],
  unscored: ["warn", "The release has no prediction for this record."],
  failed: ["bad", "The record could not be scored."],
  missing: ["bad", "The database has no record with exactly this ID."],
  unavailable: ["bad", "One half of the answer could not be had now."],
};
const ONLINE = "The prediction was made just now, of the record as it is.";
const REFRESH_SECONDS = 15;

const $ = (id) => document.getElementById(id);
let newest = 0; // the number of the last lookup: an answer that is overtaken is not shown

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

// A number that JavaScript would round, or write otherwise, stays as it was written.
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
  const told = JSON.parse(await response.text(), reviver);
  if (response.status === 401) {
    $("login").hidden = false;
    $("token").focus();
  }
  if (!response.ok) throw new Error(told.error);
  return told;
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
  $("asked").textContent = answer.id;
  $("status").textContent = answer.status;
  $("status").className = `badge ${className}`;
  $("meaning").textContent = answer.source === "online" ? ONLINE : meaning;
  const has = answer.prediction !== undefined && answer.prediction !== null;
  $("prediction").textContent = has ? String(answer.prediction) : "–";
  if (has && answer.probability !== undefined) {
    $("prediction").append(" ", element("small", `with probability ${Number(answer.probability).toFixed(3)}`));
  }
  describe($("facts"), {
    error: answer.error,
    release: answer.release,
    scored: answer.scored && `${answer.scored}, ${ago(answer.age)}`,
    model: answer.model?.slice(0, 16),
  });
  describe($("record"), answer.record ?? {});
  $("answer").hidden = false;
}

async function lookUp(id) {
  const number = ++newest;
  $("problem").textContent = "";
  const request = {
    method: "POST", // as a body: a path cannot hold every ID
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ids: [id] }),
  };
  try {
    const told = await call("records", request, exact);
    if (number === newest) show(told.answers[0]);
  } catch (error) {
    if (number !== newest) return;
    $("answer").hidden = true;
    $("problem").textContent = error.message;
  }
}

// How the scores are distributed: the height of a bar is its share, over its width.
function drawing(distribution) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const { edges, counts } = distribution.histogram;
  const classes = Object.entries(distribution.classes);
  const total = counts.reduce((sum, count) => sum + count, 0);
  const mean = distribution.mean === null ? "–" : Number(distribution.mean).toPrecision(4);
  const bounds = classes.length ? [0, ...edges, 1] : [edges[0], ...edges, edges[edges.length - 1]];
  const width = bounds[bounds.length - 1] - bounds[0] || 1;
  const step = classes.length ? 5 : 1;
  const bars = [];
  for (let at = 0; at < counts.length; at += step) {
    const end = Math.min(at + step, counts.length);
    const share = counts.slice(at, end).reduce((sum, count) => sum + count, 0) / (total || 1);
    const wide = (bounds[end] - bounds[at]) / width;
    if (wide > 0) bars.push([(bounds[at] - bounds[0]) / width, wide, share / wide]);
  }
  const highest = Math.max(...bars.map((bar) => bar[2])) || 1;
  made.setAttribute("viewBox", "0 0 100 20");
  made.setAttribute("preserveAspectRatio", "none");
  made.setAttribute("role", "img");
  made.setAttribute("aria-label", `scores from ${bounds[0]} to ${bounds[bounds.length - 1]}, mean ${mean}`);
  for (const [left, wide, height] of bars) {
    const bar = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    const tall = (20 * height) / highest;
    for (const [name, value] of Object.entries({ x: 100 * left, y: 20 - tall, width: 98 * wide, height: tall })) {
      bar.setAttribute(name, value.toFixed(3));
    }
    made.append(bar);
  }
  const shares = classes.length && classes.length <= 3
    ? classes.map(([label, count]) => `${label}: ${((100 * count) / (total || 1)).toFixed(1)} %`).join(", ")
    : `mean ${mean}`;
  const cell = element("td");
  cell.append(made, element("span", shares, "soft"));
  return cell;
}

function row(release) {
  const made = element("tr", undefined, release.role);
  const count = (value) => element("td", value === null ? "" : value.toLocaleString("en"), "right");
  const refused = release.refused_by?.length ? `refused: ${release.refused_by.join(", ")}` : "passed";
  const gates = release.refused_by === null ? "" : release.forced ? `${refused}; forced: ${release.forced}` : refused;
  made.append(
    element("td", release.release),
    element("td", [release.role, release.state].filter(Boolean).join(", ")),
    count(release.rows),
    count(release.failed),
    element("td", gates, "wide"),
    element("td", release.model?.slice(0, 8) ?? ""),
    release.distribution ? drawing(release.distribution) : element("td", ""),
  );
  return made;
}

async function list() {
  try {
    const told = await call("releases");
    const label = told.releases.find((release) => release.role === "current")?.label;
    $("predicted").textContent = label ? `Prediction of ${label}` : "Prediction";
    $("name").textContent = `Predictions: ${told.name}`;
    document.title = `Predictions: ${told.name}`;
    $("releases").replaceChildren(...told.releases.map(row));
    $("unlisted").textContent = "";
  } catch (error) {
    $("unlisted").textContent = error.message;
  }
}

// An address with `#ID` is a link to an answer.
function follow() {
  let id = location.hash.slice(1);
  try {
    id = decodeURIComponent(id);
  } catch {
    // it was not encoded: typed by hand
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
    $("problem").textContent = "A token has ASCII characters only, and no spaces.";
    return;
  }
  sessionStorage.setItem("token", token);
  $("login").hidden = true;
  $("problem").textContent = "";
  $("id").focus();
  list();
  follow();
});
addEventListener("popstate", follow);
setInterval(() => document.hidden || $("login").hidden && list(), 1000 * REFRESH_SECONDS);
list();
follow();

/* The page: steps through the events of a run, or walks a model by hand. Everything it knows is in #data; see story.py
   and explorer.py for what is in there. d3 does zooming, curves and lists; the lanes are drawn on a canvas, and only
   what is in sight. */
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const AXIS = 22, WIDE = 118, TEXT_FROM = 44, LINKS_FROM = 9, LIST = 7, AT = 0.88, CRASHED = "CRASHED";

// ── a run: moments, column by column ────────────────────────────────────────────────────────────────────

class Run {
  constructor(moments, texts, links) {
    this.texts = texts;
    this.links = links.map(([name, root, ...members]) => ({ name: texts[name] ?? name, root, members, parts: [] }));
    Object.assign(this, moments);
    this.count = this.lane.length;
    this.columns = 0;
    this.own = data.lanes.map(() => []);
    for (let i = 0; i < this.count; i++) {
      this.own[this.lane[i]].push(i);
      if (this.column[i] >= this.columns) this.columns = this.column[i] + 1;
      if (this.link[i] !== null && this.edge_(i) !== "exit") this.links[this.link[i]].parts.push(i);
    }
    this.place_ = new Int32Array(this.count); // of a moment among its lane's own
    for (const own of this.own) own.forEach((i, at) => { this.place_[i] = at; });
    this.drawn = this.links.map((link) => span(this, link)).filter((s) => s !== null).sort((a, b) => a.from - b.from);
    this.widest = d3.max(this.drawn, (s) => s.to - s.from) ?? 0;
  }
  text(field, i) { return this.texts[this[field][i]]; }
  edge_(i) { return this.texts[this.edge[i]]; }
  /** The last moment of a lane up to `step`; -1 before its first. */
  last(lane, step) {
    const own = this.own[lane], at = d3.bisectRight(own, step);
    return at ? own[at - 1] : -1;
  }
  next(i) { return this.own[this.lane[i]][this.place_[i] + 1]; }
  /** The column at which a moment's bar ends: of an operation where it completes, or where its rank goes on. */
  until(i) {
    if (this.edge_(i) !== "enter") return this.column[i] + 1;
    const next = this.next(i), mate = this.mate[i];
    if (mate !== null) return next === mate || next === undefined ? this.column[mate] + 1 : this.column[next];
    return next === undefined ? this.columns + 1 : this.column[next];
  }
  open(i) { return this.edge_(i) === "enter" && this.mate[i] === null; }
}

/** A collective's stretch of columns; null where nobody is in it. */
function span(run, link) {
  if (!link.parts.length) return null;
  const ends = link.parts.flatMap((i) => [run.column[i], run.mate[i] === null ? run.column[i] : run.column[run.mate[i]]]);
  return { link, from: d3.min(ends), to: d3.max(ends) };
}

// ── what the page shows now ─────────────────────────────────────────────────────────────────────────────

const recorded = new Run(data.moments, data.texts, data.links);
const page = { run: recorded, step: data.focus ?? (recorded.count ? 0 : -1), walking: null, matches: null, found: [] };
const lanes = data.lanes.length;
const laneHeight = lanes <= 8 ? 48 : 28;

function describe(run, i) {
  if (i < 0) return { who: "", what: "Before the first step." };
  const edge = run.edge_(i), name = run.text("name", i), before = run.text("before", i), state = run.text("state", i);
  const link = run.link[i] === null ? "" : run.links[run.link[i]].name;
  const act = { enter: `${name}: issues ${link}`, exit: `${name}: ${link} completes` }[edge] ?? (link ? `${name} (${link})` : name);
  const where = state === "" ? "" : edge === "enter" ? `, in ${state}` : before === state ? `, stays in ${state}` : `, ${before} → ${state}`;
  const facts = [run.commits[i] ? "commitment point" : "", run.text("phase", i) && `phase ${run.text("phase", i)}`,
    run.chunk[i] === null ? "" : `chunk ${run.chunk[i]}`, run.call_id[i] === null ? "" : `call_id ${run.call_id[i]}`,
    run.call[i] ? `call ${run.call[i]}` : "", run.text("detail", i)].filter(Boolean);
  return { who: `rank${data.lanes[run.lane[i]].rank}`, what: `${act}${where}`, facts: facts.join(", ") };
}

function show(step, { follow = true } = {}) {
  page.step = Math.max(page.walking || !page.run.count ? -1 : 0, Math.min(page.run.count - 1, step));
  const { run, step: i } = page, { who, what, facts } = describe(run, i);
  const now = d3.select("#now").text("");
  now.append("span").attr("class", "who").text(who ? `${who} ` : "");
  now.append("span").text(what + (facts ? ` (${facts})` : ""));
  now.append("span").attr("class", "place").text(run.count ? ` — step ${i + 1} of ${run.count.toLocaleString()}` : "");
  const slider = byId("slider");
  slider.max = Math.max(0, run.count - 1);
  slider.value = i;
  slider.setAttribute("aria-valuetext", `step ${i + 1} of ${run.count}: ${who} ${what}`);
  if (follow) view.follow();
  showLanes();
  lightRoles();
  listSteps();
  draw();
  if (page.walking) offerMoves();
}

// ── lanes: names and states beside the canvas ───────────────────────────────────────────────────────────

function stateOf(lane) {
  const { run, step } = page, i = run.last(lane, step);
  if (i < 0) {
    const first = run.own[lane][0], state = first === undefined ? page.walking?.start[lane] ?? "" : run.text("before", first);
    return { state, inside: "", shown: state, dead: false };
  }
  const inside = run.edge_(i) === "enter" && run.link[i] !== null ? run.links[run.link[i]].name : "";
  const state = run.text("state", i), dead = state === CRASHED;
  return { state, inside, shown: dead ? run.text("before", i) : state, dead };
}

function showLanes() {
  const culprits = new Set(data.finding?.culprits ?? []), current = page.step < 0 ? -1 : page.run.lane[page.step];
  d3.select("#lanes").classed("tight", laneHeight < 40).selectAll("li").data(data.lanes).join((enter) => {
    const item = enter.append("li").style("height", `${laneHeight}px`);
    item.append("b");
    item.append("span");
    return item;
  }).classed("culprit", (d) => culprits.has(d.rank)).classed("now", (_, lane) => lane === current).each(function (d, lane) {
    const { state, inside } = stateOf(lane);
    this.firstChild.textContent = `rank${d.rank}`;
    const none = !page.walking && recorded.count && !recorded.own[lane].length;
    this.lastChild.textContent = none ? "no event" : inside ? `${state} ⇄ ${inside}` : state;
    this.title = this.textContent;
  });
}

// ── roles: current states lit in the diagrams ───────────────────────────────────────────────────────────

function lightRoles() {
  for (const figure of document.querySelectorAll(".role")) {
    const role = figure.dataset.role, here = new Map();
    data.lanes.forEach((lane, at) => {
      if (lane.role !== role) return;
      const { shown, dead } = stateOf(at);
      here.set(shown, [...(here.get(shown) ?? []), `${dead ? "✕ " : ""}rank${lane.rank}`]);
    });
    figure.querySelectorAll(".lit, .taken, .expected").forEach((node) => node.classList.remove("lit", "taken", "expected"));
    figure.querySelectorAll("text.who").forEach((node) => node.remove());
    for (const [state, ranks] of here) light(byId(`${role}.${state}`), ranks);
    const i = page.step;
    if (i < 0 || data.lanes[page.run.lane[i]].role !== role || page.run.text("state", i) === CRASHED) {
      centre(figure, byId(`${role}.${here.keys().next().value}`));
      continue;
    }
    const from = `${role}.${page.run.text("before", i)}`, arrow = byId(`${from}.${page.run.text("name", i)}`);
    if (page.run.edge_(i) !== "enter") arrow?.classList.add("taken");
    if (isFocus(i)) data.finding.expected.forEach((text) => byId(`${from}.${text.split(" ")[0]}`)?.classList.add("expected"));
    centre(figure, arrow ? byId(`${role}.${page.run.text("state", i)}`) : byId(from));
  }
}

function light(node, ranks) {
  if (!node) return;
  node.classList.add("lit");
  const shape = node.querySelector("path, polygon");
  if (!shape) return;
  const box = shape.getBBox(), many = ranks.length > 4;
  const names = many ? `${ranks.slice(0, 3).join(", ")}, … (${ranks.length})` : ranks.join(", ");
  d3.select(node).append("text").attr("class", "who").attr("x", box.x + 2).attr("y", box.y - 4).text(names);
}

function centre(figure, node) {
  if (!node?.getBoundingClientRect) return;
  const outer = figure.getBoundingClientRect(), inner = node.getBoundingClientRect();
  figure.scrollTop += inner.top + inner.height / 2 - outer.top - outer.height / 2;
  figure.scrollLeft += inner.left + inner.width / 2 - outer.left - outer.width / 2;
}

/** The diagrams fill the window below where they begin, so that what is lit is in sight. */
function fitRoles() {
  const box = byId("roles"), beside = getComputedStyle(box).position === "sticky";
  box.style.height = beside ? `${Math.max(360, window.innerHeight - Math.max(50, box.getBoundingClientRect().top) - 12)}px` : "";
}

/** Diagrams are as large as their text needs; what does not fit is scrolled to. */
function sizeRoles() {
  for (const svg of document.querySelectorAll(".role svg")) {
    const { width, height } = svg.viewBox.baseVal;
    svg.style.width = `${width * 0.92}px`;
    svg.style.height = `${height * 0.92}px`;
    svg.querySelector("polygon")?.setAttribute("fill", "none");
    svg.closest(".role").tabIndex = 0;
  }
  document.querySelectorAll(".role .node").forEach((node) => {
    if (/\.(POISONED|ABORTED)$/.test(node.id)) node.classList.add("failed");
  });
}

// ── steps around the current one, as text ───────────────────────────────────────────────────────────────

function listSteps() {
  const { run, step } = page, around = [];
  for (let i = step, left = LIST + 1; i >= 0 && left; i--) if (fits(i)) { around.unshift(i); left--; }
  for (let i = Math.max(step, -1) + 1, left = LIST; i < run.count && left; i++) if (fits(i)) { around.push(i); left--; }
  d3.select("#steps").selectAll("li").data(around, (i) => i).join((enter) => {
    const item = enter.append("li").on("click", (_, i) => show(i));
    item.append("span").attr("class", "number");
    item.append("span");
    item.append("span");
    return item;
  }).order().classed("focus", (i) => isFocus(i)).attr("aria-current", (i) => (i === step ? "step" : null)).each(function (i) {
    const { who, what, facts } = describe(run, i), [number, rank, text] = this.children;
    number.textContent = run.place[i] === null ? `move ${i + 1}` : `${data.places} ${run.place[i]}`;
    rank.textContent = who;
    text.textContent = what;
    text.title = facts;
  });
}

const isFocus = (i) => page.run === recorded && data.finding !== null && i === data.focus;
const fits = (i) => page.matches === null || page.matches[i] === 1;

// ── the canvas ──────────────────────────────────────────────────────────────────────────────────────────

const canvas = byId("canvas"), pen = canvas.getContext("2d");
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const ink = {};
const fills = new Map();

function readColours() {
  for (const name of ["paper", "ink", "soft", "line", "stripe", "accent", "now", "bad", "pale-bad", "amber"]) ink[name] = colour(`--${name}`);
  const dark = document.documentElement.dataset.theme === "dark";
  for (const [phase, fill] of Object.entries(data.colours)) {
    const { h, c, l } = d3.hcl(fill);
    fills.set(phase, { box: dark ? d3.hcl(h, c * 1.6, 34).formatHex() : d3.hcl(h, c * 1.2, l).formatHex(), thin: d3.hcl(h, c * 2.6, dark ? 50 : 74).formatHex() });
  }
}

const view = {
  at: d3.zoomIdentity,
  zoom: d3.zoom().filter((event) => (event.type === "wheel" ? event.ctrlKey || event.metaKey : !event.button)),
  get width() { return canvas.clientWidth; },
  x(column) { return this.at.applyX(column); },
  /** `k` is the pixels that a column takes, `x` where column 0 begins. */
  set(k, x) { d3.select(canvas).call(this.zoom.transform, d3.zoomIdentity.translate(x, 0).scale(k)); },
  centre(column, k = this.at.k) { this.set(k, this.width / 2 - (column + 0.5) * k); },
  limits() {
    const least = Math.min(WIDE, this.width / (page.run.columns + 2));
    this.zoom.scaleExtent([least, 260]).translateExtent([[-this.width / 2, 0], [page.run.columns + this.width / 2, 1]]);
    return least;
  },
  /** Bring the current step into sight, if it is not. */
  follow() {
    if (page.step < 0) return;
    const x = this.x(page.run.column[page.step]);
    if (x < 20 || x + this.at.k > this.width - 20) this.centre(page.run.column[page.step]);
  },
};

function size() {
  const ratio = window.devicePixelRatio || 1, callout = byId("callout");
  callout.hidden = !(data.finding && data.focus !== null && page.run === recorded);
  const height = AXIS + lanes * laneHeight + (callout.hidden ? 6 : callout.offsetHeight + 20);
  canvas.style.height = `${height}px`;
  canvas.width = Math.round(canvas.clientWidth * ratio);
  canvas.height = Math.round(height * ratio);
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  view.height = height;
  view.limits();
  fitRoles();
}

const top_ = (lane) => AXIS + lane * laneHeight;

function draw() {
  const { run } = page, k = view.at.k, width = view.width;
  pen.clearRect(0, 0, width, view.height);
  const from = Math.floor(view.at.invertX(0)) - 1, to = Math.ceil(view.at.invertX(width)) + 1;
  drawGround(from, to, k, width);
  for (let lane = 0; lane < lanes; lane++) (k >= 5 ? drawLane : drawFar)(lane, from, to, k);
  if (k >= LINKS_FROM) drawLinks(from, to, k);
  placeCallout(k);
}

function drawGround(from, to, k, width) {
  const { run, step } = page, bottom = top_(lanes);
  for (let lane = 0; lane < lanes; lane++) {
    if (lane % 2) { pen.fillStyle = ink.stripe; pen.fillRect(0, top_(lane), width, laneHeight); }
  }
  if (step >= 0) { pen.fillStyle = ink.now; pen.fillRect(view.x(run.column[step]), AXIS, Math.max(k, 2), bottom - AXIS); }
  pen.font = "10px system-ui, sans-serif";
  pen.textAlign = "left";
  const every = d3.tickStep(from, to, Math.max(2, width / 90)) || 1;
  for (let column = Math.max(0, Math.ceil(from / every) * every); column <= Math.min(to, run.columns); column += Math.max(1, every)) {
    pen.fillStyle = ink.line;
    pen.fillRect(view.x(column), AXIS - 5, 1, 5);
    pen.fillStyle = ink.soft;
    pen.fillText(String(column + 1), view.x(column) + 3, AXIS - 8);
  }
}

/** The first moment of a lane whose bar may reach into sight. */
function firstInSight(own, from) {
  const { run } = page;
  return Math.max(0, d3.bisector((i) => run.column[i]).left(own, from) - 1);
}

function drawFar(lane, from, to, k) {
  const { run } = page, own = run.own[lane];
  let drawn = -1;
  for (let at = firstInSight(own, from); at < own.length; at++) {
    const i = own[at], x = Math.floor(view.x(run.column[i]));
    if (run.column[i] > to) break;
    const bad = run.edge_(i) === "fault";
    if (x <= drawn && !bad && !isFocus(i)) continue;
    pen.globalAlpha = fits(i) ? 1 : 0.12;
    pen.fillStyle = bad || isFocus(i) ? ink.bad : fills.get(run.text("phase", i))?.thin ?? ink.soft;
    const end = Math.max(x + 1, Math.ceil(view.x(run.until(i))));
    pen.fillRect(x, top_(lane) + 6, end - x, laneHeight - 12);
    drawn = Math.max(drawn, x);
  }
  pen.globalAlpha = 1;
}

function drawLane(lane, from, to, k) {
  const { run } = page, own = run.own[lane];
  for (let at = firstInSight(own, from); at < own.length; at++) {
    const i = own[at];
    if (run.column[i] > to) break;
    if (run.edge_(i) === "exit" && run.mate[i] !== null && run.place_[run.mate[i]] === run.place_[i] - 1) continue; // part of its bar
    drawBox(i, lane, k);
  }
  pen.globalAlpha = 1;
}

function drawBox(i, lane, k) {
  const { run, step } = page, edge = run.edge_(i), open = run.open(i), bad = edge === "fault" || isFocus(i);
  const x = view.x(run.column[i]) + 1.5, w = Math.max(1.5, view.x(run.until(i)) - x - 1.5), y = top_(lane) + 4, h = laneHeight - 8;
  pen.globalAlpha = !fits(i) ? 0.12 : i > step ? 0.62 : 1;
  const outline = new Path2D();
  outline.roundRect(x, y, w, h, 4);
  pen.fillStyle = edge === "fault" ? ink["pale-bad"] : fills.get(run.text("phase", i))?.box ?? ink.stripe;
  pen.fill(outline);
  if (open && !page.walking) hatch(outline, x, y, w, h);
  const current = i === step || (run.mate[i] === step && edge === "enter");
  pen.strokeStyle = bad ? ink.bad : current ? ink.accent : run.commits[i] ? ink.amber : ink.line;
  pen.lineWidth = bad || current ? 3 : run.commits[i] ? 2 : 1;
  pen.setLineDash(edge === "enter" && open ? [5, 4] : []);
  pen.stroke(outline);
  pen.setLineDash([]);
  if (k >= TEXT_FROM) label(i, Math.max(x, 0), y, Math.min(x + w, view.width) - Math.max(x, 0), h);
}

/** Never came to its end. */
function hatch(outline, x, y, w, h) {
  pen.save();
  pen.clip(outline);
  pen.strokeStyle = ink.bad;
  pen.globalAlpha *= 0.35;
  pen.lineWidth = 1.5;
  pen.beginPath();
  for (let at = Math.max(x, -20) - h; at < Math.min(x + w, view.width + 20); at += 9) { pen.moveTo(at, y + h); pen.lineTo(at + h, y); }
  pen.stroke();
  pen.restore();
}

function label(i, x, y, w, h) {
  const { run } = page, link = run.link[i] === null ? null : run.links[run.link[i]];
  const name = run.text("name", i), lines = [];
  pen.font = "600 11px system-ui, sans-serif";
  const wrapped = wrap(run.edge_(i) === "fault" ? `✕ ${name}` : run.commits[i] ? `◆ ${name}` : name, w - 8, link || h < 30 ? 1 : 2);
  lines.push(...wrapped);
  const open = run.open(i), waits = open ? (page.walking ? " …" : " … waits") : "";
  const under = h < 30 || lines.length > 1 ? "" : link ? `⇄ ${link.name}${waits}` : run.text("phase", i);
  pen.fillStyle = run.edge_(i) === "fault" || isFocus(i) ? ink.bad : ink.ink;
  pen.textAlign = "left";
  pen.textBaseline = "middle";
  const rows = lines.length + (under ? 1 : 0), first = y + h / 2 - (rows - 1) * 6.5;
  lines.forEach((line, at) => pen.fillText(line, x + 4, first + at * 13));
  if (under) {
    pen.font = "11px system-ui, sans-serif";
    if (!open) pen.fillStyle = ink.soft;
    pen.fillText(fit(under, w - 8), x + 4, first + lines.length * 13);
  }
  pen.textBaseline = "alphabetic";
}

function wrap(text, room, rows) {
  if (rows === 1 || pen.measureText(text).width <= room) return [fit(text, room)];
  const parts = text.split(/(?<=_)/), lines = [""];
  for (const part of parts) {
    if (lines.length < rows && lines.at(-1) && pen.measureText(lines.at(-1) + part).width > room) lines.push("");
    lines[lines.length - 1] += part;
  }
  return lines.map((line) => fit(line, room));
}

function fit(text, room) {
  if (pen.measureText(text).width <= room) return text;
  let end = text.length;
  while (end > 0 && pen.measureText(`${text.slice(0, end)}…`).width > room) end--;
  return end ? `${text.slice(0, end)}…` : "";
}

/** Collectives: a line through their members from lane to lane, and a mark where one never came. */
function drawLinks(from, to, k) {
  const { run } = page, { drawn } = run;
  for (let at = Math.max(0, d3.bisector((s) => s.from).left(drawn, from - run.widest)); at < drawn.length && drawn[at].from <= to; at++) {
    if (drawn[at].to >= from) drawLink(drawn[at].link, k);
  }
}

function drawLink(link, k) {
  const { run } = page, there = new Map(link.parts.map((i) => [run.lane[i], i]));
  const done = (i) => run.column[run.mate[i] ?? i], begun = (i) => run.column[i];
  const end = extent(link.parts, done) < extent(link.parts, begun) ? done : begun;
  const x = (i) => view.x(end(i)) + k * AT; // right of the words
  const points = link.members.filter((lane) => there.has(lane)).sort(d3.ascending).map((lane) => [x(there.get(lane)), top_(lane) + laneHeight - 7]);
  const missing = page.walking ? [] : link.members.filter((lane) => !there.has(lane));
  const focused = page.step >= 0 && run.link[page.step] !== null && run.links[run.link[page.step]] === link;
  pen.lineWidth = focused ? 3 : 1.6;
  pen.strokeStyle = missing.length ? ink.bad : ink.accent;
  pen.globalAlpha = focused || missing.length ? 0.95 : 0.5;
  pen.beginPath();
  const curve = d3.linkVertical().context(pen);
  d3.pairs(points, (source, target) => curve({ source, target }));
  pen.stroke();
  pen.fillStyle = pen.strokeStyle;
  for (const [px, py] of points) { pen.beginPath(); pen.arc(px, py, focused ? 5 : 3.5, 0, 2 * Math.PI); pen.fill(); }
  const column = d3.max(link.parts, (i) => run.column[i]);
  for (const lane of missing) drawMissing(lane, view.x(column) + k * AT, points);
  pen.globalAlpha = 1;
}

const extent = (parts, end) => d3.max(parts, end) - d3.min(parts, end);

function drawMissing(lane, x, points) {
  const y = top_(lane) + laneHeight - 11, near = d3.least(points, ([, py]) => Math.abs(py - y));
  pen.setLineDash([3, 3]);
  pen.beginPath();
  d3.linkVertical().context(pen)({ source: near, target: [x, y] });
  pen.stroke();
  pen.setLineDash([]);
  pen.beginPath();
  pen.arc(x, y, 8, 0, 2 * Math.PI);
  pen.fillStyle = ink.paper;
  pen.fill();
  pen.stroke();
  pen.fillStyle = ink.bad;
  pen.font = "700 12px system-ui, sans-serif";
  pen.textAlign = "center";
  pen.fillText("?", x, y + 4);
}

function placeCallout(k) {
  const callout = byId("callout"), { run } = page, i = data.focus;
  const x = run === recorded && data.finding && i !== null ? view.x(run.column[i]) + k / 2 : -1;
  callout.hidden = x < 0 || x > view.width;
  if (callout.hidden) return;
  const bottom = top_(lanes) + 10;
  pen.strokeStyle = ink.bad;
  pen.lineWidth = 2;
  pen.setLineDash([4, 3]);
  pen.beginPath();
  pen.moveTo(x, top_(run.lane[i]) + laneHeight - 3);
  pen.lineTo(x, bottom);
  pen.stroke();
  pen.setLineDash([]);
  callout.style.top = `${bottom}px`;
  callout.style.left = `${Math.max(4, Math.min(x - callout.offsetWidth / 2, view.width - callout.offsetWidth - 4))}px`;
}

function momentAt(px, py) {
  const { run } = page, lane = Math.floor((py - AXIS) / laneHeight);
  if (lane < 0 || lane >= lanes) return -1;
  const own = run.own[lane], column = Math.floor(view.at.invertX(px));
  const at = d3.bisector((i) => run.column[i]).right(own, column) - 1;
  return at >= 0 && column < run.until(own[at]) ? own[at] : -1;
}

// ── stepping, filter, search ────────────────────────────────────────────────────────────────────────────

function move(by, sameRank = false) {
  let i = page.step;
  const lane = i < 0 ? -1 : page.run.lane[i];
  for (let left = Math.abs(by); left; left--) {
    let next = i + Math.sign(by);
    while (next >= 0 && next < page.run.count && !(fits(next) && (!sameRank || page.run.lane[next] === lane))) next += Math.sign(by);
    if (next < (page.walking ? -1 : 0) || next >= page.run.count) break;
    i = next;
  }
  show(i);
}

function filter() {
  const phase = byId("phase").value, words = byId("words").value.trim().toLowerCase(), { run } = page;
  page.matches = null;
  if (phase || words) {
    const has = run.texts.map((text) => text.toLowerCase().includes(words));
    page.matches = Uint8Array.from({ length: run.count }, (_, i) =>
      Number((!phase || run.text("phase", i) === phase) && (!words || has[run.name[i]] || has[run.state[i]] || has[run.before[i]])));
  }
  listSteps();
  draw();
}

function search() {
  const wanted = Number(byId("query").value), { run } = page;
  page.found = [];
  if (byId("query").value.trim() !== "" && Number.isInteger(wanted)) {
    for (let i = 0; i < run.count; i++) if (run.call_id[i] === wanted) page.found.push(i);
  }
  byId("found").textContent = byId("query").value.trim() === "" ? "" : page.found.length ? `${page.found.length} events` : "none";
  if (page.found.length) show(page.found[0]);
}

function nextFound() {
  if (page.found.length) show(page.found.find((i) => i > page.step) ?? page.found[0]);
}

// ── the explorer: the next move is the reader's ─────────────────────────────────────────────────────────

class Walk {
  /** From the state after moment `upTo` of the run that the page holds. */
  constructor(upTo) {
    const at = Math.min(upTo + 1, data.walk.spine.length - 1);
    this.kept = at; // moments of the run that stay in front
    this.states = [data.walk.spine[at]];
    this.labels = [];
    this.start = data.lanes.map((_, lane) => this.view(data.walk.spine[0], lane)[0]);
  }
  get state() { return this.states.at(-1); }
  view(state, lane) { return data.walk.views[data.walk.locals[state * data.lanes.length + lane]]; }
  moves() {
    const { starts, moves, labels } = data.walk, found = [];
    for (let m = starts[this.state]; m < starts[this.state + 1]; m++) found.push({ label: labels[moves[2 * m]], number: moves[2 * m], target: moves[2 * m + 1] });
    return found;
  }
  /** The run so far, the walked moves behind it. */
  run() {
    const texts = [...data.texts], number = new Map(texts.map((text, at) => [text, at]));
    const intern = (text) => number.get(text) ?? (number.set(text, texts.push(text) - 1), texts.length - 1);
    const moments = Object.fromEntries(Object.entries(data.moments).map(([name, column]) => [name, column.slice(0, this.kept)]));
    moments.mate = moments.mate.map((mate) => (mate === null || mate >= this.kept ? null : mate));
    const links = data.links.map((link) => [...link]), known = new Map(); // of a collective by how many came before it
    const counts = new Map(), opened = new Map();
    const count = (lane, op, edge) => { const key = `${lane} ${op} ${edge}`; counts.set(key, (counts.get(key) ?? 0) + 1); return counts.get(key); };
    for (let i = 0; i < this.kept; i++) {
      if (moments.link[i] === null) continue;
      const op = texts[links[moments.link[i]][0]].split(" #")[0], edge = texts[moments.edge[i]], lane = moments.lane[i];
      const name = `${op} #${count(lane, op, edge)}`;
      if (edge !== "enter") continue;
      known.set(name, moments.link[i]);
      opened.set(`${lane} ${name}`, i);
    }
    this.labels.forEach((label, at) => this.append(moments, data.walk.labels[label], at, { intern, links, known, count, opened }));
    return new Run(moments, texts, links);
  }
  append(moments, [rank, event, edge, op, commits, , decided], at, { intern, links, known, count, opened }) {
    const i = moments.lane.length, ends = { issue: "enter", complete: "exit", device: "exit", crash: "fault", stall: "fault", killed: "fault" };
    const mine = ends[edge] ?? "step", before = this.view(this.states[at], rank), after = this.view(this.states[at + 1], rank);
    let link = null, mate = null;
    if (op && (mine === "enter" || mine === "exit")) {
      const name = `${op} #${count(rank, op, mine)}`;
      if (!known.has(name)) known.set(name, links.push([intern(name), data.walk.roots[op] ?? -1, ...data.lanes.keys()]) - 1);
      link = known.get(name);
      if (mine === "enter") opened.set(`${rank} ${name}`, i);
      else { mate = opened.get(`${rank} ${name}`) ?? null; if (mate !== null) moments.mate[mate] = i; }
    }
    const row = { lane: rank, column: 1 + (d3.max(moments.column) ?? -1), name: intern(edge === "crash" ? "dies" : event), edge: intern(mine), before: intern(before[0]), state: intern(after[0]),
      phase: intern(phaseOf(rank, before[0])), call_id: null, chunk: null, call: null, mate, link,
      commits: Number(commits && mine !== "exit"), place: null, detail: intern([decided, after[2]].filter(Boolean).join(" ")) };
    for (const [name, value] of Object.entries(row)) moments[name].push(value);
  }
}

const phaseOf = (lane, state) => data.phases[data.lanes[lane].role]?.[state] ?? "";

function walkFrom(step) {
  page.walking = new Walk(step);
  rebuild();
}

function rebuild() {
  page.run = page.walking ? page.walking.run() : recorded;
  page.step = Math.min(page.step, page.run.count - 1);
  page.matches = null;
  byId("watch").setAttribute("aria-pressed", String(!page.walking));
  byId("walk").setAttribute("aria-pressed", String(Boolean(page.walking)));
  byId("choices").hidden = !page.walking;
  byId("divergence").hidden = data.focus === null || data.finding === null || Boolean(page.walking);
  size();
  filter();
}

function choose({ label, number, target }) {
  page.walking.labels.push(number);
  page.walking.states.push(target);
  rebuild();
  show(page.run.count - 1);
  const card = byId("cards").children[label[0]]; // so that the keyboard stays where it was
  (card.querySelector("button") ?? byId("cards").querySelector("button") ?? canvas).focus({ preventScroll: true });
}

/** Back in a walk takes moves back. */
function undo() {
  if (page.walking.labels.length) {
    page.walking.labels.pop();
    page.walking.states.pop();
  } else if (page.walking.kept) {
    page.walking = new Walk(page.walking.kept - 2);
  }
  rebuild();
  show(page.run.count - 1);
}

const WHOSE = { own: "", world: "the world asks", fault: "what if", detection: "detection" };
const SAID = { issue: (event, op) => `${event}: issue ${op}`, complete: (event, op) => `${event}: ${op} completes`, device: (_, op) => `${op} completes on its stream`,
  crash: () => "dies here", stall: () => "stalls here", killed: () => "is killed", resume: () => "resumes" };

function offerMoves() {
  const walk = page.walking, cards = d3.select("#cards").text(""), { starts, waits, waiting, complete } = data.walk;
  const waitsNow = waits[waiting[walk.state]] ?? "", moves = walk.moves(), order = Object.keys(WHOSE);
  let told = `Walking by hand, moves of your own: ${walk.labels.length}. ← takes one back.`;
  if (!moves.length) {
    const beyond = !complete && walk.state > 0 && starts[walk.state] === starts[walk.state + 1] && !ended(walk);
    told = beyond ? "What follows was not worked out beforehand: take a move back." : waitsNow ? "Nobody can move any more." : "Every rank has ended.";
  }
  byId("told").textContent = told;
  byId("waits").textContent = waitsNow;
  data.lanes.forEach((lane, at) => {
    const [state, op, vars] = walk.view(walk.state, at), card = cards.append("section").attr("class", "rank");
    card.append("h2").text(`rank${lane.rank} · ${state}${op ? ` ⇄ ${op}` : ""}`);
    if (vars) card.append("small").text(vars);
    const own = moves.filter(({ label }) => label[0] === at).sort((a, b) => order.indexOf(a.label[5]) - order.indexOf(b.label[5]));
    for (const option of own) {
      const [, event, edge, name, , whose, decided] = option.label;
      const button = card.append("button").attr("type", "button").attr("class", whose).on("click", () => choose(option));
      button.append("span").text((WHOSE[whose] ? `${WHOSE[whose]}: ` : "") + (SAID[edge]?.(event, name) ?? event));
      if (decided) button.append("small").text(decided);
    }
    if (!own.length) card.append("small").text("no move");
  });
}

const ended = (walk) => data.lanes.every((_, at) => /^(STOPPED|ABORTED|CRASHED)$/.test(walk.view(walk.state, at)[0]));

// ── what stands still: title, finding, notes ────────────────────────────────────────────────────────────

function showFinding() {
  byId("title").textContent = data.title;
  byId("summary").textContent = data.summary;
  byId("verdict").textContent = data.verdict;
  byId("verdict").classList.add(data.verdict.replaceAll(" ", "-"));
  byId("notes").hidden = !data.notes.length;
  d3.select("#notes").selectAll("li").data(data.notes).join("li").text((note) => note);
  d3.select("#phase").selectAll("option.own").data(Object.keys(data.colours)).join("option").attr("class", "own").attr("value", (p) => p).text((p) => p);
  byId("modes").hidden = data.walk === null || !recorded.count;
  byId("search").hidden = data.moments.call_id.every((id) => id === null);
  document.querySelector("main").classList.toggle("alone", !document.querySelector(".role"));
  const finding = data.finding;
  byId("divergence").hidden = data.focus === null || finding === null;
  if (finding === null) return;
  const box = d3.select("#finding").attr("hidden", null);
  box.append("h2").text(finding.head);
  const pairs = (rows) => {
    const list = box.append("dl");
    for (const [name, text] of rows) { list.append("dt").text(name); list.append("dd").attr("class", name).text(text); }
    return list;
  };
  pairs(finding.facts);
  const expected = finding.expected.join(" or ") || "nothing";
  pairs([["seen", finding.seen], ["expected", expected], ["cause", finding.why]]);
  const blame = finding.culprits.map((rank) => `rank${rank}`).join(", ") || "unknown";
  const last = box.append("div");
  last.append("dl").call((list) => { list.append("dt").text("culprit"); list.append("dd").attr("class", "culprits").text(blame); });
  last.append("ul").attr("tabindex", 0).attr("aria-label", "left waiting").selectAll("li").data(finding.waits).join("li").text((wait) => wait);
  const callout = d3.select("#callout");
  for (const [name, text] of [["seen", finding.seen], ["expected", expected]]) {
    const line = callout.append("div");
    line.append("b").text(name);
    line.append("span").text(text);
  }
}

function showChecklist() {
  const words = byId("sought").value.trim().toLowerCase(), bad = byId("bad").checked;
  const shown = data.checklist.filter((item) => (!bad || !item.good) && `${item.key} ${item.claim}`.toLowerCase().includes(words));
  d3.select("#items").selectAll("li").data(shown, (item) => item.key).join((enter) => {
    const line = enter.append("li").classed("bad", (item) => !item.good);
    line.append("b").text((item) => item.key);
    line.append("span").text((item) => item.status);
    const said = line.append("div").text((item) => item.claim);
    said.selectAll("small").data((item) => item.evidence).join("small").text((text) => text);
    return line;
  }).order();
}

function theme(dark) {
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  readColours();
  draw();
}

// ── hands: buttons, keys, mouse ─────────────────────────────────────────────────────────────────────────

const toDivergence = () => { view.centre(recorded.column[data.focus], Math.max(view.at.k, WIDE)); show(data.focus); };
const closer = (by) => d3.select(canvas).call(view.zoom.scaleBy, by, [page.step < 0 ? view.width / 2 : view.x(page.run.column[page.step] + 0.5), 0]);
const whole = () => view.set(view.limits(), view.limits());
const back = () => (page.walking && page.step === page.run.count - 1 ? undo() : move(-1));

const KEYS = {
  ArrowRight: (event) => move(1, event.shiftKey), ArrowLeft: (event) => (event.shiftKey ? move(-1, true) : back()),
  PageDown: () => move(10), PageUp: () => move(-10), Home: () => show(0), End: () => show(page.run.count - 1),
  "+": () => closer(1.6), "=": () => closer(1.6), "-": () => closer(1 / 1.6), 0: whole,
  d: () => byId("divergence").hidden || toDivergence(), n: nextFound, "/": () => byId("query").focus(),
  t: () => theme(document.documentElement.dataset.theme !== "dark"),
};

function listen() {
  const click = (id, act) => byId(id).addEventListener("click", act);
  click("start", () => show(0));
  click("end", () => show(page.run.count - 1));
  click("back", back);
  click("on", () => move(1));
  click("divergence", toDivergence);
  click("closer", () => closer(1.6));
  click("wider", () => closer(1 / 1.6));
  click("whole", whole);
  click("theme", KEYS.t);
  click("walk", () => { walkFrom(page.step); show(page.run.count - 1); });
  click("watch", () => { const at = page.walking?.kept ?? 0; page.walking = null; rebuild(); show(Math.min(at, recorded.count - 1)); });
  byId("sought").addEventListener("input", showChecklist);
  byId("bad").addEventListener("change", showChecklist);
  byId("slider").addEventListener("input", (event) => show(Number(event.target.value)));
  byId("phase").addEventListener("change", filter);
  byId("words").addEventListener("input", filter);
  byId("query").addEventListener("input", search);
  byId("search").addEventListener("submit", (event) => { event.preventDefault(); nextFound(); });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") document.activeElement?.blur();
    const typing = event.target.matches("input, select, textarea"), key = KEYS[event.key];
    if (!key || typing || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.matches("button") && event.key === " ") return;
    event.preventDefault();
    key(event);
  });
  d3.select(canvas).call(view.zoom.on("zoom", ({ transform }) => { view.at = transform; draw(); })).on("dblclick.zoom", null)
    .on("click", (event) => { const i = momentAt(...d3.pointer(event)); if (i >= 0) show(i, { follow: false }); })
    .on("wheel.pan", (event) => { if (!event.ctrlKey && event.deltaX) { event.preventDefault(); d3.select(canvas).call(view.zoom.translateBy, -event.deltaX / view.at.k, 0); } });
  window.addEventListener("resize", () => { size(); draw(); });
  window.addEventListener("scroll", fitRoles, { passive: true });
  let screen = null;
  window.addEventListener("beforeprint", () => { screen = document.documentElement.dataset.theme; theme(false); });
  window.addEventListener("afterprint", () => theme(screen === "dark"));
}

function open() {
  document.documentElement.dataset.theme = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  readColours();
  showFinding();
  byId("checklist").hidden = !data.checklist.length;
  showChecklist();
  for (const id of ["controls", "left"]) byId(id).hidden = !lanes;
  sizeRoles();
  size();
  listen();
  view.centre(page.step < 0 ? 0 : recorded.column[page.step], WIDE);
  if (!recorded.count && data.walk) walkFrom(-1);
  show(page.step);
}

open();

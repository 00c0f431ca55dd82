// The map as a canvas: every feature a point; hover names it, a click opens it; drag moves, the wheel zooms.
import { shown } from "./numbers.js";

const LOGARITHMIC = new Set(["density", "max"]);

function ramp(root) {
  const parse = (name) => getComputedStyle(root.querySelector(name)).color.match(/[\d.]+/g).slice(0, 3).map(Number);
  const [low, high] = [parse(".probe-low"), parse(".probe-high")];
  return Array.from({ length: 64 }, (_, i) => {
    const part = low.map((value, j) => Math.round(value + ((high[j] - value) * i) / 63));
    return `rgb(${part.join(" ")})`;
  });
}

function scaled(values, logarithmic) {
  const usable = values.filter((value) => value > 0 || !logarithmic).sort((a, b) => a - b);
  const at = (share) => usable[Math.min(usable.length - 1, Math.floor(share * usable.length))] ?? 0;
  const [low, high] = [at(0.005), at(0.995)];
  const f = logarithmic ? (value) => Math.log(Math.max(value, 1e-12)) : (value) => value;
  const span = f(high) - f(low) || 1;
  return { low, high, place: values.map((value) => Math.min(63, Math.max(0, Math.round((63 * (f(value) - f(low))) / span)))) };
}

class Plot {
  constructor(root, data) {
    this.root = root;
    this.data = data;
    this.view = { x: 0, y: 0, zoom: 1 };
    this.hovered = -1;
    this.matches = null;
    this.canvas = document.createElement("canvas");
    this.canvas.tabIndex = 0;
    this.canvas.setAttribute("role", "img");
    this.canvas.setAttribute("aria-label", root.querySelector("svg").getAttribute("aria-label").replace(/^Map of .* of/, "Map of"));
    root.append(this.canvas);
    root.classList.add("drawn");
    this.chosen = "chosen" in root.dataset ? data.ids.indexOf(Number(root.dataset.chosen)) : -1;
    this.colour(root.dataset.by);
    this.listen();
    new ResizeObserver(() => this.resize()).observe(root);
    this.resize();
  }

  colour(by) {
    this.by = by;
    this.scale = scaled(this.data.by[by], LOGARITHMIC.has(by));
    this.order = this.data.ids.map((_, i) => i).sort((a, b) => this.scale.place[a] - this.scale.place[b]);
    document.querySelector("#map-low").textContent = shown(this.scale.low, 2);
    document.querySelector("#map-high").textContent = shown(this.scale.high, 2);
  }

  resize() {
    this.ratio = devicePixelRatio || 1;
    this.width = this.root.clientWidth;
    this.height = this.root.clientHeight;
    this.canvas.width = this.width * this.ratio;
    this.canvas.height = this.height * this.ratio;
    this.draw();
  }

  place(i) {
    const x = 20 + (this.width - 40) * this.data.x[i];
    const y = 20 + (this.height - 40) * (1 - this.data.y[i]);
    return [(x - this.width / 2) * this.view.zoom + this.width / 2 + this.view.x, (y - this.height / 2) * this.view.zoom + this.height / 2 + this.view.y];
  }

  draw() {
    const c = this.canvas.getContext("2d");
    const colours = ramp(this.root);
    const mark = getComputedStyle(this.root.querySelector(".probe-mark")).color;
    c.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    c.clearRect(0, 0, this.width, this.height);
    const size = Math.min(6, Math.max(1.4, 150 / Math.sqrt(this.data.ids.length)) * Math.sqrt(this.view.zoom));
    for (const i of this.order) {
      const [x, y] = this.place(i);
      if (x < -9 || y < -9 || x > this.width + 9 || y > this.height + 9) continue;
      c.globalAlpha = this.matches ? (this.matches.has(i) ? 1 : 0.12) : 0.85;
      c.fillStyle = colours[this.scale.place[i]];
      c.beginPath();
      c.arc(x, y, this.matches?.has(i) ? size + 1.5 : size, 0, 2 * Math.PI);
      c.fill();
    }
    c.globalAlpha = 1;
    for (const i of [this.chosen, this.hovered]) {
      if (i < 0) continue;
      const [x, y] = this.place(i);
      c.strokeStyle = mark;
      c.lineWidth = 2.5;
      c.beginPath();
      c.arc(x, y, size + 4, 0, 2 * Math.PI);
      c.stroke();
    }
  }

  nearest(x, y) {
    let best = -1;
    let least = 14 * 14;
    for (let i = 0; i < this.data.ids.length; i++) {
      const [a, b] = this.place(i);
      const far = (a - x) ** 2 + (b - y) ** 2;
      if (far < least) [best, least] = [i, far];
    }
    return best;
  }

  name(i) {
    const id = this.data.ids[i];
    return `#${id}  ${this.data.labels[id] ?? this.data.tokens[this.data.token[i]]}`;
  }

  hover(i, event) {
    if (i !== this.hovered) {
      this.hovered = i;
      this.draw();
    }
    this.tip ||= document.body.appendChild(Object.assign(document.createElement("div"), { id: "tip", role: "tooltip" }));
    this.tip.hidden = i < 0;
    this.canvas.style.cursor = i < 0 ? "grab" : "pointer";
    if (i < 0) return;
    const quiet = Object.assign(document.createElement("span"), { className: "quiet" });
    quiet.textContent = Object.entries(this.data.by).map(([key, values]) => `${key} ${shown(values[i], 2)}`).join(", ");
    this.tip.replaceChildren(Object.assign(document.createElement("bdi"), { className: "token", textContent: this.name(i) }), quiet);
    this.tip.style.left = `${Math.min(event.clientX + 12, innerWidth - this.tip.offsetWidth - 8)}px`;
    this.tip.style.top = `${event.clientY + 14}px`;
  }

  open(i) {
    const url = new URL(this.root.dataset.base + this.data.ids[i], location.href);
    const theme = new URL(location.href).searchParams.get("theme");
    if (theme) url.searchParams.set("theme", theme);
    location.href = url;
  }

  listen() {
    let held = null;
    const at = (event) => {
      const box = this.canvas.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    this.canvas.addEventListener("pointerdown", (event) => {
      held = { x: event.clientX, y: event.clientY, view: { ...this.view }, moved: false };
      this.canvas.setPointerCapture(event.pointerId);
    });
    this.canvas.addEventListener("pointermove", (event) => {
      if (!held) return this.hover(this.nearest(...at(event)), event);
      const [x, y] = [event.clientX - held.x, event.clientY - held.y];
      held.moved ||= Math.hypot(x, y) > 4;
      if (held.moved) {
        this.view = { ...held.view, x: held.view.x + x, y: held.view.y + y };
        this.draw();
      }
    });
    this.canvas.addEventListener("pointerup", (event) => {
      const i = held && !held.moved ? this.nearest(...at(event)) : -1;
      held = null;
      if (i >= 0) this.open(i);
    });
    this.canvas.addEventListener("pointerleave", (event) => this.hover(-1, event));
    this.canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      const [x, y] = at(event);
      this.zoom(Math.exp(-event.deltaY * 0.0015), x, y);
    }, { passive: false });
    this.canvas.addEventListener("dblclick", () => this.reset());
    this.canvas.addEventListener("keydown", (event) => this.key(event));
  }

  zoom(by, x = this.width / 2, y = this.height / 2) {
    const zoom = Math.min(60, Math.max(1, this.view.zoom * by));
    const real = zoom / this.view.zoom;
    this.view = { zoom, x: (this.view.x - x + this.width / 2) * real + x - this.width / 2, y: (this.view.y - y + this.height / 2) * real + y - this.height / 2 };
    if (zoom === 1) this.view = { x: 0, y: 0, zoom: 1 };
    this.draw();
  }

  reset() {
    this.view = { x: 0, y: 0, zoom: 1 };
    this.draw();
  }

  key(event) {
    const step = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] }[event.key];
    if (step) this.view = { ...this.view, x: this.view.x + step[0], y: this.view.y + step[1] };
    else if (event.key === "+" || event.key === "=") return this.zoom(1.4);
    else if (event.key === "-") return this.zoom(1 / 1.4);
    else if (event.key === "0") return this.reset();
    else return;
    event.preventDefault();
    this.draw();
  }

  find(query) {
    const text = query.trim().toLowerCase();
    const wanted = (i) => (text.startsWith("#") ? `#${this.data.ids[i]}` === text : this.name(i).toLowerCase().includes(text));
    this.matches = text ? new Set(this.data.ids.map((_, i) => i).filter(wanted)) : null;
    document.querySelector("#map-said").textContent = this.matches ? `${this.matches.size} found` : "";
    this.draw();
  }
}

export async function map(root) {
  const response = await fetch(root.dataset.points);
  if (!response.ok) return;
  const plot = new Plot(root, await response.json());
  for (const part of document.querySelectorAll(".scripted")) part.hidden = false;
  document.querySelector("#map-find").addEventListener("input", (event) => plot.find(event.target.value));
  document.addEventListener("themed", () => plot.draw());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plot.draw());
}

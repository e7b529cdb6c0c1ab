"use strict";
const views = JSON.parse(document.getElementById("data").textContent);

function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key === "style") made.style.cssText = value;
    else if (key.startsWith("aria") || key === "role") made.setAttribute(key, value);
    else made[key] = value;
  }
  made.append(...children);
  return made;
}
const percent = (share) => share === null ? "" : share < 0.0005 && share > 0 ? "<0.1 %" : `${(100 * share).toFixed(1)} %`;
const tint = (name, strength) => `rgb(var(--${name}) / ${Math.min(1, Math.max(0, strength)).toFixed(3)})`;

/* The one chosen cell of a group; arrow keys move the focus. */
function choose(group, button) {
  group.querySelectorAll(".chosen").forEach((each) => each.classList.remove("chosen"));
  button.classList.add("chosen");
}
function arrows(table, columns) {
  table.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
    if (!step) return;
    const cells = [...table.querySelectorAll(".cell")];
    const next = cells[cells.indexOf(document.activeElement) + step];
    if (next) { next.focus(); next.click(); event.preventDefault(); }
  });
}

const draw = {
  lens(place, view) {
    const detail = element("div", { className: "detail", role: "status" });
    const table = element("table", { className: "cells" });
    const by = element("select", {}, ...[["probability of its first guess", "top"], ["probability of the right token", "right"], ["entropy", "entropy"]]
      .map(([words, value]) => element("option", { value }, words)));
    const paint = () => {
      for (const cell of table.querySelectorAll(".cell")) {
        const reading = view.layers[cell.dataset.layer].positions[cell.dataset.position];
        const strength = by.value === "top" ? reading.candidates[0].probability : by.value === "right" ? reading.probability ?? 0
          : 1 - reading.entropy / view.most_entropy;
        cell.style.background = tint("plus", 0.75 * Math.sqrt(Math.max(0, strength)));
      }
    };
    const head = element("tr", {}, element("th", {}, "read"), ...view.read.map((token) => element("th", { title: token }, token)));
    table.append(element("thead", {}, head));
    const body = element("tbody");
    [...view.layers.keys()].reverse().forEach((layer) => {
      const row = element("tr", {}, element("th", {}, view.layers[layer].name));
      view.layers[layer].positions.forEach((reading, position) => {
        const guess = reading.candidates[0];
        const button = element("button", { className: "cell" + (reading.rank === 1 ? " right" : ""), type: "button", title: `${guess.text} ${percent(guess.probability)}` }, guess.text);
        button.dataset.layer = layer; button.dataset.position = position;
        button.onclick = () => {
          choose(table, button);
          const right = view.right[position];
          const lines = reading.candidates.map((each) => element("tr", {}, element("td", {}, each.text), element("td", {}, percent(each.probability)),
            element("td", {}, element("span", { className: "bar-line", style: `width:${(8 * each.probability).toFixed(2)}rem` }))));
          detail.replaceChildren(`After ${view.layers[layer].name}, at “${view.read[position]}”` + (right === null ? "" : `: the right token “${right}” has ${percent(reading.probability)}, rank ${reading.rank}`),
            element("table", {}, ...lines));
        };
        row.append(element("td", {}, button));
      });
      body.append(row);
    });
    table.append(body);
    arrows(table, view.read.length);
    by.onchange = paint;
    paint();
    place.append(element("div", { className: "controls" }, element("label", {}, "Colour: ", by)), element("div", { className: "panel wide" }, table), detail);
    table.querySelector(`[data-layer="${view.layers.length - 1}"][data-position="0"]`).click();
  },

  attribution(place, view) {
    const most = Math.max(...view.tokens.map((each) => Math.abs(each.score)), 1e-12);
    const detail = element("div", { className: "detail", role: "status" });
    const line = element("p", { className: "weighted" });
    view.tokens.forEach((each) => {
      const button = element("button", { type: "button", style: `background:${tint(each.score < 0 ? "minus" : "plus", 0.8 * Math.abs(each.score) / most)}` }, each.text);
      button.title = `${each.score.toFixed(3)} nats`;
      button.onclick = () => { choose(line, button); detail.textContent = `“${each.text}”: ${each.score.toFixed(4)} nats, ${each.score < 0 ? "less" : "more"} likely by it`; };
      line.append(button, " ");
    });
    const sorted = [...view.tokens].sort((a, b) => Math.abs(b.score) - Math.abs(a.score)).slice(0, 8);
    const table = element("table", {}, ...sorted.map((each) => element("tr", {}, element("td", {}, each.text), element("td", {}, each.score.toFixed(3)),
      element("td", {}, element("span", { className: "bar-line", style: `width:${(10 * Math.abs(each.score) / most).toFixed(2)}rem;background:rgb(var(--${each.score < 0 ? "minus" : "plus"}))` })))));
    place.append(element("div", { className: "panel" }, line), detail, element("div", { className: "detail" }, table));
    detail.textContent = "Choose a token. Blue makes the output likelier, orange less likely.";
  },

  rollout(place, view) {
    const slider = element("input", { type: "range", min: 1, max: view.layers.length, value: view.layers.length });
    const shown = element("output");
    const line = element("p", { className: "weighted" });
    let position = view.tokens.length - 1;
    const paint = () => {
      const row = view.layers[slider.value - 1][position];
      const most = Math.max(...row);
      shown.textContent = `layer ${slider.value}`;
      [...line.querySelectorAll("button")].forEach((button, number) => {
        button.style.background = tint("plus", 0.85 * Math.sqrt(row[number] / most));
        button.title = `${percent(row[number])} of “${view.tokens[position]}”`;
        button.classList.toggle("chosen", number === position);
      });
      const best = row.map((share, number) => [share, number]).sort((a, b) => b[0] - a[0]).slice(0, 6);
      detail.replaceChildren(`“${view.tokens[position]}” after layer ${slider.value} is made of`,
        element("table", {}, ...best.map(([share, number]) => element("tr", {}, element("td", {}, view.tokens[number]), element("td", {}, percent(share)),
          element("td", {}, element("span", { className: "bar-line", style: `width:${(10 * share).toFixed(2)}rem` }))))));
    };
    const detail = element("div", { className: "detail", role: "status" });
    view.tokens.forEach((token, number) => {
      const button = element("button", { type: "button" }, token);
      button.onclick = () => { position = number; paint(); };
      line.append(button, " ");
    });
    slider.oninput = paint;
    place.append(element("div", { className: "controls" }, element("label", {}, "After ", slider, shown)), element("div", { className: "panel" }, line), detail);
    paint();
  },

  map(place, view) {
    const canvas = element("canvas", { tabIndex: 0, role: "img", ariaLabel: `Map of ${view.points.length} points` });
    const search = element("input", { type: "search", placeholder: "find a point" });
    const detail = element("div", { className: "detail", role: "status" });
    const kinds = [...new Set(view.points.map((point) => point.kind))];
    const colours = () => { const style = getComputedStyle(document.documentElement); return { ink: style.getPropertyValue("--ink"), soft: style.getPropertyValue("--soft"), kinds: [0, 1, 2, 3, 4].map((n) => style.getPropertyValue(`--k${n}`)) }; };
    const span = (name) => { const values = view.points.map((point) => point[name]); return [Math.min(...values), Math.max(...values)]; };
    const [x0, x1] = span("x"), [y0, y1] = span("y");
    let zoom = 1, left = 0, top = 0, drag = null, near = null;
    const spot = (point) => {
      const width = canvas.clientWidth, height = canvas.clientHeight, room = 24;
      const x = room + (width - 2 * room) * (point.x - x0) / (x1 - x0 || 1), y = height - room - (height - 2 * room) * (point.y - y0) / (y1 - y0 || 1);
      return [x * zoom + left, y * zoom + top];
    };
    function paint() {
      const scale = window.devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
      canvas.width = width * scale; canvas.height = height * scale;
      const pen = canvas.getContext("2d"), look = colours(), wanted = search.value.trim().toLowerCase();
      pen.scale(scale, scale); pen.clearRect(0, 0, width, height);
      pen.font = "12px system-ui, sans-serif";
      const taken = [];
      view.points.forEach((point) => {
        const [x, y] = spot(point);
        if (x < -20 || y < -20 || x > width + 20 || y > height + 20) return;
        const hit = wanted && point.name.toLowerCase().includes(wanted);
        pen.globalAlpha = wanted && !hit ? 0.15 : 0.85;
        pen.fillStyle = look.kinds[kinds.indexOf(point.kind) % 5];
        pen.beginPath(); pen.arc(x, y, point === near ? 5 : 2.8, 0, 7); pen.fill();
        const long = point.name.length * 6.5, free = !taken.some(([a, b, c]) => Math.abs(b - y) < 13 && x < a + c && x + long > a);
        if (point === near || hit || (free && !wanted)) {
          taken.push([x, y, long]);
          pen.fillStyle = point === near || hit ? look.ink : look.soft;
          pen.fillText(point.name, Math.min(x + 6, width - long), y + 4);
        }
      });
    }
    const closest = (event) => {
      const box = canvas.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
      let best = null, distance = 400;
      view.points.forEach((point) => { const [a, b] = spot(point), gap = (a - x) ** 2 + (b - y) ** 2; if (gap < distance) { distance = gap; best = point; } });
      return best;
    };
    const scaleAt = (factor, x, y) => { const next = Math.min(60, Math.max(1, zoom * factor)), ratio = next / zoom; left = next === 1 ? 0 : x - (x - left) * ratio; top = next === 1 ? 0 : y - (y - top) * ratio; zoom = next; paint(); };
    canvas.addEventListener("wheel", (event) => { event.preventDefault(); const box = canvas.getBoundingClientRect(); scaleAt(event.deltaY < 0 ? 1.2 : 1 / 1.2, event.clientX - box.left, event.clientY - box.top); }, { passive: false });
    canvas.addEventListener("pointerdown", (event) => { drag = [event.clientX - left, event.clientY - top]; canvas.setPointerCapture(event.pointerId); });
    canvas.addEventListener("pointermove", (event) => {
      if (drag) { left = event.clientX - drag[0]; top = event.clientY - drag[1]; }
      near = closest(event);
      if (near) detail.textContent = `${near.name}${near.kind ? ` (${near.kind})` : ""}: ${near.x.toFixed(3)}, ${near.y.toFixed(3)}`;
      paint();
    });
    canvas.addEventListener("pointerup", () => { drag = null; });
    canvas.addEventListener("keydown", (event) => {
      const moves = { ArrowLeft: [40, 0], ArrowRight: [-40, 0], ArrowUp: [0, 40], ArrowDown: [0, -40] }[event.key];
      if (moves) { left += moves[0]; top += moves[1]; paint(); event.preventDefault(); }
      if (event.key === "+") scaleAt(1.2, canvas.clientWidth / 2, canvas.clientHeight / 2);
      if (event.key === "-") scaleAt(1 / 1.2, canvas.clientWidth / 2, canvas.clientHeight / 2);
    });
    const whole = element("button", { type: "button", className: "cell", style: "width:auto;border-color:var(--edge);background:var(--card)" }, "Whole map");
    whole.onclick = () => { zoom = 1; left = top = 0; paint(); };
    search.oninput = paint;
    window.addEventListener("resize", paint);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
    const legend = element("div", { className: "kinds" }, ...kinds.filter(Boolean).map((kind, number) => element("span", {}, element("i", { style: `background:var(--k${number % 5})` }), kind)));
    place.append(element("div", { className: "controls" }, search, whole, element("span", {}, "Drag to move, wheel or + and − to zoom.")), element("div", { className: "panel" }, canvas, legend), detail);
    paint();
  },

  induction(place, view) {
    const detail = element("div", { className: "detail", role: "status" });
    const table = element("table", { className: "cells" });
    const by = element("select", {}, ...[["prefix matching", "prefix_matching"], ["copying", "copying"], ["the token before", "previous_token"]].map(([words, value]) => element("option", { value }, words)));
    const heads = view.prefix_matching[0].length;
    table.append(element("thead", {}, element("tr", {}, element("th", {}, "head"), ...[...Array(heads).keys()].map((head) => element("th", {}, String(head))))));
    const body = element("tbody");
    view.prefix_matching.forEach((row, layer) => {
      body.append(element("tr", {}, element("th", {}, `layer ${layer}`), ...row.map((_, head) => {
        const button = element("button", { type: "button", className: "cell square" });
        button.dataset.layer = layer; button.dataset.head = head;
        button.onclick = () => {
          choose(table, button);
          detail.textContent = `Layer ${layer}, head ${head}: prefix matching ${percent(view.prefix_matching[layer][head])}, copying ${view.copying[layer][head].toFixed(2)}, the token before ${percent(view.previous_token[layer][head])}`;
        };
        return element("td", {}, button);
      })));
    });
    table.append(body);
    arrows(table, heads);
    const paint = () => table.querySelectorAll(".cell").forEach((cell) => {
      const value = view[by.value][cell.dataset.layer][cell.dataset.head];
      cell.style.background = tint(value < 0 ? "minus" : "plus", 0.85 * Math.abs(value) + 0.03);
      cell.title = `layer ${cell.dataset.layer}, head ${cell.dataset.head}: ${value.toFixed(3)}`;
      cell.setAttribute("aria-label", cell.title);
    });
    by.onchange = paint;
    paint();
    place.append(element("div", { className: "controls" }, element("label", {}, "Score: ", by)), element("div", { className: "panel wide" }, table), detail);
    table.querySelector(`[data-layer="${view.strongest[0][0]}"][data-head="${view.strongest[0][1]}"]`).click();
  },
};

for (const place of document.querySelectorAll("[data-view]")) {
  place.replaceChildren();
  draw[place.dataset.view](place, views[place.dataset.view]);
}

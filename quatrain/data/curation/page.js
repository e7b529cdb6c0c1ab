"use strict";
// A slider for each threshold: what the documents of the sample would become with another one.
const steps = JSON.parse(document.getElementById("samples").textContent);
const BINS = 40;

function shown(value) {
  const size = Math.abs(value);
  if (size >= 100) return Math.round(value).toLocaleString("en");
  return String(Number(value.toPrecision(3)));
}

for (const rule of document.querySelectorAll(".rule")) {
  const measure = rule.dataset.measure, least = rule.dataset.side === "least";
  const step = steps[Number(rule.dataset.step)];
  const limit = step.limits.find((each) => each.measure === measure);
  const threshold = least ? limit.least : limit.most;
  // A document that another rule removes stays removed, whatever this threshold is.
  const rows = step.samples.filter((each) => measure in each.measures)
    .map((each) => ({value: each.measures[measure], tokens: each.tokens,
                     out: each.removed !== null && !each.removed.startsWith(measure + " ")}));
  const slider = rule.querySelector("input"), output = rule.querySelector("output"), bars = rule.querySelector(".bars");
  const values = rows.map((row) => row.value).sort((a, b) => a - b);
  if (!values.length) { rule.querySelector(".whatif").hidden = true; bars.hidden = true; continue; }
  const at = (share) => values[Math.min(values.length - 1, Math.floor(share * values.length))];
  // The axis leaves out the outermost values of a long tail, but shows the threshold.
  let low = Math.min(at(0.01), threshold), high = Math.max(at(0.98), threshold);
  if (high <= low) high = low + 1;
  const value = () => low + (high - low) * slider.value / 200;
  const passes = (row, edge) => least ? row.value >= edge : row.value <= edge;
  slider.value = Math.round(200 * (threshold - low) / (high - low));
  let moved = false;

  function draw() {
    const edge = moved ? value() : threshold;
    let kept = 0, documents = 0, total = 0;
    for (const row of rows) {
      total += row.tokens;
      if (!row.out && passes(row, edge)) { kept += row.tokens; documents += 1; }
    }
    output.textContent = `${shown(edge)}: ${documents} of ${rows.length} documents, ` +
      `${(100 * kept / Math.max(1, total)).toFixed(1)} % of the sample's text`;
    const counts = new Array(BINS).fill(0);
    for (const row of rows) counts[Math.max(0, Math.min(BINS - 1, Math.floor(BINS * (row.value - low) / (high - low))))] += 1;
    const most = Math.max(...counts);
    bars.replaceChildren(...counts.map((count, place) => {
      const bar = document.createElement("span"), middle = low + (high - low) * (place + 0.5) / BINS;
      bar.style.height = `${100 * count / most}%`;
      bar.className = passes({value: middle}, edge) ? "in" : "";
      bar.title = `${shown(middle)}: ${count} documents`;
      return bar;
    }));
  }
  slider.addEventListener("input", () => { moved = true; draw(); });
  draw();
}

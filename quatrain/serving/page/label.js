// Labels preferences: two answers of the model side by side, and a choice by button or key. The server writes each choice
// to its file before it answers, so nothing is kept here.

import { call } from "./client.js";
import { byId, element } from "./dom.js";
import { rendered } from "./markdown.js";

const KEYS = { a: "a", 1: "a", b: "b", 2: "b", t: "tie", n: "both_bad", s: "skip" };
const NAMES = { a: "A", b: "B", tie: "tie", both_bad: "neither", skip: "skipped" };

let state = null;
let busy = false;

function draw() {
  const { pair, place, total, done, identical, typed, rater, file, agreement } = state;
  byId("place").textContent = pair ? `${place} of ${total}` : "";
  const counts = Object.entries(done).map(([choice, count]) => `${NAMES[choice]} ${count}`);
  byId("counts").textContent = [rater, ...counts].filter(Boolean).join(" · ");
  byId("prompt").replaceChildren(
    ...(pair?.prompt ?? []).map(({ role, text }) =>
      element("div", { class: `message ${role}` }, element("div", { class: "who" }, element("b", {}, role)), element("div", { class: "text" }, text)),
    ),
  );
  byId("answers").replaceChildren(
    ...(pair?.answers ?? []).map((text, index) =>
      element(
        "article",
        { class: "message", "aria-label": `Answer ${"AB"[index]}` },
        element("h2", {}, "AB"[index]),
        element("div", { class: "text", tabindex: "0" }, text ? rendered(text) : element("i", {}, "(empty)")),
      ),
    ),
  );
  const facts = [typed ? "Type the next prompt." : "Every prompt is labelled.", `The choices are in ${file}.`];
  if (identical) facts.push(`${identical} prompts were passed over: both answers were the same.`);
  for (const { first, second, count, raw, kappa } of agreement)
    facts.push(
      `${first || "(no name)"} and ${second || "(no name)"} agree on ${Math.round(raw * 100)} % of ${count} pairs` +
        (kappa === null ? "." : `, Cohen's kappa ${kappa.toFixed(2)}.`),
    );
  byId("end").replaceChildren(...facts.map((fact) => element("span", { class: "line" }, fact)));
  byId("end").hidden = Boolean(pair);
  byId("type").hidden = Boolean(pair) || !typed;
  if (!byId("type").hidden) byId("text").focus();
  byId("status").textContent = pair ? `${place} of ${total}: two answers to judge.` : facts.join(" ");
}

function enable() {
  document.body.toggleAttribute("data-busy", busy);
  byId("answers").setAttribute("aria-busy", String(busy));
  for (const button of document.querySelectorAll("#choices button, #type button"))
    button.disabled = busy || (button.dataset.choice !== undefined && !state?.pair);
}

async function ask(path, body) {
  if (busy) return;
  busy = true;
  enable();
  byId("notice").hidden = true;
  byId("status").textContent = "The model answers…";
  try {
    state = await call(path, body);
  } catch (error) {
    byId("notice").textContent = error.message;
    byId("notice").hidden = false;
    if (error.status === 409) state = await call("/api/label").catch(() => state);
  }
  busy = false;
  if (state) draw();
  enable();
}

const choose = (choice) => state?.pair && ask("/api/label/choice", { id: state.pair.id, choice });

for (const button of document.querySelectorAll("[data-choice]")) button.addEventListener("click", () => choose(button.dataset.choice));
byId("undo").addEventListener("click", () => ask("/api/label/undo", {}));
byId("type").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = byId("text").value.trim();
  if (!text) return;
  byId("text").value = "";
  ask("/api/label/prompt", { text });
});
byId("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    byId("type").requestSubmit();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || event.target.closest("textarea")) return;
  const key = event.key.toLowerCase();
  if (key === "u") byId("undo").click();
  else if (key in KEYS) choose(KEYS[key]);
});

await ask("/api/label");
document.body.dataset.ready = "";

// Looks inside an answer: tokens coloured by probability, a card with the alternatives, and two views of one token.

import { call } from "./client.js";
import { byId, element, percent, visible } from "./dom.js";

const SHADES = [0.9, 0.5, 0.2, 0.05, 0];
const WORDS = ["90 % and more", "50 %", "20 %", "5 %", "less"];
const shade = (probability) => `p${5 - SHADES.findIndex((least) => probability >= least)}`;
let closing = 0;

// The tokens of an answer as a group in which the arrow keys move. They are asked for when they are first drawn.
export function drawTokens(node, view, actions) {
  const known = view.explanations.get(node.id);
  if (!known || known.content !== node.content) {
    actions.explain(node);
    return element("p", { class: "help" }, "Asking for the probabilities…");
  }
  if (known.error) return element("p", { class: "failed" }, known.error);
  const group = element("div", {
    class: "tokens",
    role: "group",
    "aria-label": "Tokens of the answer. Arrow keys move, Enter shows the alternatives.",
  });
  known.tokens.forEach((token, place) => {
    const mark = token.text.startsWith("\n") ? "⏎" : token.text === "" ? "∅" : null;
    const made = element(
      "span",
      {
        class: `token ${shade(token.probability)}${mark ? " mark" : ""}`,
        role: "button",
        tabIndex: place ? -1 : 0,
        "data-mark": mark,
        "data-place": String(place),
        "aria-haspopup": "dialog",
        "aria-label": `${visible(token.text)}, ${percent(token.probability)}`,
      },
      token.text,
    );
    group.append(made);
  });
  const open = (target, pinned) => openCard(target, known.tokens, Number(target.dataset.place), node, actions, pinned);
  group.addEventListener("mouseover", (event) => event.target.dataset.place && !byId("card").dataset.pinned && open(event.target, false));
  group.addEventListener("mouseout", leave);
  group.addEventListener("click", (event) => event.target.dataset.place && open(event.target, true));
  group.addEventListener("keydown", (event) => move(event, group, open));
  const legend = element("div", { class: "legend" }, "Probability:", WORDS.map((words, index) => element("span", { class: `token p${5 - index}` }, words)));
  return element("div", {}, group, legend);
}

function move(event, group, open) {
  const from = event.target;
  const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10, Home: -Infinity, End: Infinity };
  if (event.key === "Enter" || event.key === " ") open(from, true);
  else if (event.key in steps) {
    const last = group.childElementCount - 1;
    const to = group.children[Math.min(last, Math.max(0, Number(from.dataset.place) + steps[event.key]))];
    from.tabIndex = -1;
    to.tabIndex = 0;
    to.focus();
  } else return;
  event.preventDefault();
}

function leave() {
  if (!byId("card").dataset.pinned) closing = setTimeout(closeCard, 250);
}

export function closeCard() {
  const card = byId("card");
  if (card.hidden) return false;
  const inside = card.contains(document.activeElement);
  card.hidden = true;
  delete card.dataset.pinned;
  const token = document.querySelector(".token.open");
  token?.classList.remove("open");
  if (inside) token?.focus();
  return true;
}

function openCard(target, tokens, place, node, actions, pinned) {
  clearTimeout(closing);
  document.querySelector(".token.open")?.classList.remove("open");
  target.classList.add("open");
  const card = byId("card");
  const token = tokens[place];
  const alternatives = token.alternatives.map((other) => {
    const chosen = other.id === token.id;
    const made = element(
      "button",
      {
        class: `other${chosen ? " chosen" : ""}`,
        type: "button",
        "aria-label": `${visible(other.text)}, ${percent(other.probability)}${chosen ? ", chosen" : ": branch from here"}`,
        title: chosen ? "Generate again after this token" : "Branch: continue with this token instead",
        onclick: () => (closeCard(), actions.branch(node, tokens.slice(0, place), other)),
      },
      element("code", {}, visible(other.text)),
      element("span", {}, percent(other.probability)),
    );
    made.style.setProperty("--share", `${other.probability * 100}%`);
    return made;
  });
  card.replaceChildren(
    element("div", { class: "title" }, element("code", {}, visible(token.text)), ` ${percent(token.probability)}`),
    ...alternatives,
    element(
      "div",
      { class: "row" },
      element("button", { class: "quiet", type: "button", onclick: () => showDistribution(node, tokens, place, actions) }, "Distribution"),
      element("button", { class: "quiet", type: "button", onclick: () => showAttention(node, tokens, place, actions) }, "Attention"),
    ),
  );
  card.hidden = false;
  card.onmouseenter = () => clearTimeout(closing);
  card.onmouseleave = leave;
  const at = target.getClientRects()[0];
  const size = card.getBoundingClientRect();
  card.style.left = `${Math.max(8, Math.min(at.left, innerWidth - size.width - 8))}px`;
  card.style.top = `${at.bottom + size.height + 8 < innerHeight ? at.bottom + 6 : Math.max(8, at.top - size.height - 6)}px`;
  if (pinned) {
    card.dataset.pinned = "yes";
    card.querySelector("button").focus();
  }
}

const asked = (node, tokens, place, actions) => ({ ...actions.asked(node), ids: tokens.map((token) => token.id), position: place });

async function view(title, draw) {
  closeCard();
  const body = byId("inside-body");
  byId("inside-title").textContent = title;
  body.replaceChildren(element("p", { class: "help" }, "Asking the model…"));
  if (!byId("inside").open) byId("inside").showModal();
  try {
    await draw(body);
  } catch (error) {
    body.replaceChildren(element("p", { class: "failed" }, error.message));
  }
}

// The distribution of a token before and after each thing that changes it, with the settings of the answer.
function showDistribution(node, tokens, place, actions) {
  return view(`Distribution of “${visible(tokens[place].text)}”`, async (body) => {
    const found = await call("/api/distribution", { ...asked(node, tokens, place, actions), settings: node.settings ?? {} });
    const head = found.stages.map(({ name, left }) =>
      element("th", { scope: "col" }, name.replaceAll("_", " "), element("small", {}, `${left.toLocaleString()} token${left === 1 ? "" : "s"}`)),
    );
    const rows = found.tokens.map((token) =>
      element(
        "tr",
        { class: token.id === found.chosen ? "chosen" : null },
        element("th", { scope: "row" }, element("code", {}, visible(token.text))),
        token.probabilities.map((value) => {
          const cell = element("td", { class: value ? "bar" : "out" }, element("span", {}, value ? percent(value) : "ruled out"));
          cell.style.setProperty("--share", `${value * 100}%`);
          return cell;
        }),
      ),
    );
    body.replaceChildren(
      element(
        "p",
        { class: "help" },
        found.stages.length > 1
          ? "From the model's own distribution, on the left, to the one that the token was taken from. The token of the answer is coloured."
          : "The token was taken from the model's own distribution: no penalty, temperature or filter changed it.",
      ),
      element(
        "div",
        { class: "scroll", tabIndex: 0, role: "region", "aria-label": "Probabilities" },
        element("table", { class: "bars" }, element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "token"), head)), element("tbody", {}, rows)),
      ),
    );
  });
}

// What a token attends to, in one head or in the mean of several.
function showAttention(node, tokens, place, actions) {
  const choose = (label, count) =>
    element("select", { "aria-label": label }, element("option", { value: "" }, `mean of all ${label}s`), Array.from({ length: count }, (_, number) => element("option", { value: String(number) }, `${label} ${number}`)));
  return view(`Attention of “${visible(tokens[place].text)}”`, async (body) => {
    const first = await call("/api/attention", asked(node, tokens, place, actions));
    const layer = choose("layer", first.layers);
    const head = choose("head", first.heads);
    const text = element("div", { class: "attention", tabIndex: 0, role: "region", "aria-label": "Text, coloured by attention" });
    const top = element("p", { class: "help" });
    const draw = (found) => {
      const most = Math.max(...found.tokens.map((token) => token.weight), 1e-9);
      text.replaceChildren(
        ...found.tokens.flatMap((token, index) => {
          const isQuery = found.kind !== "cross" && index === found.tokens.length - 1;
          const made = element("span", { class: isQuery ? "asked" : null, title: `${visible(token.text)}: ${percent(token.weight)}` }, token.text);
          made.style.setProperty("--share", `${Math.round((80 * token.weight) / most)}%`);
          const isEnd = found.kind !== "cross" && index === found.prompt_tokens;
          return isEnd ? [element("span", { class: "prompt-end" }), made] : [made];
        }),
      );
      const best = [...found.tokens].sort((one, other) => other.weight - one.weight).slice(0, 5);
      top.textContent = `Most attention: ${best.map((token) => `${visible(token.text)} ${percent(token.weight)}`).join(", ")}`;
    };
    const again = async () => {
      const number = (select) => (select.value === "" ? null : Number(select.value));
      draw(await call("/api/attention", { ...asked(node, tokens, place, actions), layer: number(layer), head: number(head) }));
    };
    layer.addEventListener("change", again);
    head.addEventListener("change", again);
    draw(first);
    body.replaceChildren(
      element("div", { class: "row" }, layer, head),
      top,
      text,
      element("p", { class: "help" }, "The token with a frame was read at its place; the colour is the share of its attention. A map shows where information can flow, not why a model answers as it does."),
    );
  });
}

// Draws a conversation: the branch that is shown, with what can be done with each message.

import { element } from "./dom.js";
import { rendered } from "./markdown.js";
import { drawTokens } from "./tokens.js";

export function drawMessages(container, view, actions) {
  const focused = document.activeElement?.dataset?.focus;
  const { conversation } = view;
  const path = conversation.path();
  const drawn = path.map((node) => {
    const pair = node.pair ? conversation.siblings(node).map((id) => conversation.get(id)).filter((each) => each.pair === node.pair) : [];
    if (pair.length < 2) return drawMessage(node, view, actions);
    return element(
      "div",
      { class: "pair", role: "group", "aria-label": "Two answers side by side" },
      pair.map((each, index) => drawMessage(each, view, actions, { chosen: each === node, letter: "AB"[index] ?? "" })),
    );
  });
  if (!drawn.length)
    drawn.push(
      element("div", { class: "empty" }, element("strong", {}, view.database ? "Ask the database" : "Ask the model"), view.hint, drawSuggestions(view.suggestions, actions)),
    );
  container.replaceChildren(...drawn);
  if (focused) container.querySelector(`[data-focus="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
}

function drawMessage(node, view, actions, pair = null) {
  const isUser = node.role === "user";
  const box = element("article", {
    class: `message ${node.role}${pair?.chosen ? " chosen" : ""}`,
    "data-node": node.id,
    "aria-label": isUser ? "You" : `Answer${pair ? ` ${pair.letter}` : ""} of ${node.model}`,
  });
  const text = element("div", { class: "text" });
  box.append(
    element("div", { class: "who" }, element("b", {}, isUser ? "You" : `${pair ? `${pair.letter} · ` : ""}${node.model}`), element("span", { class: "facts" })),
    text,
    tools(node, view, actions, pair),
  );
  fill(box, node, view, actions);
  return box;
}

// Writes the text of a message, and its timings; called for each piece of a stream.
export function fill(box, node, view, actions) {
  const text = box.querySelector(".text");
  const running = view.running.has(node.id);
  box.querySelector(".facts").textContent = facts(node, running);
  if (node.role === "user") {
    text.replaceChildren(...drawPictures(node.images), node.content);
    return;
  }
  const parts = [];
  if (node.reasoning) parts.push(element("details", { class: "reasoning", open: running }, element("summary", {}, "Reasoning"), node.reasoning));
  if (view.showTokens && !running && node.content) parts.push(drawTokens(node, view, actions));
  else if (node.database) parts.push(...drawRows(node.database, node.prompt, actions));
  else parts.push(rendered(node.content));
  if (node.error) parts.push(element("p", { class: "failed" }, node.error));
  text.replaceChildren(...parts);
  text.classList.toggle("cursor", running);
  box.setAttribute("aria-busy", String(running));
}

// The pictures of a message. They are named by their places: a picture has no name that survives.
export function drawPictures(images) {
  if (!images?.length) return [];
  const drawn = images.map((src, place) => element("img", { src, alt: `Picture ${place + 1} of ${images.length}`, loading: "lazy" }));
  return [element("div", { class: "pictures" }, drawn)];
}

const ENDS = { length: "cut at the limit", stopped: "stopped", stop: "", edited: "edited", error: "failed", tool_calls: "calls a tool" };

function facts(node, running) {
  const { tokens, seconds, first } = node.timings ?? {};
  const parts = [];
  if (node.branched) parts.push(node.branched);
  if (tokens) parts.push(`${tokens} token${tokens === 1 ? "" : "s"}`);
  // All tokens may come at once: then the time of the first one is that of all.
  if (tokens > 1) parts.push(`${(seconds - first > 0.005 ? (tokens - 1) / (seconds - first) : tokens / seconds).toFixed(1)} tokens/s`);
  if (first !== undefined) parts.push(`first after ${first.toFixed(2)} s`);
  if (!running && ENDS[node.finish]) parts.push(ENDS[node.finish]);
  return parts.join(" · ");
}

function tools(node, view, actions, pair) {
  const running = view.running.has(node.id);
  const { busy } = view;
  const name = node.role === "user" ? "your message" : "this answer";
  const button = (label, key, action, title) =>
    element("button", { type: "button", title, "aria-label": title, "data-focus": `${node.id}:${key}`, disabled: busy, onclick: action }, label);
  const bar = element("div", { class: "tools", role: "group", "aria-label": `What to do with ${name}` });
  const siblings = view.conversation.siblings(node);
  if (siblings.length > 1) {
    const place = siblings.indexOf(node.id);
    const turn = (by) => button(by < 0 ? "‹" : "›", by < 0 ? "before" : "after", () => actions.show(siblings.at((place + by) % siblings.length)), by < 0 ? "Branch before" : "Branch after");
    bar.append(element("span", { class: "turn" }, turn(-1), `${place + 1}/${siblings.length}`, turn(1)));
  }
  if (pair && !pair.chosen && !running) bar.append(button("Continue with this", "choose", () => actions.show(node.id), `Continue with this answer, ${pair.letter}`));
  bar.append(button("Copy", "copy", () => actions.copy(node), `Copy ${name}`));
  bar.append(button("Edit", "edit", () => actions.edit(node), `Edit ${name} in a new branch`));
  if (node.role === "assistant") {
    bar.append(button("Regenerate", "again", () => actions.regenerate(node), "Regenerate: another answer, in a new branch"));
    if (!node.database) bar.append(button("Continue", "continue", () => actions.continue(node), "Continue: let the model write on from here"));
  }
  bar.append(button("Delete", "delete", () => actions.remove(node), `Delete ${name} and what follows it`));
  return bar;
}

// A form in the place of a message. `save` gets the new text.
export function editor(box, node, save, cancel) {
  const area = element("textarea", { "aria-label": node.role === "user" ? "Your message" : "The answer" });
  area.value = node.content;
  const label = node.role === "user" ? "Save and answer" : "Save as a branch";
  const form = element(
    "form",
    { class: "edit", onsubmit: (event) => (event.preventDefault(), save(area.value)) },
    area,
    element("div", { class: "row" }, element("button", { class: "main" }, label), element("button", { class: "quiet", type: "button", onclick: cancel }, "Cancel")),
  );
  form.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      event.stopPropagation();
      cancel();
    } else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) save(area.value);
  });
  box.querySelector(".text").replaceChildren(form);
  box.querySelector(".tools").hidden = true;
  area.focus();
}

// Buttons that ask a question which the model surely answers.
function drawSuggestions(suggestions, actions) {
  if (!suggestions?.length) return "";
  const ask = (text) => element("button", { type: "button", class: "suggestion", onclick: () => actions.ask(text) }, text);
  return element("div", { class: "suggestions", role: "group", "aria-label": "Questions that this model surely answers" }, suggestions.map(ask));
}

function drawRows(result, prompt, actions) {
  if (result.refused) {
    const parts = [element("p", {}, result.reason || "The model does not answer this.")];
    if (prompt) parts.push(element("p", { class: "help" }, `Read as: ${prompt.slice(0, 300)}`));
    if (result.suggestions?.length) parts.push(element("p", { class: "help" }, "Questions that this model surely answers:"), drawSuggestions(result.suggestions, actions));
    return parts;
  }
  const parts = [element("pre", { class: "sql" }, element("code", {}, result.sql))];
  if (result.error) {
    parts.push(element("p", { class: "failed" }, `This SQL failed: ${result.error}. Try to put the question in other words.`));
    return parts;
  }
  const cell = (value) => element("td", { class: typeof value === "number" ? "number" : null }, value === null ? "NULL" : String(value));
  if (result.rows.length)
    parts.push(
      element(
        "div",
        { class: "table-frame", tabIndex: 0, role: "region", "aria-label": "Rows of the answer" },
        element(
          "table",
          {},
          element("thead", {}, element("tr", {}, result.columns.map((name) => element("th", { scope: "col" }, name)))),
          element("tbody", {}, result.rows.map((row) => element("tr", {}, row.map(cell)))),
        ),
      ),
    );
  const count = result.rows.length;
  const more = result.truncated ? " (the first; there are more)" : "";
  const columns = result.columns_left_out ? `, ${result.columns_left_out} more columns` : "";
  const sure = result.certainty ? ` · ${result.certainty} (${Math.round(100 * result.confidence)} %)` : "";
  const words = count === 0 ? "No rows" : count === 1 ? "1 row" : `${count} rows`;
  parts.push(element("p", { class: "help" }, `${words}${more}${columns}, ${(result.seconds * 1000).toFixed(1)} ms${sure}`));
  return parts;
}


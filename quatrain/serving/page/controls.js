// The decoding controls: one for each that the server lists, with its explanation. A control that is not touched keeps
// the model's own setting.

import { element } from "./dom.js";

const LONG = new Set(["json_schema", "grammar", "negative_prompt"]);
const KEEPS_ALL_AT_MOST = new Set(["top_k", "top_p", "typical_p", "top_h"]);

export function drawControls(container, controls, values, own, changed) {
  const groups = grouped(controls);
  const opened = new Set([...container.querySelectorAll("details[open]")].map((each) => each.dataset.group));
  if (!container.childElementCount) ["sampling", "length"].forEach((group) => opened.add(group));
  const active = document.activeElement?.id;
  const sections = ["sampling", ...[...groups.keys()].filter((name) => name !== "sampling")].map((name) =>
    element(
      "details",
      { "data-group": name, open: opened.has(name) || groups.get(name).some((each) => each.name in values) },
      element("summary", {}, name),
      groups.get(name).map((control) => drawControl(control, values, own, changed)),
    ),
  );
  container.replaceChildren(...sections);
  if (active && container.querySelector(`#${CSS.escape(active)}`)) document.getElementById(active).focus();
}

function grouped(controls) {
  const groups = new Map();
  for (const each of controls) groups.set(each.group, [...(groups.get(each.group) ?? []), each]);
  return groups;
}

function drawControl(control, values, own, changed) {
  const { name } = control;
  const id = `control-${name}`;
  const usual = own[name] ?? control.default;
  const given = name in values;
  const value = given ? values[name] : usual;
  const help = element("p", { class: "help", id: `${id}-help` }, control.explanation);
  const box = element("div", { class: `control${given ? " given" : ""}` });
  const set = (next) => {
    const empty = next === null || (typeof next === "number" && Number.isNaN(next));
    if (empty) delete values[name];
    else values[name] = next;
    box.classList.toggle("given", !empty);
    reset.hidden = empty;
    changed();
  };
  const reset = element(
    "button",
    {
      class: "quiet",
      type: "button",
      hidden: !given,
      "aria-label": `Reset ${name}`,
      title: "The model's own setting",
      onclick: () => {
        delete values[name];
        changed();
        const anew = drawControl(control, values, own, changed);
        box.replaceWith(anew);
        anew.querySelector("input, select, textarea").focus();
      },
    },
    "↺",
  );
  const head = element("div", { class: "head" }, element("label", { for: id }, name), reset);
  box.append(head, ...input(control, id, value, given, usual, set), help);
  const inline = box.querySelector("input[type=number], input[type=checkbox], select");
  if (inline) head.insertBefore(inline, reset);
  return box;
}

function input(control, id, value, given, usual, set) {
  const common = { id, "aria-describedby": `${id}-help` };
  if (control.kind === "integer" || control.kind === "number") {
    const isLimit = control.name === "max_new_tokens" && usual === control.default; // The server's limit holds.
    const number = element("input", {
      ...common,
      type: "number",
      step: control.kind === "integer" ? "1" : "any",
      value: given ? String(value) : "",
      placeholder: usual === null ? "off" : isLimit ? "no limit" : String(usual),
    });
    number.addEventListener("change", () => {
      set(number.value === "" ? null : Number(number.value));
      if (range && number.value !== "") range.value = number.value;
    });
    const range =
      control.least === null
        ? null
        : element("input", {
            type: "range",
            min: String(control.least),
            max: String(control.most),
            step: String(control.step),
            "aria-label": `${control.name}, slider`,
          });
    if (range) {
      range.value = String(isLimit && !given ? control.most : value ?? (KEEPS_ALL_AT_MOST.has(control.name) ? control.most : control.least));
      range.addEventListener("input", () => {
        number.value = range.value;
        set(Number(range.value));
      });
    }
    return [number, range].filter(Boolean);
  }
  if (control.kind === "boolean") {
    const box = element("input", { ...common, type: "checkbox" });
    box.checked = Boolean(value);
    box.addEventListener("change", () => set(box.checked));
    return [box];
  }
  if (control.kind === "choice") {
    const options = ["", "true", "false", "never"];
    const select = element("select", common, options.map((each) => element("option", { value: each }, each || `model's own (${usual})`)));
    select.value = given ? String(value) : "";
    const parse = { "": null, true: true, false: false };
    select.addEventListener("change", () => set(select.value in parse ? parse[select.value] : select.value));
    return [select];
  }
  const lines = control.kind === "list";
  const isLong = lines || LONG.has(control.name);
  const field = element(isLong ? "textarea" : "input", {
    ...common,
    ...(isLong ? { rows: 2 } : { type: "text" }),
    placeholder: lines ? (control.name === "logit_bias" ? "token id: bias, one a line" : "one a line") : "off",
    spellcheck: "false",
  });
  field.value = !given ? "" : lines ? asLines(control.name, value) : String(value);
  field.addEventListener("change", () => {
    if (field.value === "") set(null);
    else set(lines ? fromLines(control.name, field.value) : field.value);
  });
  return [field];
}

function asLines(name, value) {
  if (name === "logit_bias") return Object.entries(value).map((pair) => pair.join(": ")).join("\n");
  return value.join("\n");
}

function fromLines(name, text) {
  const lines = text.split("\n").filter((line) => line !== "");
  if (name === "logit_bias")
    return Object.fromEntries(lines.map((line) => line.split(":")).map(([id, bias]) => [id.trim(), Number(bias)]));
  return name === "stop_token_ids" ? lines.flatMap((line) => line.split(/[\s,]+/).filter(Boolean).map(Number)) : lines;
}

// The fields of a request for these settings, as OpenAI's API and vLLM's extensions of it name them.
export function requestFields(settings) {
  const { max_new_tokens, min_new_tokens, json_schema, regex, grammar, choice, ...same } = settings;
  const fields = { ...same };
  if (max_new_tokens !== undefined) fields.max_tokens = max_new_tokens;
  if (min_new_tokens !== undefined) fields.min_tokens = min_new_tokens;
  if (json_schema !== undefined) {
    let schema;
    try {
      schema = JSON.parse(json_schema);
    } catch (error) {
      throw new Error(`json_schema is not JSON: ${error.message}`);
    }
    fields.response_format = { type: "json_schema", json_schema: { name: "answer", schema } };
  }
  const structured = Object.entries({ regex, grammar, choice }).filter(([, value]) => value !== undefined);
  if (structured.length) fields.structured_outputs = Object.fromEntries(structured);
  return fields;
}

// Elements: element("button", {class: "small", onclick: f, "aria-label": "Stop"}, "text", otherElement).

export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "class") made.className = value;
    else if (name in made && typeof value !== "string") made[name] = value;
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

export const byId = (id) => document.getElementById(id);

// Invisible characters of a token, written so that they show.
export function visible(text) {
  const escaped = (each) => `\\u{${each.codePointAt(0).toString(16)}}`;
  return text.replaceAll(" ", "␣").replaceAll("\n", "⏎").replaceAll("\t", "⇥").replace(/[\p{Cc}\p{Cf}]/gu, escaped) || "∅";
}

export function percent(value) {
  if (value >= 0.9995) return "100 %";
  if (value >= 0.001) return `${(value * 100).toFixed(1)} %`;
  return value === 0 ? "0 %" : "< 0.1 %";
}

export function download(name, text) {
  const link = element("a", { href: URL.createObjectURL(new Blob([text], { type: "application/json" })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

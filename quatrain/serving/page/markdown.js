// Markdown to elements. What a model writes is text: HTML in it is shown as text, and what markdown-it makes of the
// rest goes through DOMPurify, which returns elements; no HTML is ever assigned anywhere.

import MarkdownIt from "./vendor/markdown-it.js";
import DOMPurify from "./vendor/dompurify.js";

const markdown = new MarkdownIt({ html: false, linkify: true, breaks: true });

// The alignment of a column as a class: the page allows no style attributes.
for (const rule of ["th_open", "td_open"])
  markdown.renderer.rules[rule] = (tokens, index, options, _env, self) => {
    const style = tokens[index].attrGet("style");
    if (style) {
      tokens[index].attrs = tokens[index].attrs.filter(([name]) => name !== "style");
      tokens[index].attrJoin("class", style.replace("text-align:", "align-"));
    }
    return self.renderToken(tokens, index, options);
  };

// An image would be fetched from wherever a model says; its description stays.
markdown.renderer.rules.image = (tokens, index) => `[${markdown.utils.escapeHtml(tokens[index].content || "image")}]`;

const ALLOWED = {
  ALLOWED_TAGS: [
    ..."p br hr h1 h2 h3 h4 h5 h6 strong em s a code pre blockquote ul ol li".split(" "),
    ..."table thead tbody tr th td".split(" "),
  ],
  ALLOWED_ATTR: ["href", "title", "class", "start"],
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};

export function rendered(text) {
  const fragment = DOMPurify.sanitize(markdown.render(text), ALLOWED);
  for (const link of fragment.querySelectorAll("a[href]")) {
    link.target = "_blank";
    link.rel = "noopener noreferrer nofollow";
  }
  for (const table of fragment.querySelectorAll("table")) {
    const frame = document.createElement("div");
    frame.className = "table-frame";
    frame.tabIndex = 0;
    frame.setAttribute("role", "region");
    frame.setAttribute("aria-label", "Table");
    table.replaceWith(frame);
    frame.append(table);
  }
  for (const code of fragment.querySelectorAll("pre")) code.tabIndex = 0; // It scrolls, also by keyboard.
  return fragment;
}

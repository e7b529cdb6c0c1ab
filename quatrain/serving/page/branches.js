// The tree of a conversation's branches. Messages without siblings stand below each other; a fork indents.

import { element } from "./dom.js";

export function drawBranches(container, conversation, show) {
  const shown = new Set(conversation.path().map((node) => node.id));
  const hadFocus = container.contains(document.activeElement);
  // The items of a level: one message and what follows it, or the branches, each with what follows it inside.
  const draw = (ids) => {
    if (ids.length !== 1) return ids.map((id) => item(conversation.get(id), draw(conversation.get(id).children)));
    const items = [];
    for (let id = ids[0]; id; ) {
      const node = conversation.get(id);
      const isFork = node.children.length > 1;
      items.push(item(node, isFork ? draw(node.children) : []));
      id = isFork ? null : node.children[0];
    }
    return items;
  };
  const made = new Map();
  const item = (node, children) => {
    const name = node.content.trim().replace(/\s+/g, " ").slice(0, 80) || "(empty)";
    const li = element(
      "li",
      {
        role: "treeitem",
        tabIndex: node.id === conversation.leaf ? 0 : -1,
        "data-node": node.id,
        "aria-selected": String(node.id === conversation.leaf),
        "aria-current": shown.has(node.id) ? "true" : null,
        "aria-expanded": children.length ? "true" : null,
        "aria-labelledby": `branch-${node.id}`,
      },
      element(
        "span",
        { class: `label ${node.role}`, id: `branch-${node.id}`, title: name, onclick: () => show(node.id) },
        element("span", { class: "hidden" }, node.role === "user" ? "You: " : "Answer: "),
        name,
      ),
      children.length ? element("ul", { role: "group" }, children) : null,
    );
    made.set(node.id, li);
    return li;
  };
  container.replaceChildren(...draw(conversation.roots));
  const items = [...container.querySelectorAll("li")];
  if (items.length && !items.some((each) => each.tabIndex === 0)) items[0].tabIndex = 0;
  container.onkeydown = (event) => {
    const place = items.indexOf(event.target);
    if (place < 0) return;
    const node = conversation.get(event.target.dataset.node);
    const to = {
      ArrowDown: items[place + 1],
      ArrowUp: items[place - 1],
      Home: items[0],
      End: items.at(-1),
      ArrowLeft: made.get(node.parent),
      ArrowRight: made.get(node.children[0]),
    }[event.key];
    if (event.key === "Enter" || event.key === " ") show(node.id);
    else if (to) to.focus();
    else return;
    event.preventDefault();
  };
  if (hadFocus) container.querySelector("[tabindex='0']")?.focus();
}

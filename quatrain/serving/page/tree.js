// A conversation is a tree of messages: an edit or a new answer is a branch, and nothing is ever overwritten.

export const FORMAT = "quatrain-conversations";
const VERSION = 1;
const ROLES = new Set(["user", "assistant"]);
const LONGEST = 10_000_000;

export const newId = () => crypto.randomUUID?.() ?? Math.random().toString(36).slice(2) + Date.now().toString(36);

export class Conversation {
  constructor({ id = newId(), title = "", system = "", created = new Date().toISOString() } = {}) {
    this.id = id;
    this.title = title;
    this.system = system;
    this.created = created;
    this.nodes = new Map();
    this.roots = [];
    this.leaf = null; // The end of the branch that is shown.
  }

  get(id) {
    return this.nodes.get(id) ?? null;
  }

  children(id) {
    return id === null ? this.roots : this.get(id).children;
  }

  add(parent, fields) {
    const node = { id: newId(), parent, children: [], created: new Date().toISOString(), ...fields };
    this.nodes.set(node.id, node);
    this.children(parent).push(node.id);
    this.leaf = node.id;
    if (!this.title && node.role === "user") this.title = node.content.trim().slice(0, 60) || "A picture";
    return node;
  }

  // The messages from the first one to `id`, that included.
  path(id = this.leaf) {
    const path = [];
    for (let node = id === null ? null : this.get(id); node; node = node.parent === null ? null : this.get(node.parent))
      path.unshift(node);
    return path;
  }

  siblings(node) {
    return this.children(node.parent);
  }

  // Shows the branch through `id`: from there the newest child each time.
  show(id) {
    let node = this.get(id);
    while (node && node.children.length) node = this.get(node.children.at(-1));
    this.leaf = node ? node.id : null;
  }

  remove(id) {
    const node = this.get(id);
    const siblings = this.children(node.parent);
    siblings.splice(siblings.indexOf(id), 1);
    const drop = (each) => {
      for (const child of this.get(each).children) drop(child);
      this.nodes.delete(each);
    };
    drop(id);
    if (siblings.length) this.show(siblings.at(-1));
    else this.leaf = node.parent;
  }

  // What the model reads to answer after `id`.
  messages(id) {
    const said = this.path(id).map(({ role, content, images }) => ({ role, content: images?.length ? parts(content, images) : content }));
    return this.system ? [{ role: "system", content: this.system }, ...said] : said;
  }

  hasPictures(id) {
    return this.path(id).some((node) => node.images?.length);
  }

  toJSON() {
    const { id, title, system, created, roots, leaf } = this;
    const nodes = [...this.nodes.values()].map(({ streaming, ...kept }) => kept);
    return { id, title, system, created, roots, leaf, nodes };
  }

  // Builds a conversation from JSON that anybody may have written. Every id is replaced; throws an Error in words.
  static read(value, { keepIds = false } = {}) {
    const problem = (what) => new Error(`This is not a conversation of this page: ${what}.`);
    if (typeof value !== "object" || value === null || !Array.isArray(value.nodes)) throw problem("it has no messages");
    const text = (each) => (typeof each === "string" ? each.slice(0, LONGEST) : "");
    const conversation = new Conversation({ title: text(value.title), system: text(value.system) });
    if (keepIds && text(value.id)) conversation.id = value.id;
    if (!Number.isNaN(Date.parse(value.created))) conversation.created = value.created;
    const names = new Map();
    for (const node of value.nodes) {
      if (typeof node !== "object" || node === null || typeof node.id !== "string") throw problem("a message has no id");
      if (names.has(node.id)) throw problem("two messages have the same id");
      if (!ROLES.has(node.role) || typeof node.content !== "string") throw problem("a message has no role or no text");
      names.set(node.id, keepIds ? node.id : newId());
    }
    for (const node of value.nodes) {
      const parent = node.parent === null || node.parent === undefined ? null : names.get(node.parent);
      if (parent === undefined) throw problem("a message follows one that is missing");
      const id = names.get(node.id);
      conversation.nodes.set(id, { ...cleaned(node), id, parent, children: [] });
    }
    for (const node of conversation.nodes.values()) conversation.children(node.parent).push(node.id);
    const reached = new Set();
    const visit = [...conversation.roots];
    while (visit.length) {
      const id = visit.pop();
      reached.add(id);
      visit.push(...conversation.get(id).children);
    }
    if (reached.size !== conversation.nodes.size) throw problem("messages follow each other in a circle");
    const leaf = names.get(value.leaf);
    if (leaf) conversation.leaf = leaf;
    else if (conversation.roots.length) conversation.show(conversation.roots.at(-1));
    return conversation;
  }
}

// A message with pictures in OpenAI's form.
function parts(text, images) {
  const pictures = images.map((url) => ({ type: "image_url", image_url: { url } }));
  return text ? [...pictures, { type: "text", text }] : pictures;
}

const PICTURE = /^data:image\/(png|jpeg);base64,[A-Za-z0-9+/=]*$/;

function cleaned(node) {
  const kept = { role: node.role, content: node.content.slice(0, LONGEST), created: String(node.created ?? "") };
  for (const name of ["model", "finish", "error", "pair", "branched", "reasoning", "prompt"])
    if (typeof node[name] === "string") kept[name] = node[name];
  for (const name of ["settings", "timings", "database"])
    if (typeof node[name] === "object" && node[name] !== null) kept[name] = JSON.parse(JSON.stringify(node[name]));
  if (node.role === "user" && Array.isArray(node.images)) {
    const images = node.images.filter((url) => typeof url === "string" && url.length < LONGEST && PICTURE.test(url));
    if (images.length) kept.images = images;
  }
  if (Array.isArray(node.ids) && node.ids.every((id) => Number.isInteger(id) && id >= 0)) kept.ids = [...node.ids];
  return kept;
}

export function exported(conversations) {
  return JSON.stringify({ format: FORMAT, version: VERSION, conversations }, null, 1);
}

export function imported(text) {
  let value;
  try {
    value = JSON.parse(text);
  } catch {
    throw new Error("This file is not JSON, so it holds no conversations.");
  }
  if (value?.format !== FORMAT || !Array.isArray(value.conversations))
    throw new Error("This file holds no conversations of this page.");
  return value.conversations.map((each) => Conversation.read(each));
}

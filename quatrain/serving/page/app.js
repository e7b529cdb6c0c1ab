// The page: what is shown, what is kept in this browser, and what each button does.

import { drawBranches } from "./branches.js";
import { RequestError, call, stream } from "./client.js";
import { drawControls, requestFields } from "./controls.js";
import { byId, download, element } from "./dom.js";
import { drawMessages, editor, fill } from "./messages.js";
import { Pictures } from "./pictures.js";
import { closeCard } from "./tokens.js";
import { Conversation, exported, imported, newId } from "./tree.js";

const CONVERSATION = "quatrain.conversation.";
const SETTINGS = "quatrain.settings";
const THEMES = ["system", "light", "dark"];

const state = {
  conversations: [],
  conversation: null,
  models: [],
  controls: [],
  database: false,
  suggestions: [],
  descriptions: new Map(), // What /api/model says of each model.
  running: new Map(), // The AbortController of each answer that is generated, by the node's id.
  preparing: false, // Whether the server prepares a prompt for an answer that is about to be generated.
  explanations: new Map(), // The tokens of answers, by the node's id.
  showTokens: false,
  compare: false,
  side: "A", // The side whose settings are shown.
  sides: { A: { model: "", settings: {} }, B: { model: "", settings: {} } },
  theme: "system",
  hint: "",
};

// ---- What is kept in the browser

function read(name) {
  try {
    return JSON.parse(localStorage.getItem(name) ?? "null");
  } catch {
    return null;
  }
}

function keep(name, value) {
  try {
    localStorage.setItem(name, JSON.stringify(value));
  } catch {
    notice("This browser has no room left for the conversations. Export them, and delete some.");
  }
}

// Each conversation has an entry of its own, so that two windows do not overwrite each other's.
const changed = new Set();
let saving = 0;
function save(...conversations) {
  for (const each of conversations.length ? conversations : [state.conversation]) changed.add(each);
  clearTimeout(saving);
  saving = setTimeout(saveNow, 300);
}

function saveNow() {
  clearTimeout(saving);
  for (const each of changed) {
    if (state.conversations.includes(each) && (each.nodes.size || each.system)) keep(CONVERSATION + each.id, each);
    else localStorage.removeItem(CONVERSATION + each.id);
  }
  changed.clear();
  const { sides, showTokens, compare, theme } = state;
  keep(SETTINGS, { sides, showTokens, compare, theme, shown: state.conversation?.id });
}

function restore() {
  const names = Object.keys(localStorage).filter((name) => name.startsWith(CONVERSATION));
  for (const name of names) {
    try {
      state.conversations.push(Conversation.read(read(name), { keepIds: true }));
    } catch (error) {
      notice(`A conversation kept in this browser cannot be read. ${error.message}`);
    }
  }
  state.conversations.sort((one, other) => (one.created < other.created ? 1 : -1));
  const settings = read(SETTINGS);
  if (settings?.sides?.A?.settings && settings.sides.B?.settings) Object.assign(state, { sides: settings.sides });
  state.showTokens = settings?.showTokens === true;
  state.compare = settings?.compare === true;
  if (THEMES.includes(settings?.theme)) state.theme = settings.theme;
  state.conversation = state.conversations.find((each) => each.id === settings?.shown) ?? state.conversations[0] ?? fresh();
}

function fresh() {
  const empty = state.conversations.find((each) => !each.nodes.size);
  if (empty) return empty;
  const conversation = new Conversation();
  state.conversations.unshift(conversation);
  return conversation;
}

// ---- Drawing

const messages = byId("messages");
const isBusy = () => state.preparing || state.running.size > 0;
const view = () => ({ ...state, busy: isBusy() });

function draw() {
  closeCard();
  drawMessages(messages, view(), actions);
  drawBranches(byId("branches"), state.conversation, actions.show);
  byId("branches-title").hidden = !state.conversation.nodes.size;
  drawList();
  byId("system").value = state.conversation.system;
  byId("system").parentElement.hidden = state.database; // Each question stands alone there.
  drawBusy();
}

function drawBusy() {
  const busy = isBusy();
  byId("stop").hidden = !busy;
  byId("send").hidden = busy;
}

function drawList() {
  const items = state.conversations.map((each) => {
    const title = each.title || "New conversation";
    const shown = each === state.conversation;
    return element(
      "li",
      { class: shown ? "shown" : null },
      element("button", { class: "open", type: "button", title, "aria-current": shown ? "true" : null, onclick: () => open(each) }, title),
      each.nodes.size > 0 && element("button", { class: "drop", type: "button", "aria-label": `Delete ${title}`, onclick: () => drop(each) }, "✕"),
    );
  });
  byId("list").replaceChildren(...items);
}

function drawSettings() {
  const { side, sides, compare } = state;
  byId("sides").hidden = !compare;
  byId("model-b").hidden = !compare || side !== "B";
  for (const each of ["A", "B"]) byId(`side-${each}`).setAttribute("aria-pressed", String(side === each));
  byId("compare").setAttribute("aria-pressed", String(compare));
  byId("tokens").setAttribute("aria-pressed", String(state.showTokens));
  const name = sides[side].model;
  const own = state.descriptions.get(name)?.settings ?? {};
  drawControls(byId("controls"), state.controls, sides[side].settings, own, save);
}

function drawModels() {
  const options = (models) => models.map((each) => element("option", { value: each.id }, each.id));
  const bases = state.models.filter((each) => !each.parent);
  const chosen = state.models.find((each) => each.id === state.sides.A.model);
  const base = chosen?.parent ?? chosen?.id;
  const adapters = state.models.filter((each) => each.parent === base && each.parent);
  byId("model").replaceChildren(...options(bases));
  byId("model").value = base ?? "";
  byId("adapter").replaceChildren(element("option", { value: "" }, "no adapter"), ...options(adapters));
  byId("adapter").value = chosen?.parent ? chosen.id : "";
  byId("adapter").parentElement.hidden = !adapters.length;
  byId("model-of-b").replaceChildren(...options(state.models));
  byId("model-of-b").value = state.sides.B.model;
}

function drawTheme() {
  if (state.theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = state.theme;
  byId("theme").setAttribute("aria-label", `Theme: ${state.theme}`);
  byId("theme").title = `Theme: ${state.theme}`;
}

function notice(text) {
  const box = byId("notice");
  box.replaceChildren(element("span", {}, text), element("button", { type: "button", "aria-label": "Dismiss", onclick: () => (box.hidden = true) }, "✕"));
  box.hidden = false;
}

const say = (text) => (byId("status").textContent = text);
const pictures = new Pictures({
  say,
  notice,
  async reads() {
    const name = state.sides.A.model;
    try {
      const description = await describe(name);
      return { name, pictures: description?.pictures === true && !state.database };
    } catch (error) {
      notice(error.message);
      return { name, pictures: null };
    }
  },
});

function guarded(action) {
  return async (...values) => {
    try {
      await action(...values);
    } catch (error) {
      notice(error.message);
      if (!(error instanceof RequestError) && error.name !== "Error") console.error(error); // A bug of the page.
    }
  };
}

// An action that asks the server before it generates: a second click meanwhile does nothing.
const alone = (action) =>
  guarded(async (...values) => {
    if (isBusy()) return;
    state.preparing = true;
    draw();
    try {
      await action(...values);
    } finally {
      state.preparing = false;
      draw();
    }
  });

// ---- Models

async function describe(name) {
  if (name && !state.descriptions.has(name)) {
    state.descriptions.set(name, await call(`/api/model?name=${encodeURIComponent(name)}`));
  }
  return state.descriptions.get(name);
}

const choose = guarded(async (side, name) => {
  state.sides[side].model = name;
  save();
  drawModels();
  const description = await describe(name);
  if (state.sides.A.model === name) await pictures.offer();
  if (state.sides.A.model === name && description && !state.database) {
    const context = description.context ? `Its context has ${description.context.toLocaleString()} tokens.` : "";
    state.hint = description.chat ? context : `${name} has no chat template: it continues your text. ${context}`;
    if (!state.conversation.nodes.size) draw();
  }
  drawSettings();
});

// ---- Answers

// What the model reads to write the answer of a node, whether the answer exists or not.
function question(parent, model, prompt) {
  const said = prompt ? [{ role: "user", content: prompt }] : state.conversation.messages(parent);
  return { model, messages: said };
}

async function answerAll(parent) {
  if (!state.compare) return generate(parent, "A");
  const pair = newId();
  const first = generate(parent, "A", { pair });
  const one = state.conversation.leaf;
  const second = generate(parent, "B", { pair });
  state.conversation.leaf = one;
  draw();
  await Promise.all([first, second]);
}

// Generates an answer to the message `parent`, in a new branch. `begin` is what it continues: the
// model, the text, the ids of prompt and text, those of the text alone, and the new tokens that fit.
async function generate(parent, side, { pair, begin = null, branched } = {}) {
  const { conversation } = state;
  const { settings } = state.sides[side];
  const model = begin?.model ?? state.sides[side].model; // Token ids are those of one model's tokenizer.
  const node = conversation.add(parent, {
    role: "assistant",
    content: begin?.text ?? "",
    model,
    settings: structuredClone(settings),
    pair,
    branched,
    timings: {},
  });
  const abort = new AbortController();
  state.running.set(node.id, abort);
  draw();
  messages.scrollTop = messages.scrollHeight;
  say("The model is answering.");
  const started = performance.now();
  const seconds = () => (performance.now() - started) / 1000;
  let waiting = 0;
  const refresh = () => {
    waiting = 0;
    const box = messages.querySelector(`[data-node="${CSS.escape(node.id)}"]`);
    if (!box || conversation !== state.conversation) return;
    const atEnd = messages.scrollHeight - messages.scrollTop - messages.clientHeight < 80;
    fill(box, node, view(), actions);
    if (atEnd) messages.scrollTop = messages.scrollHeight;
  };
  try {
    if (state.database && !begin) {
      const answer = await call("/api/database/answer", { question: conversation.get(parent).content, model, settings }, abort.signal);
      Object.assign(node, { prompt: answer.prompt, content: answer.completion, ids: answer.ids, finish: answer.finish, database: answer });
      Object.assign(node.timings, { tokens: answer.ids.length, seconds: seconds() });
      say(answer.refused ? answer.reason : `${answer.sql}: ${answer.rows.length} rows`);
      return;
    }
    const fields = { model, ...requestFields(settings), return_token_ids: true };
    const description = await describe(model);
    const asked = begin ? null : question(parent, model);
    let pieces;
    if (description.chat && !begin) pieces = stream("/v1/chat/completions", { ...fields, messages: asked.messages }, abort.signal);
    else if (begin?.messages) pieces = stream("/v1/chat/completions", { ...fields, messages: begin.messages, continue_final_message: true }, abort.signal);
    else {
      const { ids, room } = begin ?? (await call("/api/prompt", asked));
      if (!room) throw new RequestError("The model's context is full.", 400);
      const max_tokens = Math.min(room, description.settings.max_new_tokens ?? room);
      pieces = stream("/v1/completions", { max_tokens, ...fields, prompt: ids }, abort.signal);
    }
    const ids = begin?.answer ? [...begin.answer] : [];
    let exact = !begin || Boolean(begin.answer);
    let count = 0;
    for await (const piece of pieces) {
      if (piece.text || piece.reasoning) {
        node.timings.first ??= seconds();
        count += 1;
        node.content += piece.text;
        if (piece.reasoning) node.reasoning = (node.reasoning ?? "") + piece.reasoning;
      }
      if (piece.ids) ids.push(...piece.ids);
      else if (piece.text) exact = false;
      if (piece.finish) node.finish = piece.finish;
      if (piece.usage) count = piece.usage.completion_tokens;
      Object.assign(node.timings, { tokens: count, seconds: seconds() });
      waiting ||= setTimeout(refresh, 60);
    }
    if (exact && ids.length && !node.reasoning) {
      node.ids = ids;
      // The text of all tokens together: a piece alone may begin within a character, or lack a space.
      if (begin && !settings.stop) node.content = (await call("/api/text", { model, ids })).text;
    }
    say(`Answer of ${model}: ${node.content.slice(0, 2000) || "empty"}`);
  } catch (error) {
    node.finish = error.name === "AbortError" ? "stopped" : "error";
    if (node.finish === "error") node.error = error.message;
    say(node.finish === "error" ? `The answer failed: ${error.message}` : "The answer was stopped.");
  } finally {
    clearTimeout(waiting);
    state.running.delete(node.id);
    if (conversation === state.conversation) {
      const atEnd = messages.scrollHeight - messages.scrollTop - messages.clientHeight < 80;
      draw();
      if (atEnd) messages.scrollTop = messages.scrollHeight;
    }
    save(conversation);
  }
}

// The side whose model gave an answer, and whose settings its branches get.
function sideOf(node) {
  const other = Object.keys(state.sides).find((each) => state.sides[each].model === node.model);
  return other ?? "A";
}

function stopAll() {
  for (const abort of state.running.values()) abort.abort();
}

const actions = {
  ask,
  show(id) {
    state.conversation.show(id);
    draw();
    save();
  },
  asked: (node) => question(node.parent, node.model, node.prompt),
  async copy(node) {
    try {
      await navigator.clipboard.writeText(node.content);
      say("Copied.");
    } catch {
      notice("This browser does not let the page copy.");
    }
  },
  edit(node) {
    const box = messages.querySelector(`[data-node="${CSS.escape(node.id)}"]`);
    const finish = guarded(async (text) => {
      if (node.role === "user") {
        if (!text.trim() && !node.images?.length) return;
        const { id } = state.conversation.add(node.parent, { role: "user", content: text, images: node.images });
        await answerAll(id);
        return;
      }
      const { model, settings, prompt } = node;
      const edited = { role: "assistant", content: text, model, settings, prompt, branched: "edited" };
      if (prompt) edited.database = await call("/api/database/rows", { question: state.conversation.get(node.parent).content, completion: text });
      state.conversation.add(node.parent, edited);
      draw();
      save();
    });
    editor(box, node, finish, () => {
      draw();
      messages.querySelector(`[data-focus="${CSS.escape(node.id)}:edit"]`)?.focus();
    });
  },
  regenerate: (node) => generate(node.parent, sideOf(node)),
  continue: alone(async (node) => {
    if (state.conversation.hasPictures(node.parent)) {
      if (!node.content) return actions.regenerate(node);
      const asked = [...actions.asked(node).messages, { role: "assistant", content: node.content }];
      return generate(node.parent, sideOf(node), { begin: { model: node.model, text: node.content, messages: asked }, branched: "continued" });
    }
    const { ids, answer, room } = await call("/api/prompt", { ...actions.asked(node), content: node.content, ids: node.ids });
    if (!answer) return actions.regenerate(node);
    await generate(node.parent, sideOf(node), {
      begin: { model: node.model, text: node.content, ids, room, answer: ids.slice(ids.length - answer) },
      branched: "continued",
    });
  }),
  remove(node) {
    state.conversation.remove(node.id);
    draw();
    save();
    messages.focus();
  },
  async explain(node) {
    const { content } = node;
    state.explanations.set(node.id, { content, error: "Asking for the probabilities…" });
    try {
      const { tokens } = await call("/api/explain", { ...actions.asked(node), content, ids: node.ids });
      state.explanations.set(node.id, { content, tokens });
    } catch (error) {
      state.explanations.set(node.id, { content, error: error.message });
    }
    const box = messages.querySelector(`[data-node="${CSS.escape(node.id)}"]`);
    if (box && !box.querySelector("form")) fill(box, node, view(), actions);
  },
  // Continues with the tokens before a place and another token at it.
  branch: alone(async (node, before, token) => {
    const answer = [...before.map((each) => each.id), token.id];
    const { text, ended } = await call("/api/text", { model: node.model, ids: answer });
    const branched = `branch at “${token.text.trim() || token.text}”`;
    if (ended) {
      state.conversation.add(node.parent, { role: "assistant", content: text, model: node.model, settings: node.settings, branched, finish: "stop", ids: answer });
      draw();
      save();
      return;
    }
    const { ids, room } = await call("/api/prompt", { ...actions.asked(node), ids: answer });
    await generate(node.parent, sideOf(node), { begin: { model: node.model, text, ids, room, answer }, branched });
  }),
};

// ---- Conversations

function open(conversation) {
  state.conversation = conversation;
  draw();
  save();
  close("conversations");
  messages.scrollTop = messages.scrollHeight;
}

function drop(conversation) {
  if (!confirm(`Delete “${conversation.title}” with all its branches?`)) return;
  state.conversations = state.conversations.filter((each) => each !== conversation);
  if (state.conversation === conversation) state.conversation = state.conversations[0] ?? fresh();
  draw();
  save(conversation);
}

const stamp = () => new Date().toISOString().slice(0, 10);

async function importFile(file) {
  const conversations = imported(await file.text());
  state.conversations.unshift(...conversations);
  if (conversations.length) open(conversations[0]);
  save(...conversations);
  say(`${conversations.length} conversation${conversations.length === 1 ? "" : "s"} imported.`);
}

// ---- Panels

function openPanel(name) {
  const panel = byId(name);
  panel.classList.add("open");
  byId(`show-${name}`).setAttribute("aria-expanded", "true");
  panel.querySelector("button:not([hidden])").focus();
}

function close(name) {
  if (!byId(name).classList.contains("open")) return false;
  const inside = byId(name).contains(document.activeElement);
  byId(name).classList.remove("open");
  byId(`show-${name}`).setAttribute("aria-expanded", "false");
  if (inside) byId(`show-${name}`).focus();
  return true;
}

// ---- Events

function send() {
  const text = byId("question").value;
  if ((!text.trim() && !pictures.urls.length) || isBusy()) return;
  byId("question").value = "";
  ask(text, pictures.take());
}

function ask(text, images = []) {
  if (isBusy()) return;
  const { id } = state.conversation.add(state.conversation.leaf, { role: "user", content: text, ...(images.length && { images }) });
  answerAll(id);
}

function listen() {
  byId("ask").addEventListener("submit", (event) => (event.preventDefault(), send()));
  byId("question").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  });
  byId("stop").addEventListener("click", () => (stopAll(), byId("question").focus()));
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || byId("inside").open) return;
    if (closeCard() || close("settings") || close("conversations")) return;
    stopAll();
  });
  document.addEventListener("pointerdown", (event) => {
    if (!event.target.closest("#card, .token")) closeCard();
  });
  messages.addEventListener("scroll", closeCard);
  byId("new").addEventListener("click", () => (open(fresh()), byId("question").focus()));
  byId("model").addEventListener("change", () => choose("A", byId("model").value));
  byId("adapter").addEventListener("change", () => choose("A", byId("adapter").value || byId("model").value));
  byId("model-of-b").addEventListener("change", () => choose("B", byId("model-of-b").value));
  byId("tokens").addEventListener("click", () => {
    state.showTokens = !state.showTokens;
    drawSettings();
    draw();
    save();
  });
  byId("compare").addEventListener("click", () => {
    state.compare = !state.compare;
    state.side = state.compare ? "B" : "A";
    drawSettings();
    save();
    if (state.compare) say("Each question is answered twice. The settings of B are shown.");
  });
  for (const side of ["A", "B"]) byId(`side-${side}`).addEventListener("click", () => ((state.side = side), drawSettings()));
  byId("theme").addEventListener("click", () => {
    state.theme = THEMES[(THEMES.indexOf(state.theme) + 1) % THEMES.length];
    drawTheme();
    save();
    say(`Theme: ${state.theme}`);
  });
  byId("system").addEventListener("input", () => {
    state.conversation.system = byId("system").value;
    save();
  });
  byId("reset").addEventListener("click", () => {
    state.sides[state.side].settings = {};
    drawSettings();
    save();
  });
  for (const name of ["conversations", "settings"]) byId(`show-${name}`).addEventListener("click", () => openPanel(name));
  for (const button of document.querySelectorAll("[data-closes]")) button.addEventListener("click", () => close(button.dataset.closes));
  byId("export").addEventListener("click", () => download(`conversation-${stamp()}.json`, exported([state.conversation])));
  byId("export-all").addEventListener("click", () => download(`conversations-${stamp()}.json`, exported(state.conversations)));
  byId("import").addEventListener("click", () => byId("import-file").click());
  byId("import-file").addEventListener("change", guarded(async () => {
    const [file] = byId("import-file").files;
    byId("import-file").value = "";
    if (file) await importFile(file);
  }));
  byId("inside-close").addEventListener("click", () => byId("inside").close());
  addEventListener("pagehide", () => {
    changed.add(state.conversation); // With what is generated of its answers so far.
    saveNow();
  });
}

// Questions that the model surely answers, for an empty conversation; an empty question gets nothing else.
const suggest = guarded(async () => {
  const { suggestions } = await call("/api/database/answer", { question: "", model: state.sides.A.model });
  state.suggestions = suggestions;
  if (!state.conversation.nodes.size) draw();
});

const start = guarded(async () => {
  restore();
  drawTheme();
  listen();
  draw();
  const [models, controls, database, index] = await Promise.all(
    ["/v1/models", "/api/controls", "/api/database", "/api/index"].map((path) => call(path)),
  );
  byId("documents").hidden = !index.available;
  if (index.available && !models.data.length) return location.replace("ask"); // Nothing to chat with.
  state.models = models.data;
  state.controls = controls;
  state.database = database.available;
  const known = new Set(state.models.map((each) => each.id));
  for (const side of Object.values(state.sides)) if (!known.has(side.model)) side.model = state.models[0]?.id ?? "";
  if (state.database) byId("question").placeholder = "Ask the database";
  if (state.database) state.hint = `Tables: ${database.tables.slice(0, 20).map((each) => each.name).join(", ")}`;
  drawSettings();
  await choose("A", state.sides.A.model);
  draw();
  if (state.database) suggest();
  document.body.dataset.ready = "yes";
});

start();

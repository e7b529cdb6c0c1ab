// Asks the index: an answer whose citations are spans of documents, the passages it was written from, and the prompt. All
// text of documents and models is set as text, never as HTML.

import { call } from "./client.js";
import { byId, element } from "./dom.js";

const turns = [];
let about = null;
let busy = false;

// A sentence, the buttons of its citations, and the mark of one without support.
function sentence(each, show) {
  const numbers = new Map(each.citations.map((citation) => [citation.number, citation]));
  const marks = [...numbers].map(([number, citation]) =>
    element("button", { class: "cite", title: citation.quote.slice(0, 300), "aria-label": `Passage ${number}, ${citation.name}`, onclick: () => show(number) }, `[${number}]`),
  );
  const unsupported = each.supported ? null : element("span", { class: "unsupported-mark", title: "No passage says this." }, "unsupported");
  return element("span", { class: each.supported ? "sentence" : "sentence unsupported" }, each.text, marks, unsupported, " ");
}

// A passage with the cited spans marked; offsets count code points, as Python does.
function passage(hit, citations) {
  const points = Array.from(hit.text);
  const spans = citations.filter((each) => each.document === hit.document && each.start >= hit.start && each.end <= hit.end);
  spans.sort((one, other) => one.start - other.start || other.end - one.end);
  const parts = [];
  let place = 0;
  for (const span of spans) {
    const [start, end] = [Math.max(place, span.start - hit.start), span.end - hit.start];
    if (end <= place) continue;
    parts.push(points.slice(place, start).join(""), element("mark", {}, points.slice(start, end).join("")));
    place = end;
  }
  parts.push(points.slice(place).join(""));
  const where = [hit.name, ...hit.path].join(" › ");
  return element(
    "details",
    { class: "passage", open: spans.length > 0, "data-number": String(hit.rank) },
    element("summary", {}, `[${hit.rank}] ${where}`, element("span", { class: "faint" }, ` characters ${hit.start}–${hit.end}, score ${hit.score.toFixed(3)}`)),
    element("div", { class: "text" }, parts),
  );
}

function prompt(found) {
  if (!found.prompt) return null;
  const text = typeof found.prompt === "string" ? found.prompt : found.prompt.map((turn) => `[${turn.role}]\n${turn.content}`).join("\n\n");
  return element("details", { class: "passage" }, element("summary", {}, "Prompt and completion"), element("pre", {}, `${text}\n\n[completion]\n${found.completion}`));
}

function pictures(found) {
  if (!found.pictures.length) return null;
  const rows = found.pictures.map((hit) => element("li", {}, `${hit.name} `, element("span", { class: "faint" }, hit.score.toFixed(3))));
  return element("details", { class: "passage", open: true }, element("summary", {}, "Pictures"), element("ol", {}, rows));
}

function draw() {
  byId("turns").replaceChildren(
    ...(turns.length
      ? []
      : [element("div", { class: "empty" }, element("strong", {}, "Ask the documents"), "Answers cite the passages that they come from; each citation was compared with its document.")]),
    ...turns.map(({ question, found }) => {
      const citations = found.sentences.flatMap((each) => each.citations);
      const passages = found.hits.map((hit) => passage(hit, citations));
      const show = (number) => {
        const target = passages.find((each) => each.dataset.number === String(number));
        target.open = true;
        target.scrollIntoView({ block: "center" });
        target.querySelector("summary").focus();
      };
      const facts = [...found.notes];
      if (found.searched !== question) facts.unshift(`searched for: ${found.searched}`);
      return element(
        "article",
        { class: "turn" },
        element("h2", { class: "asked" }, question),
        element("p", { class: found.found ? "answer" : "answer faint" }, found.found ? found.sentences.map((each) => sentence(each, show)) : "Not in the documents."),
        facts.map((fact) => element("p", { class: "faint" }, fact)),
        pictures(found),
        passages,
        prompt(found),
      );
    }),
  );
}

async function ask(question) {
  busy = true;
  byId("send").disabled = true;
  byId("notice").hidden = true;
  byId("status").textContent = "Searching…";
  try {
    const history = turns.slice(-10).map(({ found }) => ({ question: found.searched, answer: found.text }));
    const found = await call("/api/index/ask", { question, history, model: byId("model").value || null, retriever: byId("retriever").value });
    turns.push({ question, found });
    byId("question").value = "";
    draw();
    byId("turns").lastElementChild.scrollIntoView({ block: "start" });
    byId("status").textContent = found.text;
  } catch (error) {
    byId("notice").textContent = error.message;
    byId("notice").hidden = false;
  }
  busy = false;
  byId("send").disabled = false;
}

byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const question = byId("question").value.trim();
  if (question && !busy && about) ask(question);
});
byId("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    byId("form").requestSubmit();
  }
});
byId("new").addEventListener("click", () => {
  turns.length = 0;
  draw();
  byId("question").focus();
});

try {
  about = await call("/api/index");
  if (!about.available) throw new Error("There is no index to ask; start the server with --index INDEX.");
  byId("name").textContent = about.name;
  byId("counts").textContent = `${about.documents.toLocaleString("en")} documents, ${about.chunks.toLocaleString("en")} passages`;
  byId("model").replaceChildren(element("option", { value: "" }, "Quoted sentences"), ...about.models.map((name) => element("option", { value: name }, name)));
  byId("retriever").replaceChildren(...about.retrievers.map((name) => element("option", { value: name }, name)));
  byId("retriever").value = about.retriever;
  draw();
  document.body.dataset.ready = "yes";
} catch (error) {
  about = null;
  byId("notice").textContent = error.message;
  byId("notice").hidden = false;
}

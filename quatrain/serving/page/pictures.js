// Pictures that a question is about: chosen, pasted or dropped, made small enough to send, and shown above the question.

import { byId, element } from "./dom.js";

const MOST = 8;
const SMALL = 300_000; // Bytes of a file that is sent as it is.
const SIDE = 1024; // Pixels of the longer side of a picture that is made smaller.

export class Pictures {
  // `reads` tells, once the server has said it, whether the model that is chosen then reads pictures, and its name.
  constructor({ say, notice, reads }) {
    this.urls = [];
    this.say = say;
    this.notice = notice;
    this.reads = reads;
    this.listen();
  }

  async offer() {
    byId("picture").hidden = !(await this.reads()).pictures;
  }

  take() {
    const taken = this.urls;
    this.urls = [];
    this.draw();
    return taken;
  }

  async add(files) {
    const pictures = [...files].filter((file) => file.type.startsWith("image/"));
    if (!pictures.length) return;
    const { pictures: seen, name } = await this.reads();
    if (seen === null) return;
    if (!seen) return this.notice(`${name} reads text alone, and cannot see a picture.`);
    for (const file of pictures) {
      if (this.urls.length >= MOST) return this.notice(`A question may have ${MOST} pictures.`);
      try {
        this.urls.push(await prepared(file));
        this.draw();
        this.say(`Picture ${this.urls.length} is added: ${file.name || "pasted"}.`);
      } catch {
        this.notice(`${file.name || "The picture"} cannot be read as a picture.`);
      }
    }
    byId("question").focus();
  }

  remove(place) {
    this.urls.splice(place, 1);
    this.draw();
    this.say("The picture is removed.");
    (byId("pictures").querySelector("button") ?? byId("picture")).focus();
  }

  draw() {
    const items = this.urls.map((src, place) =>
      element(
        "li",
        {},
        element("img", { src, alt: `Picture ${place + 1} of the question` }),
        element("button", { type: "button", class: "quiet", "aria-label": `Remove picture ${place + 1}`, onclick: () => this.remove(place) }, "✕"),
      ),
    );
    byId("pictures").replaceChildren(...items);
    byId("pictures").hidden = !items.length;
  }

  listen() {
    const input = byId("picture-file");
    byId("picture").addEventListener("click", () => input.click());
    input.addEventListener("change", async () => {
      const files = [...input.files];
      input.value = "";
      await this.add(files);
    });
    byId("question").addEventListener("paste", (event) => {
      const files = [...(event.clipboardData?.files ?? [])];
      if (!files.some((file) => file.type.startsWith("image/"))) return;
      event.preventDefault();
      this.add(files);
    });
    const place = document.querySelector("main");
    place.addEventListener("dragover", (event) => {
      if (![...(event.dataTransfer?.types ?? [])].includes("Files")) return;
      event.preventDefault();
      place.classList.add("dropping");
    });
    place.addEventListener("dragleave", (event) => {
      if (!place.contains(event.relatedTarget)) place.classList.remove("dropping");
    });
    place.addEventListener("drop", (event) => {
      place.classList.remove("dropping");
      if (!event.dataTransfer?.files.length) return;
      event.preventDefault();
      this.add(event.dataTransfer.files);
    });
  }
}

// A data URI of a file: the file itself where it is small, else a smaller JPEG over white. Throws for what is no picture.
async function prepared(file) {
  const bitmap = await createImageBitmap(file);
  const { width, height } = bitmap;
  if (file.size <= SMALL && ["image/png", "image/jpeg"].includes(file.type)) return asUrl(file);
  const scale = Math.min(1, SIDE / Math.max(width, height));
  const canvas = element("canvas", {});
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  const pen = canvas.getContext("2d");
  pen.fillStyle = "white";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/jpeg", 0.9);
}

function asUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => resolve(reader.result));
    reader.addEventListener("error", () => reject(reader.error));
    reader.readAsDataURL(file);
  });
}

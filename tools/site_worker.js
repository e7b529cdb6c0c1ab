// Search runs in a Worker, which browsers refuse to pages that are opened from a folder. There, a hidden frame runs the
// same script: messages go to the frame's window and come back from it.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.onmessage = null;
      this.onerror = null;
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.body.appendChild(this.frame);
      const inside = this.frame.contentWindow;
      // Later, and a copy, as from a Worker: who sends a message goes on first, and keeps its own data.
      inside.postMessage = (message) => {
        const event = new MessageEvent("message", { data: structuredClone(message) });
        setTimeout(() => {
          this.dispatchEvent(event);
          if (this.onmessage) this.onmessage(event);
        });
      };
      this.ready = new Promise((resolve, reject) => {
        const script = inside.document.createElement("script");
        script.src = new URL(url, document.baseURI);
        script.onload = resolve;
        script.onerror = reject;
        inside.document.body.appendChild(script);
      });
      this.ready.catch((event) => {
        this.dispatchEvent(new Event("error"));
        if (this.onerror) this.onerror(event);
      });
    }

    postMessage(message) {
      const data = structuredClone(message);
      this.ready.then(() => {
        const inside = this.frame.contentWindow;
        const event = new inside.MessageEvent("message", { data });
        inside.dispatchEvent(event);
      });
    }

    terminate() {
      this.frame.remove();
    }
  };
}

// Requests to the server: JSON, and completions as streams of server-sent events. Where the server has a key, the browser
// asks for it once, as a password, and sends it with each request.

export class RequestError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

async function send(path, body, signal) {
  let response;
  try {
    response = await fetch(path, {
      method: body ? "POST" : "GET",
      headers: body ? { "Content-Type": "application/json" } : {},
      body: body && JSON.stringify(body),
      signal,
      credentials: "same-origin",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new RequestError("The server cannot be reached. Is it still running?", 0);
  }
  if (!response.ok) {
    const text = await response.text();
    let message = text.slice(0, 500) || `The server answered with status ${response.status}.`;
    try {
      message = JSON.parse(text).error.message;
    } catch {
      // The text itself says what happened.
    }
    if (response.status === 401) message += " Reload the page, and give the server's key as the password.";
    throw new RequestError(message, response.status);
  }
  return response;
}

export async function call(path, body, signal) {
  return (await send(path, body, signal)).json();
}

// The data of each server-sent event. Comments and other fields are skipped.
async function* events(response) {
  const decoder = new TextDecoder();
  const reader = response.body.getReader();
  let rest = "";
  while (true) {
    const { done, value } = await reader.read();
    rest += done ? decoder.decode() : decoder.decode(value, { stream: true });
    const lines = rest.split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) if (line.startsWith("data:")) yield line.slice(5).trim();
    if (done) return;
  }
}

// Streams a completion: yields {text, reasoning, finish, usage} as they arrive. `path` is /v1/chat/completions or
// /v1/completions, whose forms differ in where the text is.
export async function* stream(path, body, signal) {
  const response = await send(path, { ...body, stream: true, stream_options: { include_usage: true } }, signal);
  for await (const data of events(response)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new RequestError(chunk.error.message, 200);
    const choice = chunk.choices?.[0];
    yield {
      text: choice?.delta?.content ?? choice?.text ?? "",
      reasoning: choice?.delta?.reasoning_content ?? "",
      finish: choice?.finish_reason ?? null,
      usage: chunk.usage ?? null,
      ids: choice?.token_ids ?? null,
    };
  }
}

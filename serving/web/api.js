// Talking to the server: the key, errors as one type, and server-sent events.

import { remembered } from "./storage.js";

/** What went wrong, in words for the reader. */
export class ApiError extends Error {
  /**
   * @param {string} message
   * @param {{status?: number, retryAfter?: number}} details `status` 0 means that the server did
   *   not answer; `retryAfter` is in seconds.
   */
  constructor(message, { status = 0, retryAfter = 0 } = {}) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

export const key = remembered("sessionStorage", "rag-fti.key");

let askForKey = async () => false;
let asking = null;

/** @param {() => Promise<boolean>} ask Asks the reader for a key; false when they decline. */
export function onUnauthorized(ask) {
  askForKey = ask;
}

/**
 * One request; asks for a key and tries again where the server answers 401.
 * @param {string} path Relative to the page, so that a path prefix of a proxy is kept.
 * @param {{method?: string, json?: any, body?: BodyInit, signal?: AbortSignal}} options
 * @returns {Promise<Response>} A response that is ok.
 * @throws {ApiError} For every other outcome but an abort.
 */
export async function request(path, { method, json, body, signal } = {}) {
  for (;;) {
    const used = key.get();
    const response = await send(path, { method, json, body, signal, used });
    if (response.ok) return response;
    const error = await failure(response);
    if (response.status !== 401) throw error;
    if (key.get() !== used) continue; // another request has asked meanwhile
    asking ??= askForKey(Boolean(used)).finally(() => {
      asking = null;
    });
    if (!(await asking)) throw error;
  }
}

async function send(path, { method, json, body, signal, used }) {
  const headers = {};
  if (used) headers.Authorization = `Bearer ${used}`;
  if (json !== undefined) headers["Content-Type"] = "application/json";
  try {
    return await fetch(new URL(path, document.baseURI), {
      method: method || (json === undefined && body === undefined ? "GET" : "POST"),
      headers,
      body: json === undefined ? body : JSON.stringify(json),
      signal,
      credentials: "same-origin",
      cache: "no-store",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server cannot be reached. It may be stopped or restarting.");
  }
}

async function failure(response) {
  let message = "";
  try {
    const body = await response.json();
    message = body?.error?.message || (typeof body?.detail === "string" ? body.detail : "");
  } catch {
    // not JSON: the status has to do
  }
  const wait = response.headers.get("Retry-After");
  return new ApiError(message || `The server answered ${response.status}.`, {
    status: response.status,
    retryAfter: wait ? seconds(wait) : 0,
  });
}

/** Retry-After is a number of seconds or a date. */
function seconds(value) {
  const number = Number(value);
  if (Number.isFinite(number)) return Math.max(0, Math.ceil(number));
  const date = Date.parse(value);
  return Number.isNaN(date) ? 0 : Math.max(0, Math.ceil((date - Date.now()) / 1000));
}

/**
 * The data of each server-sent event, until `[DONE]`.
 * @param {ReadableStream<Uint8Array>} stream
 * @throws {ApiError} Where the stream ends without `[DONE]` or carries an error.
 */
export async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  try {
    for (;;) {
      const { value, done } = await chunk(reader);
      if (done) break;
      buffer += value;
      const blocks = buffer.split(/\r?\n\r?\n/);
      buffer = blocks.pop();
      for (const block of blocks) {
        const data = dataOf(block);
        if (data === "[DONE]") return;
        if (data) yield parsed(data);
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // an aborted stream rejects; there is nothing left to free
  }
  throw new ApiError("The connection ended before the answer was complete.");
}

async function chunk(reader) {
  try {
    return await reader.read();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The connection broke before the answer was complete.");
  }
}

const dataOf = (block) =>
  block
    .split(/\r?\n/)
    .filter((line) => line.startsWith("data:"))
    .map((line) => line.slice(5).replace(/^ /, ""))
    .join("\n");

function parsed(data) {
  const event = JSON.parse(data);
  if (event.error) {
    throw new ApiError(event.error.message || "The server could not finish the answer.", {
      status: Number(event.error.status) || 500,
    });
  }
  return event;
}

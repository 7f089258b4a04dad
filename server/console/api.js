/** The server's HTTP API: keys, errors in words, event streams. Knows nothing of what is shown. */

/**
 * @typedef {object} Evidence what is known of a variant (docs/reference/http.md); shares of the items
 * @property {"unproven" | "safe" | "degraded"} verdict
 * @property {number} items
 * @property {number | null} age_seconds
 * @property {number | null} accuracy
 * @property {number} accuracy_low
 * @property {number} accuracy_high
 * @property {number | null} drop
 * @property {number} drop_high
 * @property {number} trap_rate
 *
 * @typedef {object} Variant
 * @property {string} id
 * @property {"ready" | "degraded" | "retiring"} state
 * @property {boolean} default
 * @property {number} sparsity
 * @property {number} exact_sparsity
 * @property {string | null} delta
 * @property {number} parameters
 * @property {number} standalone_bytes
 * @property {number} marginal_bytes
 * @property {number} requests_in_flight
 * @property {Evidence | null} evidence
 *
 * @typedef {object} Listing GET /v1/variants
 * @property {string} model
 * @property {number} resident_bytes
 * @property {{task: string | null, reason?: string, tolerance?: number, reference?: string}} probes
 * @property {Variant[]} data sparsest last
 */

/** Within this whatever is only read has come: nothing there takes a server long. As `secateur top` has it. */
const READ_TIMEOUT_MS = 5000;

/** The server's refusal, or its absence: then `status` is 0. */
export class ApiError extends Error {
  /** @param {number} status @param {string} code @param {string} message @param {string} path that was asked */
  constructor(status, code, message, path) {
    super(message);
    this.status = status;
    this.code = code;
    this.path = path;
  }

  /** Whether it is the admin key that was wanted, or else the API key. */
  get isOfAdmin() {
    return isAdmin(this.path);
  }
}

const STORED_AS = { api: "secateur-api-key", admin: "secateur-admin-key" };

/** @param {"api" | "admin"} which */
export function keyOf(which) {
  return sessionStorage.getItem(STORED_AS[which]) ?? "";
}

/** Keeps a key until the tab is closed. @param {"api" | "admin"} which @param {string} key */
export function keepKey(which, key) {
  if (key) sessionStorage.setItem(STORED_AS[which], key);
  else sessionStorage.removeItem(STORED_AS[which]);
}

/** @type {(told: string) => Promise<boolean>} */
let askForKey = async () => false;

/** How a person is asked for the API key: resolves to whether there is a new one. @param {typeof askForKey} ask */
export function onKeyWanted(ask) {
  askForKey = ask;
}

/** @type {(refused: boolean) => void} */
let judgeKey = () => {};

/** Who hears, at every answer, whether the API key or the want of one was refused. @param {typeof judgeKey} judge */
export function onKeyJudged(judge) {
  judgeKey = judge;
}

/**
 * A request's JSON answer. What is read and does not come in time is as good as from a server that is not there;
 * what changes something may take as long as it does.
 * @param {string} path
 * @param {{method?: string, body?: object, signal?: AbortSignal, quiet?: boolean}} [options] `quiet`: nobody is
 *   asked for a key
 * @returns {Promise<any>}
 * @throws {ApiError}
 */
export async function call(path, options = {}) {
  const response = await send(path, options);
  try {
    return await response.json();
  } catch (error) {
    throw away(error, path);
  }
}

/**
 * The events of a stream, up to its end.
 * @param {string} path
 * @param {object} body
 * @param {AbortSignal} signal
 * @returns {AsyncGenerator<any>}
 * @throws {ApiError} also for an error in the middle
 */
export async function* stream(path, body, signal) {
  const response = await send(path, { method: "POST", body, signal });
  if (!response.body) throw new ApiError(0, "unreachable", "the server sent nothing", path);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      throw away(error, path);
    }
    if (part.done) throw new ApiError(0, "cut_off", "the connection broke before the answer had ended", path);
    const events = (rest + part.value).split("\n\n");
    rest = events.pop() ?? "";
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const message = JSON.parse(data);
      if (message.error) throw new ApiError(response.status, message.error.code, message.error.message, path);
      yield message;
    }
  }
}

/** @param {string} path @param {Parameters<typeof call>[1]} options @returns {Promise<Response>} */
async function send(path, { method = "GET", body, signal, quiet = false } = {}) {
  for (;;) {
    const key = keyOf(isAdmin(path) ? "admin" : "api");
    /** @type {Record<string, string>} */
    const headers = key ? { authorization: `Bearer ${key}` } : {};
    if (body) headers["content-type"] = "application/json";
    // From now on and not before: a person may have taken long to type a key.
    const until = signal ?? (method === "GET" ? AbortSignal.timeout(READ_TIMEOUT_MS) : null);
    let response;
    try {
      response = await fetch(path, { method, headers, signal: until, body: body && JSON.stringify(body) });
    } catch (error) {
      throw away(error, path);
    }
    if (response.ok) {
      if (!isAdmin(path)) judgeKey(false);
      return response;
    }
    const refusal = await refused(response, path);
    const wantsKey = refusal.status === 401 && !refusal.isOfAdmin;
    if (wantsKey && !quiet && (await askForKey(key ? refusal.message : ""))) continue;
    if (wantsKey) judgeKey(true);
    throw refusal;
  }
}

/** @param {string} path */
function isAdmin(path) {
  return path.startsWith("/admin");
}

/** @param {Response} response @param {string} path */
async function refused(response, path) {
  try {
    const { error } = await response.json();
    return new ApiError(response.status, error.code, error.message, path);
  } catch {
    return new ApiError(response.status, "unknown", `the server answered with status ${response.status}`, path);
  }
}

/** What fetch throws, a TimeoutError among them, in words; an abort stays what it is. @param {any} error @param {string} path */
function away(error, path) {
  if (error.name === "AbortError") return error;
  return new ApiError(0, "unreachable", "the server cannot be reached", path);
}

/** One request in three languages: as JSON for fetch, as a curl command and as a Python program. */

/**
 * @typedef {object} Question
 * @property {string} model
 * @property {string} prompt
 * @property {number} maxTokens
 * @property {boolean} allowUnsafe
 */

/**
 * What the playground sends for a size: greedy, so that sizes can be compared token by token. A sparsity says which
 * one is meant, unless several variants share it.
 * @param {Question} question
 * @param {{id: string, sparsity: number}} variant
 * @param {{sparsity: number}[]} served
 */
export function requestBody(question, variant, served) {
  const alone = served.filter((other) => other.sparsity === variant.sparsity).length < 2;
  return {
    model: alone ? question.model : variant.id,
    messages: [{ role: "user", content: question.prompt }],
    temperature: 0,
    max_tokens: question.maxTokens,
    ...(alone ? { sparsity: variant.sparsity } : {}),
    ...(question.allowUnsafe ? { allow_unsafe: true } : {}),
  };
}

/** @param {string} origin @param {object} body @param {boolean} wantsKey */
export function curlCommand(origin, body, wantsKey) {
  const quoted = JSON.stringify(body, null, 2).replaceAll("'", "'\\''");
  const key = wantsKey ? ` \\\n  -H "authorization: Bearer $SECATEUR_API_KEY"` : "";
  return `curl -s ${origin}/v1/chat/completions -H 'content-type: application/json'${key} -d '${quoted}'`;
}

/** @param {string} origin @param {ReturnType<typeof requestBody>} body @param {boolean} wantsKey */
export function pythonProgram(origin, body, wantsKey) {
  const { model, messages, temperature, max_tokens, ...extra } = body;
  const told = Object.entries(extra).map(([name, value]) => `"${name}": ${value === true ? "True" : value}`);
  const key = wantsKey ? `os.environ["SECATEUR_API_KEY"]` : `"none"`;
  return [
    ...(wantsKey ? ["import os", ""] : []),
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url="${origin}/v1", api_key=${key})`,
    "answer = client.chat.completions.create(",
    `    model=${JSON.stringify(model)},`,
    `    messages=[{"role": "user", "content": ${JSON.stringify(messages[0].content)}}],`,
    `    temperature=${temperature},`,
    `    max_tokens=${max_tokens},`,
    ...(told.length ? [`    extra_body={${told.join(", ")}},`] : []),
    ")",
    "print(answer.choices[0].message.content)",
  ].join("\n");
}

// The official JavaScript client, unmodified, against the server whose base URL is the first argument.
// The second argument is the folder of node modules.

import assert from "node:assert/strict";
import { createRequire } from "node:module";

const [baseURL, modules] = process.argv.slice(2);
const { default: OpenAI } = createRequire(`${modules}/`)("openai");
const client = new OpenAI({ baseURL, apiKey: "unused", maxRetries: 0 });

const model = (await client.models.list()).data[0].id;
assert.equal((await client.models.retrieve(model)).id, model);

const messages = [{ role: "user", content: "What is a sail?" }];
const options = { model, messages, max_tokens: 16, temperature: 0 };
const whole = await client.chat.completions.create(options);
const text = whole.choices[0].message.content;
assert.equal(whole.usage.total_tokens, whole.usage.prompt_tokens + whole.usage.completion_tokens);

let streamed = "";
let usage = null;
const stream = await client.chat.completions.create({
  ...options,
  stream: true,
  stream_options: { include_usage: true },
});
for await (const chunk of stream) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.equal(streamed, text);
assert.equal(usage.total_tokens, whole.usage.total_tokens);

const runner = client.chat.completions.stream(options);
assert.equal((await runner.finalChatCompletion()).choices[0].message.content, text);

const plain = await client.completions.create({ model, prompt: "One, two,", max_tokens: 4, temperature: 0 });
assert.equal(typeof plain.choices[0].text, "string");

const ship = {
  type: "object", additionalProperties: false, required: ["name", "masts"],
  properties: { name: { type: "string", maxLength: 20 }, masts: { enum: [1, 2, 3] } },
};
const structured = await client.chat.completions.create({
  model, messages: [{ role: "user", content: "Describe a ship." }], temperature: 0, max_tokens: 100, logprobs: true,
  response_format: { type: "json_schema", json_schema: { name: "ship", schema: ship, strict: true } },
});
assert.ok([1, 2, 3].includes(JSON.parse(structured.choices[0].message.content).masts));
assert.ok(structured.choices[0].logprobs.content.length > 5);

// The client's own loop: it calls the function here, and sends the result back.
let asked = null;
const loop = client.chat.completions.runTools({
  model, messages: [{ role: "user", content: "How many masts has a brig?" }], temperature: 0, max_tokens: 100,
  parallel_tool_calls: false, tool_choice: { type: "function", function: { name: "masts" } },
  tools: [{
    type: "function",
    function: {
      name: "masts", description: "The masts of a ship.", parse: JSON.parse,
      parameters: { type: "object", additionalProperties: false, required: ["kind"], properties: { kind: { enum: ["brig", "sloop"] } } },
      function: (ship) => { asked = ship; return "2"; },
    },
  }],
});
await loop.done();
assert.ok(["brig", "sloop"].includes(asked.kind), asked);

const vectors = await client.embeddings.create({ model, input: ["A ship", "Another ship"] });
assert.deepEqual(vectors.data.map((one) => one.embedding.length), [576, 576]);
assert.ok(Math.abs(vectors.data[0].embedding.reduce((sum, value) => sum + value * value, 0) - 1) < 1e-3);

// A client may go away in the middle.
const abandoned = await client.chat.completions.create({ ...options, max_tokens: 500, stream: true });
for await (const chunk of abandoned) {
  assert.equal(chunk.object, "chat.completion.chunk");
  break;
}

const refusal = async (changes) => {
  try {
    await client.chat.completions.create({ ...options, ...changes });
  } catch (error) {
    assert.ok(error instanceof OpenAI.APIError, error);
    return error;
  }
  assert.fail(`${JSON.stringify(changes)} was accepted`);
};
assert.equal((await refusal({ model: "other" })).status, 404);
assert.equal((await refusal({ typo: 1 })).param, "typo");
assert.equal((await refusal({ max_tokens: 1000000 })).code, "context_length_exceeded");
console.log("all good");

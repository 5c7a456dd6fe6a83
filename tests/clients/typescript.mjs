// The TypeScript SDK against the proxy at the address given: what it does, and what must come of it.
// Run by typescript.sh.
import assert from "node:assert/strict";
import Anthropic, { toFile } from "@anthropic-ai/sdk";

const baseURL = process.argv[2];
const client = new Anthropic({ baseURL, apiKey: "sk-anything", maxRetries: 0 });
const asked = { model: "claude-haiku-4-5", max_tokens: 60, messages: [{ role: "user", content: "Hello, world" }] };
const script = (text) => ({ headers: { "x-sandbox": text } });

async function step(name, run) {
  await run();
  console.log(`== ${name}`);
}

await step("create", async () => {
  const { data, response } = await client.messages.create(asked, script("tps=0")).withResponse();
  assert.equal(data.content[0].type, "text");
  assert.equal(data.usage.output_tokens, 40);
  assert.match(response.headers.get("x-tproxy-id"), /^[0-9a-f-]{36}$/);
});

await step("stream", async () => {
  const stream = client.messages.stream(asked, script("tps=0"));
  let text = "";
  stream.on("text", (piece) => (text += piece));
  const message = await stream.finalMessage();
  assert.equal(message.content[0].text, text);
  assert.equal(message.usage.output_tokens, 40);
});

for (const coding of ["gzip", "deflate"]) {
  await step(`stream, ${coding}`, async () => {
    const message = await client.messages.stream(asked, script(`coding=${coding}`)).finalMessage();
    assert.equal(message.stop_reason, "end_turn");
  });
}

await step("tools", async () => {
  const tools = [{ name: "get_weather", input_schema: { type: "object", properties: { city: { type: "string" } } } }];
  const messages = [{ role: "user", content: "Use get_weather for Zürich." }];
  const first = await client.messages.create({ ...asked, tools, messages }, script("tps=0"));
  assert.equal(first.stop_reason, "tool_use");
  const call = first.content.find((block) => block.type === "tool_use");
  const result = { type: "tool_result", tool_use_id: call.id, content: "12 °C" };
  messages.push({ role: "assistant", content: first.content }, { role: "user", content: [result] });
  const last = await client.messages.create({ ...asked, tools, messages }, script("tps=0"));
  assert.match(last.content[0].text, /12 °C/);
});

await step("count, models", async () => {
  const { model, messages } = asked;
  assert.ok((await client.messages.countTokens({ model, messages })).input_tokens > 0);
  const listed = [];
  for await (const model of client.models.list({ limit: 5 })) listed.push(model.id);
  assert.ok(listed.length > 15);
});

await step("batch, and its results through the proxy", async () => {
  const made = await client.messages.batches.create({ requests: [{ custom_id: "a", params: asked }] }, script("tps=0"));
  const ended = await client.messages.batches.retrieve(made.id);
  assert.ok(ended.results_url.startsWith(`${baseURL}/v1/messages/batches/`));
  const results = [];
  for await (const line of await client.messages.batches.results(made.id)) results.push(line.result.type);
  assert.deepEqual(results, ["succeeded"]);
});

await step("file", async () => {
  const file = await client.beta.files.upload({ file: await toFile(Buffer.alloc(200_000, 1), "x.bin") });
  const back = await (await client.beta.files.download(file.id)).arrayBuffer();
  assert.deepEqual(Buffer.from(back), Buffer.alloc(200_000, 1));
});

const errors = { 400: "BadRequestError", 401: "AuthenticationError", 404: "NotFoundError", 429: "RateLimitError" };
for (const [status, name] of Object.entries({ ...errors, 500: "InternalServerError", 529: "InternalServerError" })) {
  await step(`${status} is a ${name}`, async () => {
    await assert.rejects(client.messages.create(asked, script(`status=${status}`)), (error) => {
      assert.ok(error instanceof Anthropic[name], `${error}`);
      assert.equal(error.status, Number(status));
      return true;
    });
  });
}

await step("an error event raises", async () => {
  const stream = client.messages.stream(asked, script("error_after=12"));
  await assert.rejects(stream.finalMessage(), (error) => error instanceof Anthropic.APIError);
});

for (const broken of ["cut_after=12", "reset_after=12"]) {
  await step(`a broken stream raises (${broken})`, async () => {
    let text = "";
    const stream = client.messages.stream(asked, script(broken));
    stream.on("text", (piece) => (text += piece));
    await assert.rejects(stream.finalMessage(), (error) => !(error instanceof assert.AssertionError));
    assert.ok(text.length > 0);
    const events = await client.messages.create({ ...asked, stream: true }, script(broken));
    const seen = [];
    await assert.rejects(async () => {
      for await (const event of events) seen.push(event.type);
    });
    assert.equal(seen[0], "message_start");
    assert.ok(!seen.includes("message_stop"));
  });
}

// Cases for npm's agentkernel 0.18.1: `node agentkernel_node.cjs HOME CASE`; HOME/node_modules holds it.
"use strict";
const assert = require("node:assert/strict");
const { randomBytes } = require("node:crypto");
const { createRequire } = require("node:module");
const [home, wanted] = process.argv.slice(2);
const ak = createRequire(`${home}/`)("agentkernel");
const client = new ak.AgentKernel();
const fresh = () => `node-${randomBytes(6).toString("hex")}`;

async function refused(kind, step, ...texts) {
  try {
    await step();
  } catch (error) {
    assert.ok(error instanceof ak[kind], `${error.constructor.name}: ${error.message}`);
    for (const text of texts) assert.ok(error.message.includes(text), error.message);
    return;
  }
  assert.fail("not refused");
}

async function sandbox(body, options = {}) {
  const name = fresh();
  await client.createSandbox(name, options);
  try {
    await body(name);
  } finally {
    await client.removeSandbox(name);
  }
}

const cases = {
  async run() {
    assert.equal(await client.health(), "ok");
    assert.deepEqual(await client.run(["echo", "hello"]), { output: "hello\n" });
    const argv = ["a b", "", "'", '"', "\\", "$HOME", "`id`", ";|&<>", "*", "\n", "ü€𝄞"];
    const told = await client.run(["python3", "-c", "import sys, json; print(json.dumps(sys.argv[1:]))", ...argv]);
    assert.deepEqual(JSON.parse(told.output), argv);
    await refused("ServerError", () => client.run(["sh", "-c", "echo x; exit 3"]), "exited with code 3", "x");
    await refused("ValidationError", () => client.run([]), "empty");
    const { results } = await client.batchRun([{ command: ["echo", "a"] }, { command: ["false"] }]);
    assert.equal(results[0].output, "a\n");
    assert.match(results[1].error, /code 1/);
  },
  async stream() {
    const seen = [];
    for await (const event of client.runStream(["sh", "-c", "echo a; sleep 1; date +%s%3N; exit 5"])) {
      seen.push([event.type, event.data, Date.now()]);
    }
    assert.deepEqual(seen.map(([type]) => type), ["started", "output", "output", "done"]);
    assert.deepEqual(seen[1][1], { data: "a\n", stream: "stdout" });
    assert.ok(seen[1][2] < Number(seen[2][1].data), "it came before the command went on");
    assert.equal(seen[3][1].exit_code, 5);
  },
  async sandboxes() {
    await sandbox(async (name) => {
      const info = await client.getSandbox(name);
      assert.deepEqual([info.name, info.status, info.image], [name, "running", "python:3.12-alpine"]);
      assert.equal((await client.getSandboxByUuid(info.uuid)).name, name);
      assert.ok((await client.listSandboxes()).some((one) => one.name === name));
      const done = await client.execInSandbox(name, ["sh", "-c", "echo $A; pwd"], { env: ["A=x y"], workdir: "/tmp" });
      assert.equal(done.output, "x y\n/tmp\n");
      await refused("ServerError", () => client.createSandbox(name), "already exists");
      assert.ok(await client.extendTtl(name, { by: "1h" }));
      assert.equal((await client.getSandboxLogs(name))[0].type, "sandbox_created");
    }, { image: "python:3.12-alpine", vcpus: 1, memory_mb: 256 });
    await refused("NotFoundError", () => client.getSandbox(fresh()), "Sandbox not found");
  },
  async files() {
    await sandbox(async (name) => {
      await client.writeFile(name, "/tmp/a/f", "grüße\n");
      assert.deepEqual(await client.readFile(name, "/tmp/a/f"), { content: "grüße\n", encoding: "utf8", size: 8 });
      assert.deepEqual(await client.writeFiles(name, { "/srv/1": "1", "/srv/2": "2" }), { written: 2 });
      await client.deleteFile(name, "/tmp/a/f");
      await refused("NotFoundError", () => client.readFile(name, "/tmp/a/f"));
    });
  },
  async detached() {
    await sandbox(async (name) => {
      const made = await client.execDetached(name, ["sh", "-c", "echo out; sleep 600"]);
      assert.equal(made.status, "running");
      while ((await client.detachedLogs(name, made.id)).stdout !== "out\n") await new Promise((go) => setTimeout(go, 20));
      await client.detachedKill(name, made.id);
      assert.equal((await client.detachedStatus(name, made.id)).status, "failed");
      assert.deepEqual((await client.detachedList(name)).map((one) => one.id), [made.id]);
    });
  },
  // Every public method: what becomes of it is noted by tests/scenarios/recorder.cjs.
  async surface() {
    await sandbox(async (name) => {
      await client.writeFile(name, "/tmp/f", "x");
      const id = (await client.execDetached(name, ["sleep", "600"])).id;
      const calls = {
        detachedStatus: [name, id], detachedLogs: [name, id], detachedKill: [name, id], getBackends: [],
        takeSnapshot: [{ sandbox: name }], getSnapshot: ["x"], deleteSnapshot: ["x"], restoreSnapshot: ["x"], listSnapshots: [],
        listOrchestrations: [], createOrchestration: [{ name: "x" }], getOrchestration: ["x"],
        signalOrchestration: ["x", { name: "x" }], terminateOrchestration: ["x"], listOrchestrationDefinitions: [],
        upsertOrchestrationDefinition: [{ name: "x" }], getOrchestrationDefinition: ["x"],
        deleteOrchestrationDefinition: ["x"], listObjects: [], createObject: [{ class: "x", object_id: "y" }],
        getObject: ["x"], callObject: ["x", "y", "z"], deleteObject: ["x"], patchObject: ["x", {}], listSchedules: [],
        createSchedule: [{ name: "x", method: "y" }], getSchedule: ["x"], deleteSchedule: ["x"], listStores: [],
        createStore: [{ name: "x", kind: "sqlite" }], getStore: ["x"], deleteStore: ["x"], queryStore: ["x", { sql: "x" }],
        executeStore: ["x", { sql: "x" }], commandStore: ["x", { command: ["x"] }],
      };
      for (const [method, given] of Object.entries(calls)) await client[method]?.(...given).catch(() => {});
      const box = await client.sandbox(fresh());
      assert.equal((await box.run(["echo", "in"])).output, "in\n");
      assert.equal((await box.info()).name, box.name);
      assert.deepEqual(await box.writeFiles({ "/srv/1": "1" }), { written: 1 });
      await box.remove();
    });
  },
  async refusals() {
    const other = new ak.AgentKernel({ apiKey: "wrong" });
    await refused("AuthError", () => other.listSandboxes(), "Invalid API key");
    await refused("ServerError", () => client.listSnapshots(), "not supported");
    await refused("ServerError", () => client.listStores(), "not supported");
  },
};

cases[wanted]().catch((error) => {
  console.error(error);
  process.exit(1);
});

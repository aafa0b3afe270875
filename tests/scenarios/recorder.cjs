// As recorder.py, for clients of Node.js: `node -r recorder.cjs SCRIPT HOME …`, with the environment's SEEN a file to write.
"use strict";
const { writeFileSync } = require("node:fs");
const { createRequire } = require("node:module");
const ak = createRequire(`${process.argv[2]}/`)("agentkernel");
const own = { AgentKernel: ["headers", "fetch", "request"], SandboxSession: [] }; // private, which only its types say
const found = {};
let inside = 0; // calls of the client's own begin while one of the script's does, before it first waits

function verdict(error) {
  if (/not supported|unsupported|not.implemented/i.test(error.message)) return "refused";
  return error instanceof ak.AgentKernelError ? "failed" : "broken";
}

for (const [name, hidden] of Object.entries(own)) {
  const methods = (found[name] = {});
  const prototype = ak[name].prototype;
  for (const method of Object.getOwnPropertyNames(prototype)) {
    if (["constructor", ...hidden].includes(method)) continue;
    const [function_, outcomes] = [prototype[method], new Set()];
    methods[method] = outcomes;
    prototype[method] = function (...given) {
      if (inside) return function_.apply(this, given);
      inside += 1;
      let result;
      try {
        result = function_.apply(this, given);
      } finally {
        inside -= 1;
      }
      if (result[Symbol.asyncIterator]) return told(result, outcomes);
      result.then(() => outcomes.add("works"), (error) => outcomes.add(verdict(error)));
      return result;
    };
  }
}

async function* told(events, outcomes) {
  try {
    yield* events;
    outcomes.add("works");
  } catch (error) {
    outcomes.add(verdict(error));
    throw error;
  }
}

process.on("exit", () => {
  for (const methods of Object.values(found)) {
    for (const [method, outcomes] of Object.entries(methods)) methods[method] = [...outcomes].sort();
  }
  writeFileSync(process.env.SEEN, JSON.stringify(found));
});

import { supportsFeature } from "@litertjs/core";
import { openLitert } from "./litert.js";
import { answerBy } from "./worker.js";

const { debug } = console; // for what LiteRT logs, of which nothing is for users

answerBy(async (model, files) => {
  const script = (await supportsFeature("relaxedSimd")) ? "litert_wasm_internal.js" : "litert_wasm_compat_internal.js";
  const locateFile = (name: string) => files[name]; // where its script looks for the rest
  Object.assign(self, { Module: { locateFile, print: debug, printErr: debug } });
  return openLitert(model, files[script]);
});

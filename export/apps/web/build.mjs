// Makes the scripts of the package, each complete, and lays the engines' WebAssembly beside them.
//
//   node build.mjs [FOLDER] [NODE_MODULES] [ENGINE ...]    by default dist, node_modules, and onnx and litert
import { copyFileSync, mkdirSync } from "node:fs";
import { createRequire } from "node:module";
import { basename, dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const [folder = "dist", modules = "node_modules", ...engines] = process.argv.slice(2);
const here = dirname(fileURLToPath(import.meta.url)), packages = resolve(modules), LITERT = "@litertjs/core/wasm/litert_wasm_";
const files = {
  onnx: ["onnxruntime-web/dist/ort-wasm-simd-threaded.wasm"],
  litert: ["internal.js", "internal.wasm", "compat_internal.js", "compat_internal.wasm"].map((name) => LITERT + name),
};
const { build } = createRequire(join(packages, "_"))("esbuild");
const make = (names, format) => build({
  entryPoints: names.map((name) => join(here, "src", `${name}.ts`)), outdir: resolve(folder), nodePaths: [packages],
  bundle: true, minify: true, format, target: "es2022", legalComments: "inline", logLevel: "error",
  external: ["module", "worker_threads", "fs", "path", "url"], // asked for by ONNX Runtime, under Node
});
mkdirSync(folder, { recursive: true });
const copy = (file) => copyFileSync(join(packages, file), join(folder, basename(file)));
for (const engine of engines.length ? engines : Object.keys(files)) {
  files[engine].forEach(copy);
  await make([`${engine}Worker`], engine === "litert" ? "iife" : "esm");
}
await make(["index"], "esm");
if (!engines.length) { // for Node, which has no workers of this kind
  await make(["onnx"], "esm");
  copy("onnxruntime-web/dist/ort-wasm-simd-threaded.mjs");
}

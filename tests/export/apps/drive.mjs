// Runs queryEncoder.ts, compiled: what it answers comes out as "key value" lines, which test_apps.py judges.
import { readdirSync, readFileSync } from "node:fs";
import { env } from "onnxruntime-web";
import { QueryEncoder, nearest, toSquare } from "./queryEncoder.js";

const [folder, bundle, space] = process.argv.slice(2);
const say = (key, value) => console.log(`${key} ${value}`);
const hex = (bytes) => Buffer.from(bytes).toString("hex");
const refused = async (what, act) => {
  try {
    await act();
    say(`refused:${what}`, "");
  } catch (error) {
    say(`refused:${what}`, error.message);
  }
};
env.wasm.numThreads = 1;

const manifest = readFileSync(`${bundle}/manifest.json`, "utf8");
const read = (name) => new Uint8Array(readFileSync(`${bundle}/${name}`)).buffer;
const pictures = readdirSync(`${folder}/pictures`).map((name) => {
  const [number, width, height, size] = name.split(/[-.]/).map(Number);
  return { number, width, height, size, data: new Uint8Array(readFileSync(`${folder}/pictures/${name}`)) };
});
for (const name of readdirSync(bundle).filter((name) => name.endsWith(".onnx"))) {
  const encoder = await QueryEncoder.open(manifest, name, read(name), space);
  for (const picture of pictures.filter(({ size }) => size === encoder.metadata.size)) {
    const { code, logits } = await encoder.encode(picture);
    say(`code:${name}:${picture.number}`, hex(code));
    say(`logits:${name}:${picture.number}`, Array.from(logits).join());
  }
}
for (const picture of pictures) say(`square:${picture.number}`, hex(toSquare(picture, picture.size)));

const [gallery, queries] = ["gallery", "queries"].map((name) => new Uint8Array(readFileSync(`${folder}/${name}.bin`)));
const width = readFileSync(`${folder}/queries.bin`).length / 3;
for (let query = 0; query < 3; query++) {
  for (const k of [1, 10, 1000]) {
    const found = nearest(queries.subarray(query * width, (query + 1) * width), gallery, k);
    say(`nearest:${query}:${k}`, found.map(({ id, distance }) => `${id}:${distance}`).join());
  }
}

const [name] = readdirSync(bundle).filter((name) => name.endsWith(".onnx"));
const edited = (change) => {
  const record = JSON.parse(manifest);
  change(record.files[name]);
  return JSON.stringify(record);
};
const damaged = new Uint8Array(read(name));
damaged[damaged.length >> 1] ^= 1;
await refused("foreign", () => QueryEncoder.open(manifest, name, read(name), "f".repeat(16)));
await refused("rule", () => QueryEncoder.open(edited((e) => (e.metadata.resize = "squash")), name, read(name), space));
await refused("damaged", () => QueryEncoder.open(manifest, name, damaged.buffer, space));
await refused("sha256", () => QueryEncoder.open(edited((e) => (e.sha256 = "0".repeat(64))), name, read(name), space));
await refused("bare", () => QueryEncoder.open(edited((e) => delete e.metadata), name, read(name), space));
await refused("stranger", () => QueryEncoder.open(manifest, "other.onnx", read(name), space));
await refused("README.md", () => QueryEncoder.open(manifest, "README.md", read("README.md"), space));
await refused("k", () => nearest(new Uint8Array(8), gallery, 0));
await refused("rows", () => nearest(new Uint8Array(8), gallery.subarray(1), 1));
await refused("pixels", () => toSquare({ data: new Uint8Array(12), width: 2, height: 2 }, 2));

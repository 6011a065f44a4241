// Runs queryEncoder.ts, compiled: what it answers comes out as "key value" lines, which test_apps.py judges.
import { readdirSync, readFileSync } from "node:fs";
import { openOnnx } from "./onnx.js";
import { QueryEncoder, nearest, toSquare } from "./queryEncoder.js";

const [folder, bundle, space] = process.argv.slice(2);
const say = (key, value) => console.log(`${key} ${value}`);
const hex = (bytes) => Buffer.from(bytes).toString("hex");
const errorOf = async (what, act) => {
  try {
    await act();
    say(`error:${what}`, "");
  } catch (error) {
    say(`error:${what}`, error.message);
  }
};

const manifest = readFileSync(`${bundle}/manifest.json`, "utf8");
const read = (name) => new Uint8Array(readFileSync(`${bundle}/${name}`)).buffer;
const images = readdirSync(`${folder}/images`).map((name) => {
  const [number, width, height, size] = name.split(/[-.]/).map(Number);
  return { number, width, height, size, data: new Uint8Array(readFileSync(`${folder}/images/${name}`)) };
});
for (const name of readdirSync(bundle).filter((name) => name.endsWith(".onnx"))) {
  const encoder = await QueryEncoder.open(manifest, name, read(name), space, openOnnx);
  for (const image of images.filter(({ size }) => size === encoder.metadata.size)) {
    const { code, logits } = await encoder.encode(image);
    say(`code:${name}:${image.number}`, hex(code));
    say(`logits:${name}:${image.number}`, Array.from(logits).join());
  }
}
for (const image of images) say(`square:${image.number}`, hex(toSquare(image, image.size)));

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
await errorOf("foreign", () => QueryEncoder.open(manifest, name, read(name), "f".repeat(16), openOnnx));
await errorOf("rule", () => QueryEncoder.open(edited((e) => (e.metadata.rule = 3)), name, read(name), space, openOnnx));
await errorOf("damaged", () => QueryEncoder.open(manifest, name, damaged.buffer, space, openOnnx));
await errorOf("sha256", () => QueryEncoder.open(edited((e) => (e.sha256 = "0".repeat(64))), name, read(name), space, openOnnx));
await errorOf("bare", () => QueryEncoder.open(edited((e) => delete e.metadata), name, read(name), space, openOnnx));
await errorOf("stranger", () => QueryEncoder.open(manifest, "other.onnx", read(name), space, openOnnx));
await errorOf("README.md", () => QueryEncoder.open(manifest, "README.md", read("README.md"), space, openOnnx));
await errorOf("k", () => nearest(new Uint8Array(8), gallery, 0));
await errorOf("rows", () => nearest(new Uint8Array(8), gallery.subarray(1), 1));
await errorOf("pixels", () => toSquare({ data: new Uint8Array(12), width: 2, height: 2 }, 2));

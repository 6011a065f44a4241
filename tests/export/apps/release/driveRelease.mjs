// Runs release.ts, compiled, on the test vectors: each answer is a line "name<tab>answer", which test_release.py judges.
import { createServer } from "node:http";
import { readFileSync } from "node:fs";
import { checkFile, checkUpdate, fetchFiles, readRelease } from "./release.js";

const [folder] = process.argv.slice(2);
const say = (name, answer) => console.log(`${name}\t${answer}`);
const bytes = (text) => new Uint8Array(Buffer.from(text, "base64"));
const rows = (name) => readFileSync(`${folder}/${name}`, "utf8").split("\n").slice(0, -1).map((line) => line.split("\t"));
const answer = async (name, act) => {
  try {
    say(name, await act());
  } catch (error) {
    if (error.name !== "ReleaseError") throw error;
    say(name, error.message);
  }
};
const read = async (data, key) => readRelease(bytes(data), key);

for (const [name, data, key, space, installed, pinned] of rows("releases.tsv")) {
  await answer(name, async () => {
    const release = await read(data, key);
    const client = { space, installed: installed ? await read(installed, key) : undefined, pinned: Number(pinned) };
    return checkUpdate(release, client);
  });
}
for (const [name, data, file, count, sha256] of rows("files.tsv")) {
  await answer(name, async () => (await checkFile({ name: file, bytes: Number(count), sha256 }, bytes(data)), "right"));
}

const [[, data, key]] = rows("releases.tsv");
const [[, right], [, changed], [, longer]] = rows("files.tsv");
const served = { right, changed, longer };
const server = createServer((request, response) => {
  const [, kind, name] = request.url.split("/");
  response.writeHead(name in { "a.bin": 0, "b.bin": 0 } && served[kind] ? 200 : 404);
  response.end(Buffer.from(name === "b.bin" ? served[kind] ?? "" : right, "base64"));
});
await new Promise((ready) => server.listen(0, "127.0.0.1", ready));
const base = `http://127.0.0.1:${server.address().port}`;
const release = await read(data, key);
const names = (files) => [...files].map(([name, { length }]) => `${name}:${length}`).join();
for (const kind of ["right", "changed", "longer", "none"]) {
  await answer(`fetch-${kind}`, async () => names(await fetchFiles(release, `${base}/${kind}`)));
}
await answer("fetch-one", async () => names(await fetchFiles(release, `${base}/changed/`, ["a.bin"])));
await answer("fetch-other", async () => names(await fetchFiles(release, base, ["c.bin"])));
server.close();

await answer("short-key", () => read(data, "00"));
await answer("no-point", () => read(data, "02".padEnd(64, "0")));
for (const [name, subtle] of [
  ["http", undefined],
  ["old-browser", { importKey: async () => { throw new DOMException("Unrecognized name.", "NotSupportedError"); } }],
]) {
  Object.defineProperty(globalThis, "crypto", { value: { subtle }, configurable: true });
  await answer(name, () => read(data, key));
}

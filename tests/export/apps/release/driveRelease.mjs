// Runs release.ts, compiled, under Node: each answer is a line "name<tab>answer", which test_release.py judges.
import { createServer } from "node:http";
import { readFileSync } from "node:fs";
import { answer, answersTo, bytes, read, rows } from "./answers.js";
import { fetchFiles } from "./release.js";

const [folder] = process.argv.slice(2);
const say = ([name, said]) => console.log(`${name}\t${said}`);
const [releases, files] = ["releases", "files"].map((name) => readFileSync(`${folder}/${name}.tsv`, "utf8"));
for (const found of await answersTo(releases, files)) say(found);

const [[, data, key]] = rows(releases);
const [[, right], [, changed], [, longer]] = rows(files);
const served = { right, changed, longer };
const server = createServer((request, response) => {
  const [, kind, name] = request.url.split("/");
  response.writeHead(name in { "a.bin": 0, "b.bin": 0 } && served[kind] ? 200 : 404);
  response.end(bytes(name === "b.bin" ? served[kind] ?? "" : right));
});
await new Promise((ready) => server.listen(0, "127.0.0.1", ready));
const base = `http://127.0.0.1:${server.address().port}`;
const release = await read(data, key);
const names = (found) => [...found].map(([name, { length }]) => `${name}:${length}`).join();
for (const kind of ["right", "changed", "longer", "none"]) {
  say(await answer(`fetch-${kind}`, async () => names(await fetchFiles(release, `${base}/${kind}`))));
}
say(await answer("fetch-one", async () => names(await fetchFiles(release, `${base}/changed/`, ["a.bin"]))));
say(await answer("fetch-other", async () => names(await fetchFiles(release, base, ["c.bin"]))));
server.close();

const importKey = async () => {
  throw new DOMException("Unrecognized name.", "NotSupportedError");
};
for (const [name, subtle] of [["http", undefined], ["old-browser", { importKey }]]) {
  Object.defineProperty(globalThis, "crypto", { value: { subtle }, configurable: true });
  say(await answer(name, () => read(data, key)));
}

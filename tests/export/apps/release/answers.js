// Runs release.ts, compiled, on the test vectors, under Node and in a browser: [name, answer] of each.
import { checkFile, checkUpdate, readRelease } from "./release.js";

export const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
export const rows = (table) => table.split("\n").slice(0, -1).map((line) => line.split("\t"));
export const answer = async (name, act) => {
  try {
    return [name, await act()];
  } catch (error) {
    if (error.name !== "ReleaseError") throw error;
    return [name, error.message];
  }
};
export const read = async (data, key) => readRelease(bytes(data), key);

export async function answersTo(releases, files) {
  const found = [];
  for (const [name, data, key, space, before, pinned] of rows(releases)) {
    found.push(await answer(name, async () => {
      const release = await read(data, key), installed = before ? await read(before, key) : undefined;
      return checkUpdate(release, { space, installed, pinned: Number(pinned) });
    }));
  }
  for (const [name, data, file, count, sha256] of rows(files)) {
    const act = () => checkFile({ name: file, bytes: Number(count), sha256 }, bytes(data));
    found.push(await answer(name, async () => (await act(), "right")));
  }
  const [[, data, key]] = rows(releases);
  found.push(await answer("short-key", () => read(data, "00")));
  found.push(await answer("no-point", () => read(data, "02".padEnd(64, "0"))));
  return found;
}

/**
 * What an app downloads after its installation, checked: a signed release.json and the files that it names.
 *
 *     const release = await readRelease(await fetchBytes("updates/release.json", MAX_RELEASE), publicKey);
 *     const update = checkUpdate(release, { space: spaceOfTheGallery, installed, pinned: 2 });
 *     if (update !== "none") {
 *       const files = await fetchFiles(release, "updates/", ["manifest.json", "query-w8a32.onnx"]);
 *       // keep release.text and all files, in one transaction of IndexedDB
 *     }
 *
 * `publicKey`: the 64 hexadecimal digits that `export/run.py release-key` prints, part of the app and never downloaded.
 * `installed`: the release that was kept, read again: `await readRelease(new TextEncoder().encode(text), publicKey)`.
 * Takes WebCrypto with Ed25519 (Chrome 137, Firefox 129, Safari 17, Node 20) on https or localhost.
 */

/** A file to download: its name, without folders, its bytes and their SHA-256. */
export interface ReleaseFile {
  readonly name: string;
  readonly bytes: number;
  readonly sha256: string;
}

/** One version of what an app downloads.  `text`: that of release.json; `payload`: what was signed. */
export interface Release {
  readonly version: number;
  readonly codeSpace: string;
  readonly student: string;
  readonly created: string;
  readonly files: readonly ReleaseFile[];
  readonly gallery: readonly ReleaseFile[];
  readonly payload: string;
  readonly text: string;
}

/**
 * `space`: the code space of the gallery in use; once a release has brought a gallery, that release's.
 * `pinned`: the lowest version that the app takes.
 */
export interface ReleaseClient {
  readonly space: string;
  readonly installed?: Release;
  readonly pinned?: number;
}

/** Nothing, as it is installed; the student alone; the student together with the gallery. */
export type ReleaseUpdate = "none" | "student" | "both";

/** Something that is not to be installed; keep what is. */
export class ReleaseError extends Error {
  constructor(readonly expected: string, readonly found: string, readonly fix: string) {
    super(`expected ${expected}; found ${found}. ${fix}`);
    this.name = "ReleaseError";
  }
}

export const MAX_RELEASE = 65536; // bytes
const AGAIN = "Download it again; if that does not help, do not install it: it is not what was signed with the app's key.";
const LINE = String.raw` [0-9a-f]{64} [1-9][0-9]{0,9} [A-Za-z0-9_](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9_-])?\n`;
const PAYLOAD = new RegExp(
  String.raw`^twinhash release 1\nversion [1-9][0-9]{0,8}\ncode_space [0-9a-f]{16}\nstudent [A-Za-z0-9._/:-]{1,100}\n` +
    String.raw`created [0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z\n` +
    `(?:file${LINE}){1,64}(?:gallery${LINE}){0,64}$`,
);

/** Verifies the signature of a release.json, then reads it; a `ReleaseError` for whatever the key did not sign. */
export async function readRelease(data: Uint8Array<ArrayBuffer>, publicKey: string): Promise<Release> {
  const whole = "a whole release.json of Twinhash";
  if (data.length > MAX_RELEASE) throw new ReleaseError(whole, `more than ${MAX_RELEASE} bytes`, AGAIN);
  let text: string, record: { payload?: unknown; signature?: unknown };
  try {
    text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(data);
    record = JSON.parse(text);
  } catch (error) {
    throw new ReleaseError(whole, "what is no JSON", AGAIN);
  }
  const fields = record instanceof Object ? Object.keys(record).sort().join() : "";
  if (fields !== "payload,signature") throw new ReleaseError(whole, "no object of payload and signature", AGAIN);
  const { payload, signature } = record;
  if (typeof payload !== "string" || typeof signature !== "string" || !/^[0-9a-f]{128}$/.test(signature)) {
    throw new ReleaseError(whole, "a payload or signature of another form", AGAIN);
  }
  const key = await importKey(publicKey);
  if (!(await crypto.subtle.verify("Ed25519", key, unhex(signature), new TextEncoder().encode(payload)))) {
    const expected = `a release signed with the key ${publicKey.slice(0, 16)}...`;
    throw new ReleaseError(expected, "a changed text, or another key's signature", AGAIN);
  }
  return { ...parse(payload), text };
}

async function importKey(publicKey: string): Promise<CryptoKey> {
  const fix = "Build the 64 hexadecimal digits into the app that export/run.py release-key prints.";
  if (!/^[0-9a-f]{64}$/.test(publicKey)) {
    throw new ReleaseError("a public key of 64 hexadecimal digits", "another text", fix);
  }
  if (!globalThis.crypto?.subtle) {
    throw new ReleaseError("WebCrypto (crypto.subtle)", "none", "Serve the page by https, or from localhost.");
  }
  try {
    return await crypto.subtle.importKey("raw", unhex(publicKey), "Ed25519", false, ["verify"]);
  } catch (error) {
    const { name, message } = error as Error;
    if (name === "DataError") throw new ReleaseError("an Ed25519 public key", message, fix);
    const needed = "Keep what is installed; updates take Chrome 137, Firefox 129, Safari 17, Node 20 or a later one.";
    throw new ReleaseError("Ed25519 in this browser's WebCrypto", `${name}: ${message}`, needed);
  }
}

function unhex(digits: string): Uint8Array<ArrayBuffer> {
  return Uint8Array.from(digits.match(/../g) ?? [], (pair) => parseInt(pair, 16));
}

function parse(payload: string): Omit<Release, "text"> {
  const format = /^twinhash release ([0-9]{1,9})\n/.exec(payload);
  if (format && format[1] !== "1") {
    throw new ReleaseError("a release of format 1", `format ${format[1]}`, "Update the app, which knows no later.");
  }
  if (!PAYLOAD.test(payload)) {
    throw new ReleaseError("a whole release.json of Twinhash", "a payload that is not as Twinhash writes it", AGAIN);
  }
  const [, version, space, student, created, ...rows] = payload.split("\n").slice(0, -1).map((line) => line.split(" "));
  const filesOf = (kind: string) =>
    rows.filter((row) => row[0] === kind).map(([, sha256, bytes, name]) => ({ name, bytes: Number(bytes), sha256 }));
  const [files, gallery] = [filesOf("file"), filesOf("gallery")];
  const names = ["release.json", ...[...files, ...gallery].map(({ name }) => name.toLowerCase())];
  const twice = names.find((name, place) => names.indexOf(name) !== place);
  if (twice) throw new ReleaseError("a whole release.json of Twinhash", `the name ${twice} twice`, AGAIN);
  return {
    version: Number(version[1]), codeSpace: space[1], student: student[1], created: created[1], files, gallery, payload,
  };
}

/**
 * What an app does with a release whose signature was verified.  A student of the same code space is updated alone, and
 * the gallery kept; one of another only together with its gallery.  A `ReleaseError` for a version below the pinned or the installed one, for
 * the installed version with other content, and for another code space without its gallery.
 */
export function checkUpdate(release: Release, { space, installed, pinned = 0 }: ReleaseClient): ReleaseUpdate {
  const { version } = release;
  const least = Math.max(pinned, installed?.version ?? 0);
  if (version < least) {
    const fix = `Keep what is installed; publish this content as version ${least + 1} or later.`;
    const why = least === pinned ? "pinned" : "installed";
    throw new ReleaseError(`version ${least}, which is ${why}, or a later one`, `version ${version}`, fix);
  }
  if (version === installed?.version) {
    if (release.payload === installed.payload) return "none";
    const fix = `Keep what is installed; publish the new content as version ${version + 1}.`;
    throw new ReleaseError(`version ${version} as it is installed`, "the same version of other content", fix);
  }
  if (release.gallery.length) return "both";
  const other = [space, installed?.gallery.length ? installed.codeSpace : space].find((one) => one !== release.codeSpace);
  if (other !== undefined) {
    const expected = `a release of the gallery's code space ${other}, or one that brings its own gallery`;
    const fix = "Keep what is installed; publish the release with its gallery: release --gallery FOLDER.";
    throw new ReleaseError(expected, `code space ${release.codeSpace} without a gallery`, fix);
  }
  return "student";
}

/** A `ReleaseError` unless these are the bytes that were signed. */
export async function checkFile(file: ReleaseFile, data: Uint8Array<ArrayBuffer>): Promise<void> {
  const expected = `${file.name} of ${file.bytes} bytes, sha256 ${file.sha256.slice(0, 16)}`;
  const digest = data.length === file.bytes ? await crypto.subtle.digest("SHA-256", data) : new ArrayBuffer(0);
  const found = Array.from(new Uint8Array(digest), (byte) => byte.toString(16).padStart(2, "0")).join("");
  if (found !== file.sha256) {
    const what = `${data.length} bytes, sha256 ${found.slice(0, 16) || "not computed"}`;
    throw new ReleaseError(expected, what, "Download the file again.");
  }
}

/** The bytes at a URL, as they are now; no more than `limit` are read. */
export async function fetchBytes(url: string, limit: number): Promise<Uint8Array<ArrayBuffer>> {
  const response = await fetch(url, { cache: "no-cache" });
  const reader = response.ok ? response.body?.getReader() : undefined;
  if (!reader) throw new ReleaseError(`a file at ${url}`, `HTTP status ${response.status}`, "Try again later.");
  const parts: Uint8Array<ArrayBuffer>[] = [];
  let length = 0;
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    length += part.value.length;
    if (length > limit) {
      await reader.cancel();
      throw new ReleaseError(`at most ${limit} bytes at ${url}`, "more", "Download it from where it is published.");
    }
    parts.push(part.value);
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

/** All files of the gallery and the `wanted` ones of the student (all), by name: checked, or none of them. */
export async function fetchFiles(
  release: Release, folder: string, wanted: readonly string[] = release.files.map(({ name }) => name),
): Promise<Map<string, Uint8Array<ArrayBuffer>>> {
  const missing = wanted.filter((name) => !release.files.some((file) => file.name === name));
  if (missing.length) {
    const fix = `Choose from ${release.files.map(({ name }) => name).join(", ")}.`;
    throw new ReleaseError(`files of release ${release.version}`, missing.join(", "), fix);
  }
  const found = new Map<string, Uint8Array<ArrayBuffer>>();
  for (const file of [...release.files.filter(({ name }) => wanted.includes(name)), ...release.gallery]) {
    const data = await fetchBytes(`${folder.replace(/\/*$/, "/")}${file.name}`, file.bytes);
    await checkFile(file, data);
    found.set(file.name, data);
  }
  return found;
}

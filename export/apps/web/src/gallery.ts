/** What `gallery/run.py export --to site` writes, searched exactly where it is read. */
import { nearest } from "./queryEncoder.js";
import { checkFile, fetchBytes, type ReleaseFile } from "./release.js";

/** The bytes of a file below a folder, at most `limit` of them. */
export type Load = (name: string, limit: number) => Promise<Uint8Array<ArrayBuffer>>;

/** An item.  `row`: its place; `distance`: the number of differing bits; `thumbnail`: its address, if it has one. */
export interface Result {
  readonly row: number;
  readonly id: string;
  readonly distance: number;
  readonly labels: readonly string[];
  readonly thumbnail?: string;
}

interface Items {
  readonly ids: readonly string[];
  readonly classes: readonly string[];
  readonly labels: readonly (readonly number[] | null)[];
  readonly thumbnails: readonly (string | null)[];
}

const MAX_DESCRIPTION = 1 << 20, MAX_FILE = 1 << 30; // bytes
const THUMBNAIL = /^[0-9a-f]{2}\/[0-9a-f]{30}\.jpg$/;

export class Gallery {
  private constructor(
    readonly codeSpace: string, readonly bits: number, readonly codes: Uint8Array, readonly items: Items,
    private readonly folder: string,
  ) {}

  /** Fetches the export at an address. */
  static open(folder: string): Promise<Gallery> {
    return Gallery.read(loadFrom(folder), folder);
  }

  /** Reads an export by `load`; throws unless its files are those that gallery.json sums up. */
  static async read(load: Load, folder = ""): Promise<Gallery> {
    const about = parseJson(await load("gallery.json", MAX_DESCRIPTION));
    if (about.format !== 1) throw new Error(`gallery.json is of format ${about.format}, this code reads 1: update it`);
    const [codes, text] = await Promise.all(["codes.bin", "items.json"].map(async (name) => {
      const file: ReleaseFile = { ...about.files[name], name };
      const data = await load(name, checkSize(name, file.bytes, MAX_FILE));
      await checkFile(file, data);
      return data;
    }));
    const items: Items = parseJson(text), count = about.items;
    const columns = [items.ids.length, items.labels.length, items.thumbnails.length, (8 * codes.length) / about.bits];
    if (columns.some((length) => length !== count)) throw new Error(`gallery.json says ${count} items: export it again`);
    return new Gallery(about.code_space, about.bits, codes, items, asFolder(folder));
  }

  /** The `k` nearest items, by (distance, place). */
  nearest(code: Uint8Array, k = 10): Result[] {
    if (8 * code.length !== this.bits) throw new Error(`a code of ${8 * code.length} bits, codes of ${this.bits}`);
    return nearest(code, this.codes, k).map(({ id, distance }) => this.result(id, distance));
  }

  private result(row: number, distance: number): Result {
    const { ids, classes, labels, thumbnails } = this.items, name = thumbnails[row];
    const thumbnail = name && THUMBNAIL.test(name) ? `${this.folder}thumbs/${name}` : undefined;
    return { row, id: ids[row], distance, labels: (labels[row] ?? []).map((label) => classes[label]), thumbnail };
  }
}

/** Loads by `fetch` from the folder at an address. */
export function loadFrom(folder: string): Load {
  return (name, limit) => fetchBytes(asFolder(folder) + name, limit);
}

/** The number of bytes that a file is said to have. */
export function checkSize(name: string, bytes: unknown, most: number): number {
  if (typeof bytes === "number" && bytes >= 0 && bytes <= most) return bytes;
  throw new Error(`${name} is said to have ${bytes} bytes, not up to ${most}: export it again`);
}

export function parseJson(data: Uint8Array): any {
  return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(data));
}

const asFolder = (address: string) => (address ? address.replace(/\/*$/, "/") : "");

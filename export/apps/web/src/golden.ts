/** The golden inputs of a bundle as the test of an app: from the file to the code, as the app does it. */
import { loadFrom, parseJson } from "./gallery.js";
import type { Encoded } from "./queryEncoder.js";

/** `off`: the bits that differ; `wrong`: those of them whose golden logit is further from zero than the tolerance. */
export interface GoldenRow {
  readonly file: string;
  readonly off: number;
  readonly wrong: number;
}

const MAX_GOLDEN = 64 << 20, MAX_IMAGE = 64 << 20; // bytes
const NAME = /^golden\/(photos\/)?[A-Za-z0-9_][A-Za-z0-9._-]*$/;

/** Encodes each golden input of the bundle at an address.  An fp32 model has no wrong bit. */
export async function checkGolden(
  encoder: { encode(image: Blob): Promise<Encoded> }, bundle: string, tolerance = 1e-3,
): Promise<GoldenRow[]> {
  const load = loadFrom(bundle), rows: GoldenRow[] = [];
  for (const { file, code, logits } of parseJson(await load("golden.json", MAX_GOLDEN))) {
    if (!NAME.test(file)) throw new Error("golden.json names a file that no bundle has");
    const found = await encoder.encode(new Blob([await load(file, MAX_IMAGE)]));
    const bit = (bytes: ArrayLike<number>, j: number) => (bytes[j >> 3] >> (j & 7)) & 1;
    const golden = Array.from(code.match(/../g), (pair: string) => parseInt(pair, 16));
    const off = logits.map((_: number, j: number) => j).filter((j: number) => bit(found.code, j) !== bit(golden, j));
    rows.push({ file, off: off.length, wrong: off.filter((j: number) => Math.abs(logits[j]) > tolerance).length });
  }
  return rows;
}

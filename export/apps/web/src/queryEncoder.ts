/**
 * An image to its Twinhash code, by the engine of the model's format: `openOnnx` of onnx.ts, `openLitert` of litert.ts.
 *
 *     const manifest = await (await fetch("bundle/manifest.json")).text();
 *     const model = await (await fetch("bundle/query-fp32.onnx")).arrayBuffer();
 *     const encoder = await QueryEncoder.open(manifest, "query-fp32.onnx", model, spaceOfTheGallery, openOnnx);
 *     const { code } = await encoder.encode(await pixelsOf(file, encoder.metadata.size));
 *     const hits = nearest(code, gallery, 10);
 *
 * The engines do not hand out a model's metadata, so the metadata is that of manifest.json, which counts only for the
 * bytes whose SHA-256 stands beside it.  Checking it takes `crypto.subtle`: https, or localhost.
 */

/** The fields of the metadata that are used here. */
export interface ModelMetadata {
  readonly code_space: string;
  readonly bits: number;
  readonly size: number;
  readonly rule: number;
  readonly layout: string;
  readonly colour_order: string;
  readonly bit_order: string;
  readonly version: number;
}

/** An upright image, four bytes a pixel: red, green, blue, and one that is ignored.  An ImageData is one. */
export interface Pixels {
  readonly data: Uint8Array | Uint8ClampedArray;
  readonly width: number;
  readonly height: number;
}

/** `code`: bits/8 bytes, bit j in byte j/8 at place j%8.  `logits`: the numbers whose signs they are. */
export interface Encoded {
  readonly code: Uint8Array;
  readonly logits: Float32Array;
}

/** An open model: from the RGB bytes of one image to its code and logits. */
export type RunModel = (image: Uint8Array<ArrayBuffer>, height: number, width: number) => Promise<Encoded>;

/** Opens the bytes of a model file. */
export type OpenModel = (model: Uint8Array<ArrayBuffer>) => Promise<RunModel>;

/** `id`: the row in the gallery.  `distance`: the number of differing bits. */
export interface Neighbour {
  readonly id: number;
  readonly distance: number;
}

const RESIZED_INSIDE = "NHWC uint8, resized inside"; // the layout of --dynamic-image-size
/** Rule 2: what `pixelsOf` and `toSquare` do. */
const UNDERSTOOD = {
  rule: [2], layout: ["NHWC uint8", RESIZED_INSIDE], colour_order: ["RGB"], bit_order: ["little"], version: [2],
} as const;

export class QueryEncoder {
  private constructor(readonly metadata: ModelMetadata, private readonly run: RunModel) {}

  /** Opens the bundle's file `name`; throws unless its bytes are the manifest's and its code space is the gallery's. */
  static async open(
    manifest: string, name: string, model: ArrayBuffer, space: string, openModel: OpenModel,
  ): Promise<QueryEncoder> {
    const entry = JSON.parse(manifest).files[name];
    if (!entry?.metadata) throw new Error(`${name} has no metadata in manifest.json: take both from one bundle`);
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", model));
    const found = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
    if (found !== entry.sha256) {
      throw new Error(`${name} has SHA-256 ${found}, not manifest.json's ${entry.sha256}: load both again`);
    }
    check(entry.metadata, name, space);
    return new QueryEncoder(entry.metadata, await openModel(new Uint8Array(model)));
  }

  encode(image: Pixels): Promise<Encoded> {
    const { size, layout } = this.metadata;
    if (layout === RESIZED_INSIDE) return this.run(toRgb(image), image.height, image.width);
    return this.run(toSquare(image, size), size, size);
  }
}

function check(metadata: ModelMetadata, name: string, space: string): void {
  if (metadata.code_space !== space) {
    throw new Error(`${name} is of code space ${metadata.code_space}, the gallery of ${space}: ship the gallery's model`);
  }
  for (const [field, values] of Object.entries(UNDERSTOOD)) {
    const said = metadata[field as keyof ModelMetadata], known: readonly (string | number)[] = values;
    if (!known.includes(said)) {
      throw new Error(`${name} wants ${field} "${said}", this code does "${known.join('", "')}": update this code, or export the model again`);
    }
  }
}

/** The `k` nearest rows of a gallery of packed codes, row after row, by (distance, id). */
export function nearest(code: Uint8Array, gallery: Uint8Array, k: number): Neighbour[] {
  if (k < 1 || gallery.length % code.length) throw new Error(`k = ${k}, or rows that are not ${code.length} bytes`);
  const best: Neighbour[] = [];
  for (let id = 0; id * code.length < gallery.length; id++) {
    let distance = 0;
    for (let i = 0; i < code.length; i++) distance += POPCOUNT[code[i] ^ gallery[id * code.length + i]];
    if (best.length === k && distance >= best[k - 1].distance) continue;
    let place = best.length;
    while (place > 0 && best[place - 1].distance > distance) place--;
    best.splice(place, 0, { id, distance });
    if (best.length > k) best.pop();
  }
  return best;
}

const POPCOUNT = Uint8Array.from({ length: 256 }, (_, byte) => byte.toString(2).replaceAll("0", "").length);

/**
 * The pixels of an image file, as the server reads them: EXIF orientation applied, converted to sRGB, transparency laid
 * on white; reduced to a shorter side of 4 * `size` where it is larger.  In a browser or a worker.  Throws what to do
 * where the browser reads no image in it.
 *
 * The whole image is decoded (four bytes a pixel) and freed before any canvas is made, so no canvas is larger than
 * 4 * `size` times the longer side's share: Safari on iOS draws on none of more than 16,777,216 pixels.
 */
export async function pixelsOf(file: Blob, size: number): Promise<ImageData> {
  let bitmap: ImageBitmap;
  try {
    bitmap = await createImageBitmap(file, { imageOrientation: "from-image", colorSpaceConversion: "default" });
  } catch (error) {
    throw new Error(await refusal(file), { cause: error });
  }
  const scale = (4 * size) / Math.min(bitmap.width, bitmap.height);
  if (scale < 1) {
    const whole = bitmap;
    const [resizeWidth, resizeHeight] = [whole.width, whole.height].map((side) => Math.ceil(side * scale));
    bitmap = await createImageBitmap(whole, { resizeWidth, resizeHeight, resizeQuality: "high" });
    whole.close();
  }
  const { width, height } = bitmap;
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  if (!context) throw new Error("no 2D canvas here");
  context.fillStyle = "white";
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return context.getImageData(0, 0, width, height);
}

/** Why a browser reads no image in a file, and what to do. */
async function refusal(file: Blob): Promise<string> {
  const head = new TextDecoder().decode(await file.slice(4, 12).arrayBuffer());
  if (/^ftyp(hei[cmsx]|hev[cx]|mif1|msf1)/.test(head)) {
    return "This is a HEIC image, which this browser cannot read: use Safari, or save it as JPEG.";
  }
  return file.size ? "This browser reads no image in this file: choose a JPEG, PNG or WebP." : "The file is empty: choose another.";
}

/** The red, green and blue bytes of an image, for a model that resizes it itself. */
function toRgb(image: Pixels): Uint8Array<ArrayBuffer> {
  checkPixels(image);
  const rgb = new Uint8Array(3 * image.width * image.height);
  for (let i = 0; i < rgb.length; i++) rgb[i] = image.data[i + Math.floor(i / 3)];
  return rgb;
}

function checkPixels({ data, width, height }: Pixels): void {
  if (!width || data.length !== 4 * width * height) {
    throw new Error(`${data.length} bytes are not ${width} x ${height} pixels of four bytes`);
  }
}

/**
 * The metadata's resize rule: RGB bytes of the square that is left when the shorter side is made `size` and the longer
 * one cropped.  The integer arithmetic is Pillow's, which made the gallery's images: same pixels, same square.
 * (A canvas would scale by a filter of the browser's choice.)
 */
export function toSquare(image: Pixels, size: number): Uint8Array<ArrayBuffer> {
  checkPixels(image);
  const { data, width, height } = image;
  const columns = taps(width, Math.max(size, Math.floor((size * width) / height)), size);
  const rows = taps(height, Math.max(size, Math.floor((size * height) / width)), size);
  const narrow = new Uint8Array(3 * size * height);
  for (let y = rows[0].start; y < rows[size - 1].start + rows[size - 1].weights.length; y++) {
    for (let i = 0; i < 3 * size; i++) {
      narrow[3 * size * y + i] = weigh(columns[Math.floor(i / 3)], data, 4 * width * y + (i % 3), 4);
    }
  }
  const square = new Uint8Array(3 * size * size);
  return square.map((_, i) => weigh(rows[Math.floor(i / (3 * size))], narrow, i % (3 * size), 3 * size));
}

interface Taps {
  readonly start: number;
  readonly weights: Int32Array;
}

/** For the middle `size` of `output` pixels, the input pixels that each is made of, and their weights * 2^22. */
function taps(input: number, output: number, size: number): Taps[] {
  const scale = input / output, reach = Math.max(scale, 1);
  const half = (output - size) >> 1, first = half + (half & (output - size) & 1); // a half goes to the even side
  return Array.from({ length: size }, (_, i) => {
    const centre = (first + i + 0.5) * scale;
    const start = Math.max(Math.trunc(centre - reach + 0.5), 0);
    const length = Math.min(Math.trunc(centre + reach + 0.5), input) - start;
    const tent = Array.from({ length }, (_, j) => Math.max(1 - Math.abs((start + j - centre + 0.5) * (1 / reach)), 0));
    const total = tent.reduce((sum, weight) => sum + weight, 0);
    return { start, weights: Int32Array.from(tent, (weight) => Math.trunc(0.5 + (weight / total) * 2 ** 22)) };
  });
}

function weigh({ start, weights }: Taps, from: ArrayLike<number>, offset: number, step: number): number {
  let sum = 1 << 21;
  for (let i = 0; i < weights.length; i++) sum += weights[i] * from[offset + (start + i) * step];
  return sum >> 22;
}

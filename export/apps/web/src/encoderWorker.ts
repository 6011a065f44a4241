/** A `QueryEncoder` in a worker of its own, so that the page stays responsive. */
import { checkSize, loadFrom, parseJson } from "./gallery.js";
import type { ModelMetadata, Pixels } from "./queryEncoder.js";
import type { Answer, EncodedImage, EngineFiles, OpenRequest, Request } from "./worker.js";

interface Engine {
  readonly script: URL;
  readonly type: WorkerType;
  readonly files: EngineFiles;
}

// Each address is spelt out: bundlers copy what they find so.
const ENGINES: Readonly<Record<string, Engine>> = {
  ".tflite": {
    script: new URL("./litertWorker.js", import.meta.url),
    type: "classic", // LiteRT.js loads its WebAssembly by importScripts
    files: {
      "litert_wasm_internal.js": new URL("./litert_wasm_internal.js", import.meta.url).href,
      "litert_wasm_internal.wasm": new URL("./litert_wasm_internal.wasm", import.meta.url).href,
      "litert_wasm_compat_internal.js": new URL("./litert_wasm_compat_internal.js", import.meta.url).href,
      "litert_wasm_compat_internal.wasm": new URL("./litert_wasm_compat_internal.wasm", import.meta.url).href,
    },
  },
  ".onnx": {
    script: new URL("./onnxWorker.js", import.meta.url),
    type: "module",
    files: { "ort-wasm-simd-threaded.wasm": new URL("./ort-wasm-simd-threaded.wasm", import.meta.url).href },
  },
};
const PRECISIONS = ["w8a32", "fp32", "fp16"]; // the smallest that keeps the codes first
const MAX_MANIFEST = 8 << 20, MAX_MODEL = 1 << 30; // bytes

export class EncoderWorker {
  private readonly waiting = new Map<number, (answer: Answer) => void>();
  private count = 0;
  private broken = "";

  private constructor(
    private readonly worker: Worker, readonly name: string, readonly bytes: number, private about?: ModelMetadata,
  ) {
    worker.onmessage = ({ data }: MessageEvent<Answer>) => this.settle(data);
    worker.onerror = (event) => this.fail(event.message || `${name}'s worker cannot be loaded: copy all files of the kit`);
  }

  /**
   * Opens a model of the bundle at an address: `name`, or else the smallest of LiteRT.js, or of ONNX Runtime Web.
   * Throws unless it is the manifest's, and of the gallery's code space.
   */
  static async open(bundle: string, space: string, name?: string): Promise<EncoderWorker> {
    checkBrowser();
    const load = loadFrom(bundle), manifest = await load("manifest.json", MAX_MANIFEST);
    const { files } = parseJson(manifest), chosen = name ?? chooseModel(Object.keys(files));
    const engine = ENGINES[chosen.replace(/^.*(?=\.)/, "")];
    if (!engine || !files[chosen]) throw new Error(`the bundle has no model ${chosen} of a format for browsers`);
    const model = (await load(chosen, checkSize(chosen, files[chosen].bytes, MAX_MODEL))).buffer;
    const encoder = new EncoderWorker(new Worker(engine.script, { type: engine.type }), chosen, model.byteLength);
    const text = new TextDecoder().decode(manifest);
    const open: OpenRequest = { manifest: text, name: chosen, model, space, files: engine.files };
    try {
      encoder.about = (await encoder.ask({ open }, [model])) as ModelMetadata;
    } catch (error) {
      encoder.close();
      throw error;
    }
    return encoder;
  }

  get metadata(): ModelMetadata {
    return this.about!;
  }

  /** The code of an image file, or of its pixels. */
  encode(image: Blob | Pixels): Promise<EncodedImage> {
    return this.ask({ image }) as Promise<EncodedImage>;
  }

  /** Ends the worker; what is still asked of it fails. */
  close(): void {
    this.worker.terminate();
    this.fail("the encoder was closed");
  }

  private ask(request: Omit<Request, "id">, transfer: Transferable[] = []): Promise<ModelMetadata | EncodedImage> {
    if (this.broken) return Promise.reject(new Error(this.broken));
    const id = this.count++;
    return new Promise((resolve, reject) => {
      this.waiting.set(id, (answer) => ("error" in answer ? reject(new Error(answer.error)) : resolve(answer.value)));
      this.worker.postMessage({ ...request, id }, transfer);
    });
  }

  private settle(answer: Answer): void {
    this.waiting.get(answer.id)?.(answer);
    this.waiting.delete(answer.id);
  }

  private fail(error: string): void {
    this.broken = error;
    for (const id of [...this.waiting.keys()]) this.settle({ id, error });
  }
}

function chooseModel(names: readonly string[]): string {
  const wanted = Object.keys(ENGINES).flatMap((suffix) => PRECISIONS.map((precision) => `query-${precision}${suffix}`));
  const found = wanted.find((name) => names.includes(name));
  if (!found) throw new Error(`the bundle has none of ${wanted.join(", ")}: export one, export/run.py --formats litert onnx`);
  return found;
}

function checkBrowser(): void {
  const missing = ["WebAssembly", "Worker", "OffscreenCanvas", "createImageBitmap"].filter((name) => !(name in globalThis));
  if (!globalThis.crypto?.subtle) missing.push("crypto.subtle (https, or localhost)");
  if (missing.length) throw new Error(`this browser, or this address, lacks ${missing.join(", ")}: use a newer browser, and https`);
}

/** The engine of .tflite files: LiteRT.js (npm: @litertjs/core), in a page or a worker that is no module. */
import { loadAndCompile, loadLiteRt, Tensor } from "@litertjs/core";
import type { Encoded, RunModel } from "./queryEncoder.js";

let loaded: Promise<unknown> | undefined;

/** `wasm`: the address of the folder `wasm` of @litertjs/core, or of a .js file from it, which counts once. */
export async function openLitert(model: Uint8Array<ArrayBuffer>, wasm: string): Promise<RunModel> {
  await (loaded ??= loadLiteRt(wasm));
  const compiled = await loadAndCompile(model, { accelerator: "wasm" });
  const types = compiled.getOutputDetails().map(({ dtype }) => dtype);
  return async (image, height, width): Promise<Encoded> => {
    const input = new Tensor(image, [1, height, width, 3]);
    const outputs = await compiled.run([input]);
    const [code, logits] = await Promise.all((["uint8", "float32"] as const).map((type) => outputs[types.indexOf(type)].data()));
    for (const tensor of [input, ...outputs]) tensor.delete();
    return { code: code as Uint8Array, logits: logits as Float32Array };
  };
}

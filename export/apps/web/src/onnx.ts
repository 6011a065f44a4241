/** The engine of .onnx files: ONNX Runtime Web (npm: onnxruntime-web), in a browser, a worker or Node. */
import { env, InferenceSession, Tensor } from "onnxruntime-web/wasm";
import type { Encoded, RunModel } from "./queryEncoder.js";

/** `wasm`: the address of ort-wasm-simd-threaded.wasm, where that is not beside the script. */
export async function openOnnx(model: Uint8Array<ArrayBuffer>, wasm?: string): Promise<RunModel> {
  env.wasm.numThreads = 1; // more would take headers that few static hosts send
  if (wasm) env.wasm.wasmPaths = { wasm };
  const session = await InferenceSession.create(model);
  return async (image, height, width): Promise<Encoded> => {
    const { codes, logits } = await session.run({ image: new Tensor("uint8", image, [1, height, width, 3]) });
    return { code: codes.data as Uint8Array, logits: logits.data as Float32Array };
  };
}

import { openOnnx } from "./onnx.js";
import { answerBy } from "./worker.js";

answerBy((model, files) => openOnnx(model, files["ort-wasm-simd-threaded.wasm"]));

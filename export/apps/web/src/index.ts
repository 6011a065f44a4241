export * from "./encoderWorker.js";
export { Gallery, type Load, type Result } from "./gallery.js";
export * from "./golden.js";
export * from "./imageSearch.js";
export * from "./queryEncoder.js";
export * from "./release.js";
export type { EncodedImage } from "./worker.js";

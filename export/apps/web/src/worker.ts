/** The worker's side of `EncoderWorker`: one image after the other, so that only one is in memory. */
import { pixelsOf, QueryEncoder, type Encoded, type ModelMetadata, type Pixels, type RunModel } from "./queryEncoder.js";

/** The addresses of an engine's files, by name. */
export type EngineFiles = Readonly<Record<string, string>>;

/** The first message.  `space`: the gallery's code space. */
export interface OpenRequest {
  readonly manifest: string;
  readonly name: string;
  readonly model: ArrayBuffer;
  readonly space: string;
  readonly files: EngineFiles;
}

/** What is asked for; `id` comes back in the answer. */
export interface Request {
  readonly id: number;
  readonly open?: OpenRequest;
  readonly image?: Blob | Pixels;
}

/** A code, and the milliseconds to read the image and to make the code of it. */
export interface EncodedImage extends Encoded {
  readonly readMs: number;
  readonly encodeMs: number;
}

export type Answer =
  | { readonly id: number; readonly value: ModelMetadata | EncodedImage }
  | { readonly id: number; readonly error: string };

/** Answers the messages of this worker by an engine. */
export function answerBy(openModel: (model: Uint8Array<ArrayBuffer>, files: EngineFiles) => Promise<RunModel>): void {
  let encoder: QueryEncoder, done: Promise<void> = Promise.resolve();
  const answer = async ({ open, image }: Request): Promise<ModelMetadata | EncodedImage> => {
    if (open) {
      const { manifest, name, model, space, files } = open;
      encoder = await QueryEncoder.open(manifest, name, model, space, (bytes) => openModel(bytes, files));
      return encoder.metadata;
    }
    return encodeImage(encoder, image!);
  };
  self.onmessage = ({ data }: MessageEvent<Request>) => {
    const { id } = data, post = (message: Answer) => self.postMessage(message);
    done = done.then(() => answer(data)).then((value) => post({ id, value }), (error) => post({ id, error: messageOf(error) }));
  };
}

async function encodeImage(encoder: QueryEncoder, image: Blob | Pixels): Promise<EncodedImage> {
  const start = performance.now();
  const pixels = image instanceof Blob ? await pixelsOf(image, encoder.metadata.size) : image;
  const read = performance.now();
  const { code, logits } = await encoder.encode(pixels);
  return { code, logits, readMs: read - start, encodeMs: performance.now() - read };
}

const messageOf = (error: unknown) => (error instanceof Error ? error.message : String(error));

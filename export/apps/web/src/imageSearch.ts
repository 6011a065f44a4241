/** A gallery that is searched by an image, all in this browser. */
import { EncoderWorker } from "./encoderWorker.js";
import { Gallery, type Result } from "./gallery.js";
import type { Pixels } from "./queryEncoder.js";

export class ImageSearch {
  private constructor(readonly encoder: EncoderWorker, readonly gallery: Gallery) {}

  /**
   * Opens a bundle (its manifest.json and one model are fetched) and a gallery, the export `site`, at their addresses.
   * `model`: the name of a file in the bundle; throws unless both are of one code space.
   */
  static async open(bundle: string, gallery: string, model?: string): Promise<ImageSearch> {
    const items = await Gallery.open(gallery);
    return new ImageSearch(await EncoderWorker.open(bundle, items.codeSpace, model), items);
  }

  /** The `k` items nearest to an image, by (distance, place). */
  async nearest(image: Blob | Pixels, k = 10): Promise<Result[]> {
    return this.gallery.nearest((await this.encoder.encode(image)).code, k);
  }

  close(): void {
    this.encoder.close();
  }
}

package twinhash

import android.content.ContentResolver
import android.graphics.Bitmap
import android.graphics.ColorSpace
import android.graphics.ImageDecoder
import android.net.Uri
import kotlin.math.max
import kotlin.math.min
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.withContext

/**
 * The code of a photograph that the user chose or took, off the calling thread (Android 9, API 28).
 * Throws IOException for what cannot be read or decoded.
 */
suspend fun QueryEncoder.encode(resolver: ContentResolver, photo: Uri): Encoded = withContext(Dispatchers.Default) {
    encode(decodePhoto(ImageDecoder.createSource(resolver, photo), size))
}

/**
 * A photograph by the metadata's rule, for a model of input [size]: upright by its EXIF orientation (ImageDecoder does
 * that), in sRGB, in memory that can be read, and reduced where that saves much and aliases nothing.
 */
fun decodePhoto(source: ImageDecoder.Source, size: Int): Bitmap = ImageDecoder.decodeBitmap(source) { decoder, about, _ ->
    val sample = sampleSize(about.size.width, about.size.height, about.mimeType, size)
    decoder.allocator = ImageDecoder.ALLOCATOR_SOFTWARE
    decoder.setTargetColorSpace(ColorSpace.get(ColorSpace.Named.SRGB))
    decoder.setTargetSampleSize(sample)
    decoder.isUnpremultipliedRequired = sample == 1 // exact colors under transparency; decoders do not reduce such
}

private const val MOST_PIXELS = 1 shl 24 // 64 MB

/**
 * By how much to reduce the sides of an image: by halves, to no less than 4 * [size] on the shorter one. A JPEG's decoder
 * averages as it does so; those of PNG and HEIC leave pixels out, so of them only what is too large for memory is reduced.
 */
internal fun sampleSize(width: Int, height: Int, type: String, size: Int): Int {
    val allowed = Integer.highestOneBit(max(1, min(width, height) / (4 * size)))
    if (type == "image/jpeg") return min(allowed, 8)
    var sample = 1
    while (sample < allowed && width.toLong() * height / (sample * sample) > MOST_PIXELS) sample *= 2
    return sample
}

// The classes of Android that the app code uses, as far as it does, with the signatures of theirs; Java decodes.
package android.graphics

import android.content.ContentResolver
import android.net.Uri
import android.util.Size
import java.awt.image.BufferedImage
import java.io.File
import java.io.IOException
import javax.imageio.ImageIO

class Bitmap(val width: Int, val height: Int, private val argb: IntArray, val config: Config? = Config.ARGB_8888) {
    enum class Config { ARGB_8888, HARDWARE }

    fun getPixels(pixels: IntArray, offset: Int, stride: Int, x: Int, y: Int, width: Int, height: Int) {
        check(config != Config.HARDWARE) { "the pixels of a hardware bitmap cannot be read" }
        for (row in 0 until height) for (i in 0 until width) {
            pixels[offset + row * stride + i] = argb[(y + row) * this.width + x + i]
        }
    }

    fun copy(config: Config, isMutable: Boolean): Bitmap? = if (isMutable) null else Bitmap(width, height, argb, config)
}

class ColorSpace private constructor() {
    enum class Named { SRGB }

    companion object {
        fun get(name: Named) = ColorSpace().also { require(name == Named.SRGB) }
    }
}

/** Decodes by javax.imageio, turns upright by EXIF and converts to sRGB as Android's does; reduces by halves. */
class ImageDecoder private constructor() {
    class Source(val file: File)
    class ImageInfo(val size: Size, val mimeType: String)
    fun interface OnHeaderDecodedListener {
        fun onHeaderDecoded(decoder: ImageDecoder, info: ImageInfo, source: Source)
    }

    var allocator = ALLOCATOR_DEFAULT
    var isUnpremultipliedRequired = false
    private var sample = 1
    private var space: ColorSpace? = null

    fun setTargetSampleSize(sampleSize: Int) { sample = sampleSize }
    fun setTargetColorSpace(colorSpace: ColorSpace) { space = colorSpace }

    companion object {
        const val ALLOCATOR_DEFAULT = 0
        const val ALLOCATOR_SOFTWARE = 1

        fun createSource(resolver: ContentResolver, uri: Uri) = Source(File(uri.path!!))

        fun decodeBitmap(source: Source, listener: OnHeaderDecodedListener): Bitmap {
            val image = ImageIO.read(source.file) ?: throw IOException("an image that Java does not decode")
            val type = if (source.file.extension == "png") "image/png" else "image/jpeg"
            val turned = orientation(source.file.readBytes())
            val (width, height) = if (turned == 6) image.height to image.width else image.width to image.height
            val decoder = ImageDecoder()
            listener.onHeaderDecoded(decoder, ImageInfo(Size(width, height), type), source)
            check(decoder.space != null && decoder.sample == 1 && decoder.isUnpremultipliedRequired)
            val argb = IntArray(width * height) { upright(image, it % width, it / width, turned) }
            return Bitmap(width, height, argb, if (decoder.allocator == 1) Bitmap.Config.ARGB_8888 else Bitmap.Config.HARDWARE)
        }
    }
}

private fun upright(image: BufferedImage, x: Int, y: Int, orientation: Int) = when (orientation) {
    3 -> argb(image, image.width - 1 - x, image.height - 1 - y)
    6 -> argb(image, y, image.height - 1 - x)
    else -> argb(image, x, y)
}

private fun argb(image: BufferedImage, x: Int, y: Int) = // Java takes the numbers of a grey image for linear light
    if (image.raster.numBands == 1) 0xff shl 24 or image.raster.getSample(x, y, 0) * 0x010101 else image.getRGB(x, y)

/** Of the short big- or little-endian EXIF blocks that Pillow writes: the value of tag 0x0112. */
private fun orientation(file: ByteArray): Int {
    val text = String(file.copyOf(400), Charsets.ISO_8859_1)
    val big = text.indexOf("\u0001\u0012\u0000\u0003\u0000\u0000\u0000\u0001\u0000")
    val little = text.indexOf("\u0012\u0001\u0003\u0000\u0001\u0000\u0000\u0000")
    return if (big >= 0) text[big + 9].code else if (little >= 0) text[little + 8].code else 1
}

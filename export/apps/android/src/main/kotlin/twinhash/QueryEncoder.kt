package twinhash

import android.graphics.Bitmap
import java.io.Closeable
import java.nio.ByteBuffer
import java.nio.ByteOrder
import kotlin.math.abs
import kotlin.math.max
import kotlin.math.min
import org.json.JSONObject
import org.tensorflow.lite.Interpreter

/** [code]: bits/8 bytes, bit j in byte j/8 at place j%8. [logits]: the numbers whose signs they are. */
class Encoded(val code: ByteArray, val logits: FloatArray)

/** [id]: the row in the gallery. [distance]: the number of differing bits. */
data class Neighbour(val id: Int, val distance: Int)

/**
 * An image to its Twinhash code, by LiteRT 1 (com.google.ai.edge.litert:litert) or TensorFlow Lite.
 *
 *     val model = FileInputStream(file).channel.use { it.map(FileChannel.MapMode.READ_ONLY, 0, it.size()) }
 *     QueryEncoder(model, spaceOfTheGallery).use { encoder ->
 *         val hits = nearest(encoder.encode(contentResolver, photo).code, gallery, 10) // PhotoDecoder.kt
 *     }
 *
 * [model]: a .tflite file of the bundle, in a direct or mapped buffer. Its metadata is read from the file itself, so that
 * neither can be replaced without the other. Throws IllegalArgumentException unless the code space is [space].
 */
class QueryEncoder(model: ByteBuffer, space: String, threads: Int = 2) : Closeable {
    private val metadata = JSONObject(requireNotNull(embeddedMetadata(model, "twinhash.metadata")) { "no Twinhash metadata in this file" })
    val size = metadata.getInt("size")
    val bits = metadata.getInt("bits")
    private val interpreter: Interpreter
    private val input = ByteBuffer.allocateDirect(size * size * 3)

    init {
        val said = metadata.getString("code_space")
        require(said == space) { "the model is of code space $said, the gallery of $space: ship the gallery's model" }
        for ((field, value) in UNDERSTOOD) {
            val wanted = metadata.getString(field)
            require(wanted == value) { "the model wants $field \"$wanted\", this code does \"$value\": update this code, or export the model again" }
        }
        interpreter = Interpreter(model, Interpreter.Options().setNumThreads(threads))
    }

    /**
     * The code of an upright image, decoded in full, or reduced to no less than 4 * [size] on the shorter side.
     * Takes a tenth of a second for a large image: not on the main thread. Of several threads, one runs the model at a time.
     */
    fun encode(image: Bitmap): Encoded = run(toSquare(readable(image), size))

    @Synchronized
    private fun run(square: ByteArray): Encoded {
        input.clear()
        input.put(square).rewind()
        val codes = arrayOf(ByteArray(bits / 8))
        val logits = arrayOf(FloatArray(bits))
        interpreter.runSignature(mapOf("image" to input), mapOf("codes" to codes, "logits" to logits))
        return Encoded(codes[0], logits[0])
    }

    @Synchronized // not while an image is encoded
    override fun close() = interpreter.close()

    private companion object {
        val UNDERSTOOD = mapOf(
            "rule" to "2", // upright, in sRGB; not reduced below 4 x size; then `toSquare`
            "layout" to "NHWC uint8", "colour_order" to "RGB", "bit_order" to "little", "version" to "2",
        )
    }
}

/** A copy in memory of a hardware bitmap, whose pixels cannot be read; another one as it is. */
private fun readable(image: Bitmap): Bitmap =
    if (image.config?.name != "HARDWARE") image // of Android 8 or later; by name, as older ones have none
    else requireNotNull(image.copy(Bitmap.Config.ARGB_8888, false)) { "a hardware bitmap that cannot be copied" }

/** The [k] nearest rows of a gallery of packed codes, row after row, by (distance, id). */
fun nearest(code: ByteArray, gallery: ByteArray, k: Int): List<Neighbour> {
    require(k > 0 && gallery.size % code.size == 0) { "k = $k, or rows that are not ${code.size} bytes" }
    val best = ArrayList<Neighbour>()
    for (id in 0 until gallery.size / code.size) {
        var distance = 0
        for (i in code.indices) {
            distance += (code[i].toInt() xor gallery[id * code.size + i].toInt() and 0xff).countOneBits()
        }
        if (best.size == k && distance >= best.last().distance) continue
        best.add(best.indexOfLast { it.distance <= distance } + 1, Neighbour(id, distance))
        if (best.size > k) best.removeAt(k)
    }
    return best
}

/**
 * The last step of the metadata's rule: RGB bytes of the square that is left when the shorter side is made [size] and the
 * longer one cropped. The integer arithmetic is Pillow's, which made the gallery's images: same pixels, same square.
 * (Bitmap.createScaledBitmap takes 2 x 2 pixels however large the image, and aliases.)
 *
 * Android hands over sRGB: getPixels converts photographs with another colour profile, as the server does.
 */
fun toSquare(image: Bitmap, size: Int): ByteArray {
    val (width, height) = image.width to image.height
    val columns = taps(width, max(size, (size.toDouble() * width / height).toInt()), size)
    val rows = taps(height, max(size, (size.toDouble() * height / width).toInt()), size)
    val argb = IntArray(width)
    val rgb = IntArray(3 * width)
    val narrow = IntArray(3 * size * height)
    for (y in rows.first().start until rows.last().run { start + weights.size }) {
        image.getPixels(argb, 0, width, 0, y, width, 1)
        for (x in argb.indices) for (i in 0..2) rgb[3 * x + i] = onWhite(argb[x], 16 - 8 * i)
        for (x in 0 until size) for (i in 0..2) narrow[3 * (size * y + x) + i] = columns[x].weigh(rgb, i, 3)
    }
    return ByteArray(3 * size * size) { rows[it / (3 * size)].weigh(narrow, it % (3 * size), 3 * size).toByte() }
}

private fun onWhite(argb: Int, shift: Int): Int {
    val alpha = argb ushr 24
    val value = argb shr shift and 0xff
    return if (alpha == 255) value else (value * alpha + 255 * (255 - alpha) + 127) / 255
}

private class Taps(val start: Int, val weights: IntArray) {
    fun weigh(from: IntArray, offset: Int, step: Int): Int {
        var sum = 1 shl 21
        for (i in weights.indices) sum += weights[i] * from[offset + (start + i) * step]
        return sum shr 22
    }
}

/** For the middle [size] of [output] pixels, the input pixels that each is made of, and their weights * 2^22. */
private fun taps(input: Int, output: Int, size: Int): List<Taps> {
    val scale = input.toDouble() / output
    val reach = max(scale, 1.0)
    val half = (output - size) shr 1
    val first = half + (half and (output - size) and 1) // a half goes to the even side
    return List(size) { i ->
        val centre = (first + i + 0.5) * scale
        val start = max((centre - reach + 0.5).toInt(), 0)
        val end = min((centre + reach + 0.5).toInt(), input)
        val tent = List(end - start) { max(1 - abs((start + it - centre + 0.5) * (1 / reach)), 0.0) }
        val total = tent.sum()
        Taps(start, IntArray(tent.size) { (0.5 + tent[it] / total * (1 shl 22)).toInt() })
    }
}

/** The entry [name] in the metadata of a .tflite file, or null. The numbers are places in the schema's vtables. */
private fun embeddedMetadata(model: ByteBuffer, name: String): String? {
    val file = model.duplicate().order(ByteOrder.LITTLE_ENDIAN)
    fun follow(at: Int) = at + file.getInt(at)
    fun field(table: Int, place: Int): Int {
        val vtable = table - file.getInt(table)
        val offset = if (place < file.getShort(vtable)) file.getShort(vtable + place).toInt() else 0
        return if (offset == 0) 0 else table + offset
    }
    fun tables(at: Int): List<Int> {
        val start = if (at == 0) return listOf() else follow(at)
        return List(file.getInt(start)) { follow(start + 4 + 4 * it) }
    }
    fun text(at: Int) = follow(at).let { String(ByteArray(file.getInt(it)) { i -> file.get(it + 4 + i) }) }
    try {
        val root = follow(0)
        val entry = tables(field(root, 16)).find { text(field(it, 4)) == name } ?: return null
        return text(field(tables(field(root, 12))[file.getInt(field(entry, 6))], 4))
    } catch (error: RuntimeException) { // places outside of the file
        throw IllegalArgumentException("not a readable .tflite file", error)
    }
}

// Runs QueryEncoder.kt: what it answers comes out as "key value" lines, which test_apps.py judges.
import android.content.ContentResolver
import android.graphics.Bitmap
import android.graphics.ImageDecoder
import android.net.Uri
import java.io.File
import java.io.FileInputStream
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.channels.FileChannel
import java.util.concurrent.Executors
import kotlinx.coroutines.runBlocking
import org.tensorflow.lite.Interpreter
import twinhash.QueryEncoder
import twinhash.decodePhoto
import twinhash.encode
import twinhash.nearest
import twinhash.toSquare

class Image(val number: Int, val bitmap: Bitmap, val size: Int)

fun say(key: String, value: String) = println("$key $value")
fun hex(bytes: ByteArray) = bytes.joinToString("") { "%02x".format(it) }
fun direct(bytes: ByteArray) = ByteBuffer.allocateDirect(bytes.size).put(bytes).rewind() as ByteBuffer
fun errorOf(what: String, act: () -> Any) =
    say("error:$what", try { act(); "" } catch (error: IllegalArgumentException) { error.message!! })

fun image(file: File): Image {
    val (number, width, height, size) = file.name.split("-", ".").take(4).map { it.toInt() }
    val rgba = file.readBytes().map { it.toInt() and 0xff }
    val argb = IntArray(width * height) {
        (rgba[4 * it + 3] shl 24) or (rgba[4 * it] shl 16) or (rgba[4 * it + 1] shl 8) or rgba[4 * it + 2]
    }
    return Image(number, Bitmap(width, height, argb), size)
}

fun record(file: File, size: Int, bits: Int) {
    val answers = ByteBuffer.wrap(file.readBytes()).order(ByteOrder.LITTLE_ENDIAN)
    while (answers.hasRemaining()) {
        val image = ByteArray(size * size * 3).also { answers.get(it) }
        val codes = ByteArray(bits / 8).also { answers.get(it) }
        Interpreter.recorded[image.toList()] = Interpreter.Answer(codes, FloatArray(bits) { answers.getFloat() })
    }
}

/** Golden photographs from their files: those that Java decodes. */
fun photos(folder: File, encoder: QueryEncoder) {
    for (file in folder.listFiles()!!.sorted()) {
        try {
            val image = decodePhoto(ImageDecoder.createSource(ContentResolver(), Uri.fromFile(file)), encoder.size)
            say("photo:${file.name}", hex(toSquare(image, encoder.size)))
        } catch (error: Exception) {
            say("photo:${file.name}", "error ${error.javaClass.simpleName}")
        }
    }
}

/** Two threads encode while a third closes: an encoder is closed between two images, not within one. */
fun closed(encoder: QueryEncoder, image: Bitmap) {
    val threads = Executors.newFixedThreadPool(3)
    val ends = List(40) { threads.submit<String> { try { encoder.encode(image); "code" } catch (e: IllegalStateException) { "closed" } } }
    threads.submit { encoder.close() }
    say("closing", ends.map { it.get() }.toSet().sorted().last())
    threads.shutdown()
}

fun main(arguments: Array<String>) {
    val (folder, bundle, space) = arguments
    val images = File(folder, "images").listFiles()!!.map { image(it) }
    val models = File(bundle).listFiles()!!.filter { it.extension == "tflite" }
    for (file in models) {
        val model = FileInputStream(file).channel.use { it.map(FileChannel.MapMode.READ_ONLY, 0, it.size()) }
        QueryEncoder(model, space).use { encoder ->
            record(File(folder, "${file.name}.answers"), encoder.size, encoder.bits)
            for (image in images.filter { it.size == encoder.size }) {
                val encoded = encoder.encode(image.bitmap)
                say("code:${file.name}:${image.number}", hex(encoded.code))
                say("logits:${file.name}:${image.number}", encoded.logits.joinToString(","))
            }
            photos(File(bundle, "golden/photos"), encoder)
            val first = images.first { it.size == encoder.size }
            val (width, height) = first.bitmap.width to first.bitmap.height
            val pixels = IntArray(width * height).also { first.bitmap.getPixels(it, 0, width, 0, 0, width, height) }
            val hardware = Bitmap(width, height, pixels, Bitmap.Config.HARDWARE)
            say("hardware", hex(encoder.encode(hardware).code) + " " + hex(encoder.encode(first.bitmap).code))
            closed(encoder, first.bitmap)
        }
    }
    for (image in images) say("square:${image.number}", hex(toSquare(image.bitmap, image.size)))

    val (gallery, queries) = listOf("gallery", "queries").map { File(folder, "$it.bin").readBytes() }
    val width = queries.size / 3
    for (query in 0 until 3) for (k in listOf(1, 10, 1000)) {
        val found = nearest(queries.copyOfRange(query * width, (query + 1) * width), gallery, k)
        say("nearest:$query:$k", found.joinToString(",") { "${it.id}:${it.distance}" })
    }

    val bytes = models.first().readBytes()
    fun changed(from: String, to: String) =
        direct(bytes.toString(Charsets.ISO_8859_1).replace(from, to).toByteArray(Charsets.ISO_8859_1))
    errorOf("foreign") { QueryEncoder(direct(bytes), "f".repeat(16)) }
    errorOf("rule") { QueryEncoder(changed("\"rule\": 2", "\"rule\": 3"), space) }
    errorOf("bare") { QueryEncoder(changed("twinhash.metadata", "twinhash.metadaty"), space) }
    errorOf("damaged") { QueryEncoder(direct(bytes.copyOf(100)), space) }
    errorOf("noise") { QueryEncoder(direct(ByteArray(100) { (it * 37).toByte() }), space) }
    errorOf("k") { nearest(ByteArray(8), gallery, 0) }
    errorOf("rows") { nearest(ByteArray(8), gallery.copyOf(9), 1) }
}

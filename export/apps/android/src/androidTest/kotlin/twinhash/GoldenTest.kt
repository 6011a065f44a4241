package twinhash

import android.graphics.Bitmap
import android.graphics.ImageDecoder
import android.net.Uri
import androidx.test.ext.junit.runners.AndroidJUnit4
import androidx.test.platform.app.InstrumentationRegistry
import java.io.File
import java.nio.ByteBuffer
import kotlin.math.abs
import kotlin.math.sqrt
import kotlinx.coroutines.runBlocking
import org.json.JSONArray
import org.json.JSONObject
import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertTrue
import org.junit.Test
import org.junit.runner.RunWith

/** Every .tflite file of the bundle, from the golden files to their codes: what a wrong decode or resize does not pass. */
@RunWith(AndroidJUnit4::class)
class GoldenTest {
    private val instrumentation = InstrumentationRegistry.getInstrumentation()
    private val assets = instrumentation.context.assets // of the test
    private val rows = JSONArray(String(asset("golden.json"))).let { all -> List(all.length()) { all.getJSONObject(it) } }
    private val files = rows.map { it.getString("file") }
    private val models = assets.list("")!!.filter { it.endsWith(".tflite") }

    private fun asset(name: String) = assets.open(name).use { it.readBytes() }

    private fun encoder(name: String): QueryEncoder {
        val bytes = asset(name)
        val model = ByteBuffer.allocateDirect(bytes.size).put(bytes).rewind() as ByteBuffer
        return QueryEncoder(model, JSONObject(String(asset("codespace.json"))).getString("id"))
    }

    private fun decoded(file: String, size: Int) = decodePhoto(ImageDecoder.createSource(assets, file), size)

    private fun squareOf(file: String) =
        if (file.startsWith("golden/photos/")) "golden/squares/${File(file).nameWithoutExtension}.png" else file

    private fun rms(values: List<Float>) = sqrt(values.sumOf { it.toDouble() * it } / values.size)

    /** Through one model, so that what its weights lost does not count; w8a8 rounds too much to show a wrong resize. */
    @Test
    fun photographsBecomeTheirSquares() {
        assertTrue("the bundle has .tflite files", models.isNotEmpty())
        for (name in models.filterNot { "w8a8" in it }) encoder(name).use { encoder ->
            val squares = files.associateWith { encoder.encode(decoded(squareOf(it), encoder.size)).logits }
            val most = rms(squares.values.flatMap { it.toList() }) / 20
            for ((file, said) in squares) {
                val found = encoder.encode(decoded(file, encoder.size)).logits
                val error = rms(found.zip(said) { one, other -> one - other })
                assertTrue("$name, $file: logits differ by $error, at most $most", error <= most)
            }
        }
    }

    @Test
    fun theFloatModelReturnsTheGoldenCodes() {
        for (name in models.filter { it == "query-fp32.tflite" }) encoder(name).use { encoder ->
            for (row in rows) {
                val found = encoder.encode(decoded(squareOf(row.getString("file")), encoder.size)).logits
                val said = row.getJSONArray("logits")
                for (bit in found.indices) {
                    val isNear = abs(said.getDouble(bit)) <= 0.001
                    assertTrue("${row.getString("file")}, bit $bit", isNear || said.getDouble(bit) > 0 == found[bit] > 0)
                }
            }
        }
    }

    @Test
    fun photographsComeByUriAsFromTheirFiles() = encoder(models.first()).use { encoder ->
        for (name in files) {
            val file = File.createTempFile("photo", null, instrumentation.targetContext.cacheDir)
            file.writeBytes(asset(name))
            val resolver = instrumentation.targetContext.contentResolver
            val found = runBlocking { encoder.encode(resolver, Uri.fromFile(file)) }
            assertArrayEquals(encoder.encode(decoded(name, encoder.size)).code, found.code)
            file.delete()
        }
    }

    @Test
    fun hardwareBitmapsAreRead() = encoder(models.first()).use { encoder ->
        val image = decoded(files.first(), encoder.size)
        val hardware = requireNotNull(image.copy(Bitmap.Config.HARDWARE, false))
        assertArrayEquals(encoder.encode(image).code, encoder.encode(hardware).code)
    }

    @Test
    fun photographsAreReducedToNoLessThanFourTimesTheInput() {
        assertTrue(sampleSize(4000, 3000, "image/jpeg", 224) == 2)
        assertTrue(sampleSize(895, 3000, "image/jpeg", 224) == 1)
        assertTrue(sampleSize(4000, 3000, "image/heif", 224) == 1)
        assertTrue(sampleSize(8000, 6000, "image/heif", 224) == 2)
    }
}

// The classes of Android and LiteRT that QueryEncoder.kt uses, as far as it uses them, with the signatures of theirs.
package android.graphics

class Bitmap(val width: Int, val height: Int, private val argb: IntArray) {
    fun getPixels(pixels: IntArray, offset: Int, stride: Int, x: Int, y: Int, width: Int, height: Int) {
        for (row in 0 until height) for (i in 0 until width) {
            pixels[offset + row * stride + i] = argb[(y + row) * this.width + x + i]
        }
    }
}

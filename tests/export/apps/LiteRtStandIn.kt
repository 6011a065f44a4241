package org.tensorflow.lite

import java.nio.ByteBuffer

/** Repeats what LiteRT itself answered: an image that it was not shown is an error. */
class Interpreter(model: ByteBuffer, options: Options) : AutoCloseable {
    class Options {
        fun setNumThreads(count: Int): Options = apply { require(count > 0) }
    }

    class Answer(val codes: ByteArray, val logits: FloatArray)

    init {
        require(model.isDirect) { "LiteRT takes direct buffers" }
    }

    private var isOpen = true

    fun runSignature(inputs: Map<String, Any>, outputs: Map<String, Any>) {
        check(isOpen) { "closed" }
        require(inputs.keys == setOf("image") && outputs.keys == setOf("codes", "logits"))
        val image = inputs["image"] as ByteBuffer
        val answer = recorded.getValue(ByteArray(image.remaining()).also { image.get(it) }.toList())
        answer.codes.copyInto((outputs["codes"] as Array<*>).single() as ByteArray)
        answer.logits.copyInto((outputs["logits"] as Array<*>).single() as FloatArray)
    }

    override fun close() {
        isOpen = false
    }

    companion object {
        val recorded = HashMap<List<Byte>, Answer>()
    }
}

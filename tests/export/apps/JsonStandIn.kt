package org.json

class JSONException(message: String) : Exception(message)

/** An object of JSON; like Android's, getString takes numbers too, and what is wrong is a JSONException. */
class JSONObject(text: String) {
    private val fields: Map<*, *> = JsonReader(text).document() as? Map<*, *> ?: throw JSONException("no object")

    fun length(): Int = fields.size
    fun opt(name: String): Any? = fields[name]
    fun getString(name: String): String = fields[name]?.toString() ?: throw JSONException("no value for $name")
    fun getInt(name: String): Int = getString(name).toInt()
}

private class JsonReader(private val text: String) {
    private var at = 0

    fun document(): Any? = value().also { if (at < text.length) throw JSONException("more at $at") }

    private fun value(): Any? = token { next ->
        when {
            next("{") -> members("}", ::member).toMap()
            next("[") -> members("]", ::value)
            next("\"") -> string()
            else -> literal()
        }
    }

    private fun member(): Pair<String, Any?> {
        val name = value() as? String ?: throw JSONException("no name at $at")
        if (!accept(":")) throw JSONException("no colon at $at")
        return name to value()
    }

    private fun <T> members(end: String, member: () -> T): List<T> {
        val found = ArrayList<T>()
        while (!token { it(end) }) {
            if (found.isNotEmpty() && !accept(",")) throw JSONException("no comma at $at")
            found.add(member())
        }
        return found
    }

    private fun string(): String = buildString {
        while (!accept("\"")) {
            val letter = text.getOrNull(at++) ?: throw JSONException("a text without an end")
            val escaped = if (letter == '\\') text.getOrNull(at++) else null
            when (escaped) {
                null -> append(letter)
                'u' -> append((text.drop(at).take(4).toIntOrNull(16) ?: throw JSONException("no digits")).toChar()).also { at += 4 }
                else -> append("\"\\/\b\u000c\n\r\t".getOrNull("\"\\/bfnrt".indexOf(escaped)) ?: throw JSONException("an escape"))
            }
        }
    }

    private fun literal(): Any? {
        val word = Regex("[-+.\\w]+").matchAt(text, at)?.value ?: throw JSONException("no value at $at")
        at += word.length
        return when (word) {
            "true", "false" -> word == "true"
            "null" -> null
            else -> word.toIntOrNull() ?: word.toDoubleOrNull() ?: throw JSONException("no value: $word")
        }
    }

    private fun accept(what: String): Boolean = text.startsWith(what, at).also { if (it) at += what.length }

    private fun <T> token(read: ((String) -> Boolean) -> T): T {
        val blank = { while (text.getOrNull(at) in " \n\r\t".map { it }) at++ }
        blank()
        return read(::accept).also { blank() }
    }
}

package org.json

/** Flat objects of strings and whole numbers, which is what metadata is; like Android's, getString takes numbers too. */
class JSONObject(text: String) {
    private val fields = Regex(""""(\w+)": ("([^"]*)"|\d+)""").findAll(text).associate { found ->
        found.groupValues[1] to found.groupValues[2].trim('"')
    }

    fun getString(name: String): String = fields.getValue(name)
    fun getInt(name: String): Int = fields.getValue(name).toInt()
}

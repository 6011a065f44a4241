package android.net

import java.io.File

class Uri private constructor(val path: String?) {
    companion object {
        fun fromFile(file: File) = Uri(file.path)
    }
}

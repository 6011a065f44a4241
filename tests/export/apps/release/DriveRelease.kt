// Runs Release.kt on the test vectors: each answer is a line "name<tab>answer", which test_release.py judges.
import java.io.File
import java.security.Security
import java.util.Base64
import twinhash.Release
import twinhash.ReleaseClient
import twinhash.ReleaseException
import twinhash.ReleaseFile
import twinhash.checkFile
import twinhash.checkUpdate
import twinhash.installFiles
import twinhash.readRelease

fun bytes(text: String): ByteArray = Base64.getDecoder().decode(text)
fun rows(file: File) = file.readLines().map { it.split("\t") }
fun answer(name: String, act: () -> Any) =
    println("$name\t" + try { act() } catch (error: ReleaseException) { error.message })

fun placed(folder: File) = folder.walk().filter { it.isFile }.map { it.toRelativeString(folder) }.sorted().joinToString(",")

fun main(arguments: Array<String>) {
    val folder = File(arguments[0])
    val releases = rows(File(folder, "releases.tsv"))
    for ((name, data, key, space, more) in releases.map { it.take(4) + it.drop(4).joinToString("\t") }) answer(name) {
        val (installed, pinned) = more.split("\t")
        val before = if (installed.isEmpty()) null else readRelease(bytes(installed), key)
        checkUpdate(readRelease(bytes(data), key), ReleaseClient(space, before, pinned.toInt())).name.lowercase()
    }
    val downloads = File(folder, "kotlin-downloads").apply { mkdir() }
    for ((name, data, file, count, sha256) in rows(File(folder, "files.tsv"))) answer(name) {
        val path = File(downloads, file).apply { writeBytes(bytes(data)) }
        checkFile(path, ReleaseFile(file, count.toLong(), sha256))
        "right"
    }

    val (_, data, key, space) = releases[0]
    val (right, changed) = rows(File(folder, "files.tsv")).map { bytes(it[1]) }
    val release = readRelease(bytes(data), key)
    val place = File(folder, "kotlin-installed")
    fun install(name: String, b: ByteArray, wanted: Set<String> = setOf()) = answer(name) {
        File(downloads, "a.bin").writeBytes(right)
        File(downloads, "b.bin").writeBytes(b)
        installFiles(release, ReleaseClient(space), downloads, place, wanted)
        placed(place)
    }
    install("install-changed", changed)
    println("placed-nothing\t" + placed(File(place, "${release.version}")))
    install("install-one", changed, setOf("a.bin"))
    install("install-other", right, setOf("c.bin"))
    install("install-right", right)

    updates(releases, folder, right)
    File(downloads, "missing").delete()
    answer("missing") { checkFile(File(downloads, "missing"), release.files[0]) }
    answer("short-key") { readRelease(bytes(data), "00") }
    answer("no-point") { readRelease(bytes(data), "02".padEnd(64, '0')) }
    answer("no-provider") { readRelease(bytes(data), key, Security.getProvider("SUN")) }
}

/** Updates of the student alone beside a gallery that an earlier release brought. */
fun updates(releases: List<List<String>>, folder: File, right: ByteArray) {
    fun read(name: String) = releases.first { it[0] == name }.let { readRelease(bytes(it[1]), it[2]) }
    val (first, student) = listOf("gallery", "student-after-gallery").map { read(it) }
    val other = read("another-space-after-a-student")
    val place = File(folder, "kotlin-updates")
    val downloads = File(folder, "kotlin-right").apply { mkdir() }
    for (name in listOf("a.bin", "b.bin", "codes.bin")) File(downloads, name).writeBytes(right)
    File(place, "9.partial/student").mkdirs()
    fun update(name: String, release: Release, installed: Release?, into: File = place) = answer(name) {
        installFiles(release, ReleaseClient(release.codeSpace, installed), downloads, into, setOf("b.bin"))
        placed(File(place, "${release.version}"))
    }
    update("update-first", first, null)
    update("update-student", student, first)
    update("update-other-space", other, student)
    println("update-folders\t" + place.list().orEmpty().sorted().joinToString(","))
    File(place, "3/gallery/codes.bin").writeText("damaged")
    update("update-damaged", student, first)
    File(place, "3/gallery/release.json").delete()
    update("update-unknown", student, first)
    File(place, "3/gallery").deleteRecursively()
    update("update-lost", student, first)
    println("update-kept\t" + placed(File(place, "4")))
    update("update-nowhere", first, null, File(downloads, "a.bin"))
    File(downloads, "b.bin").delete()
    update("update-missing", first, null)
    println("update-left\t" + place.list().orEmpty().sorted().joinToString(","))
}
